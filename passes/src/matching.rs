//! What the passes that fuse ops ask of a graph.

use lorafa_ir::ops::{Binary, BinaryKind, Data, MatMul, Op, Param, Role, Unary, UnaryKind};
use lorafa_ir::{DType, Graph, OpData, OpId, Use, ValueId};
use std::collections::BTreeMap;

/// Casts and the like that are walked through in one place: a bound for hostile input.
pub(crate) const MAX_STEPS: usize = 16;

/// Values that are looked at to find out about one: a bound for hostile input.
const MAX_VALUES: usize = 256;

/// What was found out about values and what they are made of, each looked at once.
pub(crate) struct Memo<T>(BTreeMap<ValueId, Option<T>>);

impl<T: Clone> Memo<T> {
    pub(crate) fn new() -> Self {
        Memo(BTreeMap::new())
    }

    /// What is known of a value, or what `look` finds out about it; nothing, if too many were looked at.
    pub(crate) fn of(
        &mut self,
        value: ValueId,
        look: impl FnOnce(&mut Self) -> Option<T>,
    ) -> Option<T> {
        if let Some(known) = self.0.get(&value) {
            return known.clone();
        }
        if self.0.len() == MAX_VALUES {
            return None;
        }
        // Counts on the way down, too, which bounds the recursion.
        self.0.insert(value, None);
        let found = look(self);
        self.0.insert(value, found.clone());
        found
    }
}

/// Whether a table holds zeros.
pub(crate) fn is_zero(param: &Param) -> bool {
    match &param.stored.data {
        Data::Inline(bytes) => param.role == Role::Constant && bytes.iter().all(|byte| *byte == 0),
        _ => false,
    }
}

/// The one number that a value holds everywhere, through casts and reshapes.
pub(crate) fn number(graph: &Graph, mut value: ValueId) -> Option<f64> {
    for _ in 0..MAX_STEPS {
        let def = graph.def(value);
        match &def.kind {
            Op::Constant(c) => return c.as_f64(),
            Op::Fill(f) => return Some(f.value.0),
            Op::Param(param) => return is_zero(param).then_some(0.0),
            Op::Cast(_) | Op::Reshape(_) | Op::Expand(_) => value = def.operands[0],
            _ => return None,
        }
    }
    None
}

/// Whether a value is a number, up to what its own type and f32 may have rounded off.
pub(crate) fn is_number(graph: &Graph, value: ValueId, expected: f64) -> bool {
    let dtype = graph.ty(value).dtype;
    number(graph, value).is_some_and(|found| {
        let near = (found - expected).abs() <= 1e-6 * expected.abs();
        near || found == dtype.round(expected)
    })
}

/// The operands of an op of this kind.
pub(crate) fn binary(graph: &Graph, value: ValueId, kind: BinaryKind) -> Option<[ValueId; 2]> {
    let op = graph.def(value);
    (op.kind == Op::Binary(Binary(kind))).then(|| [op.operands[0], op.operands[1]])
}

/// The operands of an op that commutes, in both orders; none if it is another op.
pub(crate) fn either(
    graph: &Graph,
    value: ValueId,
    kind: BinaryKind,
) -> impl Iterator<Item = (ValueId, ValueId)> {
    let operands = binary(graph, value, kind);
    operands.into_iter().flat_map(|[a, b]| [(a, b), (b, a)])
}

/// The other operand of an op that commutes, where one is this number.
pub(crate) fn with_number(
    graph: &Graph,
    value: ValueId,
    kind: BinaryKind,
    expected: f64,
) -> Option<ValueId> {
    let mut pairs = either(graph, value, kind);
    pairs.find_map(|(x, n)| is_number(graph, n, expected).then_some(x))
}

/// `x` and the number that a value is `x` times, of one type.
pub(crate) fn times(graph: &Graph, value: ValueId) -> Option<(ValueId, f64)> {
    either(graph, value, BinaryKind::Mul).find_map(|(x, by)| {
        let by = number(graph, by).filter(|by| by.is_finite())?;
        (graph.ty(x) == graph.ty(value)).then_some((x, by))
    })
}

/// As [`times`], or divided by a number: for whoever computes the whole in another way, as a reciprocal may be rounded.
pub(crate) fn scaled(graph: &Graph, value: ValueId) -> Option<(ValueId, f64)> {
    times(graph, value).or_else(|| {
        let [x, by] = binary(graph, value, BinaryKind::Div)?;
        let factor = Some(1.0 / number(graph, by)?).filter(|factor| factor.is_finite())?;
        (graph.ty(x) == graph.ty(value)).then_some((x, factor))
    })
}

/// How an op multiplies two matrices, if it does nothing else: neither scales nor adds.
pub(crate) fn plain_product(op: &OpData) -> Option<MatMul> {
    match op.kind {
        Op::MatMul(product) if product.is_plain(op.operands.len()) => Some(product),
        _ => None,
    }
}

/// The operand of an op of this kind.
pub(crate) fn unary(graph: &Graph, value: ValueId, kind: UnaryKind) -> Option<ValueId> {
    let op = graph.def(value);
    (op.kind == Op::Unary(Unary(kind))).then(|| op.operands[0])
}

/// What a value was cast from, if it was.
pub(crate) fn uncast(graph: &Graph, value: ValueId) -> Option<ValueId> {
    let op = graph.def(value);
    matches!(op.kind, Op::Cast(_)).then(|| op.operands[0])
}

/// What a value was widened from, if that was of type `narrow`; the value itself if it is.
pub(crate) fn as_narrow(graph: &Graph, value: ValueId, narrow: DType) -> Option<ValueId> {
    if graph.ty(value).dtype == narrow {
        return Some(value);
    }
    let from = uncast(graph, value)?;
    let widened = graph.ty(from).dtype == narrow && graph.ty(value).dtype == narrow.arithmetic();
    widened.then_some(from)
}

/// Ops in schedule order that are still there when `f` comes to them.
pub(crate) fn each_op<E>(
    graph: &mut Graph,
    mut f: impl FnMut(&mut Graph, OpId) -> Result<(), E>,
) -> Result<(), E> {
    for id in graph.order() {
        if graph.get_op(id).is_some() {
            f(graph, id)?;
        }
    }
    Ok(())
}

/// The one reading of a value, if there is no other and no output is it.
pub(crate) fn only_use(graph: &Graph, value: ValueId) -> Option<Use> {
    let mut reads = graph.reads(value);
    let first = reads.next()?;
    (reads.next().is_none() && !graph.is_output(value)).then_some(first)
}

/// Whether one op alone reads the only result of another, and no output is it.
pub(crate) fn read_once(graph: &Graph, op: &OpData) -> bool {
    matches!(op.results.as_slice(), [value] if only_use(graph, *value).is_some())
}
