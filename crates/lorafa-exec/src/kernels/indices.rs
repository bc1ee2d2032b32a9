//! Indices as libtorch takes them: i64, row-major, none counted from the end.
//!
//! `clamp(i, -1, 0)` is -1 for an index that counts from the end and 0 otherwise, so `i - n·clamp(i, -1, 0)` is its
//! position. What was out of range stays out of range, and the kernel that reads it says so.

use lorafa_ir::DType;

use super::{Cx, In};
use crate::error::KernelError;
use crate::view::View;

/// Positions on an axis of length `n`, in scratch.
pub(super) fn positions(indices: &View, n: u64, cx: &mut Cx<'_>) -> Result<View, KernelError> {
    let wide = if indices.dtype == DType::I64 {
        indices.clone()
    } else {
        cx.copied(indices, DType::I64)?
    };
    let out = cx.scratch(DType::I64, indices.shape());
    below_zero(&wide, &out, cx)?;
    cx.sub(&wide, &out, as_int(n)?, &out)?;
    Ok(out)
}

/// Index vectors along the last axis as positions in the row-major order of `axes`, in scratch, all in one axis.
pub(super) fn flat(indices: &View, axes: &[u64], cx: &mut Cx<'_>) -> Result<View, KernelError> {
    let outer = indices.rank() - 1;
    let rows = &indices.shape()[..outer];
    let [flat, part, sign] = [(); 3].map(|()| cx.scratch(DType::I64, rows));
    cx.fill(&flat, 0.0)?;
    for (j, n) in axes.iter().enumerate() {
        cx.copy(&part, &indices.select(outer, j as u64))?;
        below_zero(&part, &sign, cx)?;
        cx.sub(&part, &sign, as_int(*n)?, &part)?;
        cx.add(&part, &flat, In::Int(as_int(*n)?), &flat)?;
    }
    flat.reshaped(&[flat.elements()])
}

fn below_zero(x: &View, out: &View, cx: &mut Cx<'_>) -> Result<(), KernelError> {
    let args = [x.into(), In::Int(-1), In::Int(0), out.into()];
    cx.call("clamp", "out", &args)
}

fn as_int(n: u64) -> Result<i64, KernelError> {
    i64::try_from(n).map_err(|_| KernelError::Unsupported(format!("an axis of {n} elements")))
}
