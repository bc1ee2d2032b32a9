//! The schedule and the readers of values, against their definitions, on random graphs.

#[path = "common/rng.rs"]
mod rng;

use lorafa_ir::ops::{Param, Role, UnaryKind};
use lorafa_ir::text::parse;
use lorafa_ir::{DType, Graph, Op, OpData, OpId, Region, Site, TensorType, Use, ValueId};
use rng::Rng;
use std::collections::{BTreeMap, BTreeSet};

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
        let later = |op: &OpData| op.site.region != Region::Forward;
        let key = |op: &&OpData| (later(op), op.site.seq, op.site.region, op.id);
        let Some(op) = ready.min_by_key(key) else {
            return order;
        };
        done.insert(op.id);
        order.push(op.id);
    }
}

#[test]
fn the_order_is_operands_then_forward_place_region_and_id() {
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
