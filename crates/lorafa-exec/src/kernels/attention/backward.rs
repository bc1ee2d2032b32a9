//! The gradient of `attention`.

use lorafa_ir::ops::{AttentionBlock, AttentionGrad, AttentionSizes};

use super::drops::Drops;
use super::operands::{Operand, Operands, blocks, together};
use super::scores::{Masks, four_axes};
use super::{KEYS, by_share, heads_first, products, sizes, softmax};
use crate::kernels::softmax::gradient;
use crate::kernels::{Cx, Emitted, In};
use crate::view::View;

/// Rows are whole, so that weights are a softmax again, and neither the result nor the logarithms are needed for them.
pub(super) fn backward(op: AttentionGrad, cx: &mut Cx<'_>) -> Emitted {
    let (ins, outs) = (cx.ins, cx.outs);
    let lse = &ins[5];
    let s = sizes([&ins[1], &ins[2], &ins[3]])?;
    let at_once = s.block(2);
    let rows = at_once.sequences * s.heads * at_once.rows;
    let keys = at_once.sequences * s.groups * s.keys;

    let all_weights = cx.scratch(s.wide, &[rows * s.keys]);
    let all_grads = cx.scratch(s.wide, &[rows * s.keys]);
    let sums = cx.scratch(s.wide, &[rows]);
    let seeing = match op.of.may_see_nothing(ins.len() - 3) {
        true => Some((
            cx.scratch(s.wide, &[rows]),
            cx.literal(s.wide, f64::INFINITY)?,
        )),
        false => None,
    };
    let masks = Masks::new(cx, op.of, s, at_once, &ins[6..])?;
    let drops = Drops::new(cx, op.of, s, at_once, &all_grads)?;
    let operands = Operands::new(cx, s, at_once, [&ins[1], &ins[2], &ins[3]]);
    let d_out = heads_first(&ins[0]);
    let copy = s.copies(at_once, &d_out.layout) || seeing.is_some();
    let d_out = Operand::new(cx, &d_out, copy, s.wide, rows * s.value_width);
    let collects = s.collects(at_once);
    let mut result = |slot: usize, numbers: u64| {
        let view = heads_first(&outs[slot]);
        (Operand::new(cx, &view, collects, s.wide, numbers), view)
    };
    let (dq, dq_out) = result(0, rows * s.width);
    let (dk, dk_out) = result(1, keys * s.width);
    let (dv, dv_out) = result(2, keys * s.value_width);
    let d_bias = outs
        .get(3)
        .map(|view| DBias::new(cx, four_axes(view), &s, at_once));
    if s.keys == 0 || ins[0].elements() == 0 || s.width == 0 {
        return outs.iter().try_for_each(|out| cx.fill(out, 0.0));
    }

    if let Some(d_bias) = &d_bias {
        cx.fill(&d_bias.view, 0.0)?;
    }
    let shares = s.heads / s.groups;
    for of in together(&s, at_once) {
        let [k, v] = operands.keys_and_values(cx, of)?;
        let (dk_to, dv_to) = (of.part(&dk_out), of.part(&dv_out));
        let (dk, dv) = (dk.place(&dk_to), dv.place(&dv_to));
        let all = blocks(op.of, &s, at_once.rows, of).all(|b| (b.rows, b.keys) == (s.rows, s.keys));
        let beta = if all { 0.0 } else { 1.0 };
        if !all {
            cx.fill(&dk, 0.0)?;
            cx.fill(&dv, 0.0)?;
        }
        for block in blocks(op.of, &s, at_once.rows, of) {
            let shape = |n: u64| [shares, of.count, s.groups, block.rows, n];
            let view = |x: &View, n: u64| View::contiguous(x.start, x.dtype, &shape(n));
            let dq_to = block.rows_of(&dq_out);
            let dq = dq.place(&dq_to);
            if block.keys == 0 {
                cx.fill(&dq_to, 0.0)?;
                continue;
            }
            let (weights, grads) = (view(&all_weights, block.keys), view(&all_grads, block.keys));
            let q = operands.queries(cx, &block)?;
            let d_out = d_out.part(cx, |x| block.rows_of(x))?;
            let d_out = by_share(&d_out, &s);
            let (k, v) = (block.keys_of(&k), block.keys_of(&v));
            let [dk, dv] = [&dk, &dv].map(|x| by_share(&block.keys_of(x), &s));
            if let Some((seeing, infinity)) = &seeing {
                // What sees nothing gives nothing.
                let seeing = view(seeing, 1);
                let sums = by_share(&block.rows_of(&lse.unsqueeze(3)), &s);
                let args = [&sums, infinity, &seeing].map(Into::into);
                cx.call("ne", "Tensor_out", &args)?;
                cx.mul(&d_out, &seeing, &d_out)?;
            }

            let mask = drops.as_ref().map(|drops| drops.mask(cx, &block));
            masks.scores(cx, [&q, &k, &weights], &block)?;
            softmax(cx, &weights)?;
            if let (Some(drops), Some(mask)) = (&drops, &mask) {
                // What survives of the weights is where their gradients will be.
                let factor = drops.factor();
                drops.keep(cx, mask, &weights, &grads)?;
                products(cx, [&grads.swapped(), &d_out, &dv], beta, factor)?;
                products(cx, [&d_out, &v.swapped(), &grads], 0.0, factor)?;
                drops.keep(cx, mask, &grads, &grads)?;
            } else {
                products(cx, [&weights.swapped(), &d_out, &dv], beta, 1.0)?;
                products(cx, [&d_out, &v.swapped(), &grads], 0.0, 1.0)?;
            }
            gradient(cx, [&grads, &weights, &view(&sums, 1), &grads], KEYS)?;
            let scale = op.of.scale.0;
            products(cx, [&grads, &k, &by_share(&dq, &s)], 0.0, scale)?;
            products(cx, [&grads.swapped(), &q, &dk], beta, scale)?;
            cx.copy(&dq_to, &dq)?;
            if let Some(d_bias) = &d_bias {
                d_bias.add(cx, &block.part_of(&d_bias.view), &grads, &s)?;
            }
        }
        cx.copy(&dk_to, &dk)?;
        cx.copy(&dv_to, &dv)?;
    }
    Ok(())
}

