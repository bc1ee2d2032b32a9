//! Integers that are a sum of multiples of their place: counters, and what arithmetic makes of them.

use crate::matching::Memo;
use lorafa_ir::ops::{Binary, BinaryKind, Literal, Op};
use lorafa_ir::{Dim, Graph, TensorType, ValueId};

/// `offset + Σ steps[axis]·index[axis]`; an axis of one element has step zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Affine {
    pub offset: i64,
    pub steps: Vec<i64>,
}

impl Affine {
    fn constant(offset: i64, rank: usize) -> Affine {
        Affine {
            offset,
            steps: vec![0; rank],
        }
    }

    /// `self + factor·other`, the shapes broadcast.
    pub(super) fn plus(&self, other: &Affine, factor: i64) -> Option<Affine> {
        let rank = self.steps.len().max(other.steps.len());
        let step = |x: &Affine, axis: usize| {
            let own = (axis + x.steps.len()).checked_sub(rank);
            own.map_or(0, |own| x.steps[own])
        };
        let sum = |a: i64, b: i64| a.checked_add(b.checked_mul(factor)?);
        let steps = (0..rank).map(|axis| sum(step(self, axis), step(other, axis)));
        Some(Affine {
            offset: sum(self.offset, other.offset)?,
            steps: steps.collect::<Option<_>>()?,
        })
    }

    fn times(&self, factor: i64) -> Option<Affine> {
        Affine::constant(0, self.steps.len()).plus(self, factor)
    }

    fn number(&self) -> Option<i64> {
        self.steps
            .iter()
            .all(|step| *step == 0)
            .then_some(self.offset)
    }
}

/// A value as a function of its place, if it is such a one.
fn affine(graph: &Graph, value: ValueId, known: &mut Memo<Affine>) -> Option<Affine> {
    known.of(value, |known| computed(graph, value, known))
}

/// A value as its op makes it of its operands.
fn computed(graph: &Graph, value: ValueId, known: &mut Memo<Affine>) -> Option<Affine> {
    let op = graph.def(value);
    let ty = graph.ty(value);
    if ty.dtype.is_float() {
        return None;
    }
    let mut operand = |slot: usize| affine(graph, op.operands[slot], known);
    let number = |x: f64| (x.fract() == 0.0 && x.abs() < 1e15).then_some(x as i64);
    match &op.kind {
        Op::Iota(iota) => Some(Affine {
            offset: iota.start.known()?,
            steps: vec![if iota.len.is(1) { 0 } else { iota.step }],
        }),
        Op::Constant(constant) => match constant.as_f64() {
            Some(x) => Some(Affine::constant(number(x)?, ty.rank())),
            None => counter(&constant.literal, ty),
        },
        Op::Fill(fill) => Some(Affine::constant(number(fill.value.0)?, ty.rank())),
        Op::Cast(_) => {
            let from = graph.ty(op.operands[0]).dtype;
            (from.size() <= ty.dtype.size()).then(|| operand(0))?
        }
        Op::Reshape(_) => {
            let inner = operand(0)?;
            let from = &graph.ty(op.operands[0]).shape;
            let long = from.iter().zip(&inner.steps).filter(|(dim, _)| !dim.is(1));
            let mut long = long;
            let steps = ty.shape.iter().map(|dim| {
                if dim.is(1) {
                    return Some(0);
                }
                let (same, step) = long.next()?;
                (same == dim).then_some(*step)
            });
            Some(Affine {
                offset: inner.offset,
                steps: steps.collect::<Option<_>>()?,
            })
        }
        Op::Expand(_) => operand(0)?.plus(&Affine::constant(0, ty.rank()), 0),
        Op::Transpose(transpose) => {
            let inner = operand(0)?;
            let steps = transpose.perm.iter().map(|axis| inner.steps[*axis]);
            Some(Affine {
                steps: steps.collect(),
                ..inner
            })
        }
        Op::Binary(Binary(kind)) => {
            let (a, b) = (operand(0)?, operand(1)?);
            match kind {
                BinaryKind::Add => a.plus(&b, 1),
                BinaryKind::Sub => a.plus(&b, -1),
                BinaryKind::Mul => match (a.number(), b.number()) {
                    (_, Some(n)) => a.times(n)?.plus(&b, 0),
                    (Some(n), _) => b.times(n)?.plus(&a, 0),
                    _ => None,
                },
                _ => None,
            }
        }
        _ => None,
    }
}

/// A counter that an exporter wrote out.
fn counter(literal: &Literal, ty: &TensorType) -> Option<Affine> {
    let Literal::Ints(numbers) = literal else {
        return None;
    };
    let long = |dim: &Dim| !dim.is(1);
    if ty.shape.iter().filter(|dim| long(dim)).count() != 1 {
        return None;
    }
    let [first, second, ..] = numbers.as_slice() else {
        return None;
    };
    let step = second.checked_sub(*first)?;
    let steady = |pair: &[i64]| pair[1].checked_sub(pair[0]) == Some(step);
    let steps = ty.shape.iter().map(|dim| if long(dim) { step } else { 0 });
    numbers.windows(2).all(steady).then(|| Affine {
        offset: *first,
        steps: steps.collect(),
    })
}

/// What a comparison of such integers requires: `offset + row·i + key·j ≤ 0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AtMostZero {
    pub row: i64,
    pub key: i64,
    pub offset: i64,
}

impl AtMostZero {
    /// Of a value whose last two axes are rows and keys, or of its contrary.
    pub(super) fn of(graph: &Graph, value: ValueId, negated: bool) -> Option<AtMostZero> {
        let op = graph.def(value);
        let Op::Binary(Binary(kind)) = op.kind else {
            return None;
        };
        // `a - b + strict ≤ 0`, or the contrary `b - a + 1 - strict ≤ 0`.
        let (swap, strict) = match kind {
            BinaryKind::Le => (false, 0),
            BinaryKind::Lt => (false, 1),
            BinaryKind::Ge => (true, 0),
            BinaryKind::Gt => (true, 1),
            _ => return None,
        };
        let mut known = Memo::new();
        let mut side = |slot: usize| affine(graph, op.operands[slot], &mut known);
        let (mut a, mut b) = (side(0)?, side(1)?);
        if swap != negated {
            std::mem::swap(&mut a, &mut b);
        }
        let strict = if negated { 1 - strict } else { strict };
        let difference = a.plus(&b, -1)?;
        let (leading, last) = difference
            .steps
            .split_at(difference.steps.len().saturating_sub(2));
        if leading.iter().any(|step| *step != 0) {
            return None;
        }
        let at = |from_end: usize| last.len().checked_sub(from_end).map_or(0, |i| last[i]);
        Some(AtMostZero {
            row: at(2),
            key: at(1),
            offset: difference.offset.checked_add(strict)?,
        })
    }

    /// Whether it holds for so many rows and keys.
    pub(super) fn always(&self, (rows, keys): (i64, i64)) -> bool {
        let most = |step: i64, count: i64| step.max(0).checked_mul((count - 1).max(0));
        let sum = most(self.row, rows).zip(most(self.key, keys));
        let sum = sum.and_then(|(a, b)| a.checked_add(b)?.checked_add(self.offset));
        sum.is_some_and(|sum| sum <= 0)
    }
}
