//! Edits of a graph: ids, replacements, what a patch refuses.

use lorafa_ir::ops::{Binary, BinaryKind, Constant};
use lorafa_ir::patch::PatchError;
use lorafa_ir::text::parse;
use lorafa_ir::types::TypeError;
use lorafa_ir::{DType, Graph, Op, OutputKind, Region, Site, Use, ValueId};

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
    let add = || Op::from(Binary(BinaryKind::Add));
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