/// The axis of sequences of `[shares, sequences, groups, rows, keys]`.
const SEQUENCES: i64 = 1;

/// The gradient of the bias, `[1 or batch, 1 or heads, 1 or rows, 1 or keys]`.
struct DBias {
    view: View,
    /// Of `[shares, sequences, groups, rows, keys]`, those that it has one element for.
    axes: Vec<i64>,
    /// For the sum of a block over these.
    room: Option<View>,
}

impl DBias {
    /// Takes scratch for the part of a block.
    fn new(cx: &mut Cx<'_>, view: View, s: &AttentionSizes, at_once: AttentionBlock) -> Self {
        let [sequences, heads, rows, keys] = [0, 1, 2, 3].map(|axis| view.shape()[axis]);
        let mut axes = Vec::new();
        if heads == 1 && s.heads != 1 {
            axes.extend([0, 2]);
        }
        let others = [
            (SEQUENCES, sequences, at_once.sequences),
            (3, rows, s.rows),
            (KEYS as i64, keys, s.keys),
        ];
        axes.extend(
            others
                .into_iter()
                .filter(|(_, n, full)| *n == 1 && *full != 1)
                .map(|(axis, ..)| axis),
        );
        axes.sort_unstable();
        let shape = [
            sequences.min(at_once.sequences),
            heads,
            rows.min(at_once.rows),
            keys,
        ];
        let room = (!axes.is_empty()).then(|| cx.scratch(s.wide, &shape));
        DBias { view, axes, room }
    }

    /// Adds what a block gives to its part.
    fn add(&self, cx: &mut Cx<'_>, part: &View, grads: &View, s: &AttentionSizes) -> Emitted {
        let part = by_share(part, s);
        let Some(room) = &self.room else {
            return cx.add(&part, grads, In::Int(1), &part);
        };
        // A sum over more sequences takes memory on a GPU.
        let at_once = if self.axes.contains(&SEQUENCES) {
            255
        } else {
            u64::MAX
        };
        let count = grads.shape()[SEQUENCES as usize];
        for from in (0..count).step_by(at_once.min(count).max(1) as usize) {
            let grads = grads.narrow(SEQUENCES as usize, from, at_once.min(count - from));
            let sum = View::contiguous(room.start, room.dtype, part.shape());
            cx.sum(&grads, &self.axes, true, &sum)?;
            cx.add(&part, &sum, In::Int(1), &part)?;
        }
        Ok(())
    }
}
