mod joint;

use super::extract::{Choice, Cost, Problem, cost, extract};
use super::language::{Dims, Kind, Leaf, Source, Tensor, Term, Terms, leaf, terms};
use super::rules::{RULES, form};
use crate::eliminate_dead_code::EliminateDeadCode;
use crate::freeze_lora_a::FreezeLoraA;
use crate::manager::Manager;
use crate::pass::{Options, Pass, PassCx};
use crate::rematerialize::step;
use crate::simplify_lora::SimplifyLora;
use crate::unmerge_lora::UnmergeLora;
use egg::{ENodeOrVar, Id, RecExpr, Subst, Var};
use lorafa_ir::interp::{self, Array};
use lorafa_ir::ops::{
    Binary, BinaryKind, Cast, MatMul, Op, Reduce, ReduceKind, Reshape, Transpose,
};
use lorafa_ir::types::TensorType;
use lorafa_ir::{DType, Dim, Graph, OutputKind, ValueId, text};
use std::collections::BTreeMap;
use std::path::Path;

/// Numbers that look random and are the same in every run.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    /// Between minus one and one.
    fn real(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }
}

fn ty(tensor: &Tensor) -> TensorType {
    let dims = tensor.dims.iter().map(|n| Dim::Known(*n as i64));
    TensorType::new(tensor.dtype, dims)
}

fn random(rng: &mut Rng, ty: &TensorType) -> Array {
    Array::from_fn(ty, |_| rng.real()).unwrap()
}

/// What the variables of a rule stand for in one draw.
struct Draw {
    terms: Terms,
    subst: Subst,
    /// By leaf.
    arrays: BTreeMap<u32, Array>,
}

impl Draw {
    fn new(rng: &mut Rng, vars: &[Var]) -> Draw {
        let mut draw = Draw {
            terms: terms(),
            subst: Subst::default(),
            arrays: BTreeMap::new(),
        };
        let mut drawn: Vec<Dims> = Vec::new();
        let graph = values(vars.len());
        // Tensors first: shapes are made of theirs.
        let shape = |var: &Var| matches!(var.to_string().as_str(), "?s" | "?t");
        let (shapes, others): (Vec<Var>, Vec<Var>) = vars.iter().partition(|var| shape(var));
        for (at, var) in others.into_iter().chain(shapes).enumerate() {
            let stands = match var.to_string().as_str() {
                "?k" | "?l" => Leaf::Number(rng.real()),
                "?d" => Leaf::DType(DType::F64),
                "?s" | "?t" => Leaf::Shape(other_shape(rng, &drawn)),
                _ => {
                    let rank = 2 + rng.below(2);
                    let dims: Dims = (0..rank).map(|_| rng.pick(&[2, 3, 2, 3, 1, 0])).collect();
                    drawn.push(dims.clone());
                    let dtype = DType::F64;
                    Leaf::Value(Source {
                        value: graph[at],
                        ty: Tensor { dtype, dims },
                        keeps: None,
                    })
                }
            };
            let id = leaf(&mut draw.terms, stands.clone());
            if let Leaf::Value(source) = &stands {
                let number = draw.terms.analysis.find(&stands).unwrap();
                draw.arrays.insert(number, random(rng, &ty(&source.ty)));
            }
            draw.subst.insert(var, id);
        }
        draw
    }

    /// A form with the variables' terms in it.
    fn term(&mut self, ast: &RecExpr<ENodeOrVar<Term>>) -> Id {
        let mut ids: Vec<Id> = Vec::new();
        for node in ast {
            let id = match node {
                ENodeOrVar::Var(var) => self.subst[*var],
                ENodeOrVar::ENode(term) => {
                    let mut term = term.clone();
                    egg::Language::update_children(&mut term, |id| ids[usize::from(id)]);
                    self.terms.add_uncanonical(term)
                }
            };
            ids.push(id);
        }
        *ids.last().unwrap()
    }

    fn kind(&self, id: Id) -> &Kind {
        &self.terms[id].data
    }

