//! The shape of an adapter in a graph.

use crate::matching::{MAX_STEPS, plain_product, scaled};
use lorafa_ir::ops::{Binary, BinaryKind, Op, Transpose};
use lorafa_ir::{Dim, Graph, OpData, OpId, Region, ValueId};
use std::collections::BTreeMap;

/// A rank-2 weight that an op reads, perhaps through casts and transposes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weight {
    /// The parameter.
    pub(crate) param: ValueId,
    /// The op that reads the parameter itself.
    pub(crate) reader: OpId,
    /// With which operand.
    pub(crate) slot: usize,
    /// Whether nothing stands between the parameter and the product.
    pub(super) direct: bool,
}

/// `base + scale·(x·A)·B`.
#[derive(Clone, Debug)]
pub(super) struct Match {
    /// The sum.
    pub(super) add: OpId,
    /// What the layer gives without the adapter, as the sum reads it.
    pub(super) base: ValueId,
    /// What the product with A reads.
    pub(super) x: ValueId,
    /// The product `x·A`.
    pub(super) xa: ValueId,
    /// A.
    pub(super) a: Weight,
    /// B.
    pub(super) b: Weight,
    /// The product of all scalars on the way.
    pub(super) scale: f64,
    /// The width of `x·A`.
    pub(super) rank: u64,
    /// Whether A and B are named after each other.
    pub(super) swapped_names: bool,
}

/// Every adapter of the graph, in schedule order.
pub(super) fn matches(graph: &Graph) -> Vec<Match> {
    let mut found: Vec<Match> = Vec::new();
    let mut bases: BTreeMap<OpId, ValueId> = BTreeMap::new();
    for id in graph.order() {
        let op = graph.op(id);
        let Op::Binary(Binary(BinaryKind::Add)) = op.kind else {
            continue;
        };
        // What an adapter hands back to its input has its shape, too.
        if op.site.region != Region::Forward {
            continue;
        }
        let (l, r) = (op.operands[0], op.operands[1]);
        let hit = [(l, r), (r, l)]
            .into_iter()
            .find_map(|(base, delta)| adapter(graph, &bases, op.id, base, delta));
        if let Some(hit) = hit {
            bases.insert(hit.add, hit.base);
            found.push(hit);
        }
    }
    found
}

fn adapter(
    graph: &Graph,
    bases: &BTreeMap<OpId, ValueId>,
    add: OpId,
    base: ValueId,
    delta: ValueId,
) -> Option<Match> {
    let (product, outer) = peel(graph, delta);
    let (xa_side, b) = product_with_weight(graph, product)?;
    let (xa, inner) = peel(graph, xa_side);
    let (x, a) = product_with_weight(graph, xa)?;
    let (rows, rank) = sizes(graph, xa)?;
    let (rank_b, columns) = sizes(graph, product)?;
    let name = |w: &Weight| graph.param(w.param).map_or("", |p| &*p.name);
    let named = name(&a).contains("lora_A") && name(&b).contains("lora_B");
    let narrow = rank < rows && rank < columns;
    if rank != rank_b || rank == 0 || !(named || narrow && in_one_layer(graph, add, base)) {
        return None;
    }
    let roots = layer_inputs(graph, bases, base)?;
    let (_, before) = chain(graph, x)
        .into_iter()
        .find(|(v, _)| roots.contains(v))?;
    let scale = outer * inner * before;
    let swapped_names = name(&a).contains("lora_B") || name(&b).contains("lora_A");
    Some(Match {
        add,
        base,
        x,
        xa,
        a,
        b,
        scale,
        rank,
        swapped_names,
    })
}

/// Whether the sum and the product it adds to belong to one layer, as far as modules are known: a
/// low-rank branch beside another layer is no adapter of that.
fn in_one_layer(graph: &Graph, add: OpId, mut base: ValueId) -> bool {
    let layer = &graph.op(add).site.module;
    for _ in 0..MAX_STEPS {
        let def = graph.def(base);
        let module = &*def.site.module;
        match &def.kind {
            Op::MatMul(_) => {
                let inner = module.strip_suffix(".base_layer").unwrap_or(module);
                return layer.is_empty() || module.is_empty() || inner == &**layer;
            }
            _ => match def.operands.first() {
                Some(x) => base = *x,
                None => return true,
            },
        }
    }
    true
}

/// The operands of a product if the second is a weight.
fn product_with_weight(graph: &Graph, value: ValueId) -> Option<(ValueId, Weight)> {
    let op = graph.def(value);
    plain_product(op).filter(|product| !product.trans_a)?;
    Some((op.operands[0], weight(graph, op, 1)?))
}

