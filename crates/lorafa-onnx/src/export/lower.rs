//! Ops that ONNX lacks, or lacks for their element type, out of those it has.

use super::ExportError;
use lorafa_ir::ops::{
    Activation, ActivationKind, Binary, BinaryKind, Constant, Dropout, DropoutGrad, DropoutMask,
    LayerNorm, Literal, Op, Reduce, ReduceKind, Unary, UnaryKind,
};
use lorafa_ir::patch::Results;
use lorafa_ir::text::OpDisplay;
use lorafa_ir::types::Shape;
use lorafa_ir::{DType, Dim, Graph, OpData, OpId, Patch, PatchError, TensorType, ValueId};

type Lowered = Result<Results, PatchError>;

/// Whether an op that ONNX lacks is written as it is all the same.
type Keep<'k> = dyn FnMut(&Graph, &OpData) -> Result<bool, ExportError> + 'k;

/// The graph in ops that [`super::ops`] can write: those that are kept, and simpler ones that stand
/// where the others stood.
pub(super) fn lower(graph: &Graph, keep: &mut Keep<'_>) -> Result<Graph, ExportError> {
    let mut graph = graph.clone();
    let mut done = 0;
    loop {
        // What a round builds may have to be lowered in the next.
        let added = graph.ops().map(|op| op.id).filter(|id| id.index() >= done);
        let added: Vec<OpId> = added.collect();
        let Some(last) = added.last() else {
            return Ok(graph);
        };
        done = last.index() + 1;
        for id in added {
            lower_op(&mut graph, id, keep)?;
        }
    }
}

fn lower_op(graph: &mut Graph, id: OpId, keep: &mut Keep<'_>) -> Result<(), ExportError> {
    let op = graph.op(id).clone();
    if is_lacking(&op.kind) && !drops(&op.kind) && keep(graph, &op)? {
        return Ok(());
    }
    let mut patch = graph.patch("lower-to-onnx");
    patch.at(id);
    let Some(results) = rewrite(&mut patch, &op) else {
        return Ok(());
    };
    let replaced = results.and_then(|results| {
        for (old, new) in op.results.iter().zip(results) {
            patch.replace(*old, new)?;
        }
        patch.remove(id)
    });
    replaced.map_err(|error| ExportError::Lower {
        line: OpDisplay(patch.graph(), id).to_string(),
        error,
    })
}

/// Whether ONNX has no operator for an op at the least opset that is written.
fn is_lacking(kind: &Op) -> bool {
    matches!(
        kind,
        Op::Activation(Activation(ActivationKind::Silu))
            | Op::ActivationGrad(_)
            | Op::RmsNorm(_)
            | Op::RmsNormGrad(_)
            | Op::Gated(_)
            | Op::GatedGrad(_)
            | Op::Rotary(_)
            | Op::SoftmaxGrad(_)
            | Op::Attention(_)
            | Op::AttentionGrad(_)
            | Op::LayerNormGrad(_)
            | Op::CrossEntropyGrad(_)
            | Op::LinearCrossEntropy(_)
            | Op::LinearCrossEntropyGrad(_)
            | Op::DropoutGrad(_)
            | Op::GatherGrad(_)
            | Op::Accumulate(_)
            | Op::AdamW(_)
    )
}

/// Whether an op drops at random within: a function's own operators would draw another mask than those of its gradient.
fn drops(kind: &Op) -> bool {
    match kind {
        Op::Attention(attention) => attention.dropout.is_some(),
        Op::AttentionGrad(gradient) => gradient.of.dropout.is_some(),
        _ => false,
    }
}

