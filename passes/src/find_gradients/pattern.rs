//! The shape of an adapter's gradients in a graph.
//!
//! ```text
//!   xa = x·Aᵀ        dB = dyᵀ·xa
//!   y  = xa·Bᵀ       dA = (dy·B)ᵀ·x
//! ```
//!
//! Of batches, a gradient may be the sum over products of their matrices; of a matrix that several layers read, it is the sum of
//! such products.

use crate::find_lora::weight;
use crate::matching::{MAX_STEPS, either, number, plain_product};
use crate::pass::PassError;
use lorafa_ir::ops::{Binary, BinaryKind, Op, ReduceKind};
use lorafa_ir::{Adapter, Graph, OpData, OpId, ValueId};
use std::collections::BTreeMap;

/// Most products that a gradient is looked at as the sum of: a bound for hostile input.
const MAX_SUMMANDS: usize = 1024;

/// A gradient of a matrix of an adapter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Gradient {
    /// The matrix.
    pub(super) param: ValueId,
    /// The adapter, by its place among the graph's.
    pub(super) adapter: usize,
    /// What it is made of beside `x` or `x·A`: of B's gradient what the layer's result has, of A's the product of that
    /// with B.
    pub(super) other: ValueId,
    /// Whether it is made of the adapter's own B, not of one that is equal.
    pub(super) exact: bool,
}

/// The adapters of a graph by what their gradients are products with.
pub(super) struct Pattern {
    by_xa: BTreeMap<ValueId, Vec<usize>>,
    by_x: BTreeMap<ValueId, Vec<usize>>,
}

impl Pattern {
    pub(super) fn of(graph: &Graph) -> Self {
        let mut pattern = Pattern {
            by_xa: BTreeMap::new(),
            by_x: BTreeMap::new(),
        };
        for (index, adapter) in graph.adapters().iter().enumerate() {
            let (x, xa) = (bare(graph, adapter.x), bare(graph, adapter.xa));
            pattern.by_x.entry(x).or_default().push(index);
            pattern.by_xa.entry(xa).or_default().push(index);
        }
        pattern
    }

    /// Whose gradients a value may be the sum of, product by product.
    pub(super) fn summands(&self, graph: &Graph, value: ValueId) -> Vec<Vec<Gradient>> {
        let mut products = Vec::new();
        let mut work = vec![value];
        while let Some(value) = work.pop() {
            let value = bare(graph, value);
            let op = graph.def(value);
            match &op.kind {
                Op::Binary(Binary(BinaryKind::Add)) => work.extend(op.operands.iter().rev()),
                Op::Reduce(reduce) if reduce.kind == ReduceKind::Sum => {
                    let rank = graph.ty(op.operands[0]).rank();
                    let matrices = reduce.axes.iter().copied().eq(0..rank.saturating_sub(2));
                    let of = if matrices { op.operands[0] } else { value };
                    products.push(self.gradients(graph, bare(graph, of)));
                }
                _ => products.push(self.gradients(graph, value)),
            }
            if products.len() + work.len() > MAX_SUMMANDS {
                return Vec::new();
            }
        }
        products
    }

    /// Whose gradients a product may be.
    fn gradients(&self, graph: &Graph, product: ValueId) -> Vec<Gradient> {
        let mut found: Vec<Gradient> = Vec::new();
        let product = graph.def(product);
        if plain_product(product).is_none() {
            return found;
        }
        let [l, r] = [0, 1].map(|slot| bare(graph, product.operands[slot]));
        for (factor, other) in [(l, r), (r, l)] {
            for adapter in self.by_xa.get(&factor).into_iter().flatten() {
                found.push(Gradient {
                    param: graph.adapters()[*adapter].b,
                    adapter: *adapter,
                    other,
                    exact: true,
                });
            }
            for adapter in self.by_x.get(&factor).into_iter().flatten() {
                let product = graph.def(other).id;
                let Adapter { a, b, .. } = graph.adapters()[*adapter];
                if let Some((_, _, there)) = factor_that_is(graph, product, b) {
                    found.push(Gradient {
                        param: a,
                        adapter: *adapter,
                        other,
                        exact: there == b,
                    });
                }
            }
        }
        found.dedup();
        found
    }
}

