//! From a graph to terms: what the gradient of an adapter's B is made of.

use super::language::{Leaf, Source, Tensor, Term, Terms, leaf, terms};
use crate::matching::{MAX_STEPS, either, number};
use egg::Id;
use lorafa_ir::layout::Views;
use lorafa_ir::ops::{BinaryKind, MatMul, Op, ReduceKind, Role};
use lorafa_ir::{Adapter, Graph, OpData, Region, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// Most ops of the backward pass that a gradient is looked at with: a bound for hostile input.
const MAX_OPS: usize = 256;

/// How many ops deep what the backward pass computes again is compared with the forward pass.
const MAX_AGAIN: usize = 6;

/// What is known of a graph while it is read.
pub(crate) struct Reader<'g> {
    graph: &'g Graph,
    views: &'g Views,
    live: &'g [bool],
    /// What holds the memory of `x`, of `x·A`, or of what `x` is a scaled or cast copy of.
    inputs: BTreeSet<ValueId>,
    /// What the backward pass computes of these again.
    again: BTreeMap<ValueId, ValueId>,
    /// The product `x·A`.
    xa: ValueId,
    /// Values of the backward pass that the gradient is made of, and whether that is all they are for.
    within: BTreeMap<ValueId, Within>,
    terms: Terms,
    made: BTreeMap<ValueId, Option<Id>>,
    /// How many ops of the forward pass are being read.
    depth: usize,
}

#[derive(Clone, Copy, Default)]
struct Within {
    /// Whether it is made of `x` or `x·A`.
    of_input: bool,
    /// Whether something else reads it.
    shared: bool,
}

/// One op as a term.
enum Form {
    Product(MatMul),
    Transpose,
    Scale(ValueId, f64),
    Reshape,
    Cast,
    Sum,
}

/// The gradient as terms, with what it may be made of instead; `None` if the algebra has nothing to say about it.
pub(crate) fn gradient(
    graph: &Graph,
    views: &Views,
    live: &[bool],
    adapter: &Adapter,
    gradient: ValueId,
) -> Option<(Terms, Id)> {
    let mut reader = Reader {
        graph,
        views,
        live,
        inputs: BTreeSet::new(),
        again: BTreeMap::new(),
        xa: adapter.xa,
        within: BTreeMap::new(),
        terms: terms(),
        made: BTreeMap::new(),
        depth: 0,
    };
    reader.inputs.insert(reader.root(adapter.xa));
    let mut x = adapter.x;
    for _ in 0..MAX_STEPS {
        let root = reader.root(x);
        reader.inputs.insert(root);
        match (reader.form(root), graph.def(root)) {
            (Some(Form::Scale(below, _)), _) => x = below,
            (Some(Form::Cast), def) => x = def.operands[0],
            _ => break,
        }
    }
    reader.look(gradient)?;
    let of_input = reader.within.get(&gradient)?.of_input;
    if !of_input || reader.is_normal(gradient) {
        return None;
    }
    // What the backward pass may read instead.
    reader.value(adapter.xa)?;
    let root = reader.value(gradient)?;
    reader.terms.rebuild();
    Some((reader.terms, root))
}

