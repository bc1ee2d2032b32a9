//! The text form: printing and reading undo each other.

#[path = "../common/decompose.rs"]
mod decompose;
mod errors;
#[path = "../common/mnemonics.rs"]
mod mnemonics;
mod mutations;

use lorafa_ir::text::parse;
use lorafa_ir::{Graph, OutputKind};
use mnemonics::MNEMONICS;
use std::collections::BTreeSet;
use std::path::Path;

/// Every fixture with its name.
fn fixtures() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/text");
    let mut fixtures: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name, std::fs::read_to_string(entry.path()).unwrap())
        })
        .collect();
    fixtures.sort();
    fixtures
}

fn fixture(name: &str) -> Graph {
    let fixtures = fixtures();
    let (_, text) = fixtures.iter().find(|(n, _)| n == name).unwrap();
    parse(text).unwrap()
}

/// The fixture without comments, which are on a line of their own or after two blanks.
fn uncommented(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.starts_with(';'));
    lines
        .map(|line| line.split("  ; ").next().unwrap_or_default())
        .map(|line| format!("{line}\n"))
        .collect()
}

#[test]
fn printing_gives_what_was_read() {
    for (name, text) in fixtures() {
        let graph = parse(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(graph.to_string(), uncommented(&text), "{name}");
        graph.verify().unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

#[test]
fn a_fixture_has_every_op() {
    let graph = fixture("every_op.lir");
    let found: BTreeSet<&str> = graph.ops().map(|op| op.kind.name()).collect();
    let expected: BTreeSet<&str> = MNEMONICS.iter().copied().collect();
    assert_eq!(found, expected);
}

#[test]
fn reading_keeps_what_printing_does_not_show() {
    let graph = fixture("lora.lir");
    let order = graph.order();
    let ids: Vec<_> = graph.ops().map(|op| op.id).collect();
    assert_eq!(order, ids, "lines are in schedule order");
    let loss = graph.loss().unwrap();
    assert_eq!((&*loss.name, loss.kind), ("loss", OutputKind::Loss));
    let product = graph.adapters()[0].xa;
    assert_eq!(product.to_string(), "v1");
    let readers = graph.uses(product);
    let slots: Vec<usize> = readers.iter().map(|u| u.slot).collect();
    assert_eq!(slots, [0, 1]);
    let origin = graph.op(readers[1].op).site.of.unwrap();
    assert_eq!(origin, readers[0].op);
}

#[test]
fn parameters_get_ids_beyond_the_numbered_values() {
    let graph = fixture("lora.lir");
    assert!(graph.params().all(|(value, _)| value.index() > 12));
    let text = "graph @g {\nparam %x : f32[] input\nv0=neg %x : f32[]\nv1 =neg v0 : f32[]\n}";
    let graph = parse(text).unwrap();
    let params: Vec<usize> = graph.params().map(|(value, _)| value.index()).collect();
    assert_eq!(params, [2]);
    graph.verify().unwrap();
}
