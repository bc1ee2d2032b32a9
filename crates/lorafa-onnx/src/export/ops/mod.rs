//! Core ops, one family a file: what each is in ONNX.

mod elementwise;
mod fused;
mod index;
mod linear;
mod norm;
mod opaque;
mod reduce;
mod shape;
mod source;

pub(super) use fused::has_operator;
pub(super) use opaque::domain;

use super::functions::Functions;
use super::proto;
use super::writer::Writer;
use super::{ExportError, ExportOptions};
use crate::proto::GraphProto;
use lorafa_ir::{Graph, Op, OpData};

/// Writes a graph that was lowered.
pub(super) fn write_all(
    lowered: &Graph,
    options: &ExportOptions<'_>,
    functions: &Functions,
) -> Result<GraphProto, ExportError> {
    let mut writer = Writer::new(lowered, options, functions)?;
    for id in lowered.order() {
        let op = lowered.op(id);
        writer.enter(op);
        write(&mut writer, op)?;
    }
    writer.outputs()?;
    Ok(writer.finish())
}

/// Writes the nodes of an op.
fn write(w: &mut Writer<'_>, op: &OpData) -> Result<(), ExportError> {
    let standard = has_operator(w.graph, op, w.options.opset);
    match &op.kind {
        // Written when they are read.
        Op::Param(_) | Op::Constant(_) => Ok(()),
        Op::Iota(iota) => source::iota(w, op, iota),
        Op::Fill(fill) => source::fill(w, op, fill),
        Op::Unary(unary) => elementwise::unary(w, op, *unary),
        Op::Activation(activation) => elementwise::activation(w, op, *activation),
        Op::Binary(binary) => elementwise::binary(w, op, *binary),
        Op::Select(_) => elementwise::select(w, op),
        Op::Cast(cast) => elementwise::cast(w, op, *cast),
        Op::Dropout(dropout) => elementwise::dropout(w, op, dropout),
        Op::MatMul(matmul) => linear::matmul(w, op, *matmul),
        Op::Reshape(reshape) => shape::reshape(w, op, reshape),
        Op::Expand(expand) => shape::expand(w, op, expand),
        Op::Transpose(transpose) => shape::transpose(w, op, transpose),
        Op::Slice(slice) => shape::slice(w, op, slice),
        Op::Pad(pad) => shape::pad(w, op, pad),
        Op::Concat(concat) => shape::concat(w, op, *concat),
        Op::Reduce(reduce) => reduce::reduce(w, op, reduce),
        Op::CumSum(cumsum) => reduce::cumsum(w, op, *cumsum),
        Op::Softmax(softmax) => reduce::softmax(w, op, *softmax),
        Op::Gather(gather) => index::gather(w, op, gather.axis, "Gather"),
        Op::GatherElements(gather) => index::gather(w, op, gather.axis, "GatherElements"),
        Op::GatherNd(gather) => index::gather_nd(w, op, *gather),
        Op::ScatterElements(scatter) => index::scatter_elements(w, op, *scatter),
        Op::ScatterNd(scatter) => index::scatter_nd(w, op, *scatter),
        Op::LayerNorm(norm) => norm::layer_norm(w, op, norm),
        Op::CrossEntropy(loss) => norm::cross_entropy(w, op, *loss),
        Op::Onnx(node) => opaque::opaque(w, op, node),
        // Became a constant if it has no symbol.
        Op::DimValue(dims) => shape::numbers(w, op, &dims.values).map(drop),
        Op::Attention(attention) if standard => fused::attention(w, op, *attention),
        Op::RmsNorm(norm) if standard => fused::rms_norm(w, op, *norm),
        Op::Rotary(rotary) if standard => fused::rotary(w, op, *rotary),
        Op::ActivationGrad(_)
        | Op::SoftmaxGrad(_)
        | Op::Attention(_)
        | Op::AttentionGrad(_)
        | Op::LayerNormGrad(_)
        | Op::RmsNorm(_)
        | Op::RmsNormGrad(_)
        | Op::Gated(_)
        | Op::GatedGrad(_)
        | Op::Rotary(_)
        | Op::CrossEntropyGrad(_)
        | Op::LinearCrossEntropy(_)
        | Op::LinearCrossEntropyGrad(_)
        | Op::DropoutGrad(_)
        | Op::GatherGrad(_)
        | Op::Accumulate(_)
        | Op::AdamW(_) => w.call(op),
        Op::DropoutMask(_) => Err(w.refuse(op, "nothing draws its mask")),
    }
}
