//! The graph and its edits: ids, order, uses, what a patch refuses.

#[path = "common/rng.rs"]
mod rng;

use lorafa_ir::ops::{BinaryKind, Constant, Param, Role, UnaryKind};
use lorafa_ir::patch::PatchError;
use lorafa_ir::text::parse;
use lorafa_ir::types::TypeError;
use lorafa_ir::{DType, Graph, Op, OpId, OutputKind, Region, Site, TensorType, Use, ValueId};
use rng::Rng;
use std::collections::{BTreeMap, BTreeSet};

const DIAMOND: &str = "graph @diamond {
  param %x : f32[2] input
  v0 = neg %x : f32[2]
  v1 = exp v0 : f32[2]
  v2 = sin v0 : f32[2]
  v3 = add v1, v2 : f32[2]
  out \"y\" = v3
}
";

fn diamond() -> Graph {
    parse(DIAMOND).unwrap()
}

/// The value that prints as `name`.
fn value(graph: &Graph, name: &str) -> ValueId {
    let mut values = graph.ops().flat_map(|op| op.results.clone());
    values.find(|v| v.to_string() == name).unwrap()
}

fn site(region: Region, seq: i64) -> Site {
    Site {
        region,
        seq,
        module: "".into(),
        of: None,
    }
}

fn add_param(graph: &mut Graph, name: &str) -> ValueId {
    let ty = TensorType::new(DType::F32, [2.into()]);
    let param = Param::runtime(name, Role::Input, ty);
    graph
        .patch("test")
        .add1(Op::Param(Box::new(param)), &[])
        .unwrap()
}

/// A graph of random ops in random regions and places.
fn random_graph(seed: u64) -> Graph {
    let mut rng = Rng(seed);
    let mut graph = Graph::new("random");
    let mut values = vec![add_param(&mut graph, "x"), add_param(&mut graph, "y")];
    let regions = [Region::Forward, Region::Backward, Region::Update];
    for _ in 0..40 {
        let mut patch = graph.patch("random");
        let region = regions[rng.below(3)];
        patch.at_site(site(region, rng.below(5) as i64 - 2));
        let (a, b) = (
            values[rng.below(values.len())],
            values[rng.below(values.len())],
        );
        values.push(match rng.below(3) {
            0 => patch.unary(UnaryKind::Neg, a).unwrap(),
            1 => patch.scalar(DType::F32, 1.0).unwrap(),
            _ => patch.plus(a, b).unwrap(),
        });
    }
    graph
}

/// The schedule by its definition: again and again the least op whose operands are there.
fn order_by_definition(graph: &Graph) -> Vec<OpId> {
    let mut done = BTreeSet::new();
    let mut order = Vec::new();
    loop {
        let ready = graph.ops().filter(|op| {
            let there = |v: &ValueId| done.contains(&graph.def(*v).id);
            !done.contains(&op.id) && op.operands.iter().all(there)
        });
        let Some(op) = ready.min_by_key(|op| (op.site.region, op.site.seq, op.id)) else {
            return order;
        };
        done.insert(op.id);
        order.push(op.id);
    }
}

#[test]
fn the_order_is_operands_then_region_place_and_id() {
    for seed in 0..50 {
        let graph = random_graph(seed);
        assert_eq!(graph.order(), order_by_definition(&graph));
        assert_eq!(graph.order(), random_graph(seed).order());
        let printed = graph.to_string();
        assert_eq!(parse(&printed).map(|g| g.to_string()), Ok(printed));
    }
}

#[test]
fn the_order_and_uses_survive_edits() {
    for seed in 0..50 {
        let mut graph = random_graph(seed);
        let mut rng = Rng(!seed);
        for _ in 0..60 {
            edit(&mut graph, &mut rng);
            assert_eq!(graph.order(), order_by_definition(&graph));
            check_uses(&graph);
        }
    }
}

