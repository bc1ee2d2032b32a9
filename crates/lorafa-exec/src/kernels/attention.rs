//! `attention` and its gradient, a block of query rows at a time.
//!
//! The scores of one block of one sequence are all that there is of them at once:
//!
//! ```text
//!   scores = scale·q·kᵀ + bias     [shares, groups, rows, keys up to the block's last row if causal]
//!   out    = softmax(scores)·v       and lse = the row's largest score − log of its largest weight
//! ```
//!
//! Query heads that read one group of keys are a batch axis of their own, so that keys and values are read where they
//! lie. 16-bit operands are widened, and so is what BLAS cannot read: keys and values a sequence at a time, the rest a block
//! at a time. Scores and sums are never narrower than f32.

use lorafa_ir::DType;
use lorafa_ir::layout::Axes;
use lorafa_ir::ops::{Attention, AttentionGrad, AttentionSizes, UNSEEN};

use super::matmul::tidy;
use super::{Cx, Emitted, In};
use crate::error::KernelError;
use crate::view::View;

type Made<T> = Result<T, KernelError>;

/// Consecutive rows, and the keys that any of them sees.
struct Block {
    first: u64,
    rows: u64,
    from: u64,
    keys: u64,
}

/// What both kernels read.
struct Operands<'a> {
    op: Attention,
    s: AttentionSizes,
    q: Operand<'a>,
    k: Operand<'a>,
    v: Operand<'a>,
    mask: Option<View>,
    bias: Option<Operand<'a>>,
    /// Which keys of a block's own rows its rows see.
    triangle: Option<View>,
    never: Option<View>,
}

/// A view and the room for a copy that BLAS can read, if it needs one.
struct Operand<'a> {
    view: &'a View,
    room: Option<View>,
}

impl Operand<'_> {
    /// The part that `part` takes, copied if need be.
    fn part(&self, cx: &mut Cx<'_>, part: impl Fn(&View) -> View) -> Made<View> {
        let x = part(self.view);
        let Some(room) = &self.room else {
            return Ok(x);
        };
        let room = View::contiguous(room.start, room.dtype, x.shape());
        cx.copy(&room, &x)?;
        Ok(room)
    }
}

/// Whether BLAS reads an operand `[batch, heads, rows, width]` only from a copy.
fn copied(x: &View) -> bool {
    x.dtype.is_half() || !x.layout.matrix_fits()
}

fn room(cx: &mut Cx<'_>, on: bool, dtype: DType, numbers: u64) -> Option<View> {
    on.then(|| cx.scratch(dtype, &[numbers]))
}

/// The axes in another order.
fn permuted(x: &View, perm: [usize; 4]) -> View {
    let mut view = x.clone();
    view.layout.shape = perm.iter().map(|axis| x.layout.shape[*axis]).collect();
    view.layout.strides = perm.iter().map(|axis| x.layout.strides[*axis]).collect();
    view
}

/// With axes of length one in front, up to four.
fn four_axes(x: &View) -> View {
    let mut x = x.clone();
    while x.rank() < 4 {
        x = x.unsqueeze(0);
    }
    x
}

/// `[heads, rows, n]` as `[shares, groups, rows, n]`; a head is `group·shares + share`.
fn by_share(x: &View, s: &AttentionSizes) -> View {
    let shares = s.heads / s.groups.max(1);
    let [heads, rows, n] = [0, 1, 2].map(|axis| x.layout.shape[axis]);
    let [far, down, along] = [0, 1, 2].map(|axis| x.layout.strides[axis]);
    let mut view = x.clone();
    let one = heads == 1;
    let axes = |a: [u64; 4]| -> Axes { a.as_slice().into() };
    view.layout.shape = if one {
        axes([1, 1, rows, n])
    } else {
        axes([shares, s.groups, rows, n])
    };
    view.layout.strides = axes([far, far * shares, down, along]);
    view
}

