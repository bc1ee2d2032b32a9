//! The norm of all gradients, as `torch.nn.utils.clip_grad_norm_`.

use super::{Trained, place, update_site};
use crate::pass::PassError;
use lorafa_ir::ops::{BinaryKind, ReduceKind, UnaryKind};
use lorafa_ir::optimizer::GRADIENT_NORM;
use lorafa_ir::{DType, OutputKind, Patch, ValueId};

/// Added to the norm that divides, as in PyTorch.
const EPS: f64 = 1e-6;

/// What every gradient is to be multiplied by, `f32[]`: `min(1, most / (norm + 1e-6))`.
///
/// Squares are summed in f32, one gradient after the other. Every gradient is alive until the last
/// of them is in.
pub(super) fn coefficient(
    patch: &mut Patch<'_>,
    trained: &[Trained],
    most: f64,
) -> Result<Option<ValueId>, PassError> {
    patch.at_site(update_site(place::LAST, ""));
    let mut sum = None;
    for Trained { gradient, .. } in trained {
        let gradient = patch.cast(*gradient, DType::F32)?;
        let square = patch.times(gradient, gradient)?;
        let axes = 0..patch.ty(square).rank();
        let square = patch.reduce(ReduceKind::Sum, square, axes, false)?;
        sum = Some(match sum {
            Some(sum) => patch.plus(sum, square)?,
            None => square,
        });
    }
    let Some(sum) = sum else {
        return Ok(None);
    };
    let norm = patch.unary(UnaryKind::Sqrt, sum)?;
    patch.output(GRADIENT_NORM, norm, OutputKind::Value);
    let eps = patch.scalar(DType::F32, EPS)?;
    let divisor = patch.plus(norm, eps)?;
    let most = patch.scalar(DType::F32, most)?;
    let ratio = patch.over(most, divisor)?;
    let one = patch.scalar(DType::F32, 1.0)?;
    Ok(Some(patch.binary(BinaryKind::Min, ratio, one)?))
}