/// One random edit that keeps the graph well-formed.
fn edit(graph: &mut Graph, rng: &mut Rng) {
    let order = graph.order();
    let op = graph.op(order[rng.below(order.len())]).clone();
    let before = &order[..order.iter().position(|o| *o == op.id).unwrap()];
    let earlier = |graph: &Graph, rng: &mut Rng| {
        let def = (!before.is_empty()).then(|| before[rng.below(before.len())]);
        def.map(|def| graph.op(def).results[0])
    };
    match (rng.below(4), earlier(graph, rng)) {
        (0, _) => {
            let used = graph.is_used(op.results[0]);
            let removed = graph.patch("test").remove(op.id);
            assert_eq!(removed.is_err(), used);
            assert_eq!(graph.get_op(op.id).is_none(), !used);
        }
        (1, Some(value)) if !op.operands.is_empty() => {
            let slot = rng.below(op.operands.len());
            let same = graph.ty(value) == graph.ty(op.operands[slot]);
            if same {
                graph.patch("test").set_operand(op.id, slot, value);
            }
        }
        (2, Some(value)) => {
            let same = graph.ty(value) == graph.ty(op.results[0]);
            let replaced = graph.patch("test").replace(op.results[0], value);
            assert_eq!(replaced.is_ok(), same);
            assert!(!same || graph.uses(op.results[0]).is_empty());
        }
        (_, Some(value)) => {
            let mut patch = graph.patch("test");
            patch.at(op.id);
            patch.unary(UnaryKind::Exp, value).unwrap();
        }
        (_, None) => {}
    }
}

/// Uses by reading every operand list.
fn check_uses(graph: &Graph) {
    let mut uses: BTreeMap<ValueId, Vec<Use>> = BTreeMap::new();
    for op in graph.ops() {
        for (slot, operand) in op.operands.iter().enumerate() {
            uses.entry(*operand)
                .or_default()
                .push(Use { op: op.id, slot });
        }
    }
    for value in graph.ops().flat_map(|op| op.results.clone()) {
        let expected = uses.remove(&value).unwrap_or_default();
        assert_eq!(graph.is_used(value), !expected.is_empty());
        assert_eq!(graph.uses(value).to_vec(), expected);
    }
    assert!(uses.is_empty(), "reads of values that are gone: {uses:?}");
}

#[test]
fn ids_are_never_used_again() {
    let mut graph = diamond();
    let (y, bound) = (value(&graph, "v3"), graph.value_bound());
    let gone = graph.def(y).id;
    let mut patch = graph.patch("test");
    patch.retain_outputs(|_| false);
    patch.remove(gone).unwrap();
    let new = patch.scalar(DType::F32, 1.0).unwrap();
    assert_eq!(new.index(), bound);
    assert!(graph.def(new).id > gone);
    assert_eq!(graph.get_op(gone).map(|op| op.id), None);
    assert!(graph.get_value(y).is_none());
    assert_eq!(graph.op_count(), 5);
    // petgraph gives the node of the removed op to the new one; nothing of it shows.
    assert_eq!(graph.ops().last().unwrap().results[0], new);
    assert!(graph.uses(new).is_empty());
}

#[test]
fn a_replacement_moves_readers_outputs_and_the_name() {
    let mut graph = diamond();
    let (a, b, y) = (
        value(&graph, "v1"),
        value(&graph, "v2"),
        value(&graph, "v3"),
    );
    let reader = graph.def(y).id;
    let mut patch = graph.patch("test");
    patch.name(a, Some("activation".into()));
    patch.replace(a, b).unwrap();
    assert_eq!(patch.changes(), 1);
    patch.replace(b, b).unwrap();
    assert_eq!(
        patch.changes(),
        1,
        "a value replaced by itself is no change"
    );
    assert_eq!(graph.op(reader).operands.to_vec(), [b, b]);
    let both = [0, 1].map(|slot| Use { op: reader, slot });
    assert_eq!(graph.uses(b).to_vec(), both);
    assert_eq!(graph.value(b).name.as_deref(), Some("activation"));
    graph.patch("test").replace(y, b).unwrap();
    assert_eq!(graph.outputs()[0].value, b);
    assert!(!graph.is_used(y));
    graph.verify().unwrap();
}

