//! From a graph to terms: what the gradients of adapters' B are made of.
//!
//! Adapters whose gradients may read or compute the same are one component: those of one input, mostly. What the rest of the step
//! keeps or computes anyway costs a component nothing.

use super::language::{Leaf, Source, Tensor, Term, Terms, leaf, terms};
use crate::matching::{MAX_STEPS, either, number};
use egg::Id;
use lorafa_ir::layout::Views;
use lorafa_ir::ops::{BinaryKind, MatMul, Op, ReduceKind, Role};
use lorafa_ir::{Adapter, Graph, OpData, OpId, Region, ValueId};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Most ops of the backward pass that a gradient is looked at with: a bound for hostile input.
const MAX_OPS: usize = 256;

/// How many ops deep what the backward pass computes again is compared with the forward pass.
const MAX_AGAIN: usize = 6;

/// An adapter and the gradient of its B.
#[derive(Clone)]
pub(crate) struct Gradient {
    pub(crate) adapter: Adapter,
    pub(crate) value: ValueId,
}

/// Gradients that are chosen together, as terms.
pub(crate) struct Component {
    pub(crate) gradients: Vec<Gradient>,
    /// All that is known of them.
    pub(crate) terms: Terms,
    /// The term of each gradient.
    pub(crate) roots: Vec<Id>,
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

/// The components of a graph's gradients, and those that are left as they are.
pub(crate) fn components(
    graph: &Graph,
    gradients: Vec<Gradient>,
) -> (Vec<Component>, Vec<(Gradient, Left)>) {
    let views = Views::of(graph);
    let mut looks = Vec::new();
    let mut left = Vec::new();
    for gradient in gradients {
        match Look::of(graph, &views, gradient.clone()) {
            Ok(look) => looks.push(look),
            Err(why) => left.push((gradient, why)),
        }
    }
    let mut groups = connected(looks);
    groups.retain(|looks| {
        let normal = looks.iter().all(|look| look.is_normal());
        let looks = looks.iter().filter(|_| normal);
        left.extend(looks.map(|look| (look.gradient.clone(), Left::Normal)));
        !normal
    });
    let rest = Rest::of(graph, &views, &groups);
    let mut components = Vec::new();
    for looks in groups {
        let gradients: Vec<Gradient> = looks.iter().map(|look| look.gradient.clone()).collect();
        match Reader::read(graph, &rest, looks) {
            Some((terms, roots)) => components.push(Component {
                gradients,
                terms,
                roots,
            }),
            None => left.extend(gradients.into_iter().map(|g| (g, Left::Symbolic))),
        }
    }
    (components, left)
}

/// Those that have a value in common, in order of their first.
fn connected(looks: Vec<Look<'_>>) -> Vec<Vec<Look<'_>>> {
    let mut groups: Vec<usize> = (0..looks.len()).collect();
    let mut owners: BTreeMap<ValueId, usize> = BTreeMap::new();
    fn first(groups: &[usize], mut at: usize) -> usize {
        while groups[at] != at {
            at = groups[at];
        }
        at
    }
    for (at, look) in looks.iter().enumerate() {
        for value in look.inputs.iter().chain(look.within.keys()) {
            let owner = *owners.entry(*value).or_insert(at);
            let (a, b) = (first(&groups, owner), first(&groups, at));
            groups[a.max(b)] = a.min(b);
        }
    }
    let mut joined: BTreeMap<usize, Vec<Look<'_>>> = BTreeMap::new();
    for (at, look) in looks.into_iter().enumerate() {
        joined.entry(first(&groups, at)).or_default().push(look);
    }
    joined.into_values().collect()
}

/// What is there whatever becomes of the gradients that are looked at.
struct Rest<'g> {
    views: &'g Views,
    /// By op.
    stays: Vec<bool>,
    /// What of the forward pass is kept for it.
    kept: BTreeSet<ValueId>,
}

impl<'g> Rest<'g> {
    fn of(graph: &Graph, views: &'g Views, groups: &[Vec<Look<'_>>]) -> Rest<'g> {
        let looks = || groups.iter().flatten();
        let gradients: BTreeSet<ValueId> = looks().map(|look| look.gradient.value).collect();
        let outputs = graph.outputs().iter().map(|output| output.value);
        let outputs = outputs.filter(|value| !gradients.contains(value));
        let needed = looks().flat_map(|look| look.needed.iter().copied());
        let mut work: Vec<OpId> = outputs.chain(needed).map(|v| graph.value(v).op).collect();
        let bound = graph.ops().last().map_or(0, |op| op.id.index() + 1);
        let mut rest = Rest {
            views,
            stays: vec![false; bound],
            kept: BTreeSet::new(),
        };
        while let Some(id) = work.pop() {
            if std::mem::replace(&mut rest.stays[id.index()], true) {
                continue;
            }
            let op = graph.op(id);
            work.extend(op.operands.iter().map(|v| graph.value(*v).op));
            let view = op.results.first().is_some_and(|v| root(views, *v) != *v);
            if op.site.region != Region::Forward && !view {
                rest.kept
                    .extend(op.operands.iter().map(|v| root(views, *v)));
            }
        }
        rest
    }
}

fn root(views: &Views, value: ValueId) -> ValueId {
    views.root(value).map_or(value, |(root, _)| root)
}