    /// What a term is in numbers, by the reference semantics of the ops.
    fn eval(&self, expression: &RecExpr<Term>) -> Array {
        let mut values: Vec<Option<Array>> = Vec::new();
        let mut ids: Vec<Id> = Vec::new();
        for term in expression {
            let x = |id: &Id| values[usize::from(*id)].as_ref().unwrap();
            let known = |id: &Id| &self.terms[ids[usize::from(*id)]].data;
            let mut moved = term.clone();
            egg::Language::update_children(&mut moved, |id| ids[usize::from(id)]);
            let id = self.terms.lookup(moved).unwrap();
            let result = match known_tensor(&self.terms, id) {
                Some(tensor) => ty(&tensor),
                None => {
                    ids.push(id);
                    values.push(None);
                    continue;
                }
            };
            let (kind, operands): (Op, Vec<Array>) = match term {
                Term::Leaf(leaf) => {
                    ids.push(id);
                    values.push(Some(self.arrays[leaf].clone()));
                    continue;
                }
                Term::Product([a, b]) => (
                    MatMul::new(false, false).into(),
                    vec![x(a).clone(), x(b).clone()],
                ),
                Term::Transpose(a) => {
                    let mut perm: smallvec::SmallVec<[usize; 4]> = (0..x(a).shape.len()).collect();
                    let last = perm.len() - 1;
                    perm.swap(last - 1, last);
                    (Transpose { perm }.into(), vec![x(a).clone()])
                }
                Term::Scale([a, by]) => {
                    let Kind::Number(by) = known(by) else {
                        panic!("a factor is a number")
                    };
                    let by = Array {
                        dtype: DType::F64,
                        shape: vec![],
                        data: vec![*by],
                    };
                    (Binary(BinaryKind::Mul).into(), vec![x(a).clone(), by])
                }
                Term::Reshape([a, _]) => {
                    let shape = result.shape.clone();
                    (Reshape { shape }.into(), vec![x(a).clone()])
                }
                Term::Cast([a, _]) => (Cast { to: DType::F64 }.into(), vec![x(a).clone()]),
                Term::Sum(a) => {
                    let sum = Reduce {
                        kind: ReduceKind::Sum,
                        axes: (0..x(a).shape.len() - 2).collect(),
                        keep_dims: false,
                    };
                    (sum.into(), vec![x(a).clone()])
                }
                Term::Times(_) => panic!("a product of factors is no tensor"),
            };
            let operands: Vec<&Array> = operands.iter().collect();
            let mut results = kind.eval(&operands, &[&result]).unwrap();
            ids.push(id);
            values.push(results.pop());
        }
        values.pop().flatten().unwrap()
    }
}

fn known_tensor(terms: &Terms, id: Id) -> Option<Tensor> {
    terms[id].data.tensor().cloned()
}

/// Ids of values, of which only that they differ matters.
fn values(n: usize) -> Vec<ValueId> {
    let mut graph = Graph::new("values");
    let mut patch = graph.patch("values");
    let ids = (0..n).map(|i| patch.scalar(DType::F64, i as f64).unwrap());
    ids.collect()
}

/// Another shape for what has one of these, or for a product with that.
fn other_shape(rng: &mut Rng, drawn: &[Dims]) -> Dims {
    let mut dims = rng.pick(drawn);
    if rng.below(2) == 0 {
        let columns = *rng.pick(drawn).last().unwrap();
        *dims.last_mut().unwrap() = columns;
    }
    match (rng.below(3), dims.as_slice()) {
        (0, _) => dims,
        (1, [rows @ .., columns]) => Dims::from_slice(&[rows.iter().product(), *columns]),
        (_, [batch, rows, columns]) => Dims::from_slice(&[*rows, *batch, *columns]),
        _ => dims.iter().rev().copied().collect(),
    }
}

#[test]
fn both_forms_of_every_rule_have_one_type_and_the_same_numbers() {
    const DRAWS: usize = 25;
    let mut rng = Rng(7);
    for (name, from, to, when) in RULES {
        let (from, to) = (form(from), form(to));
        let mut held = 0;
        for _ in 0..20_000 {
            let mut draw = Draw::new(&mut rng, &from.vars());
            let left = draw.term(&from.ast);
            if *draw.kind(left) == Kind::IllTyped {
                continue;
            }
            let mut subst = draw.subst.clone();
            if when(&mut draw.terms, &mut subst).is_none() {
                continue;
            }
            draw.subst = subst;
            let right = draw.term(&to.ast);
            assert_eq!(draw.kind(left), draw.kind(right), "{name}");
            let (left, right) = (draw.terms.id_to_expr(left), draw.terms.id_to_expr(right));
            let (l, r) = (draw.eval(&left), draw.eval(&right));
            for (l, r) in l.data.iter().zip(&r.data) {
                assert!(
                    (l - r).abs() < 1e-12,
                    "{name}: {left} is {l}, {right} is {r}"
                );
            }
            held += 1;
            if held == DRAWS {
                break;
            }
        }
        assert_eq!(held, DRAWS, "{name} holds too seldom to be tested");
    }
}

