//! Whether a model predicts the next token: whether its attention masks the future.

use lorafa_ir::ops::{Attention, Binary, BinaryKind, Constant, Data, Literal, Op};
use lorafa_ir::{DType, Graph, OpData, ValueId};
use std::collections::BTreeSet;

/// The largest constant mask that is looked at, in elements.
const MAX_MASK: u64 = 1 << 24;

/// Whether `output` depends on an order of positions: causal attention, a comparison of two counters, or
/// a constant that is one thing on and below the diagonal and another above it.
pub(super) fn is_causal(graph: &Graph, output: ValueId) -> bool {
    let mut counters: BTreeSet<ValueId> = BTreeSet::new();
    let mut fixed: BTreeSet<ValueId> = BTreeSet::new();
    let needed = needed(graph, output);
    for id in graph.order() {
        let op = graph.op(id);
        let known = |v: &ValueId| counters.contains(v) || fixed.contains(v);
        let counts = |v: &ValueId| counters.contains(v);
        if needed.contains(&id)
            && (matches!(op.kind, Op::Attention(Attention { causal: true, .. }))
                || is_triangle(op)
                || compares(op) && op.operands.iter().all(counts))
        {
            return true;
        }
        match &op.kind {
            Op::Iota(_) => counters.extend(&op.results),
            Op::Constant(c) if counts_up(c) => counters.extend(&op.results),
            Op::Constant(_) | Op::Fill(_) | Op::DimValue(_) => fixed.extend(&op.results),
            _ if op.operands.is_empty() || !op.operands.iter().all(known) => {}
            _ if op.operands.iter().any(counts) => counters.extend(&op.results),
            _ => fixed.extend(&op.results),
        }
    }
    false
}

/// Whether a constant is a counter that an exporter wrote out.
fn counts_up(constant: &Constant) -> bool {
    let Literal::Ints(numbers) = &constant.literal else {
        return false;
    };
    numbers.len() > 1
        && numbers
            .windows(2)
            .all(|w| w[0].checked_add(1) == Some(w[1]))
}

/// The ops that a value depends on.
fn needed(graph: &Graph, value: ValueId) -> BTreeSet<lorafa_ir::OpId> {
    let mut needed = BTreeSet::new();
    let mut queue = vec![value];
    while let Some(value) = queue.pop() {
        let op = graph.def(value);
        if needed.insert(op.id) {
            queue.extend(&op.operands);
        }
    }
    needed
}

fn compares(op: &OpData) -> bool {
    use BinaryKind::{Ge, Gt, Le, Lt};
    matches!(op.kind, Op::Binary(Binary(Ge | Gt | Le | Lt)))
}

/// Whether the op is a constant mask of the future.
fn is_triangle(op: &OpData) -> bool {
    let (ty, values) = match &op.kind {
        Op::Constant(c) => (&c.ty, c.literal.to_f64()),
        Op::Param(p) => match (&p.stored.data, p.stored.dtype, p.stored.transposed) {
            (Data::Inline(bytes), dtype, false)
                if p.ty.elements().is_some_and(|n| n <= MAX_MASK) =>
            {
                (&p.ty, decode(bytes, dtype))
            }
            _ => return false,
        },
        _ => return false,
    };
    let (Some(shape), Some(elements)) = (ty.known_shape(), ty.elements()) else {
        return false;
    };
    let [.., rows, columns] = shape.as_slice() else {
        return false;
    };
    let n = *columns as usize;
    if rows != columns || n < 2 || values.len() as u64 != elements {
        return false;
    }
    let (below, above) = (values[0], values[1]);
    below.to_bits() != above.to_bits()
        && values.iter().enumerate().all(|(i, x)| {
            let (row, column) = (i / n % n, i % n);
            let expected = if column <= row { below } else { above };
            x.to_bits() == expected.to_bits()
        })
}

/// Elements of the types that masks have; none for other types.
fn decode(bytes: &[u8], dtype: DType) -> Vec<f64> {
    match dtype {
        DType::Bool | DType::U8 => bytes.iter().map(|b| f64::from(*b)).collect(),
        DType::F32 => {
            let (words, _) = bytes.as_chunks::<4>();
            words
                .iter()
                .map(|w| f64::from(f32::from_le_bytes(*w)))
                .collect()
        }
        DType::I64 => {
            let (words, _) = bytes.as_chunks::<8>();
            words
                .iter()
                .map(|w| i64::from_le_bytes(*w) as f64)
                .collect()
        }
        // Only told apart, never computed with.
        DType::F16 | DType::BF16 => {
            let (words, _) = bytes.as_chunks::<2>();
            words
                .iter()
                .map(|w| f64::from(u16::from_le_bytes(*w)))
                .collect()
        }
        _ => Vec::new(),
    }
}
