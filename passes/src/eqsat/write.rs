//! From terms to a graph: what to choose among equal ones, and the ops that compute it.

use super::extract::{Choice, Cost, Extracted, Problem, extract};
use super::language::{Dims, Kind, Leaf, Source, Term, Terms};
use egg::{Id, Language, RecExpr};
use lorafa_ir::ops::{
    Binary, BinaryKind, Cast, MatMul, Op, Reduce, ReduceKind, Reshape, Transpose,
};
use lorafa_ir::{DType, Dim, Graph, Patch, PatchError, Region, Site, ValueId};
use smallvec::SmallVec;
use std::collections::BTreeMap;

/// A term whose factors are places of classes, transposes of a product's factors as its flags.
#[derive(Clone, Debug)]
enum Build {
    Value(Source),
    Product([(usize, bool); 2]),
    Transpose(usize),
    Scale(usize, f64),
    Reshape(usize, Dims),
    Cast(usize, DType),
    Sum(usize),
}

impl Build {
    fn needs(&self) -> Vec<usize> {
        match self {
            Build::Value(_) => Vec::new(),
            Build::Product([(a, _), (b, _)]) => vec![*a, *b],
            Build::Transpose(x)
            | Build::Scale(x, _)
            | Build::Reshape(x, _)
            | Build::Cast(x, _)
            | Build::Sum(x) => vec![*x],
        }
    }
}

/// The classes that a class can be made of, by their places.
#[derive(Default)]
struct Classes {
    ids: Vec<Id>,
    places: BTreeMap<Id, usize>,
    builds: Vec<Vec<Build>>,
}

impl Classes {
    fn place(&mut self, terms: &Terms, id: Id) -> usize {
        let id = terms.find(id);
        *self.places.entry(id).or_insert_with(|| {
            self.ids.push(id);
            self.ids.len() - 1
        })
    }

    /// All that some classes can be made of.
    fn of(terms: &Terms, roots: &[Id]) -> Classes {
        let mut classes = Classes::default();
        for root in roots {
            classes.place(terms, *root);
        }
        while let Some(id) = classes.ids.get(classes.builds.len()).copied() {
            let nodes = terms[id].nodes.iter();
            let builds = nodes.flat_map(|term| builds(terms, &mut classes, term));
            let builds = builds.collect();
            classes.builds.push(builds);
        }
        classes
    }

    /// What extraction chooses among.
    fn problem(&self, terms: &Terms, roots: Vec<usize>) -> Problem {
        let mut problem = Problem {
            roots,
            ..Problem::default()
        };
        let mut kept: BTreeMap<ValueId, usize> = BTreeMap::new();
        for (id, builds) in self.ids.iter().zip(&self.builds) {
            let choices = builds.iter().map(|build| {
                let (flops, ops) = own(terms, *id, build, &self.ids);
                let keeps = match build {
                    Build::Value(source) => source.keeps.map(|(root, bytes)| {
                        *kept.entry(root).or_insert_with(|| {
                            problem.bytes.push(bytes);
                            problem.bytes.len() - 1
                        })
                    }),
                    _ => None,
                };
                let needs = build.needs();
                Choice {
                    flops,
                    ops,
                    keeps,
                    needs,
                }
            });
            let choices = choices.collect();
            problem.classes.push(choices);
        }
        problem
    }
}

/// The ways to build a term; several of a product, one for each way to read a transposed factor.
fn builds(terms: &Terms, classes: &mut Classes, term: &Term) -> Vec<Build> {
    let data = |id: &Id| &terms[*id].data;
    if term.children().iter().any(|id| *data(id) == Kind::IllTyped) {
        return Vec::new();
    }
    let build = match (term, term.children().get(1).map(data)) {
        (Term::Leaf(leaf), _) => match terms.analysis.leaf(*leaf) {
            Some(Leaf::Value(source)) => Build::Value(source.clone()),
            _ => return Vec::new(),
        },
        (Term::Product([a, b]), _) => {
            let (a, b) = (turned(terms, classes, *a), turned(terms, classes, *b));
            let pairs = a
                .iter()
                .flat_map(|a| b.iter().map(|b| Build::Product([*a, *b])));
            return pairs.collect();
        }
        (Term::Transpose(x), _) => Build::Transpose(classes.place(terms, *x)),
        (Term::Sum(x), _) => Build::Sum(classes.place(terms, *x)),
        (Term::Scale([x, _]), Some(Kind::Number(by))) => {
            Build::Scale(classes.place(terms, *x), *by)
        }
        (Term::Reshape([x, _]), Some(Kind::Shape(dims))) => {
            Build::Reshape(classes.place(terms, *x), dims.clone())
        }
        (Term::Cast([x, _]), Some(Kind::DType(to))) => Build::Cast(classes.place(terms, *x), *to),
        _ => return Vec::new(),
    };
    vec![build]
}

