//! `mask-relu`: keeps one byte an element of a relu for the backward pass, where its result would be
//! kept for nothing else.
//!
//! ```text
//!   v1 = relu v0              : bf16[4,8]
//! + v5 = gt v1, 0.0           : bool[4,8]
//!   …
//! - v4 = relu_grad v3, v1     : bf16[4,8] of v1
//! + v6 = select v5, v3, 0.0   : bf16[4,8] of v1
//! ```
//!
//! A relu's gradient needs the sign of its result. Where another backward op reads the result, too,
//! as the gradient of a trained `A` does, it is there anyway and a mask would only add to it.
//! Otherwise the mask is half of 16-bit elements and a quarter of f32. With LoRA-FA that releases
//! the input of T5's `wo`. Training graphs that others made compare with zero in the backward pass; that op becomes part of
//! the forward pass.

use crate::eliminate_dead_code::live_ops;
use crate::freeze_lora_a::certify;
use crate::pass::{Changed, Pass, PassCx, PassError, PassKind};
use lorafa_ir::layout::Views;
use lorafa_ir::ops::{Activation, ActivationGrad, ActivationKind, Binary, BinaryKind, Op};
use lorafa_ir::{Graph, OpData, OpId, PatchError, Region, ValueId};

/// See the module.
pub struct MaskRelu;

impl Pass for MaskRelu {
    fn name(&self) -> &'static str {
        "mask-relu"
    }

    fn kind(&self) -> PassKind {
        PassKind::Equivalence
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<Changed, PassError> {
        let (mut masked, mut saved) = (0, 0);
        for (reader, relu) in kept_alone(graph) {
            let ty = graph.ty(graph.op(relu).results[0]);
            saved += ty.elements().unwrap_or(0) * (ty.dtype.size() - 1);
            match graph.op(reader).kind {
                Op::ActivationGrad(_) => mask(graph, reader, relu)?,
                _ => compare_at_once(graph, reader, relu)?,
            }
            masked += 1;
        }
        if masked > 0 {
            cx.note(format_args!(
                "{masked} relus keep a mask instead of their result: {saved} bytes less"
            ));
            if cx.certificate.is_some() {
                cx.certificate = Some(certify(graph));
            }
        }
        Ok(Changed::from_count(masked))
    }
}

/// Gradients of relus, or comparisons of their results, each with its relu, whose result no other live op reads after the
/// forward pass.
fn kept_alone(graph: &Graph) -> Vec<(OpId, OpId)> {
    let (live, views) = (live_ops(graph), Views::of(graph));
    let root = |value: ValueId| views.root(value).map_or(value, |(root, _)| root);
    let is_view = |op: OpId| {
        let result = graph.op(op).results[0];
        root(result) != result
    };
    let mut readers: Vec<Vec<OpId>> = vec![Vec::new(); graph.value_bound()];
    for op in graph.ops() {
        if op.site.region != Region::Forward && live[op.id.index()] && !is_view(op.id) {
            for value in &op.operands {
                readers[root(*value).index()].push(op.id);
            }
        }
    }
    let relu_of = |reader: &OpData| {
        let saved = read_of_relu(graph, reader)?;
        let relu = graph.def(saved);
        let is = relu.kind == Op::Activation(Activation(ActivationKind::Relu));
        let alone = readers[root(saved).index()] == [reader.id];
        let output = graph.outputs().iter().any(|o| root(o.value) == root(saved));
        (is && alone && !output && root(saved) == saved).then_some((reader.id, relu.id))
    };
    let live = graph.ops().filter(|op| live[op.id.index()]);
    live.filter_map(relu_of).collect()
}

/// The result of a relu, if it is one, that a backward op reads for its sign alone.
fn read_of_relu(graph: &Graph, op: &OpData) -> Option<ValueId> {
    const GRADIENT: Op = Op::ActivationGrad(ActivationGrad(ActivationKind::Relu));
    match &op.kind {
        kind if *kind == GRADIENT => op.operands.get(1).copied(),
        Op::Binary(Binary(kind)) if kind.is_comparison() && op.site.region == Region::Backward => {
            let constant = matches!(graph.def(op.operands[1]).kind, Op::Constant(_));
            constant.then_some(op.operands[0])
        }
        _ => None,
    }
}

/// Moves a comparison to where the relu is.
fn compare_at_once(graph: &mut Graph, comparison: OpId, relu: OpId) -> Result<(), PatchError> {
    let op = graph.op(comparison);
    let (kind, operands) = (op.kind.clone(), op.operands.clone());
    let mut patch = graph.patch("mask-relu");
    patch.at(relu).rewrite(comparison, kind, &operands)
}

fn mask(graph: &mut Graph, grad: OpId, relu: OpId) -> Result<(), PatchError> {
    let (dy, dx) = (graph.op(grad).operands[0], graph.op(grad).results[0]);
    let y = graph.op(relu).results[0];
    let mut patch = graph.patch("mask-relu");
    patch.at(relu);
    let zero = patch.scalar_like(y, 0.0)?;
    let on = patch.binary(BinaryKind::Gt, y, zero)?;
    patch.at(grad);
    let zero = patch.scalar_like(dy, 0.0)?;
    let masked = patch.select(on, dy, zero)?;
    patch.replace(dx, masked)?;
    patch.remove(grad)
}