#[test]
fn rules_have_names_of_their_own() {
    let names: std::collections::BTreeSet<&str> = RULES.iter().map(|rule| rule.0).collect();
    assert_eq!(names.len(), RULES.len());
}

/// Classes with a few terms each, cycles among them.
fn random_problem(rng: &mut Rng) -> Problem {
    let classes = 2 + rng.below(6);
    let bytes: Vec<u64> = (0..1 + rng.below(3)).map(|_| rng.next() % 4).collect();
    let choice = |rng: &mut Rng| match rng.below(3) {
        0 => Choice {
            keeps: (rng.below(4) > 0).then(|| rng.below(bytes.len())),
            ..Choice::default()
        },
        _ => Choice {
            flops: rng.next() % 3,
            ops: 1,
            keeps: None,
            needs: (0..1 + rng.below(3)).map(|_| rng.below(classes)).collect(),
        },
    };
    let terms = |rng: &mut Rng| (0..1 + rng.below(3)).map(|_| choice(rng)).collect();
    Problem {
        classes: (0..classes).map(|_| terms(rng)).collect(),
        bytes: bytes.clone(),
        roots: (0..1 + rng.below(3)).map(|_| rng.below(classes)).collect(),
    }
}

/// The least cost of all ways to choose one term of every class, written to be seen right.
fn brute_force(problem: &Problem) -> Option<Cost> {
    let mut best = None;
    let mut all = vec![0; problem.classes.len()];
    loop {
        let mut used = vec![None; all.len()];
        let mut roots = problem.roots.iter();
        if roots.all(|root| visit(problem, &all, *root, &mut vec![], &mut used)) {
            let found = cost(problem, &used);
            best = Some(best.map_or(found, |best: Cost| best.min(found)));
        }
        let Some(at) = (0..all.len()).find(|at| all[*at] + 1 < problem.classes[*at].len()) else {
            return best;
        };
        all[at] += 1;
        all[..at].fill(0);
    }
}

/// Marks what a class needs; false if it needs itself.
fn visit(
    problem: &Problem,
    all: &[usize],
    class: usize,
    path: &mut Vec<usize>,
    used: &mut [Option<usize>],
) -> bool {
    if path.contains(&class) {
        return false;
    }
    path.push(class);
    used[class] = Some(all[class]);
    let needs = &problem.classes[class][all[class]].needs;
    let fine = needs
        .iter()
        .all(|need| visit(problem, all, *need, path, used));
    path.pop();
    fine
}

#[test]
fn extraction_is_as_good_as_trying_everything() {
    let mut rng = Rng(11);
    let (mut possible, mut misled) = (0, 0);
    for _ in 0..10_000 {
        let problem = random_problem(&mut rng);
        let found = extract(&problem);
        assert_eq!(
            found.as_ref().map(|found| found.cost),
            brute_force(&problem)
        );
        if let Some(found) = found {
            assert_eq!(cost(&problem, &found.chosen), found.cost);
            assert!(found.proven);
            possible += 1;
            misled += usize::from(one_at_a_time(&problem) > found.cost);
        }
    }
    // The best of each root by itself does not do.
    assert!(possible > 1_000 && misled > 20, "{possible}, {misled}");
}

