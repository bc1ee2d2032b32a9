//! What a gradient is made of: the ops that the rules know, and the values that these read.

use crate::matching::{MAX_STEPS, times};
use lorafa_ir::layout::Views;
use lorafa_ir::ops::{MatMul, Op, ReduceKind};
use lorafa_ir::{Adapter, Graph, OpData, Region, ValueId};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Most ops of the backward pass that a gradient is looked at with: a bound for hostile input.
const MAX_OPS: usize = 256;

/// How many ops deep what the backward pass computes again is compared with the forward pass.
const MAX_AGAIN: usize = 6;

/// An adapter and the gradient of its B.
#[derive(Clone)]
pub(crate) struct Gradient {
    /// The adapter.
    pub(crate) adapter: Adapter,
    /// The gradient of its B.
    pub(crate) value: ValueId,
}

/// Why a gradient is not looked at.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Left {
    /// It is what it should be, and so are all that it shares something with.
    Normal,
    /// Nothing that the rules know leads to the adapter's input.
    OtherForm,
    /// It is made of too many ops.
    TooLarge,
    /// Its dimensions, or those of what it is made of, are not known.
    Symbolic,
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Left::Normal => write!(f, "is one product with x·A already"),
            Left::OtherForm => write!(f, "is made of x by ops that the rules know nothing of"),
            Left::TooLarge => write!(f, "is made of more than {MAX_OPS} ops"),
            Left::Symbolic => write!(f, "has dimensions that are not known"),
        }
    }
}

/// One op as a term.
pub(super) enum Form {
    Product(MatMul),
    Transpose,
    Scale(ValueId, f64),
    Reshape,
    Cast,
    Sum,
}

/// What one gradient is made of.
pub(super) struct Look<'g> {
    graph: &'g Graph,
    views: &'g Views,
    pub(super) gradient: Gradient,
    /// What holds the memory of `x`, of `x·A`, or of what `x` is a scaled or cast copy of.
    pub(super) inputs: BTreeSet<ValueId>,
    /// What the backward pass computes of these again.
    pub(super) again: BTreeMap<ValueId, ValueId>,
    /// Values of the backward pass that the gradient is made of, and whether they are made of `x` or `x·A`.
    pub(super) within: BTreeMap<ValueId, bool>,
    /// Values of the backward pass that it is made of in any spelling.
    pub(super) needed: Vec<ValueId>,
}

impl<'g> Look<'g> {
    pub(super) fn of(graph: &'g Graph, views: &'g Views, gradient: Gradient) -> Result<Self, Left> {
        let mut look = Look {
            graph,
            views,
            inputs: BTreeSet::new(),
            again: BTreeMap::new(),
            within: BTreeMap::new(),
            needed: Vec::new(),
            gradient,
        };
        let Gradient { adapter, value } = look.gradient.clone();
        look.inputs.insert(look.root(adapter.xa));
        let mut x = adapter.x;
        for _ in 0..MAX_STEPS {
            let root = look.root(x);
            look.inputs.insert(root);
            match (form(graph, root), graph.def(root)) {
                (Some(Form::Scale(below, _)), _) => x = below,
                (Some(Form::Cast), def) => x = def.operands[0],
                _ => break,
            }
        }
        look.walk(value)?;
        match look.within.get(&value) {
            Some(true) => Ok(look),
            _ => Err(Left::OtherForm),
        }
    }

    fn root(&self, value: ValueId) -> ValueId {
        let value = self.again.get(&value).copied().unwrap_or(value);
        root(self.views, value)
    }

    /// Whether a value is computed as another one is.
    fn is_again(&self, value: ValueId, of: ValueId) -> bool {
        let mut alike: BTreeSet<(ValueId, ValueId)> = BTreeSet::new();
        let mut work = vec![(value, of, 0)];
        while let Some((value, of, depth)) = work.pop() {
            if value == of || !alike.insert((value, of)) {
                continue;
            }
            let (a, b) = (self.graph.value(value), self.graph.value(of));
            let (x, y) = (self.graph.op(a.op), self.graph.op(b.op));
            let drawn = matches!(x.kind, Op::Param(_) | Op::Dropout(_) | Op::Onnx(_));
            let shapes = x.kind == y.kind && x.operands.len() == y.operands.len();
            let few = depth < MAX_AGAIN && alike.len() <= MAX_OPS;
            if drawn || a.slot != b.slot || !shapes || !few {
                return false;
            }
            let operands = x.operands.iter().zip(&y.operands);
            work.extend(operands.map(|(a, b)| (*a, *b, depth + 1)));
        }
        true
    }