/// What one gradient is made of.
struct Look<'g> {
    graph: &'g Graph,
    views: &'g Views,
    gradient: Gradient,
    /// What holds the memory of `x`, of `x·A`, or of what `x` is a scaled or cast copy of.
    inputs: BTreeSet<ValueId>,
    /// What the backward pass computes of these again.
    again: BTreeMap<ValueId, ValueId>,
    /// Values of the backward pass that the gradient is made of, and whether they are made of `x` or `x·A`.
    within: BTreeMap<ValueId, bool>,
    /// Values of the backward pass that it is made of in any spelling.
    needed: Vec<ValueId>,
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

impl<'g> Look<'g> {
    fn of(graph: &'g Graph, views: &'g Views, gradient: Gradient) -> Result<Self, Left> {
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
                let input = inputs.find(|input| self.is_again(value, **input, MAX_AGAIN));
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

    /// Whether the gradient is one product with `x·A` already.
    fn is_normal(&self) -> bool {
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
                _ => return false,
            }
        }
        false
    }
}

fn is_backward(graph: &Graph, value: ValueId) -> bool {
    graph.def(value).site.region == Region::Backward
}

/// The term that an op is, if the rules have something to say about it.
fn form(graph: &Graph, value: ValueId) -> Option<Form> {
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
        _ => {
            let mut factors = either(graph, value, BinaryKind::Mul);
            factors.find_map(|(x, by)| {
                let by = number(graph, by).filter(|by| by.is_finite())?;
                let alike = graph.ty(x) == graph.ty(value);
                alike.then_some(Form::Scale(x, by))
            })
        }
    }
}

/// What an op reads as a term.
fn factors(form: &Form, op: &OpData) -> Vec<ValueId> {
    match form {
        Form::Product(_) => op.operands.to_vec(),
        Form::Scale(x, _) => vec![*x],
        _ => vec![op.operands[0]],
    }
}

/// Makes terms of values.
struct Reader<'g> {
    graph: &'g Graph,
    rest: &'g Rest<'g>,
    again: BTreeMap<ValueId, ValueId>,
    within: BTreeMap<ValueId, bool>,
    /// The products `x·A`.
    xa: BTreeSet<ValueId>,
    terms: Terms,
    made: BTreeMap<ValueId, Option<Id>>,
    /// How many ops of the forward pass are being read.
    depth: usize,
}

impl<'g> Reader<'g> {
    /// Gradients as terms, with what they may be made of instead; `None` for symbolic types.
    fn read(
        graph: &'g Graph,
        rest: &'g Rest<'g>,
        looks: Vec<Look<'g>>,
    ) -> Option<(Terms, Vec<Id>)> {
        let mut reader = Reader {
            graph,
            rest,
            again: BTreeMap::new(),
            within: BTreeMap::new(),
            xa: looks.iter().map(|look| look.gradient.adapter.xa).collect(),
            terms: terms(),
            made: BTreeMap::new(),
            depth: 0,
        };
        for look in &looks {
            reader.again.extend(&look.again);
            for (value, of_input) in &look.within {
                *reader.within.entry(*value).or_default() |= of_input;
            }
        }
        // What the backward pass may read instead.
        for xa in reader.xa.clone() {
            reader.value(xa)?;
        }
        let values = looks.iter().map(|look| look.gradient.value);
        let roots: Option<Vec<Id>> = values.map(|value| reader.value(value)).collect();
        reader.terms.rebuild();
        Some((reader.terms, roots?))
    }

    /// The term of a value: itself, what it is made of, or both, which are equal. `None` for symbolic types.
    ///
    /// Recursion is as deep as [`MAX_OPS`] and [`MAX_STEPS`] allow.
    fn value(&mut self, value: ValueId) -> Option<Id> {
        let value = self.again.get(&value).copied().unwrap_or(value);
        if let Some(id) = self.made.get(&value) {
            return *id;
        }
        let id = self.new_value(value);
        self.made.insert(value, id);
        id
    }

    fn new_value(&mut self, value: ValueId) -> Option<Id> {
        let stays = self.rest.stays[self.graph.value(value).op.index()];
        let saved = match stays || !self.within.contains_key(&value) {
            true => Some(self.source(value)?),
            false => None,
        };
        let form = form(self.graph, value).filter(|form| self.is_made(value, form));
        let forward = usize::from(!is_backward(self.graph, value));
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

    /// Whether a value counts as what it is made of: in the forward pass, views, copies and `x·A` do; in the backward pass, all
    /// but products without the input.
    fn is_made(&self, value: ValueId, form: &Form) -> bool {
        match self.within.get(&value) {
            Some(of_input) => *of_input || !matches!(form, Form::Product(_)),
            None if is_backward(self.graph, value) || self.depth == MAX_STEPS => false,
            None => match form {
                Form::Product(_) => self.xa.contains(&value),
                Form::Sum => false,
                _ => true,
            },
        }
    }

    fn source(&mut self, value: ValueId) -> Option<Id> {
        let root = root(self.rest.views, value);
        let def = self.graph.def(root);
        let free = match &def.kind {
            Op::Param(param) => param.role != Role::Input,
            Op::Constant(_) => true,
            _ => def.site.region != Region::Forward,
        };
        let free = free || self.rest.kept.contains(&root);
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
        let factors = factors(&form, op);
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
