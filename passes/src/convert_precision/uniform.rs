//! One element type for another, everywhere.

use lorafa_ir::ops::{Cast, Constant, Fill, Iota, Literal, Op};
use lorafa_ir::{DType, Patch, PatchError};

/// Gives every tensor of type `from` the type `to`. Weights are converted when they are written.
pub(super) fn convert(patch: &mut Patch<'_>, from: DType, to: DType) -> Result<(), PatchError> {
    for id in patch.graph().order() {
        let op = patch.graph().op(id);
        match &op.kind {
            Op::Param(p) if p.ty.dtype == from => {
                let value = op.results[0];
                patch.update_param(value, |p| p.ty.dtype = to);
            }
            Op::Onnx(_) => keep_operands(patch, id, from)?,
            kind => {
                if let Some(kind) = converted(kind, from, to) {
                    patch.set_kind(id, kind);
                }
            }
        }
        patch.reinfer(id)?;
        drop_empty_cast(patch, id)?;
    }
    Ok(())
}

/// The op with `to` for `from` in its attributes, if it has that.
fn converted(kind: &Op, from: DType, to: DType) -> Option<Op> {
    match kind {
        Op::Constant(c) if c.ty.dtype == from => Some(rounded(c, to).into()),
        Op::Fill(f) if f.ty.dtype == from => Some(rounded_fill(f, to).into()),
        Op::Iota(i) if i.dtype == from => Some(
            Iota {
                dtype: to,
                ..i.clone()
            }
            .into(),
        ),
        Op::Cast(c) if c.to == from => Some(Cast { to }.into()),
        _ => None,
    }
}

/// A constant in another float type; numbers beyond its range become its largest.
pub(super) fn rounded(constant: &Constant, to: DType) -> Constant {
    Constant {
        ty: constant.ty.with_dtype(to),
        literal: Literal::from_f64(to, constant.literal.to_f64()),
    }
}

/// A fill in another float type; numbers beyond its range become its largest.
pub(super) fn rounded_fill(fill: &Fill, to: DType) -> Fill {
    let mut value = fill.value;
    value.0 = to.round(value.0);
    Fill {
        ty: fill.ty.with_dtype(to),
        value,
    }
}

/// A node that is carried along as it is states its types: it goes on reading and giving `from`.
pub(super) fn keep_operands(
    patch: &mut Patch<'_>,
    id: lorafa_ir::OpId,
    from: DType,
) -> Result<(), PatchError> {
    for slot in 0..patch.graph().op(id).operands.len() {
        let operand = patch.graph().op(id).operands[slot];
        let dtype = patch.ty(operand).dtype;
        if dtype.is_float() && dtype != from {
            let cast = patch.at(id).cast(operand, from)?;
            patch.set_operand(id, slot, cast);
        }
    }
    Ok(())
}

/// Removes a cast that no longer changes the type.
pub(super) fn drop_empty_cast(
    patch: &mut Patch<'_>,
    id: lorafa_ir::OpId,
) -> Result<bool, PatchError> {
    let op = patch.graph().op(id);
    let (Op::Cast(_), operand, result) = (&op.kind, op.operands.first().copied(), op.results[0])
    else {
        return Ok(false);
    };
    let Some(operand) = operand.filter(|v| patch.ty(*v) == patch.ty(result)) else {
        return Ok(false);
    };
    patch.replace(result, operand)?;
    patch.remove(id)?;
    Ok(true)
}
