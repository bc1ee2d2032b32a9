//! `iota`, `fill` and `dims`. Constants are there before the step starts.

use lorafa_ir::ops::{DimValue, Fill, Iota};

use super::{Cx, Emitted, In};
use crate::error::KernelError;

pub(super) fn iota(op: &Iota, cx: &mut Cx<'_>) -> Emitted {
    let out = &cx.outs[0];
    let (Some(start), Some(len)) = (op.start.known(), op.len.known()) else {
        return Err(KernelError::Unsupported("iota with symbols".into()));
    };
    if len <= 0 || op.step == 0 {
        return cx.fill(out, start as f64);
    }
    let end = len
        .checked_mul(op.step)
        .and_then(|span| start.checked_add(span));
    let Some(end) = end else {
        return Err(KernelError::Unsupported("iota leaves 64 bits".into()));
    };
    let bounds = [In::Int(start), In::Int(end), In::Int(op.step), out.into()];
    cx.call("arange", "start_out", &bounds)
}

pub(super) fn fill(op: &Fill, cx: &mut Cx<'_>) -> Emitted {
    cx.fill(&cx.outs[0], op.ty.dtype.round(op.value.0))
}

/// One number at a time: there are as many as a shape has.
pub(super) fn dims(op: &DimValue, cx: &mut Cx<'_>) -> Emitted {
    let out = cx.outs[0].reshaped(&[op.values.len() as u64])?;
    for (i, value) in op.values.iter().enumerate() {
        let Some(value) = value.known() else {
            let why = "dimensions that are not bound have no numbers";
            return Err(KernelError::Unsupported(why.into()));
        };
        let at = out.select(0, i as u64);
        cx.call("fill_", "Scalar", &[(&at).into(), In::Int(value)])?;
    }
    Ok(())
}
