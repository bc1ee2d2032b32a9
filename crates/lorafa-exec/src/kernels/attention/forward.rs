//! `attention`.

use lorafa_ir::ops::{Attention, UNSEEN};

use super::drops::Drops;
use super::operands::{Operand, Operands, blocks, together};
use super::scores::Masks;
use super::{KEYS, by_share, heads_first, products, sizes, softmax};
use crate::kernels::{Cx, Emitted, In, When};
use crate::view::View;

pub(super) fn forward(op: Attention, cx: &mut Cx<'_>) -> Emitted {
    let (ins, out, lse) = (cx.ins, cx.outs[0].clone(), cx.outs[1].clone());
    let s = sizes([&ins[0], &ins[1], &ins[2]])?;
    let at_once = s.block(1);
    let rows = at_once.sequences * s.heads * at_once.rows;

    let all_scores = cx.scratch(s.wide, &[rows * s.keys]);
    let most = cx.scratch(s.wide, &[rows]);
    let weight = cx.scratch(s.wide, &[rows]);
    let seeing = match op.may_see_nothing(ins.len()) {
        true => Some((cx.scratch(s.wide, &[rows]), cx.literal(s.wide, UNSEEN)?)),
        false => None,
    };
    let masks = Masks::new(cx, op, s, at_once, &ins[3..])?;
    let drops = Drops::new(cx, op, s, at_once, &all_scores)?;
    let operands = Operands::new(cx, s, at_once, [&ins[0], &ins[1], &ins[2]]);
    let heads = heads_first(&out);
    let result = Operand::new(
        cx,
        &heads,
        s.collects(at_once),
        s.wide,
        rows * s.value_width,
    );
    if s.keys == 0 || out.elements() == 0 {
        cx.fill(&out, 0.0)?;
        return cx.fill(&lse, f64::INFINITY);
    }

    let shares = s.heads / s.groups;
    for of in together(&s, at_once) {
        let [k, v] = operands.keys_and_values(cx, of)?;
        for block in blocks(op, &s, at_once.rows, of) {
            let shape = |n: u64| [shares, of.count, s.groups, block.rows, n];
            let view = |x: &View, n: u64| View::contiguous(x.start, x.dtype, &shape(n));
            let (scores, most, weight) = (
                view(&all_scores, block.keys),
                view(&most, 1),
                view(&weight, 1),
            );
            let to = block.rows_of(&heads);
            let y = result.place(&to);
            let y_shares = by_share(&y, &s);
            let sums = by_share(&block.rows_of(&lse.unsqueeze(3)), &s);
            if block.keys == 0 {
                cx.fill(&to, 0.0)?;
                cx.fill(&sums, f64::INFINITY)?;
                continue;
            }

            let q = operands.queries(cx, &block)?;
            let (k, v) = (block.keys_of(&k), block.keys_of(&v));
            let mask = drops.as_ref().map(|drops| drops.mask(cx, &block));
            masks.scores(cx, [&q, &k, &scores], &block)?;
            largest(cx, &scores, &most)?;
            softmax(cx, &scores)?;
            largest(cx, &scores, &weight)?;
            if let (Some(drops), Some(mask)) = (&drops, &mask) {
                cx.when(When::Evaluation);
                products(cx, [&scores, &v, &y_shares], 0.0, 1.0)?;
                cx.when(When::Training);
                drops.keep(cx, mask, &scores, &scores)?;
                products(cx, [&scores, &v, &y_shares], 0.0, drops.factor())?;
                cx.when(When::Always);
            } else {
                products(cx, [&scores, &v, &y_shares], 0.0, 1.0)?;
            }
            if let Some((seeing, unseen)) = &seeing {
                // One, or zero for a row that sees nothing: that is its result, and minus infinity the logarithm.
                let seeing = view(seeing, 1);
                let args = [&most, unseen, &seeing].map(Into::into);
                cx.call("gt", "Tensor_out", &args)?;
                cx.mul(&weight, &seeing, &weight)?;
                cx.mul(&y_shares, &seeing, &y_shares)?;
            }
            cx.map("log", &weight, &weight)?;
            cx.sub(&most, &weight, 1, &sums)?;
            cx.copy(&to, &y)?;
        }
    }
    Ok(())
}

/// The largest number of each row.
fn largest(cx: &mut Cx<'_>, x: &View, out: &View) -> Emitted {
    let args = [
        x.into(),
        In::Ints(&[KEYS as i64]),
        In::Bool(true),
        out.into(),
    ];
    cx.call("amax", "out", &args)
}
