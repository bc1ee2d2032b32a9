//! From a graph to terms: what the gradients of adapters' B are made of.
//!
//! Adapters whose gradients may read or compute the same are one component: those of one input, mostly. What the rest of the step
//! keeps or computes anyway costs a component nothing.

mod look;

pub(crate) use look::{Gradient, Left};

use super::language::{Leaf, Source, Tensor, Term, Terms, leaf, terms};
use crate::matching::MAX_STEPS;
use egg::Id;
use look::{Form, Look, factors, form, is_backward, root};
use lorafa_ir::layout::Views;
use lorafa_ir::ops::{Op, Role};
use lorafa_ir::{Adapter, Graph, OpId, Region, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// Most gradients that are chosen together: a bound for hostile input. Of more, each so many are a component.
const MAX_TOGETHER: usize = 64;

/// Gradients that are chosen together, as terms.
pub(crate) struct Component {
    pub(crate) gradients: Vec<Gradient>,
    /// All that is known of them.
    pub(crate) terms: Terms,
    /// The term of each gradient.
    pub(crate) roots: Vec<Id>,
}

/// The components of a graph's gradients, and those that are left as they are. Each gradient comes with the adapters that it may
/// be one of.
pub(crate) fn components(
    graph: &Graph,
    gradients: Vec<(ValueId, Vec<Adapter>)>,
) -> (Vec<Component>, Vec<(Gradient, Left)>) {
    let views = Views::of(graph);
    let mut looks = Vec::new();
    let mut left = Vec::new();
    for (value, adapters) in gradients {
        let mut refused = None;
        let mut tried = adapters.into_iter().map(|adapter| {
            let gradient = Gradient { adapter, value };
            Look::of(graph, &views, gradient.clone()).map_err(|why| (gradient, why))
        });
        let found = tried.find_map(|look| look.map_err(|why| refused.get_or_insert(why).1).ok());
        match found {
            Some(look) => looks.push(look),
            None => left.extend(refused),
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
    let mut components = Vec::new();
    for mut looks in joined.into_values() {
        while looks.len() > MAX_TOGETHER {
            let rest = looks.split_off(MAX_TOGETHER);
            components.push(std::mem::replace(&mut looks, rest));
        }
        components.push(looks);
    }
    components
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
            let operands = op.operands.iter().filter(|v| !gradients.contains(v));
            work.extend(operands.map(|v| graph.value(*v).op));
            let view = op.results.first().is_some_and(|v| root(views, *v) != *v);
            if op.site.region != Region::Forward && !view {
                rest.kept
                    .extend(op.operands.iter().map(|v| root(views, *v)));
            }
        }
        rest
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
    /// Recursion is as deep as `MAX_OPS` and [`MAX_STEPS`] allow.
    fn value(&mut self, value: ValueId) -> Option<Id> {
        if let Some(id) = self.made.get(&value) {
            return *id;
        }
        let id = match self.again.get(&value) {
            Some(of) => self.computed_again(value, *of),
            None => self.new_value(value),
        };
        self.made.insert(value, id);
        id
    }

    /// The term of what the backward pass computes again of the forward pass: both, if one value at most is kept for it.
    fn computed_again(&mut self, value: ValueId, of: ValueId) -> Option<Id> {
        let saved = self.value(of)?;
        let mut kept: BTreeSet<ValueId> = BTreeSet::new();
        let mut seen = BTreeSet::new();
        let mut work = vec![value];
        while let Some(value) = work.pop() {
            if !seen.insert(value) {
                continue;
            }
            match is_backward(self.graph, value) {
                true => work.extend(&self.graph.def(value).operands),
                false => kept.extend(self.kept(value)),
            }
        }
        if kept.len() > 1 {
            return Some(saved);
        }
        let there = self.leaf(value, kept.first().copied())?;
        self.terms.union_trusted(there, saved, "computed-again");
        Some(there)
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
        self.leaf(value, self.kept(value))
    }

    /// What is kept if the backward pass reads a value, and would not be otherwise.
    fn kept(&self, value: ValueId) -> Option<ValueId> {
        let root = root(self.rest.views, value);
        let def = self.graph.def(root);
        let free = match &def.kind {
            Op::Param(param) => param.role != Role::Input,
            Op::Constant(_) => true,
            _ => def.site.region != Region::Forward,
        };
        (!free && !self.rest.kept.contains(&root)).then_some(root)
    }

    fn leaf(&mut self, value: ValueId, kept: Option<ValueId>) -> Option<Id> {
        let keeps = match kept {
            Some(root) => Some((root, self.graph.ty(root).bytes()?)),
            None => None,
        };
        let ty = Tensor::of(self.graph.ty(value))?;
        let source = Source { value, ty, keeps };
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
