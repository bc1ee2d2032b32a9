//! `fuse-loss`: the output projection and the loss as one op, which never has all logits at once.
//!
//! ```text
//! - v3 = matmul v2, %head                        : bf16[2,8,64]
//! - v4 = cast v3 {to=f32}                        : f32[2,8,64]
//! - v5 = reshape v4                              : f32[16,64]
//! - v6 = cross_entropy v5, v1                    : f32[]
//! + v7 = reshape v2                              : bf16[16,32]
//! + v6 = linear_cross_entropy v7, %head, v1      : f32[]
//! ```
//!
//! The gradient by the rows is computed with the loss, and takes their place. So is the gradient by a weight that trains,
//! which then is there when all that is saved is: only where it is the smaller of the two is it traded for the logits.
//!
//! Positions that the model leaves out of the logits are left out of the rows instead. A projection with a bias or an
//! adapter, or whose logits something else reads, stays as it is.

use crate::differentiate::trains;
use crate::matching::{MAX_STEPS, each_op, plain_product};
use crate::pass::{Changed, Method, Pass, PassCx, PassError, PassKind};
use lorafa_ir::ops::{CrossEntropy, LinearCrossEntropy, MatMul, Op, Slice};
use lorafa_ir::types::product;
use lorafa_ir::{DType, Graph, OpId, PatchError, Site, ValueId};
use std::sync::Arc;

/// See the module.
pub struct FuseLoss;

impl Pass for FuseLoss {
    fn name(&self) -> &'static str {
        "fuse-loss"
    }

    fn kind(&self) -> PassKind {
        PassKind::Equivalence
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<Changed, PassError> {
        let mut fused = 0;
        each_op(graph, |graph, id| {
            let Op::CrossEntropy(loss) = graph.op(id).kind else {
                return Ok(());
            };
            let found = projection(graph, id);
            if let Some(projection) = found.filter(|p| pays(graph, p, cx.options.method)) {
                fuse(graph, id, loss, projection)?;
                fused += 1;
            }
            Ok::<(), PatchError>(())
        })?;
        if fused > 0 {
            cx.note("the output projection and the loss became one op");
        }
        Ok(Changed::from_count(fused))
    }
}

/// The product that gives the logits, and which of its rows count.
struct Projection {
    x: ValueId,
    w: ValueId,
    trans_b: bool,
    module: Arc<str>,
    logits: ValueId,
    /// Parts taken of the logits, the last one first.
    slices: Vec<Slice>,
}

/// Walks from a loss to the product that its logits come from.
fn projection(graph: &Graph, loss: OpId) -> Option<Projection> {
    let mut value = graph.op(loss).operands[0];
    let (wide, classes) = (graph.ty(value).dtype, graph.ty(value).shape.last()?.clone());
    let mut slices = Vec::new();
    for _ in 0..MAX_STEPS {
        let (op, ty) = (graph.def(value), graph.ty(value));
        let alone = graph.uses(value).len() == 1;
        if !alone || ty.shape.last() != Some(&classes) {
            return None;
        }
        match &op.kind {
            Op::Cast(_) if ty.dtype == wide && widens(graph, op.operands[0], wide) => {}
            Op::Reshape(_) if slices.is_empty() => {}
            Op::Slice(slice) if slice.axes.iter().all(|a| a.axis + 1 < ty.rank()) => {
                slices.push(slice.clone());
            }
            Op::MatMul(_) => {
                let MatMul {
                    trans_a, trans_b, ..
                } = plain_product(op)?;
                let (x, w) = (op.operands[0], op.operands[1]);
                let rows = !trans_a && graph.ty(w).rank() == 2;
                return (rows && widens(graph, value, wide)).then_some(Projection {
                    x,
                    w,
                    trans_b,
                    module: op.site.module.clone(),
                    logits: value,
                    slices,
                });
            }
            _ => return None,
        }
        value = op.operands[0];
    }
    None
}

/// Whether the logits are larger than the weight's gradient, if there is one.
fn pays(graph: &Graph, found: &Projection, method: Method) -> bool {
    let mut weight = graph.def(found.w);
    for _ in 0..MAX_STEPS {
        let (Op::Cast(_) | Op::Transpose(_) | Op::Reshape(_)) = weight.kind else {
            break;
        };
        weight = graph.def(weight.operands[0]);
    }
    let trained = match &weight.kind {
        Op::Param(param) => param.is_weight() && trains(method, &param.name),
        _ => true,
    };
    let size = |value: ValueId| graph.ty(value).elements();
    !trained || size(found.logits) >= size(found.w)
}

/// Whether nothing is rounded where a value becomes this type.
fn widens(graph: &Graph, value: ValueId, wide: DType) -> bool {
    graph.ty(value).dtype.arithmetic() == wide
}

fn fuse(
    graph: &mut Graph,
    id: OpId,
    CrossEntropy { ignore_index }: CrossEntropy,
    found: Projection,
) -> Result<(), PatchError> {
    let (old, labels) = (graph.op(id).results[0], graph.op(id).operands[1]);
    let site = Site {
        module: found.module,
        ..graph.op(id).site.clone()
    };
    let mut patch = graph.patch("fuse-loss");
    patch.at_site(site);
    let mut x = found.x;
    for slice in found.slices.into_iter().rev() {
        x = patch.add1(slice.into(), &[x])?;
    }
    let shape = patch.ty(x).shape.clone();
    let (rows, width) = shape.split_at(shape.len() - 1);
    let x = patch.reshape(x, [product(rows), width[0].clone()])?;
    let kind = LinearCrossEntropy {
        ignore_index,
        trans_b: found.trans_b,
    };
    let loss = patch.add1(kind.into(), &[x, found.w, labels])?;
    patch.replace(old, loss)?;
    patch.remove(id)
}