/// What the cheapest choices of each root by itself cost together.
fn one_at_a_time(problem: &Problem) -> Cost {
    let mut terms = std::collections::BTreeSet::new();
    for root in &problem.roots {
        let alone = Problem {
            roots: vec![*root],
            ..problem.clone()
        };
        let chosen = extract(&alone).unwrap().chosen.into_iter().enumerate();
        terms.extend(chosen.filter_map(|(class, at)| Some((class, at?))));
    }
    let choices = || {
        terms
            .iter()
            .map(|(class, at)| &problem.classes[*class][*at])
    };
    let kept: std::collections::BTreeSet<usize> = choices().filter_map(|c| c.keeps).collect();
    Cost {
        bytes: kept.iter().map(|at| problem.bytes[*at]).sum(),
        flops: choices().map(|choice| choice.flops).sum(),
        ops: choices().map(|choice| choice.ops).sum(),
    }
}

/// Values for all parameters: small integers for what is no float.
fn inputs(graph: &Graph, rng: &mut Rng) -> BTreeMap<ValueId, Array> {
    let params = graph.params().map(|(value, param)| {
        let array = match param.ty.dtype.is_float() {
            true => random(rng, &param.ty),
            false => Array::from_fn(&param.ty, |_| rng.below(4) as f64).unwrap(),
        };
        (value, array)
    });
    params.collect()
}

fn outputs(graph: &Graph, inputs: &BTreeMap<ValueId, Array>) -> Vec<Array> {
    let values = interp::run(graph, inputs).unwrap();
    let outputs = graph.outputs().iter();
    outputs.map(|o| values[&o.value].clone()).collect()
}

/// Runs a pass on its fixtures and compares what the graphs compute; how many it changed.
fn changed_with_the_same_numbers(pass: &dyn Pass) -> usize {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/passes");
    let mut changed = 0;
    for entry in std::fs::read_dir(fixtures.join(pass.name())).unwrap() {
        let path = entry.unwrap().path();
        let mut graph = text::parse(&std::fs::read_to_string(&path).unwrap()).unwrap();
        if graph.params().any(|(_, p)| p.ty.known_shape().is_none()) {
            continue;
        }
        // The loss has no reference semantics, and no gradient reads it.
        let mut patch = graph.patch("no-loss");
        patch.retain_outputs(|output| output.kind != OutputKind::Loss);
        let mut cx = PassCx::new(Options::default());
        let mut manager = Manager::new();
        let mut run = |pass: &dyn Pass, graph: &mut Graph| {
            manager.run(&[pass], graph, &mut cx).unwrap();
        };
        run(&EliminateDeadCode, &mut graph);
        let inputs = inputs(&graph, &mut Rng(13));
        let (old, before) = (graph.to_string(), outputs(&graph, &inputs));
        run(pass, &mut graph);
        changed += usize::from(graph.to_string() != old);
        let after = outputs(&graph, &inputs);
        assert_eq!(after.len(), before.len());
        for (l, r) in before.iter().zip(&after) {
            assert_eq!(l.shape, r.shape);
            for (l, r) in l.data.iter().zip(&r.data) {
                assert!((l - r).abs() < 1e-9, "{}: {l} and {r}", path.display());
            }
        }
    }
    changed
}

#[test]
fn simplified_gradients_have_the_same_numbers() {
    let changed = changed_with_the_same_numbers(&SimplifyLora);
    assert!(changed >= 8, "{changed}");
}

#[test]
fn no_peak_rises() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/passes");
    let (mut lower, mut compared) = (0, 0);
    for entry in std::fs::read_dir(fixtures.join(SimplifyLora.name())).unwrap() {
        let path = entry.unwrap().path();
        let mut graph = text::parse(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let mut cx = PassCx::new(Options::default());
        let mut run = |passes: &[&dyn Pass], graph: &mut Graph| {
            Manager::new().run(passes, graph, &mut cx).unwrap();
            step(graph, &Options::default()).map(|(_, peak)| peak.bytes)
        };
        let before = run(&[&FreezeLoraA, &EliminateDeadCode], &mut graph);
        let after = run(&[&SimplifyLora, &EliminateDeadCode], &mut graph);
        if let (Ok(before), Ok(after)) = (before, after) {
            assert!(after <= before, "{}: {before}, {after}", path.display());
            lower += usize::from(after < before);
            compared += 1;
        }
    }
    assert!(lower > 0 && compared > 15, "{lower} of {compared}");
}

#[test]
fn unmerged_adapters_have_the_same_numbers() {
    let changed = changed_with_the_same_numbers(&UnmergeLora);
    assert!(changed >= 4, "{changed}");
}