/// A factor as it is, and what it is the transpose of.
fn turned(terms: &Terms, classes: &mut Classes, id: Id) -> Vec<(usize, bool)> {
    let mut ways = vec![(classes.place(terms, id), false)];
    for term in &terms[id].nodes {
        if let Term::Transpose(x) = term {
            ways.push((classes.place(terms, *x), true));
        }
    }
    ways.dedup();
    ways
}

/// Products and sums of a build, and its ops.
fn own(terms: &Terms, id: Id, build: &Build, ids: &[Id]) -> (u64, u64) {
    let elements = |id: Id| terms[id].data.tensor().map_or(0, |t| t.elements());
    match build {
        Build::Value(_) => (0, 0),
        Build::Product([(a, turn), _]) => {
            let inner = terms[ids[*a]].data.tensor().and_then(|t| {
                let back = if *turn { 2 } else { 1 };
                t.dims.get(t.dims.len().checked_sub(back)?).copied()
            });
            let inner = inner.unwrap_or(0);
            (elements(id).saturating_mul(2 * inner), 1)
        }
        Build::Sum(x) => (elements(ids[*x]), 1),
        _ => (0, 1),
    }
}

/// What terms cost as they are written, together.
pub(super) fn cost(terms: &Terms, expressions: &[&RecExpr<Term>]) -> Cost {
    let mut alone = super::language::terms();
    alone.analysis = terms.analysis.clone();
    let roots = expressions.iter().map(|e| alone.add_expr(e)).collect();
    alone.rebuild();
    Plan::of(&alone, roots).map_or(Cost::MOST, |plan| plan.found.cost)
}

/// Which terms to build values of.
pub(crate) struct Plan {
    /// The choice.
    pub(crate) found: Extracted,
    classes: Classes,
    roots: Vec<usize>,
}

impl Plan {
    /// The cheapest way to make some classes.
    pub(super) fn of(terms: &Terms, roots: Vec<Id>) -> Option<Plan> {
        let mut classes = Classes::of(terms, &roots);
        let roots: Vec<usize> = roots.iter().map(|id| classes.place(terms, *id)).collect();
        let found = extract(&classes.problem(terms, roots.clone()))?;
        Some(Plan {
            found,
            classes,
            roots,
        })
    }

    fn build(&self, place: usize) -> Option<&Build> {
        self.found.chosen[place].map(|at| &self.classes.builds[place][at])
    }

    /// The choices of the roots as terms.
    pub(super) fn expressions(&self, terms: &Terms) -> Option<Vec<RecExpr<Term>>> {
        let expression = |root: &usize| {
            let mut expression = RecExpr::default();
            self.term(terms, *root, &mut expression, &mut BTreeMap::new())?;
            Some(expression)
        };
        self.roots.iter().map(expression).collect()
    }

    fn term(
        &self,
        terms: &Terms,
        place: usize,
        to: &mut RecExpr<Term>,
        made: &mut BTreeMap<usize, Id>,
    ) -> Option<Id> {
        if let Some(id) = made.get(&place) {
            return Some(*id);
        }
        let build = self.build(place)?;
        let mut factors = Vec::new();
        for need in build.needs() {
            factors.push(self.term(terms, need, to, made)?);
        }
        let leaf = |leaf: Leaf| terms.analysis.find(&leaf).map(Term::Leaf);
        let term = match build {
            Build::Value(source) => leaf(Leaf::Value(source.clone()))?,
            Build::Product([(_, a), (_, b)]) => {
                for (factor, turn) in factors.iter_mut().zip([a, b]) {
                    if *turn {
                        *factor = to.add(Term::Transpose(*factor));
                    }
                }
                Term::Product([factors[0], factors[1]])
            }
            Build::Transpose(_) => Term::Transpose(factors[0]),
            Build::Sum(_) => Term::Sum(factors[0]),
            Build::Scale(_, by) => Term::Scale([factors[0], to.add(leaf(Leaf::Number(*by))?)]),
            Build::Reshape(_, dims) => {
                Term::Reshape([factors[0], to.add(leaf(Leaf::Shape(dims.clone()))?)])
            }
            Build::Cast(_, dtype) => Term::Cast([factors[0], to.add(leaf(Leaf::DType(*dtype))?)]),
        };
        let id = to.add(term);
        made.insert(place, id);
        Some(id)
    }
}

/// Scalar constants of a graph by type and bits.
pub(crate) type Scalars = BTreeMap<(DType, u64), ValueId>;

