//! `reduce_sum`, `reduce_mean`, `reduce_max`.

use lorafa_ir::ops::{Reduce, ReduceKind};

use super::{Cx, Emitted, In};
use crate::error::KernelError;
use crate::view::View;

pub(super) fn reduce(op: &Reduce, cx: &mut Cx<'_>) -> Emitted {
    let (x, out) = (&cx.ins[0], &cx.outs[0]);
    let count: u64 = op.axes.iter().map(|axis| x.shape()[*axis]).product();
    let divisor = match op.kind {
        ReduceKind::Mean => Some(cx.literal(out.dtype, count as f64)?),
        ReduceKind::Sum | ReduceKind::Max => None,
    };
    let parts = op.parts(x.elements(), out.elements());
    let x = if op.copies(x.dtype, parts) {
        cx.row_major(x)?
    } else {
        x.clone()
    };
    match parts {
        Some(parts) => {
            let parts = cx.scratch(x.dtype, &[parts]);
            in_parts(op.kind, &x, &parts, out, cx)?;
        }
        None => {
            let axes: Vec<i64> = op.axes.iter().map(|axis| *axis as i64).collect();
            over(op.kind, &x, &axes, op.keep_dims, out, cx)?;
        }
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

/// Blocks to parts, and the parts to one number.
fn in_parts(
    kind: ReduceKind,
    x: &View,
    parts: &View,
    out: &View,
    cx: &mut Cx<'_>,
) -> Result<(), KernelError> {
    let elements = x.elements();
    let x = x.reshaped(&[elements])?;
    let (whole, rest) = (elements / Reduce::BLOCK, elements % Reduce::BLOCK);
    let blocks = x.narrow(0, 0, whole * Reduce::BLOCK);
    let blocks = blocks.reshaped(&[whole, Reduce::BLOCK])?;
    over(kind, &blocks, &[1], false, &parts.narrow(0, 0, whole), cx)?;
    if rest > 0 {
        let x = x.narrow(0, whole * Reduce::BLOCK, rest);
        over(kind, &x, &[0], true, &parts.narrow(0, whole, 1), cx)?;
    }
    over(kind, parts, &[0], false, &out.reshaped(&[])?, cx)
}
