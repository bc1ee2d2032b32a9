//! Ops without operands.

use super::proto::{dims, int, tensor};
use super::shape::number;
use super::{ExportError, Writer};
use crate::dtype::{self, to_onnx};
use crate::tensor::{self as payload, TensorPayload};
use lorafa_ir::ops::{Fill, Iota};
use lorafa_ir::{DType, OpData};

/// Counts in i64 and casts: `Range` is not defined on every type, and adds up rounding errors on
/// others.
pub(super) fn iota(w: &mut Writer<'_>, op: &OpData, iota: &Iota) -> Result<(), ExportError> {
    let (start, len) = (number(w, op, &iota.start)?, number(w, op, &iota.len)?);
    let (onnx, inputs) = if iota.step == 0 {
        ("Expand", vec![w.int(start)?, w.ints(&[len])?])
    } else {
        let limit = iota.step.checked_mul(len);
        let limit = limit.and_then(|span| start.checked_add(span));
        let limit = limit.ok_or_else(|| w.refuse(op, "its last element is beyond 64 bits"))?;
        (
            "Range",
            vec![w.int(start)?, w.int(limit)?, w.int(iota.step)?],
        )
    };
    if iota.dtype == DType::I64 {
        w.node(op, onnx, inputs, vec![]);
        return Ok(());
    }
    let ty = w.graph.ty(op.results[0]).with_dtype(DType::I64);
    let counted = w.helper(onnx, inputs, vec![], &ty);
    let to = int("to", i64::from(to_onnx(iota.dtype)));
    w.node(op, "Cast", vec![counted], vec![to]);
    Ok(())
}

pub(super) fn fill(w: &mut Writer<'_>, op: &OpData, fill: &Fill) -> Result<(), ExportError> {
    let shape = w.ints(&dims(&fill.ty))?;
    let bytes = dtype::encode(fill.ty.dtype, [fill.value.0]);
    let element = TensorPayload::Inline(bytes.into());
    let value = payload::encode("value", to_onnx(fill.ty.dtype), &[1], element)
        .map_err(|error| w.refuse(op, error.to_string()))?;
    let attributes = vec![tensor("value", value)];
    w.node(op, "ConstantOfShape", vec![shape], attributes);
    Ok(())
}
