//! `fuse-cross-entropy`: one op for what PyTorch decomposes its loss into.
//!
//! ```text
//! - v3 = log_softmax %logits {axis=1}          : f32[16,64]
//! - v4 = eq %labels, -100                      : bool[16]
//! - v5 = not v4                                : bool[16]
//! - v6 = select v5, %labels, 0                 : i64[16]
//! - v7 = reshape v6                            : i64[16,1]
//! - v8 = gather_elements v3, v7 {axis=1}       : f32[16,1]
//! - v9 = reshape v8                            : f32[16]
//! - v10 = neg v9                               : f32[16]
//! - v11 = select v5, v10, 0                    : f32[16]
//! - v12 = reduce_sum v11 {axes=[0]}            : f32[]
//! - v13 = cast v5 {to=i64}                     : i64[16]
//! - v14 = reduce_sum v13 {axes=[0]}            : i64[]
//! - v15 = cast v14 {to=f32}                    : f32[]
//! - v16 = div v12, v15                         : f32[]
//! + v16 = cross_entropy %logits, %labels       : f32[]
//! ```
//!
//! `make_fx` and `run_decompositions` spell it so. The op's gradient rule computes probabilities again, and `fuse-loss`
//! joins it with the output projection.

use crate::matching::{binary, each_op, is_number, number, unary, uncast};
use crate::pass::{Changed, Pass, PassCx, PassError, PassKind};
use lorafa_ir::ops::{
    BinaryKind, CrossEntropy, GatherElements, Op, Reduce, ReduceKind, Select, Softmax, UnaryKind,
};
use lorafa_ir::{Graph, OpId, PatchError, ValueId};

/// See the module.
pub struct FuseCrossEntropy;

impl Pass for FuseCrossEntropy {
    fn name(&self) -> &'static str {
        "fuse-cross-entropy"
    }

    fn kind(&self) -> PassKind {
        PassKind::Equivalence
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<Changed, PassError> {
        let mut fused = 0;
        each_op(graph, |graph, id| {
            if let Some((loss, operands)) = find(graph, id) {
                let old = graph.op(id).results[0];
                let mut patch = graph.patch("fuse-cross-entropy");
                let new = patch.at(id).add1(loss.into(), &operands)?;
                patch.replace(old, new)?;
                patch.remove(id)?;
                fused += 1;
            }
            Ok::<(), PatchError>(())
        })?;
        if fused > 0 {
            cx.note("the loss became one op");
        }
        Ok(Changed::from_count(fused))
    }
}

/// The loss that a quotient is, with its logits and labels.
fn find(graph: &Graph, id: OpId) -> Option<(CrossEntropy, [ValueId; 2])> {
    let loss = graph.op(id).results.first()?;
    let [sum, count] = binary(graph, *loss, BinaryKind::Div)?;
    let [counted, negated, zero] = selected(graph, summed(graph, sum)?)?;
    let of_all = through_casts(graph, summed(graph, through_casts(graph, count))?);
    if of_all != counted || !is_number(graph, zero, 0.0) {
        return None;
    }
    let picked = graph.def(through_reshapes(
        graph,
        unary(graph, negated, UnaryKind::Neg)?,
    ));
    let Op::GatherElements(GatherElements { axis: 1 }) = picked.kind else {
        return None;
    };
    let log = graph.def(picked.operands[0]);
    let Op::Softmax(Softmax { axis: 1, log: true }) = log.kind else {
        return None;
    };
    // A label that does not count stands for any class.
    let [also_counted, labels, class] =
        selected(graph, through_reshapes(graph, picked.operands[1]))?;
    let logits = log.operands[0];
    let whole = graph.ty(labels).shape.first() == graph.ty(logits).shape.first();
    if also_counted != counted || !is_number(graph, class, 0.0) || !whole {
        return None;
    }
    let ignored = binary(
        graph,
        unary(graph, counted, UnaryKind::Not)?,
        BinaryKind::Eq,
    )?;
    let ignore_index = ignored_index(graph, ignored, labels)?;
    Some((CrossEntropy { ignore_index }, [logits, labels]))
}

/// What all elements of a vector are summed of.
fn summed(graph: &Graph, value: ValueId) -> Option<ValueId> {
    let op = graph.def(value);
    let Op::Reduce(Reduce {
        kind: ReduceKind::Sum,
        ..
    }) = op.kind
    else {
        return None;
    };
    let whole = graph.ty(value).rank() == 0 && graph.ty(op.operands[0]).rank() == 1;
    whole.then_some(op.operands[0])
}

/// The operands of a choice between vectors.
fn selected(graph: &Graph, value: ValueId) -> Option<[ValueId; 3]> {
    let op = graph.def(value);
    let whole = graph.ty(value).rank() == 1 && op.kind == Op::Select(Select);
    whole.then(|| [op.operands[0], op.operands[1], op.operands[2]])
}

/// The number that labels are compared with.
fn ignored_index(graph: &Graph, [a, b]: [ValueId; 2], labels: ValueId) -> Option<i64> {
    let index = match () {
        () if a == labels => b,
        () if b == labels => a,
        () => return None,
    };
    let index = number(graph, index)?;
    (index.fract() == 0.0).then_some(index as i64)
}

fn through_casts(graph: &Graph, mut value: ValueId) -> ValueId {
    while let Some(source) = uncast(graph, value) {
        value = source;
    }
    value
}

fn through_reshapes(graph: &Graph, mut value: ValueId) -> ValueId {
    while let Op::Reshape(_) = graph.def(value).kind {
        value = graph.def(value).operands[0];
    }
    value
}