/// A value without the casts, reshapes, transposes and scalings behind it.
fn bare(graph: &Graph, mut value: ValueId) -> ValueId {
    for _ in 0..MAX_STEPS {
        match behind(graph, graph.def(value)) {
            Some(x) => value = x,
            None => break,
        }
    }
    value
}

/// What an op casts, reshapes, transposes or scales.
fn behind(graph: &Graph, op: &OpData) -> Option<ValueId> {
    match &op.kind {
        Op::Cast(_) | Op::Reshape(_) | Op::Transpose(_) => Some(op.operands[0]),
        _ => {
            let mut factors = either(graph, op.results[0], BinaryKind::Mul);
            factors.find_map(|(x, by)| number(graph, by).map(|_| x))
        }
    }
}

/// The op and its slot that reads a matrix, or another one with the same elements, as a factor of a product.
fn factor_that_is(graph: &Graph, product: OpId, matrix: ValueId) -> Option<(OpId, usize, ValueId)> {
    let product = graph.op(product);
    plain_product(product)?;
    (0..2).find_map(|slot| {
        let read = weight(graph, product, slot)?;
        are_equal(graph, read.param, matrix).then_some((read.reader, read.slot, read.param))
    })
}

/// Whether two matrices are one, or were when the graph was written.
pub(super) fn are_equal(graph: &Graph, a: ValueId, b: ValueId) -> bool {
    let params = graph.param(a).zip(graph.param(b));
    a == b || params.is_some_and(|(a, b)| a.same_elements(b) == Some(true))
}

/// Makes the backward pass read the matrices that train, where exporters merged what is equal.
pub(super) fn read_what_trains(graph: &mut Graph, found: &[Gradient]) -> Result<(), PassError> {
    let mut claims = BTreeMap::new();
    for gradient in found {
        let Adapter { a, b, .. } = graph.adapters()[gradient.adapter];
        let products = match gradient.param == b {
            true => products_that_read(graph, gradient.other),
            false => vec![graph.def(gradient.other).id],
        };
        for product in read_itself(graph, &mut claims, products, b)? {
            let readers = products_that_read(graph, graph.op(product).results[0]);
            read_itself(graph, &mut claims, readers, a)?;
        }
    }
    Ok(())
}

/// Makes products with a matrix of products with an equal one, unless some are with the matrix; all that are in the end.
fn read_itself(
    graph: &mut Graph,
    claims: &mut BTreeMap<OpId, ValueId>,
    products: Vec<OpId>,
    matrix: ValueId,
) -> Result<Vec<OpId>, PassError> {
    let factors = products.into_iter().filter_map(|product| {
        let (op, slot, there) = factor_that_is(graph, product, matrix)?;
        Some((product, op, slot, there))
    });
    let mut factors: Vec<_> = factors.collect();
    if factors.iter().any(|(.., there)| *there == matrix) {
        factors.retain(|(.., there)| *there == matrix);
    }
    for (product, op, slot, there) in &factors {
        let first = *claims.entry(*product).or_insert(matrix);
        if first != matrix {
            let name = |value: ValueId| graph.param(value).map_or("", |p| &*p.name);
            return Err(PassError::Refused(format!(
                "the backward pass has one product with {} and {}, which were equal when the model was written: export \
                 with `optimize=False`, which keeps them apart",
                name(first),
                name(matrix)
            )));
        }
        if *there != matrix {
            let mut patch = graph.patch("find-gradients");
            patch.set_operand(*op, *slot, matrix);
        }
    }
    Ok(factors.into_iter().map(|(product, ..)| product).collect())
}

/// The products that read a value, through reshapes and the like.
fn products_that_read(graph: &Graph, value: ValueId) -> Vec<OpId> {
    let mut found = Vec::new();
    let mut work = vec![(value, 0)];
    while let Some((value, steps)) = work.pop() {
        for read in graph.uses(value) {
            let op = graph.op(read.op);
            if let Op::MatMul(_) = op.kind {
                found.push(op.id);
            } else if steps < MAX_STEPS && behind(graph, op) == Some(value) {
                work.push((op.results[0], steps + 1));
            }
        }
    }
    found
}