#[test]
fn a_replacement_of_another_type_is_refused() {
    let mut graph = diamond();
    let before = graph.to_string();
    let a = value(&graph, "v1");
    let mut patch = graph.patch("narrow");
    let other = patch.scalar(DType::F32, 1.0).unwrap();
    let refusal = patch.replace(a, other).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        format!("narrow: cannot replace v1 : f32[2] by {other} : f32[]")
    );
    let op = patch.graph().def(other).id;
    patch.remove(op).unwrap();
    assert_eq!(graph.to_string(), before);
}

#[test]
fn an_op_that_does_not_fit_is_refused_with_its_place() {
    let mut graph = diamond();
    let x = value(&graph, "v0");
    let before = graph.to_string();
    let mut patch = graph.patch("widen");
    let refusal = |place: &str| PatchError::IllTyped {
        rule: "widen",
        op: "add".into(),
        place: place.into(),
        error: TypeError("expected 2 operands, found 1".into()),
    };
    let add = || Op::from(lorafa_ir::ops::Binary(BinaryKind::Add));
    assert_eq!(patch.add(add(), &[x]), Err(refusal("")));
    patch.at_site(Site {
        module: "layers.0".into(),
        ..site(Region::Forward, 0)
    });
    let refused = patch.add(add(), &[x]).unwrap_err();
    assert_eq!(refused, refusal(" in layers.0"));
    let message = "widen: add does not type-check in layers.0: expected 2 operands, found 1";
    assert_eq!(refused.to_string(), message);
    assert_eq!(patch.changes(), 0);
    assert_eq!(graph.to_string(), before);
}

#[test]
fn an_op_that_is_read_stays() {
    let mut graph = diamond();
    let (a, y) = (value(&graph, "v1"), value(&graph, "v3"));
    let (reader, op) = (graph.def(y).id, graph.def(a).id);
    let mut patch = graph.patch("sweep");
    for op in [op, reader] {
        assert_eq!(
            patch.remove(op),
            Err(PatchError::StillUsed { rule: "sweep", op })
        );
    }
    patch.retain_outputs(|_| false);
    patch.remove(reader).unwrap();
    patch.remove(op).unwrap();
    assert_eq!(patch.changes(), 3);
    graph.verify().unwrap();
}

#[test]
fn symbols_are_refused_where_a_number_is_needed() {
    let mut graph = parse("graph @g {\nparam %x : f32[batch,3] input\n}").unwrap();
    let x = graph.params().next().unwrap().0;
    let patch = graph.patch("count");
    let refusal = patch.numbers(x).unwrap_err().to_string();
    let expected = format!("count: {x} : f32[batch,3] has a symbolic dimension; bind it first");
    assert_eq!(refusal, expected);
}

#[test]
fn ops_carry_their_rule_and_place() {
    let mut graph = diamond();
    let y = value(&graph, "v3");
    let origin = graph.def(y).id;
    let mut patch = graph.patch("scale");
    patch.at_site(Site {
        of: Some(origin),
        ..site(Region::Backward, -7)
    });
    let constant: Op = Constant::scalar(DType::F32, 2.0).into();
    let two = patch.add1(constant, &[]).unwrap();
    let op = patch.graph().def(two).id;
    let new = patch.at(op).times(y, two).unwrap();
    patch.output("z", new, OutputKind::Value);
    for op in [graph.def(two), graph.def(new)] {
        assert_eq!((op.rule, op.site.of), ("scale", Some(origin)));
        assert_eq!((op.site.region, op.site.seq), (Region::Backward, -7));
    }
    assert!(
        graph
            .to_string()
            .contains("v6 = mul v3, v5 : f32[2] of v3\n")
    );
}