impl Reader<'_> {
    fn root(&self, value: ValueId) -> ValueId {
        let value = self.known(value);
        self.views.root(value).map_or(value, |(root, _)| root)
    }

    /// The value of the forward pass that a value is.
    fn known(&self, value: ValueId) -> ValueId {
        self.again.get(&value).copied().unwrap_or(value)
    }

    /// Whether a value is computed as another one is.
    fn is_again(&self, value: ValueId, of: ValueId, depth: usize) -> bool {
        let (a, b) = (self.graph.value(value), self.graph.value(of));
        let (x, y) = (self.graph.op(a.op), self.graph.op(b.op));
        let drawn = matches!(x.kind, Op::Param(_) | Op::Dropout(_) | Op::Onnx(_));
        let alike = || {
            let operands = x.operands.iter().zip(&y.operands);
            let shapes = x.kind == y.kind && x.operands.len() == y.operands.len();
            !drawn && a.slot == b.slot && shapes && {
                operands
                    .into_iter()
                    .all(|(a, b)| self.is_again(*a, *b, depth - 1))
            }
        };
        value == of || depth > 0 && alike()
    }

    fn is_backward(&self, value: ValueId) -> bool {
        self.graph.def(value).site.region == Region::Backward
    }

    /// The term that an op is, if the rules have something to say about it.
    fn form(&self, value: ValueId) -> Option<Form> {
        let op = self.graph.def(value);
        match &op.kind {
            Op::MatMul(product) if op.operands.len() == 2 => Some(Form::Product(*product)),
            Op::Transpose(transpose) if transpose.swaps_last_two() => Some(Form::Transpose),
            Op::Reshape(_) => Some(Form::Reshape),
            Op::Cast(_) => Some(Form::Cast),
            Op::Reduce(reduce) => {
                let rank = self.graph.ty(op.operands[0]).rank();
                let leading = reduce.axes.iter().copied().eq(0..rank.saturating_sub(2));
                let sum = reduce.kind == ReduceKind::Sum && !reduce.keep_dims;
                (sum && leading && rank > 2).then_some(Form::Sum)
            }
            _ => {
                let mut factors = either(self.graph, value, BinaryKind::Mul);
                factors.find_map(|(x, by)| {
                    let by = number(self.graph, by).filter(|by| by.is_finite())?;
                    let alike = self.graph.ty(x) == self.graph.ty(value);
                    alike.then_some(Form::Scale(x, by))
                })
            }
        }
    }

    /// What an op reads as a term.
    fn factors(&self, form: &Form, op: &OpData) -> Vec<ValueId> {
        match form {
            Form::Product(_) => op.operands.to_vec(),
            Form::Scale(x, _) => vec![*x],
            _ => vec![op.operands[0]],
        }
    }

    /// Finds what the gradient is made of.
    fn look(&mut self, gradient: ValueId) -> Option<()> {
        let mut seen: BTreeSet<ValueId> = BTreeSet::new();
        let mut order: Vec<ValueId> = Vec::new();
        let mut work = vec![(gradient, false)];
        while let Some((value, done)) = work.pop() {
            if done {
                order.push(value);
                continue;
            }
            if !self.is_backward(value) || !seen.insert(value) {
                continue;
            }
            let Some(form) = self.form(value) else {
                let mut inputs = self.inputs.iter();
                let input = inputs.find(|input| self.is_again(value, **input, MAX_AGAIN));
                self.again.extend(input.map(|input| (value, *input)));
                continue;
            };
            work.push((value, true));
            let factors = self.factors(&form, self.graph.def(value));
            work.extend(factors.into_iter().map(|factor| (factor, false)));
            if seen.len() > MAX_OPS {
                return None;
            }
        }
        for value in &order {
            let op = self.graph.def(*value);
            let of_input = op.operands.iter().any(|v| self.is_of_input(*v));
            let within = Within {
                of_input,
                shared: false,
            };
            self.within.insert(*value, within);
        }
        for value in order.iter().rev().filter(|value| **value != gradient) {
            let reads = self.graph.uses(*value);
            let shared = reads.iter().any(|read| {
                let op = self.graph.op(read.op);
                let reader = self.within.get(&op.results[0]);
                self.live[read.op.index()] && reader.is_none_or(|reader| reader.shared)
            });
            let output = self.graph.outputs().iter().any(|o| o.value == *value);
            if let Some(within) = self.within.get_mut(value) {
                within.shared = shared || output;
            }
        }
        Some(())
    }

    fn is_of_input(&self, value: ValueId) -> bool {
        let within = self.within.get(&value);
        within.is_some_and(|within| within.of_input) || self.inputs.contains(&self.root(value))
    }

    /// Whether the gradient is one product with `x·A` already.
    fn is_normal(&self, gradient: ValueId) -> bool {
        let mut value = gradient;
        for _ in 0..MAX_STEPS {
            let op = self.graph.def(value);
            match self.form(value) {
                Some(Form::Product(_)) => {
                    let saved = |v: &ValueId| self.root(*v) == self.root(self.xa);
                    let mut factors = op.operands.iter();
                    let normal = factors.clone().any(saved);
                    let other = factors.find(|v| !saved(v));
                    return normal && !other.is_some_and(|v| self.is_of_input(*v));
                }
                Some(Form::Reshape) => value = op.operands[0],
                _ => return false,
            }
        }
        false
    }

    /// The term of a value: itself, what it is made of, or both, which are equal. `None` for symbolic types.
    ///
    /// Recursion is as deep as [`MAX_OPS`] and [`MAX_STEPS`] allow.
    fn value(&mut self, value: ValueId) -> Option<Id> {
        let value = self.known(value);
        if let Some(id) = self.made.get(&value) {
            return *id;
        }
        let id = self.new_value(value);
        self.made.insert(value, id);
        id
    }

    fn new_value(&mut self, value: ValueId) -> Option<Id> {
        let there = self.is_there(value);
        let saved = match there {
            true => Some(self.source(value)?),
            false => None,
        };
        let form = self.form(value).filter(|form| self.is_made(value, form));
        let forward = usize::from(!self.is_backward(value));
        self.depth += forward;
        let made = match form {
            Some(form) => Some(self.term(value, form)?),
            None => None,
        };
        self.depth -= forward;
        match (saved, made) {
            (Some(saved), Some(made)) => {
                self.terms.union_trusted(made, saved, "saved-value");
                Some(saved)
            }
            (saved, made) => saved.or(made),
        }
    }

    /// Whether the backward pass can read a value whatever becomes of the gradient.
    fn is_there(&self, value: ValueId) -> bool {
        match self.within.get(&value) {
            Some(within) => within.shared && !within.of_input,
            None => true,
        }
    }

    /// Whether a value counts as what it is made of: in the forward pass, views, copies and `x·A` do.
    fn is_made(&self, value: ValueId, form: &Form) -> bool {
        let view = matches!(form, Form::Reshape | Form::Transpose);
        match self.within.get(&value) {
            Some(Within { of_input: true, .. }) => true,
            Some(within) => !matches!(form, Form::Product(_)) && (view || !within.shared),
            None if self.is_backward(value) || self.depth == MAX_STEPS => false,
            None => match form {
                Form::Product(_) => value == self.xa,
                Form::Sum => false,
                _ => true,
            },
        }
    }

    fn source(&mut self, value: ValueId) -> Option<Id> {
        let root = self.root(value);
        let def = self.graph.def(root);
        let free = match &def.kind {
            Op::Param(param) => param.role != Role::Input,
            Op::Constant(_) => true,
            _ => def.site.region != Region::Forward,
        };
        let bytes = self.graph.ty(root).bytes()?;
        let source = Source {
            value,
            ty: Tensor::of(self.graph.ty(value))?,
            keeps: (!free).then_some((root, bytes)),
        };
        Some(leaf(&mut self.terms, Leaf::Value(source)))
    }

    fn term(&mut self, value: ValueId, form: Form) -> Option<Id> {
        let op = self.graph.def(value);
        let factors = self.factors(&form, op);
        let factors: Option<Vec<Id>> = factors.into_iter().map(|v| self.value(v)).collect();
        let factors = factors?;
        let ty = Tensor::of(self.graph.ty(value))?;
        let x = factors[0];
        let term = match form {
            Form::Product(product) => {
                let flags = [product.trans_a, product.trans_b];
                let turned = factors.iter().zip(flags).map(|(id, turn)| match turn {
                    true => self.terms.add_uncanonical(Term::Transpose(*id)),
                    false => *id,
                });
                let turned: Vec<Id> = turned.collect();
                let id = self.add(Term::Product([turned[0], turned[1]]));
                return match product.alpha.0 {
                    1.0 => Some(id),
                    alpha => Some(self.scaled(id, alpha)),
                };
            }
            Form::Scale(_, by) => return Some(self.scaled(x, by)),
            Form::Transpose => Term::Transpose(x),
            Form::Sum => Term::Sum(x),
            Form::Reshape => Term::Reshape([x, leaf(&mut self.terms, Leaf::Shape(ty.dims))]),
            Form::Cast => Term::Cast([x, leaf(&mut self.terms, Leaf::DType(ty.dtype))]),
        };
        Some(self.add(term))
    }

    fn add(&mut self, term: Term) -> Id {
        self.terms.add_uncanonical(term)
    }

    fn scaled(&mut self, x: Id, by: f64) -> Id {
        let by = leaf(&mut self.terms, Leaf::Number(by));
        self.add(Term::Scale([x, by]))
    }
}
