//! `reduce_sum`, `reduce_mean`, `reduce_max`.

use lorafa_ir::ops::{Reduce, ReduceKind};

use super::{Cx, Emitted, In};
use crate::view::View;

pub(super) fn reduce(op: &Reduce, cx: &mut Cx<'_>) -> Emitted {
    let (x, out) = (&cx.ins[0], &cx.outs[0]);
    let count: u64 = op.axes.iter().map(|axis| x.shape()[*axis]).product();
    let divisor = match op.kind {
        ReduceKind::Mean => Some(cx.literal(out.dtype, count as f64)?),
        ReduceKind::Sum | ReduceKind::Max => None,
    };
    let steps = op.steps(x.dtype, &x.layout);
    let ordered = x.permuted(&steps.order);
    let mut x = if steps.copy {
        cx.copied(&ordered, x.dtype)?
    } else {
        ordered
    };
    if steps.parts.is_empty() {
        let axes: Vec<i64> = op.axes.iter().map(|axis| *axis as i64).collect();
        over(op.kind, &x, &axes, op.keep_dims, out, cx)?;
    } else {
        let [outer, _, inner] = steps.shape;
        x = x.reshaped(&steps.shape)?;
        for count in &steps.parts {
            let parts = cx.scratch(x.dtype, &[outer, *count, inner]);
            in_blocks(op.kind, &x, steps.block, &parts, cx)?;
            x = parts;
        }
        let out = out.reshaped(&[outer, inner])?;
        over(op.kind, &x, &[1], false, &out, cx)?;
    }
    let Some(divisor) = divisor else {
        return Ok(());
    };
    let args = [out.into(), (&divisor).into(), out.into()];
    if out.dtype.is_float() {
        return cx.call("div", "out", &args);
    }
    let [a, b, out] = args;
    cx.call("div", "out_mode", &[a, b, In::Str("trunc"), out])
}

/// Sum or maximum over axes; a mean is a sum here.
fn over(
    kind: ReduceKind,
    x: &View,
    axes: &[i64],
    keep: bool,
    out: &View,
    cx: &mut Cx<'_>,
) -> Emitted {
    match kind {
        ReduceKind::Sum | ReduceKind::Mean => cx.sum(x, axes, keep, out),
        ReduceKind::Max if axes.is_empty() => cx.copy(out, x),
        ReduceKind::Max if x.elements() == 0 => cx.fill(out, f64::NEG_INFINITY),
        ReduceKind::Max => {
            let args = [x.into(), In::Ints(axes), In::Bool(keep), out.into()];
            cx.call("amax", "out", &args)
        }
    }
}

/// Each block of the middle axis to one number.
fn in_blocks(kind: ReduceKind, x: &View, block: u64, parts: &View, cx: &mut Cx<'_>) -> Emitted {
    let [outer, n, inner] = [0, 1, 2].map(|axis| x.shape()[axis]);
    let (whole, rest) = (n / block, n % block);
    let blocks = x.narrow(1, 0, whole * block);
    let blocks = blocks.reshaped(&[outer, whole, block, inner])?;
    over(kind, &blocks, &[2], false, &parts.narrow(1, 0, whole), cx)?;
    if rest > 0 {
        let x = x.narrow(1, whole * block, rest);
        over(kind, &x, &[1], true, &parts.narrow(1, whole, 1), cx)?;
    }
    Ok(())
}
