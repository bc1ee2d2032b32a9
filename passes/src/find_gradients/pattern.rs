//! The shape of an adapter's gradients in a graph.
//!
//! ```text
//!   xa = x·Aᵀ        dB = dyᵀ·xa
//!   y  = xa·Bᵀ       dA = (dy·B)ᵀ·x
//! ```

use crate::find_lora::weight;
use crate::matching::{MAX_STEPS, either, number, plain_product};
use crate::pass::PassError;
use lorafa_ir::ops::{BinaryKind, Data, Op, Param};
use lorafa_ir::{Adapter, Graph, OpId, ValueId};
use std::collections::BTreeMap;

/// A gradient of a matrix of an adapter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Gradient {
    /// The matrix.
    pub(super) param: ValueId,
    /// The adapter, by its place among the graph's.
    adapter: usize,
    /// For the gradient of A: the product with B.
    inner: Option<OpId>,
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

    /// Whose gradients a value may be.
    pub(super) fn gradients(&self, graph: &Graph, value: ValueId) -> Vec<Gradient> {
        let mut found: Vec<Gradient> = Vec::new();
        let product = graph.def(bare(graph, value));
        if plain_product(product).is_none() {
            return found;
        }
        let [l, r] = [0, 1].map(|slot| bare(graph, product.operands[slot]));
        for (factor, other) in [(l, r), (r, l)] {
            for adapter in self.by_xa.get(&factor).into_iter().flatten() {
                found.push(Gradient {
                    param: graph.adapters()[*adapter].b,
                    adapter: *adapter,
                    inner: None,
                    exact: true,
                });
            }
            for adapter in self.by_x.get(&factor).into_iter().flatten() {
                let inner = graph.def(other).id;
                let Adapter { a, b, .. } = graph.adapters()[*adapter];
                if let Some((_, _, there)) = factor_that_is(graph, inner, b) {
                    found.push(Gradient {
                        param: a,
                        adapter: *adapter,
                        inner: Some(inner),
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
        let def = graph.def(value);
        let scaled = || {
            let mut pairs = either(graph, value, BinaryKind::Mul);
            pairs.find_map(|(x, by)| number(graph, by).map(|_| x))
        };
        value = match &def.kind {
            Op::Cast(_) | Op::Reshape(_) | Op::Transpose(_) => def.operands[0],
            _ => match scaled() {
                Some(x) => x,
                None => break,
            },
        };
    }
    value
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
fn are_equal(graph: &Graph, a: ValueId, b: ValueId) -> bool {
    let stored = |value: ValueId| graph.param(value).map(|p: &Param| (&p.ty, &p.stored));
    let known = |value: ValueId| {
        let data = graph.param(value).map(|p| &p.stored.data);
        matches!(
            data,
            Some(Data::Inline(_) | Data::External(_) | Data::Digest(_))
        )
    };
    a == b || known(a) && stored(a) == stored(b)
}

/// Makes the backward pass read the matrices that train, where exporters merged what is equal.
pub(super) fn read_what_trains(graph: &mut Graph, found: &[Gradient]) -> Result<(), PassError> {
    for gradient in found {
        let Some(inner) = gradient.inner else {
            continue;
        };
        let Adapter { a, b, .. } = graph.adapters()[gradient.adapter];
        read_itself(graph, inner, b);
        for reader in products_that_read(graph, graph.op(inner).results[0]) {
            read_itself(graph, reader, a);
        }
    }
    Ok(())
}

fn read_itself(graph: &mut Graph, product: OpId, matrix: ValueId) {
    if let Some((op, slot, there)) = factor_that_is(graph, product, matrix)
        && there != matrix
    {
        let mut patch = graph.patch("find-gradients");
        patch.set_operand(op, slot, matrix);
    }
}

/// The products that read a value, through reshapes and the like.
fn products_that_read(graph: &Graph, value: ValueId) -> Vec<OpId> {
    let mut found = Vec::new();
    let mut work = vec![(value, 0)];
    while let Some((value, steps)) = work.pop() {
        for read in graph.uses(value) {
            let op = graph.op(read.op);
            match &op.kind {
                Op::MatMul(_) => found.push(op.id),
                Op::Cast(_) | Op::Reshape(_) | Op::Transpose(_) if steps < MAX_STEPS => {
                    work.push((op.results[0], steps + 1));
                }
                _ => {}
            }
        }
    }
    found
}
