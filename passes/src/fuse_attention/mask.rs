//! What a mask consists of: flags where positions are compared, conditions, and numbers to add.

use super::affine::AtMostZero;
use super::{Edit, through_expand, uniform};
use crate::matching::MAX_STEPS;
use lorafa_ir::ops::{Binary, BinaryKind, Data, Op, Role, UNSEEN, Unary, UnaryKind};
use lorafa_ir::{DType, Graph, PatchError, ValueId};

/// Ops that a mask is taken apart through: a bound for hostile input.
const MAX_OPS: usize = 256;

/// The parts of a mask.
#[derive(Default)]
pub(super) struct Mask {
    pub causal: bool,
    /// How many keys a query sees at most, and the condition that says so.
    pub window: Option<(u64, ValueId)>,
    /// What else must hold for a query to see a key, each with whether it is the other way round.
    conditions: Vec<(ValueId, bool)>,
    /// What is added to the scores.
    biases: Vec<ValueId>,
    /// How many ops were taken apart.
    taken: usize,
}

/// Rows and keys.
type Sizes = (i64, i64);

/// Whether a value stands for minus infinity: it is that, or the least finite number of its type.
pub(super) fn never(graph: &Graph, value: ValueId) -> bool {
    let least = graph.ty(value).dtype.round(f64::from(f32::MIN));
    let is_float = graph.ty(value).dtype.is_float();
    is_float && uniform(graph, value).is_some_and(|x| x <= UNSEEN || x <= least)
}

impl Mask {
    /// Whether one more op may be taken apart; what it gives is a part of the mask as it is, otherwise.
    fn take(&mut self) -> bool {
        self.taken += 1;
        self.taken <= MAX_OPS
    }

    /// Takes apart what must hold for a query to see a key.
    pub(super) fn require(&mut self, graph: &Graph, value: ValueId, negated: bool, sizes: Sizes) {
        let value = plain(graph, value);
        let op = graph.def(value);
        match op.kind {
            Op::Unary(Unary(UnaryKind::Not)) if self.take() => {
                return self.require(graph, op.operands[0], !negated, sizes);
            }
            Op::Binary(Binary(kind))
                if (kind == BinaryKind::And && !negated || kind == BinaryKind::Or && negated)
                    && self.take() =>
            {
                for operand in op.operands.clone() {
                    self.require(graph, operand, negated, sizes);
                }
                return;
            }
            _ => {}
        }
        if uniform(graph, value).is_some_and(|x| (x != 0.0) != negated) {
            return;
        }
        if !negated && triangle(graph, value) {
            self.causal = true;
            return;
        }
        match AtMostZero::of(graph, value, negated) {
            Some(positions) if positions.always(sizes) => {}
            Some(AtMostZero {
                row: -1,
                key: 1,
                offset: 0,
            }) => self.causal = true,
            Some(AtMostZero {
                row: 1,
                key: -1,
                offset,
            }) if offset <= 0 && !negated && self.window.is_none() => {
                self.window = Some((offset.unsigned_abs() + 1, value));
            }
            _ if self.conditions.contains(&(value, negated)) => {}
            _ => self.conditions.push((value, negated)),
        }
    }

    /// Takes apart what is added to the scores.
    pub(super) fn add(&mut self, graph: &Graph, addend: ValueId, sizes: Sizes) {
        let value = through_expand(graph, addend);
        if uniform(graph, value) == Some(0.0) {
            return;
        }
        let op = graph.def(value);
        if op.kind == Op::Binary(Binary(BinaryKind::Add)) && self.take() {
            for operand in op.operands.clone() {
                self.add(graph, operand, sizes);
            }
            return;
        }
        if let Op::Select(_) = op.kind {
            let [condition, a, b] = [op.operands[0], op.operands[1], op.operands[2]];
            let seen = match (never(graph, a), never(graph, b)) {
                (false, true) => Some((a, false)),
                (true, false) => Some((b, true)),
                _ => None,
            };
            if let Some((rest, negated)) = seen.filter(|_| self.take()) {
                self.require(graph, condition, negated, sizes);
                return self.add(graph, rest, sizes);
            }
        }
        self.biases.push(value);
    }

    /// A window alone is a condition like any other.
    pub(super) fn finish(&mut self) {
        if !self.causal
            && let Some((_, condition)) = self.window.take()
        {
            self.conditions.push((condition, false));
        }
    }

    /// The mask operand, if there is anything left to require.
    pub(super) fn condition(&self, patch: Edit<'_, '_>) -> Result<Option<ValueId>, PatchError> {
        let mut whole = None;
        for (condition, negated) in &self.conditions {
            let mut condition = *condition;
            if *negated {
                condition = patch.unary(UnaryKind::Not, condition)?;
            }
            whole = Some(match whole {
                Some(whole) => patch.binary(BinaryKind::And, whole, condition)?,
                None => condition,
            });
        }
        Ok(whole)
    }

    /// The bias operand, if anything is added.
    pub(super) fn bias(
        &self,
        patch: Edit<'_, '_>,
        queries: ValueId,
    ) -> Result<Option<ValueId>, PatchError> {
        let dtype = patch.ty(queries).dtype;
        let wide = if dtype.is_half() { DType::F32 } else { dtype };
        let mut whole = None;
        for bias in &self.biases {
            let kept = [dtype, wide].contains(&patch.ty(*bias).dtype) && self.biases.len() == 1;
            let bias = if kept {
                *bias
            } else {
                patch.cast(*bias, wide)?
            };
            whole = Some(match whole {
                Some(whole) => patch.plus(whole, bias)?,
                None => bias,
            });
        }
        Ok(whole)
    }
}

/// Whether a value is a table that says of each row `i` and key `j` whether `j ≤ i`.
fn triangle(graph: &Graph, value: ValueId) -> bool {
    let ty = graph.ty(value);
    let shape = ty.known_shape();
    let Some([leading @ .., rows, keys]) = shape.as_deref() else {
        return false;
    };
    if ty.dtype != DType::Bool || *keys < 2 || *rows < 2 || leading.iter().any(|dim| *dim != 1) {
        return false;
    }
    let place = |at: usize| (at as u64 / keys, at as u64 % keys);
    let fits = |(at, seen): (usize, bool)| {
        let (row, key) = place(at);
        seen == (key <= row)
    };
    match &graph.def(value).kind {
        Op::Constant(constant) => {
            let table = constant.literal.to_f64().into_iter();
            table.map(|x| x != 0.0).enumerate().all(fits)
        }
        Op::Param(param) if param.role == Role::Constant => match &param.stored.data {
            Data::Inline(table) => table.iter().map(|x| *x != 0).enumerate().all(fits),
            _ => false,
        },
        _ => false,
    }
}

/// Behind what only repeats, or puts axes of length one in front.
fn plain(graph: &Graph, mut value: ValueId) -> ValueId {
    for _ in 0..MAX_STEPS {
        let op = graph.def(value);
        let repeats = match op.kind {
            Op::Expand(_) => true,
            Op::Reshape(_) => {
                let (from, to) = (&graph.ty(op.operands[0]).shape, &graph.ty(value).shape);
                let added = to.len().saturating_sub(from.len());
                to.ends_with(from) && to[..added].iter().all(|dim| dim.is(1))
            }
            _ => false,
        };
        if !repeats {
            break;
        }
        value = op.operands[0];
    }
    value
}