/// Builds the op's results out of simpler ops, if it cannot be written as it is.
fn rewrite(p: &mut Patch<'_>, op: &OpData) -> Option<Lowered> {
    match &op.kind {
        kind if is_lacking(kind) => kind.decompose(p, &op.operands),
        Op::DropoutMask(DropoutMask { of, shape }) => {
            Some(Ok([drawn(p, of, shape)?].into_iter().collect()))
        }
        Op::Dropout(of) => {
            let mask = drawn(p, of, &p.ty(op.results[1]).shape)?;
            let again = DropoutGrad { ratio: of.ratio }.into();
            (mask != op.results[1]).then(|| {
                let dropped = p.add1(again, &[op.operands[0], mask])?;
                Ok([dropped, mask].into_iter().collect())
            })
        }
        Op::DimValue(dims) => {
            let numbers: Option<Vec<i64>> = dims.values.iter().map(Dim::known).collect();
            let ty = TensorType::new(DType::I64, dims.shape.iter().cloned());
            let literal = Literal::Ints(numbers?);
            Some(p.add(Constant { ty, literal }.into(), &[]))
        }
        // Of two matrices they are a `Gemm`.
        Op::MatMul(_) if op.operands[..2].iter().any(|v| p.ty(*v).rank() != 2) => {
            op.kind.decompose(p, &op.operands)
        }
        Op::LayerNorm(norm) if p.ty(*op.operands.first()?).dtype == DType::F64 => {
            Some(layer_norm(p, norm, &op.operands))
        }
        kind => {
            let narrow = p.ty(*op.operands.first()?).dtype;
            let wide = computed_in(kind, narrow);
            (wide != narrow).then(|| widened(p, op, narrow, wide))
        }
    }
}

/// The mask that the first of equal dropouts draws, for all of them: operators draw each their own.
fn drawn(p: &Patch<'_>, of: &Dropout, shape: &Shape) -> Option<ValueId> {
    let first = p.graph().ops().find(|op| op.kind == Op::Dropout(*of))?;
    let mask = first.results[1];
    (p.ty(mask).shape == *shape).then_some(mask)
}

/// The element type in which ONNX computes an op on `dtype`: another one where the operator is not
/// defined on it.
fn computed_in(kind: &Op, dtype: DType) -> DType {
    use DType::*;
    match (kind, dtype) {
        (Op::Unary(Unary(UnaryKind::Sin | UnaryKind::Cos)), BF16) => F32,
        // Its definition at the opset written goes through an operator that lacks bf16.
        (Op::CrossEntropy(_), BF16) => F32,
        (Op::Binary(Binary(BinaryKind::Pow)), I16 | I8 | U64 | U32 | U16 | U8) => I64,
        (
            Op::Reduce(Reduce {
                kind: ReduceKind::Max,
                ..
            }),
            I8 | U8,
        ) => dtype,
        (Op::Reduce(_) | Op::CumSum(_), I16 | I8 | U16 | U8) => I32,
        _ => dtype,
    }
}

/// The op on `wide` operands where they are `narrow`, and its results cast back.
fn widened(p: &mut Patch<'_>, op: &OpData, narrow: DType, wide: DType) -> Lowered {
    let mut operands = op.operands.clone();
    for operand in &mut operands {
        if p.ty(*operand).dtype == narrow {
            *operand = p.cast(*operand, wide)?;
        }
    }
    let mut results = p.add(op.kind.clone(), &operands)?;
    for (result, old) in results.iter_mut().zip(&op.results) {
        let to = p.ty(*old).dtype;
        *result = p.cast(*result, to)?;
    }
    Ok(results)
}

/// Layer normalization of f64, whose statistics ONNX's operator would round to f32.
fn layer_norm(p: &mut Patch<'_>, norm: &LayerNorm, ins: &[ValueId]) -> Lowered {
    let axes = norm.axis..p.ty(ins[0]).rank();
    let mean = p.reduce(ReduceKind::Mean, ins[0], axes.clone(), true)?;
    let centred = p.minus(ins[0], mean)?;
    let square = p.times(centred, centred)?;
    let variance = p.reduce(ReduceKind::Mean, square, axes, true)?;
    let eps = p.scalar_like(variance, norm.eps.0)?;
    let sum = p.plus(variance, eps)?;
    let root = p.unary(UnaryKind::Sqrt, sum)?;
    let rstd = p.unary(UnaryKind::Reciprocal, root)?;
    let normal = p.times(centred, rstd)?;
    let mut y = p.times(normal, ins[1])?;
    if let Some(bias) = ins.get(2) {
        y = p.plus(y, *bias)?;
    }
    Ok([y, mean, rstd].into_iter().collect())
}
