//! The verifier: each fixture says what is wrong on the line that it concerns, as `; error: …`.

use lorafa_ir::ops::{Param, Role, Scalar};
use lorafa_ir::text::parse;
use lorafa_ir::verify::Violations;
use lorafa_ir::{Adapter, DType, Graph, Op, OutputKind, Region, TensorType, ValueId};
use std::path::Path;

/// Starts an expectation.
const MARK: &str = "; error: ";

/// What the fixture expects: the line's number, counted from one, and the message.
fn expected(text: &str) -> Vec<(usize, String)> {
    let lines = text.lines().enumerate();
    lines
        .flat_map(|(i, line)| {
            line.split(MARK)
                .skip(1)
                .map(move |m| (i + 1, m.trim().to_string()))
        })
        .collect()
}

/// What the verifier found, each violation at a line that begins as it says; where there are
/// several, at one that expects it.
fn found(text: &str, violations: &Violations) -> Vec<(usize, String)> {
    let expected = expected(text);
    let mut found: Vec<(usize, String)> = violations
        .0
        .iter()
        .map(|violation| {
            let lines = text.lines().enumerate();
            let at: Vec<usize> = lines
                .filter(|(_, line)| line.trim().starts_with(&violation.line))
                .map(|(i, _)| i + 1)
                .collect();
            assert!(!at.is_empty(), "the fixture has no line for {violation}");
            let expects = |i: &usize| expected.contains(&(*i, violation.message.clone()));
            let line = at.iter().copied().find(expects).unwrap_or(at[0]);
            (line, violation.message.clone())
        })
        .collect();
    found.sort();
    found
}

#[test]
fn fixtures_are_wrong_as_they_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/verify");
    let mut paths: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty());
    for path in paths {
        let text = std::fs::read_to_string(&path).unwrap();
        let graph = parse(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let violations = graph.verify().err().unwrap_or(Violations(Vec::new()));
        let mut expected = expected(&text);
        expected.sort();
        assert_eq!(found(&text, &violations), expected, "{}", path.display());
    }
}

/// `x`, and `-x` as output `y`.
fn small() -> (Graph, ValueId, ValueId) {
    let text = "graph @small {\nparam %x : f32[2] trained\nv0 = neg %x : f32[2]\nout \"y\" = v0\n}";
    let graph = parse(text).unwrap();
    let (x, y) = (graph.params().next().unwrap().0, graph.outputs()[0].value);
    (graph, x, y)
}

#[track_caller]
fn messages(graph: &Graph, expected: &[&str]) {
    let violations = graph.verify().err().unwrap_or(Violations(Vec::new()));
    let found: Vec<String> = violations.0.iter().map(|v| v.to_string()).collect();
    assert_eq!(found, expected);
}

#[test]
fn a_value_that_reads_itself() {
    let (mut graph, x, y) = small();
    let mut patch = graph.patch("test");
    let z = patch.plus(y, x).unwrap();
    patch.replace(y, z).unwrap();
    let message = "the op is on a cycle or behind one: `v2 = add v2, %x : f32[2]`";
    messages(&graph, &[message]);
}

#[test]
fn operands_and_outputs_whose_op_is_gone() {
    let (mut graph, x, y) = small();
    let mut patch = graph.patch("test");
    let adapter = Adapter {
        module: "m".into(),
        x,
        a: x,
        b: x,
        xa: x,
        scale: Scalar(1.0),
        rank: 2,
    };
    let gone = patch.plus(x, x).unwrap();
    let op = patch.graph().def(gone).id;
    patch.adapter(Adapter {
        xa: gone,
        ..adapter.clone()
    });
    patch.adapter(Adapter {
        b: gone,
        module: "n".into(),
        ..adapter
    });
    patch.output("g", y, OutputKind::Gradient(gone));
    patch.output("u", y, OutputKind::Updated(gone));
    patch.remove(op).unwrap();
    messages(
        &graph,
        &[
            "parameter v2 does not exist: `out \"g\"`",
            "parameter v2 does not exist: `out \"u\"`",
            "its xa v2 does not exist: `adapter \"m\"`",
            "its b v2 does not exist: `adapter \"n\"`",
        ],
    );
}

#[test]
fn types_that_were_not_inferred_again() {
    let (mut graph, x, y) = small();
    let mut patch = graph.patch("test");
    let ty = TensorType::new(DType::F64, [3.into()]);
    let param = Param::runtime("z", Role::Input, ty);
    let z = patch.add1(Op::Param(Box::new(param)), &[]).unwrap();
    let op = patch.graph().def(y).id;
    patch.set_operand(op, 0, z);
    let message = "expected v0 : f64[3], found f32[2]: `v0 = neg %z : f32[2]`";
    messages(&graph, &[message]);
    graph.patch("test").reinfer(op).unwrap();
    messages(&graph, &[]);
    assert_eq!(graph.ty(y), graph.ty(z));
    assert!(graph.uses(x).is_empty());
}

#[test]
fn parameters_of_one_name() {
    let (mut graph, x, _) = small();
    let param = graph.param(x).unwrap().clone();
    let mut patch = graph.patch("test");
    patch.add1(Op::Param(Box::new(param)), &[]).unwrap();
    let message = "a second parameter is called x: `param %x : f32[2] trained`";
    messages(&graph, &[message]);
}

#[test]
fn regions_only_concern_ops_that_read_something() {
    let (mut graph, x, _) = small();
    let mut patch = graph.patch("test");
    let mut site = patch.site().clone();
    site.region = Region::Update;
    patch.at_site(site.clone());
    let constant = patch.scalar(DType::F32, 1.0).unwrap();
    let late = patch.plus(x, constant).unwrap();
    site.region = Region::Backward;
    patch.at_site(site);
    patch.plus(x, constant).unwrap();
    patch.plus(x, late).unwrap();
    let message = "a backward op reads v3 of the update region: `v5 = add %x, v3 : f32[2]`";
    messages(&graph, &[message]);
}