/// Length of the sums and number of columns of a product.
fn sizes(graph: &Graph, product: ValueId) -> Option<(u64, u64)> {
    let op = graph.def(product);
    let (Op::MatMul(m), shape) = (&op.kind, &graph.ty(*op.operands.get(1)?).shape) else {
        return None;
    };
    let known = |d: Option<&Dim>| d.and_then(Dim::known).and_then(|n| u64::try_from(n).ok());
    let (rows, columns) = (known(shape.first())?, known(shape.get(1))?);
    Some(if m.trans_b {
        (columns, rows)
    } else {
        (rows, columns)
    })
}

/// The weight that operand `slot` of `op` is, through casts and transposes.
pub(crate) fn weight(graph: &Graph, op: &OpData, slot: usize) -> Option<Weight> {
    let (mut reader, mut slot) = (op, slot);
    for step in 0..MAX_STEPS {
        let value = *reader.operands.get(slot)?;
        let def = graph.def(value);
        match &def.kind {
            Op::Param(p) => {
                let fits = p.is_weight() && p.ty.rank() == 2 && p.ty.dtype.is_float();
                let (reader, direct) = (reader.id, step == 0);
                return fits.then_some(Weight {
                    param: value,
                    reader,
                    slot,
                    direct,
                });
            }
            Op::Cast(_) | Op::Transpose(Transpose { .. }) => (reader, slot) = (def, 0),
            _ => return None,
        }
    }
    None
}

/// `value` without the casts, reshapes and scalings behind it, and the scale.
fn peel(graph: &Graph, mut value: ValueId) -> (ValueId, f64) {
    let mut scale = 1.0;
    for _ in 0..MAX_STEPS {
        let def = graph.def(value);
        match &def.kind {
            Op::Cast(_) | Op::Reshape(_) => value = def.operands[0],
            _ => match scaled(graph, value) {
                Some((next, s)) => (value, scale) = (next, scale * s),
                None => break,
            },
        }
    }
    (value, scale)
}

/// The values that A's operand may stand for, nearest first, each with the scale up to there.
fn chain(graph: &Graph, x: ValueId) -> Vec<(ValueId, f64)> {
    let mut values = vec![(x, 1.0)];
    let (mut value, mut scale) = (x, 1.0);
    for _ in 0..MAX_STEPS {
        let def = graph.def(value);
        match &def.kind {
            Op::Cast(_) | Op::Reshape(_) | Op::Dropout(_) => value = def.operands[0],
            _ => match scaled(graph, value) {
                Some((next, s)) => (value, scale) = (next, scale * s),
                None => break,
            },
        }
        values.push((value, scale));
    }
    values
}

/// If `base` is a layer's result: the values that its input is the same as.
fn layer_inputs(
    graph: &Graph,
    bases: &BTreeMap<OpId, ValueId>,
    mut base: ValueId,
) -> Option<Vec<ValueId>> {
    for _ in 0..MAX_STEPS {
        let def = graph.def(base);
        match &def.kind {
            Op::Cast(_) | Op::Reshape(_) => base = def.operands[0],
            Op::Binary(Binary(BinaryKind::Add)) => base = unbiased(graph, bases, def)?,
            Op::MatMul(_) => {
                let (mut input, _) = product_with_weight(graph, base)?;
                let mut inputs = vec![input];
                while inputs.len() < MAX_STEPS
                    && let Op::Cast(_) | Op::Reshape(_) | Op::Dropout(_) = graph.def(input).kind
                {
                    input = graph.def(input).operands[0];
                    inputs.push(input);
                }
                return Some(inputs);
            }
            _ => return None,
        }
    }
    None
}

/// What an op adds a bias or another adapter to.
fn unbiased(graph: &Graph, bases: &BTreeMap<OpId, ValueId>, add: &OpData) -> Option<ValueId> {
    if let Some(base) = bases.get(&add.id) {
        return Some(*base);
    }
    let (l, r) = (add.operands[0], add.operands[1]);
    match (is_bias(graph, l), is_bias(graph, r)) {
        (false, true) => Some(l),
        (true, false) => Some(r),
        _ => None,
    }
}

/// Whether a value is a vector of weights, perhaps cast.
fn is_bias(graph: &Graph, value: ValueId) -> bool {
    let def = graph.def(value);
    match &def.kind {
        Op::Param(p) => p.is_weight() && p.ty.rank() == 1,
        Op::Cast(_) => graph
            .param(def.operands[0])
            .is_some_and(|p| p.ty.rank() == 1),
        _ => false,
    }
}
