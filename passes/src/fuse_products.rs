//! `fuse-products`: a matrix product takes in the factor that it is scaled by and the sum that it is added to.
//!
//! ```text
//! - v1 = mul %dy, 2.0                              : f32[8,4]
//! - v2 = matmul v1, %b                             : f32[8,2]
//! - v3 = matmul v2, %a                             : f32[8,4]
//! - v4 = add v0, v3                                : f32[8,4]
//! + v2 = matmul %dy, %b {alpha=2.0}                : f32[8,2]
//! + v4 = matmul v2, %a, v0                         : f32[8,4]
//! ```
//!
//! BLAS does both for nothing, where ops of their own read and write everything once more, and an addition needs both
//! summands at once. A product is added to what is there when it runs: to what comes before it in the schedule. Of 16-bit
//! types it is rounded once, after the addition.

use crate::matching::{MAX_STEPS, each_op, either, read_once, times};
use crate::pass::{Changed, Pass, PassCx, PassError, PassKind};
use lorafa_ir::ops::{BinaryKind, MatMul, Op, Scalar};
use lorafa_ir::{Graph, OpId, PatchError, ValueId};

/// See the module.
pub struct FuseProducts;

impl Pass for FuseProducts {
    fn name(&self) -> &'static str {
        "fuse-products"
    }

    fn kind(&self) -> PassKind {
        PassKind::Equivalence
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<Changed, PassError> {
        let (mut factors, mut sums) = (0, 0);
        each_op(graph, |graph, id| {
            if factor_of_operand(graph, id)? || factor_of_result(graph, id)? {
                factors += 1;
            }
            Ok::<(), PatchError>(())
        })?;
        let places = places(graph);
        each_op(graph, |graph, id| {
            if let Some(found) = find_sum(graph, id, &places) {
                fuse_sum(graph, id, found)?;
                sums += 1;
            }
            Ok::<(), PatchError>(())
        })?;
        if factors + sums > 0 {
            cx.note(format_args!(
                "{factors} factors and {sums} sums became part of products"
            ));
        }
        Ok(Changed::from_count(factors + sums))
    }
}

/// A product that nothing is added to yet.
fn product(graph: &Graph, op: OpId) -> Option<MatMul> {
    match &graph.op(op).kind {
        Op::MatMul(product) if graph.op(op).operands.len() == 2 => Some(*product),
        _ => None,
    }
}

fn multiply(graph: &mut Graph, op: OpId, by: f64) {
    if let Some(product) = product(graph, op) {
        let alpha = Scalar(product.alpha.0 * by);
        let scaled = MatMul { alpha, ..product };
        graph.patch("fuse-factor").set_kind(op, scaled.into());
    }
}

/// Where only products read `x·n`, they read `x` and multiply their results.
fn factor_of_operand(graph: &mut Graph, id: OpId) -> Result<bool, PatchError> {
    let y = graph.op(id).results[0];
    let Some((x, by)) = times(graph, y) else {
        return Ok(false);
    };
    let mut readers = Vec::new();
    if !products_that_read(graph, y, MAX_STEPS, &mut readers) {
        return Ok(false);
    }
    for reader in readers {
        multiply(graph, reader, by);
    }
    let mut patch = graph.patch("fuse-factor");
    patch.replace(y, x)?;
    patch.remove(id)?;
    Ok(true)
}

/// Whether products alone read a value, through reshapes or not; collects them, once for each time that they do.
fn products_that_read(graph: &Graph, value: ValueId, steps: usize, found: &mut Vec<OpId>) -> bool {
    let uses = graph.uses(value);
    steps > 0
        && !graph.is_output(value)
        && !uses.is_empty()
        && uses.iter().all(|read| match graph.op(read.op).kind {
            Op::Reshape(_) => {
                products_that_read(graph, graph.op(read.op).results[0], steps - 1, found)
            }
            _ => {
                found.push(read.op);
                product(graph, read.op).is_some()
            }
        })
}

/// `n` times a product that nothing else reads.
fn factor_of_result(graph: &mut Graph, id: OpId) -> Result<bool, PatchError> {
    let y = graph.op(id).results[0];
    let Some((x, by)) = times(graph, y) else {
        return Ok(false);
    };
    let def = graph.def(x);
    if product(graph, def.id).is_none() || !read_once(graph, def) {
        return Ok(false);
    }
    let inner = def.id;
    multiply(graph, inner, by);
    let mut patch = graph.patch("fuse-factor");
    patch.replace(y, x)?;
    patch.remove(id)?;
    Ok(true)
}

/// Where values are made in the schedule.
fn places(graph: &Graph) -> Vec<usize> {
    let mut places = vec![0; graph.value_bound()];
    for (at, id) in graph.order().into_iter().enumerate() {
        let results = graph.op(id).results.iter();
        results.for_each(|value| places[value.index()] = at);
    }
    places
}

/// A product, and what comes before it that it is added to.
struct Sum {
    product: ValueId,
    kind: MatMul,
    to: ValueId,
}

fn find_sum(graph: &Graph, id: OpId, places: &[usize]) -> Option<Sum> {
    let y = graph.op(id).results[0];
    either(graph, y, BinaryKind::Add).find_map(|(to, value)| {
        let def = graph.def(value);
        let kind = product(graph, def.id)?;
        let alike = graph.ty(to) == graph.ty(value);
        let before = places[to.index()] < places[value.index()];
        (alike && before && read_once(graph, def)).then_some(Sum {
            product: value,
            kind,
            to,
        })
    })
}

fn fuse_sum(graph: &mut Graph, id: OpId, sum: Sum) -> Result<(), PatchError> {
    let (inner, factors) = {
        let def = graph.def(sum.product);
        (def.id, [def.operands[0], def.operands[1], sum.to])
    };
    let mut patch = graph.patch("fuse-sum");
    patch.at(inner).rewrite(id, sum.kind.into(), &factors)?;
    patch.remove(inner)
}