/// The scalar constants that a graph has.
pub(crate) fn scalars(graph: &Graph) -> Scalars {
    let mut scalars = Scalars::new();
    for op in graph.ops() {
        if let Op::Constant(constant) = &op.kind
            && let Some(number) = constant.as_f64()
            && graph.ty(op.results[0]).rank() == 0
        {
            let dtype = graph.ty(op.results[0]).dtype;
            let key = (dtype, number.to_bits());
            scalars.entry(key).or_insert(op.results[0]);
        }
    }
    scalars
}

/// Makes values those of a plan, each where it stands; a value of `None` stays as it is.
pub(crate) fn write(
    plan: &Plan,
    graph: &mut Graph,
    scalars: &mut Scalars,
    values: &[Option<ValueId>],
    rule: &'static str,
) -> Result<(), PatchError> {
    let mut made = BTreeMap::new();
    for (place, value) in plan.roots.iter().zip(values) {
        let (Some(value), Some(build)) = (*value, plan.build(*place)) else {
            continue;
        };
        let op = graph.value(value).op;
        let site = graph.op(op).site.clone();
        let mut writer = Writer {
            plan,
            patch: graph.patch(rule),
            scalars,
            made: &mut made,
        };
        // Before everything that stands where the value does.
        writer.patch.at_site(Site {
            seq: site.seq.saturating_sub(1),
            ..site.clone()
        });
        match build {
            Build::Value(source) => writer.patch.replace(value, source.value)?,
            build => {
                let (kind, operands) = writer.op(build)?;
                writer.patch.at_site(site).rewrite(op, kind, &operands)?;
            }
        }
        made.insert(*place, value);
    }
    Ok(())
}

struct Writer<'a> {
    plan: &'a Plan,
    patch: Patch<'a>,
    scalars: &'a mut Scalars,
    /// Values by the places of their classes.
    made: &'a mut BTreeMap<usize, ValueId>,
}

impl Writer<'_> {
    /// The op of a build, once its operands are there.
    fn op(&mut self, build: &Build) -> Result<(Op, Vec<ValueId>), PatchError> {
        let mut operands = Vec::new();
        for need in build.needs() {
            operands.push(self.value(need)?);
        }
        let rank = operands.first().map_or(0, |v| self.patch.ty(*v).rank());
        let kind: Op = match build {
            Build::Product([(_, a), (_, b)]) => MatMul::new(*a, *b).into(),
            Build::Transpose(_) => {
                let mut perm: SmallVec<[usize; 4]> = (0..rank).collect();
                perm[rank.saturating_sub(2)..].reverse();
                Transpose { perm }.into()
            }
            Build::Scale(_, by) => {
                operands.push(self.scalar(operands[0], *by)?);
                Binary(BinaryKind::Mul).into()
            }
            Build::Reshape(_, dims) => {
                let shape = dims.iter().map(|n| Dim::Known(*n as i64)).collect();
                Reshape { shape }.into()
            }
            Build::Cast(_, to) => Cast { to: *to }.into(),
            Build::Sum(_) => Reduce {
                kind: ReduceKind::Sum,
                axes: (0..rank.saturating_sub(2)).collect(),
                keep_dims: false,
            }
            .into(),
            Build::Value(_) => unreachable!("a value is there"),
        };
        Ok((kind, operands))
    }

    /// A number of the element type of `like`.
    fn scalar(&mut self, like: ValueId, number: f64) -> Result<ValueId, PatchError> {
        let key = (self.patch.ty(like).dtype, number.to_bits());
        if let Some(there) = self.scalars.get(&key) {
            return Ok(*there);
        }
        let scalar = self.patch.scalar(key.0, number)?;
        self.scalars.insert(key, scalar);
        Ok(scalar)
    }

    /// What the backward pass computes of the same operands already.
    fn there(&self, kind: &Op, operands: &[ValueId]) -> Option<ValueId> {
        let graph = self.patch.graph();
        let reads = graph.uses(*operands.first()?);
        let mut ops = reads.iter().map(|read| graph.op(read.op));
        let op = ops.find(|op| {
            op.site.region == Region::Backward && op.kind == *kind && op.operands[..] == *operands
        })?;
        Some(op.results[0])
    }

    fn value(&mut self, place: usize) -> Result<ValueId, PatchError> {
        if let Some(value) = self.made.get(&place) {
            return Ok(*value);
        }
        let value = match self.plan.build(place) {
            Some(Build::Value(source)) => source.value,
            Some(build) => {
                let (kind, operands) = self.op(build)?;
                match self.there(&kind, &operands) {
                    Some(there) => there,
                    None => self.patch.add1(kind, &operands)?,
                }
            }
            None => unreachable!("what a choice needs is chosen"),
        };
        self.made.insert(place, value);
        Ok(value)
    }
}
