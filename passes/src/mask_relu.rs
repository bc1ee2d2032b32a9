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
//! the input of T5's `wo`.

use crate::eliminate_dead_code::live_ops;
use crate::freeze_lora_a::certify;
use crate::pass::{Changed, Pass, PassCx, PassError, PassKind};
use lorafa_ir::layout::Views;
use lorafa_ir::ops::{Activation, ActivationGrad, ActivationKind, BinaryKind, Op};
use lorafa_ir::{Graph, OpId, PatchError, Region, ValueId};

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
        for (grad, relu) in kept_alone(graph) {
            let ty = graph.ty(graph.op(relu).results[0]);
            saved += ty.elements().unwrap_or(0) * (ty.dtype.size() - 1);
            mask(graph, grad, relu)?;
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

/// Gradients of relus, each with its relu, whose result no other live op reads after the forward pass.
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
    let relu_of = |grad: OpId| {
        let saved = *graph.op(grad).operands.get(1)?;
        let relu = graph.def(saved);
        let is = relu.kind == Op::Activation(Activation(ActivationKind::Relu));
        let alone = readers[root(saved).index()] == [grad];
        let output = graph.outputs().iter().any(|o| root(o.value) == root(saved));
        (is && alone && !output && root(saved) == saved).then_some((grad, relu.id))
    };
    let grads = graph.ops().filter(|op| live[op.id.index()]);
    let relus =
        grads.filter(|op| op.kind == Op::ActivationGrad(ActivationGrad(ActivationKind::Relu)));
    relus.filter_map(|op| relu_of(op.id)).collect()
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
