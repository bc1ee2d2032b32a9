//! Layer normalization and the loss.

use super::proto::{axis, float, int};
use super::{ExportError, Writer};
use lorafa_ir::OpData;
use lorafa_ir::ops::{CrossEntropy, LayerNorm};

/// The operator's statistics are f32 for 16-bit operands, as the IR's.
pub(super) fn layer_norm(
    w: &mut Writer<'_>,
    op: &OpData,
    norm: &LayerNorm,
) -> Result<(), ExportError> {
    let inputs = w.operands(op)?;
    let attributes = vec![axis(norm.axis), float("epsilon", norm.eps.0)];
    w.node(op, "LayerNormalization", inputs, attributes);
    Ok(())
}

/// `i64::MIN` is how the IR says that every label counts.
pub(super) fn cross_entropy(
    w: &mut Writer<'_>,
    op: &OpData,
    loss: CrossEntropy,
) -> Result<(), ExportError> {
    let inputs = w.operands(op)?;
    let attributes = match loss.ignore_index {
        i64::MIN => vec![],
        index => vec![int("ignore_index", index)],
    };
    w.node(op, "SoftmaxCrossEntropyLoss", inputs, attributes);
    Ok(())
}