    /// Finds what the gradient is made of.
    fn walk(&mut self, gradient: ValueId) -> Result<(), Left> {
        let mut seen: BTreeSet<ValueId> = BTreeSet::new();
        let mut order: Vec<ValueId> = Vec::new();
        let mut work = vec![(gradient, false)];
        while let Some((value, done)) = work.pop() {
            if done {
                order.push(value);
                continue;
            }
            if !is_backward(self.graph, value) || !seen.insert(value) {
                continue;
            }
            let Some(form) = form(self.graph, value) else {
                let mut inputs = self.inputs.iter();
                let input = inputs.find(|input| self.is_again(value, **input));
                match input {
                    Some(input) => {
                        self.again.insert(value, *input);
                    }
                    None => self.needed.push(value),
                }
                continue;
            };
            work.push((value, true));
            let factors = factors(&form, self.graph.def(value));
            work.extend(factors.into_iter().map(|factor| (factor, false)));
            if seen.len() > MAX_OPS {
                return Err(Left::TooLarge);
            }
        }
        for value in order {
            let op = self.graph.def(value);
            let of_input = op.operands.iter().any(|v| self.is_of_input(*v));
            self.within.insert(value, of_input);
            if let (false, Op::MatMul(_)) = (of_input, &op.kind) {
                self.needed.push(value);
            }
        }
        Ok(())
    }

    fn is_of_input(&self, value: ValueId) -> bool {
        let within = self.within.get(&value);
        within.is_some_and(|of_input| *of_input) || self.inputs.contains(&self.root(value))
    }

    /// Whether the gradient is one product with `x·A` already, but for its shape and a factor.
    pub(super) fn is_normal(&self) -> bool {
        let Gradient { adapter, value } = &self.gradient;
        let mut value = *value;
        for _ in 0..MAX_STEPS {
            let op = self.graph.def(value);
            match form(self.graph, value) {
                Some(Form::Product(_)) => {
                    let saved = |v: &ValueId| self.root(*v) == self.root(adapter.xa);
                    let mut factors = op.operands.iter();
                    let normal = factors.clone().any(saved);
                    let other = factors.find(|v| !saved(v));
                    return normal && !other.is_some_and(|v| self.is_of_input(*v));
                }
                Some(Form::Reshape) => value = op.operands[0],
                Some(Form::Scale(x, _)) => value = x,
                _ => return false,
            }
        }
        false
    }
}

pub(super) fn is_backward(graph: &Graph, value: ValueId) -> bool {
    graph.def(value).site.region == Region::Backward
}

/// The term that an op is, if the rules have something to say about it.
pub(super) fn form(graph: &Graph, value: ValueId) -> Option<Form> {
    let op = graph.def(value);
    match &op.kind {
        Op::MatMul(product) if op.operands.len() == 2 => Some(Form::Product(*product)),
        Op::Transpose(transpose) if transpose.swaps_last_two() => Some(Form::Transpose),
        Op::Reshape(_) => Some(Form::Reshape),
        Op::Cast(_) => Some(Form::Cast),
        Op::Reduce(reduce) => {
            let rank = graph.ty(op.operands[0]).rank();
            let leading = reduce.axes.iter().copied().eq(0..rank.saturating_sub(2));
            let sum = reduce.kind == ReduceKind::Sum && !reduce.keep_dims;
            (sum && leading && rank > 2).then_some(Form::Sum)
        }
        _ => times(graph, value).map(|(x, by)| Form::Scale(x, by)),
    }
}

/// What an op reads as a term.
pub(super) fn factors(form: &Form, op: &OpData) -> Vec<ValueId> {
    match form {
        Form::Product(_) => op.operands.to_vec(),
        Form::Scale(x, _) => vec![*x],
        _ => vec![op.operands[0]],
    }
}

pub(super) fn root(views: &Views, value: ValueId) -> ValueId {
    views.root(value).map_or(value, |(root, _)| root)
}