/// `out = beta·out + alpha·a·b` for `[shares, groups, …]`, an axis of one share being all shares' own.
fn products(cx: &mut Cx<'_>, [a, b, out]: [&View; 3], beta: f64, alpha: f64) -> Emitted {
    let shares = [a, b, out].map(|x| x.shape()[0]);
    let most = shares.into_iter().max().unwrap_or(0);
    for share in 0..most {
        let of = |x: &View| x.select(0, if x.shape()[0] == 1 { 0 } else { share });
        // The first share begins a sum, the others add to it.
        let beta = if out.shape()[0] == 1 && share > 0 {
            1.0
        } else {
            beta
        };
        let (a, b, out) = (tidy(&of(a)), tidy(&of(b)), of(out));
        let args = [
            (&out).into(),
            (&a).into(),
            (&b).into(),
            In::Double(beta),
            In::Double(alpha),
        ];
        cx.call("baddbmm_", "", &args)?;
    }
    Ok(())
}

fn choose(cx: &mut Cx<'_>, condition: &View, a: &View, b: &View, out: &View) -> Emitted {
    let args = [condition, a, b, out].map(Into::into);
    cx.call("where", "self_out", &args)
}

impl<'a> Operands<'a> {
    fn new(op: Attention, s: AttentionSizes, ins: [&'a View; 3], extras: &'a [View]) -> Self {
        let plain = |view| Operand { view, room: None };
        let find = |bool| extras.iter().find(|x| (x.dtype == DType::Bool) == bool);
        let [q, k, v] = ins.map(plain);
        Operands {
            op,
            s,
            q,
            k,
            v,
            mask: find(true).map(four_axes),
            bias: find(false).map(plain),
            triangle: None,
            never: None,
        }
    }

    /// Takes scratch for what is masked with, and fills it.
    fn masks(&mut self, cx: &mut Cx<'_>, rows: u64) -> Emitted {
        if self.op.causal {
            let triangle = cx.scratch(DType::Bool, &[rows, rows]);
            cx.fill(&triangle, 1.0)?;
            cx.call("tril_", "", &[(&triangle).into(), In::Int(0)])?;
            self.triangle = Some(triangle);
        }
        if self.op.causal || self.mask.is_some() {
            self.never = Some(cx.literal(self.s.wide, f64::NEG_INFINITY)?);
        }
        Ok(())
    }

    /// Takes scratch for copies.
    fn rooms(&mut self, cx: &mut Cx<'_>, rows: u64) {
        let s = self.s;
        let (keys, values) = (
            s.groups * s.keys * s.width,
            s.groups * s.keys * s.value_width,
        );
        self.k.room = room(cx, copied(self.k.view), s.wide, keys);
        self.v.room = room(cx, copied(self.v.view), s.wide, values);
        self.q.room = room(cx, copied(self.q.view), s.wide, s.heads * rows * s.width);
    }

    /// Of a bias that is narrower than the scores.
    fn bias_room(&mut self, cx: &mut Cx<'_>, rows: u64) {
        if let Some(bias) = &mut self.bias
            && bias.view.dtype != self.s.wide
        {
            let shape = four_axes(bias.view);
            let [heads, down, along] = [1, 2, 3].map(|axis| shape.shape()[axis]);
            bias.room = Some(cx.scratch(self.s.wide, &[heads, down.min(rows), along]));
        }
    }

    fn blocks(&self, rows: u64) -> impl Iterator<Item = Block> + use<> {
        let (s, op) = (self.s, self.op);
        (0..s.rows).step_by(rows.max(1) as usize).map(move |first| {
            let rows = rows.min(s.rows - first);
            let end = if op.causal {
                s.keys.min(first + rows)
            } else {
                s.keys
            };
            let from = op
                .window
                .map_or(0, |window| (first + 1).saturating_sub(window));
            let from = from.min(end);
            Block {
                first,
                rows,
                from,
                keys: end - from,
            }
        })
    }

    /// The block of something `[1 or batch, 1 or heads, 1 or rows, 1 or keys]`, as `[shares, groups, rows, keys]`.
    fn block_of(&self, x: &View, sequence: u64, block: &Block) -> View {
        let x = x.select(0, if x.shape()[0] == 1 { 0 } else { sequence });
        let take = |x: View, axis: usize, from: u64, len: u64| {
            if x.shape()[axis] == 1 {
                x
            } else {
                x.narrow(axis, from, len)
            }
        };
        let x = take(x, 1, block.first, block.rows);
        take(x, 2, block.from, block.keys)
    }

    /// The scores of a block, from queries `[shares, groups, rows, width]` and keys `[1, groups, keys, width]`.
    fn scores(
        &self,
        cx: &mut Cx<'_>,
        [q, k, scores]: [&View; 3],
        sequence: u64,
        block: &Block,
    ) -> Emitted {
        let s = &self.s;
        products(cx, [q, &k.swapped(), scores], 0.0, self.op.scale.0)?;
        if let Some(bias) = &self.bias {
            let part = bias.part(cx, |x| self.block_of(&four_axes(x), sequence, block))?;
            cx.add(scores, &by_share(&part, s), In::Int(1), scores)?;
        }
        let Some(never) = &self.never else {
            return Ok(());
        };
        if let Some(mask) = &self.mask {
            let mask = by_share(&self.block_of(mask, sequence, block), s);
            choose(cx, &mask, scores, never, scores)?;
        }
        let Some(triangle) = &self.triangle else {
            return Ok(());
        };
        // Keys from the first row's own one on.
        let end = block.from + block.keys;
        if block.first < end {
            let count = end - block.first;
            let part = scores.narrow(3, block.first - block.from, count);
            let seen = triangle.narrow(0, 0, block.rows).narrow(1, 0, count);
            choose(cx, &seen, &part, never, &part)?;
        }
        // From the first row on whose window does not reach key zero, each sees one key less at the left.
        if let Some(window) = self.op.window {
            let full = (window - 1).saturating_sub(block.first);
            if full < block.rows {
                let rows = block.rows - full;
                let count = rows.min(block.keys);
                let part = scores.narrow(2, full, rows).narrow(3, 0, count);
                let seen = triangle.narrow(0, 0, count).narrow(1, 0, rows);
                choose(cx, &seen.swapped(), &part, never, &part)?;
            }
        }
        Ok(())
    }
}

pub(super) fn forward(op: Attention, cx: &mut Cx<'_>) -> Emitted {
    let (ins, out, lse) = (cx.ins, cx.outs[0].clone(), cx.outs[1].clone());
    let s = sizes([&ins[0], &ins[1], &ins[2]])?;
    let rows = s.block(1);
    let mut operands = Operands::new(op, s, [&ins[0], &ins[1], &ins[2]], &ins[3..]);
    let half = out.dtype.is_half();

    let all_scores = cx.scratch(s.wide, &[s.heads * rows * s.keys]);
    let most = cx.scratch(s.wide, &[s.heads * rows]);
    let weight = cx.scratch(s.wide, &[s.heads * rows]);
    operands.masks(cx, rows)?;
    let blind = op.may_see_nothing(ins.len()).then(|| {
        let flags = cx.scratch(DType::Bool, &[s.heads * rows]);
        (flags, cx.scratch(s.wide, &[]))
    });
    operands.rooms(cx, rows);
    let narrow = room(cx, half, s.wide, s.heads * rows * s.value_width);
    operands.bias_room(cx, rows);
    if s.keys == 0 || out.elements() == 0 {
        cx.fill(&out, 0.0)?;
        return cx.fill(&lse, f64::INFINITY);
    }

    let shares = s.heads / s.groups;
    for sequence in 0..s.batch {
        let k = of_sequence(cx, &operands.k, sequence)?;
        let v = of_sequence(cx, &operands.v, sequence)?;
        for block in operands.blocks(rows) {
            let shape = |n: u64| [shares, s.groups, block.rows, n];
            let of = |x: &View, n: u64| View::contiguous(x.start, x.dtype, &shape(n));
            let (scores, most, weight) =
                (of(&all_scores, block.keys), of(&most, 1), of(&weight, 1));
            let rows_of = |x: &View| x.select(0, sequence).narrow(1, block.first, block.rows);
            let q = by_share(&operands.q.part(cx, rows_of)?, &s);
            let (k, v) = (part_of(&k, &block), part_of(&v, &block));
            let to = out.select(0, sequence).narrow(0, block.first, block.rows);
            let y = match &narrow {
                Some(room) => View::contiguous(room.start, room.dtype, to.shape()),
                None => to.clone(),
            };
            let y_shares = by_share(&rows_last(&y), &s);
            let sums = lse.select(0, sequence).narrow(1, block.first, block.rows);
            let sums = by_share(&sums.unsqueeze(2), &s);
            if block.keys == 0 {
                cx.fill(&to, 0.0)?;
                cx.fill(&sums, f64::INFINITY)?;
                continue;
            }

            operands.scores(cx, [&q, &k, &scores], sequence, &block)?;
            largest(cx, &scores, &most)?;
            let axis = In::Int(3);
            let args = [(&scores).into(), axis, In::Bool(false), (&scores).into()];
            cx.call("_softmax", "out", &args)?;
            largest(cx, &scores, &weight)?;
            products(cx, [&scores, &v, &y_shares], 0.0, 1.0)?;
            cx.map("log", &weight, &weight)?;
            cx.sub(&most, &weight, 1, &sums)?;
            if let Some((flags, number)) = &blind {
                let flags = of(flags, 1);
                cx.fill(number, UNSEEN)?;
                let args = [(&most).into(), number.into(), (&flags).into()];
                cx.call("le", "Tensor_out", &args)?;
                cx.fill(number, f64::INFINITY)?;
                choose(cx, &flags, number, &sums, &sums)?;
                cx.fill(number, 0.0)?;
                choose(cx, &flags, number, &y_shares, &y_shares)?;
            }
            cx.copy(&to, &y)?;
        }
    }
    Ok(())
}

pub(super) fn backward(op: AttentionGrad, cx: &mut Cx<'_>) -> Emitted {
    let (ins, outs) = (cx.ins, cx.outs);
    let (d_out, out, lse) = (&ins[0], &ins[4], &ins[5]);
    let s = sizes([&ins[1], &ins[2], &ins[3]])?;
    let rows = s.block(2);
    let mut operands = Operands::new(op.of, s, [&ins[1], &ins[2], &ins[3]], &ins[6..]);
    let half = out.dtype.is_half();
    let (queries, values) = (s.heads * rows * s.width, s.heads * rows * s.value_width);

    let all_weights = cx.scratch(s.wide, &[s.heads * rows * s.keys]);
    let all_grads = cx.scratch(s.wide, &[s.heads * rows * s.keys]);
    let product = cx.scratch(s.wide, &[values]);
    let delta = cx.scratch(s.wide, &[s.heads * rows]);
    operands.masks(cx, rows)?;
    operands.rooms(cx, rows);
    let d_out = permuted(d_out, [0, 2, 1, 3]);
    let d_out = Operand {
        view: &d_out,
        room: room(cx, copied(&d_out), s.wide, values),
    };
    let dq_room = room(cx, half, s.wide, queries);
    let dk_room = room(cx, half, s.wide, s.groups * s.keys * s.width);
    let dv_room = room(cx, half, s.wide, s.groups * s.keys * s.value_width);
    operands.bias_room(cx, rows);
    let d_bias = outs.get(3).map(|view| {
        let view = four_axes(view);
        let axes = summed(&view, &s);
        let [heads, down, along] = [1, 2, 3].map(|axis| view.shape()[axis]);
        let part = (!axes.is_empty()).then(|| cx.scratch(s.wide, &[heads, down.min(rows), along]));
        (view, axes, part)
    });
    for out in &outs[1..] {
        cx.fill(out, 0.0)?;
    }
    if s.keys == 0 || out.elements() == 0 || s.width == 0 {
        return cx.fill(&outs[0], 0.0);
    }

    let shares = s.heads / s.groups;
    for sequence in 0..s.batch {
        let k = of_sequence(cx, &operands.k, sequence)?;
        let v = of_sequence(cx, &operands.v, sequence)?;
        let (dk_out, dv_out) = (outs[1].select(0, sequence), outs[2].select(0, sequence));
        let sums_of = |room: &Option<View>, out: &View| match room {
            Some(room) => View::contiguous(room.start, room.dtype, out.shape()),
            None => out.clone(),
        };
        let (dk, dv) = (sums_of(&dk_room, &dk_out), sums_of(&dv_room, &dv_out));
        if half {
            cx.fill(&dk, 0.0)?;
            cx.fill(&dv, 0.0)?;
        }
        for block in operands.blocks(rows) {
            let shape = |n: u64| [shares, s.groups, block.rows, n];
            let of = |x: &View, n: u64| View::contiguous(x.start, x.dtype, &shape(n));
            let rows_of = |x: &View| x.select(0, sequence).narrow(1, block.first, block.rows);
            let dq_out = outs[0]
                .select(0, sequence)
                .narrow(0, block.first, block.rows);
            if block.keys == 0 {
                cx.fill(&dq_out, 0.0)?;
                continue;
            }
            let (weights, grads) = (of(&all_weights, block.keys), of(&all_grads, block.keys));
            let q = by_share(&operands.q.part(cx, rows_of)?, &s);
            let d_out = by_share(&d_out.part(cx, rows_of)?, &s);
            let out = by_share(&rows_of(&permuted(out, [0, 2, 1, 3])), &s);
            let sums = lse.select(0, sequence).narrow(1, block.first, block.rows);
            let sums = by_share(&sums.unsqueeze(2), &s);
            let (k, v) = (part_of(&k, &block), part_of(&v, &block));
            let summed_keys =
                |x: &View| rows_last(x).narrow(1, block.from, block.keys).unsqueeze(0);

            operands.scores(cx, [&q, &k, &weights], sequence, &block)?;
            cx.sub(&weights, &sums, 1, &weights)?;
            cx.map("exp", &weights, &weights)?;
            products(
                cx,
                [&weights.swapped(), &d_out, &summed_keys(&dv)],
                1.0,
                1.0,
            )?;
            let (product, delta) = (of(&product, s.value_width), of(&delta, 1));
            cx.copy(&product, &out)?;
            cx.mul(&product, &d_out, &product)?;
            cx.sum(&product, &[3], true, &delta)?;
            products(cx, [&d_out, &v.swapped(), &grads], 0.0, 1.0)?;
            cx.sub(&grads, &delta, 1, &grads)?;
            cx.mul(&grads, &weights, &grads)?;

            let dq = match &dq_room {
                Some(room) => View::contiguous(room.start, room.dtype, dq_out.shape()),
                None => dq_out.clone(),
            };
            let scale = op.of.scale.0;
            products(cx, [&grads, &k, &by_share(&rows_last(&dq), &s)], 0.0, scale)?;
            products(cx, [&grads.swapped(), &q, &summed_keys(&dk)], 1.0, scale)?;
            cx.copy(&dq_out, &dq)?;
            if let Some((view, axes, part)) = &d_bias {
                let to = by_share(&operands.block_of(view, sequence, &block), &s);
                let addend = match part {
                    Some(room) => {
                        let part = View::contiguous(room.start, room.dtype, to.shape());
                        cx.sum(&grads, axes, true, &part)?;
                        part
                    }
                    None => grads,
                };
                cx.add(&to, &addend, In::Int(1), &to)?;
            }
        }
        cx.copy(&dk_out, &dk)?;
        cx.copy(&dv_out, &dv)?;
    }
    Ok(())
}

/// The keys or values of a sequence, `[1, groups, keys, width]`.
fn of_sequence(cx: &mut Cx<'_>, x: &Operand<'_>, at: u64) -> Made<View> {
    Ok(x.part(cx, |x| x.select(0, at))?.unsqueeze(0))
}

fn sizes([q, k, v]: [&View; 3]) -> Made<AttentionSizes> {
    let sizes = AttentionSizes::new(q.dtype, [q.shape(), k.shape(), v.shape()]);
    sizes.ok_or_else(|| KernelError::Unsupported(format!("attention of {:?}", q.layout)))
}

/// `[rows, heads, n]` as `[heads, rows, n]`.
fn rows_last(x: &View) -> View {
    let mut view = x.clone();
    view.layout.shape.swap(0, 1);
    view.layout.strides.swap(0, 1);
    view
}

/// The keys or values that a block sees.
fn part_of(x: &View, block: &Block) -> View {
    x.narrow(2, block.from, block.keys)
}

/// The largest number of each row.
fn largest(cx: &mut Cx<'_>, x: &View, out: &View) -> Emitted {
    let args = [x.into(), In::Ints(&[3]), In::Bool(true), out.into()];
    cx.call("amax", "out", &args)
}

/// Which axes of `[shares, groups, rows, keys]` a bias has one element for.
fn summed(bias: &View, s: &AttentionSizes) -> Vec<i64> {
    let shape = bias.shape();
    let mut axes = Vec::new();
    if shape[1] == 1 && s.heads != 1 {
        axes.extend([0, 1]);
    }
    for (axis, full) in [(2, s.rows), (3, s.keys)] {
        if shape[axis] == 1 && full != 1 {
            axes.push(axis as i64);
        }
    }
    axes
}
