//! Every example model, written and read back.

use crate::{bind, read_back, write};
use lorafa_ir::{Bindings, Graph, TensorType};
use lorafa_onnx::file::ModelFile;
use lorafa_onnx::import::import;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn models() -> Vec<PathBuf> {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let entries = std::fs::read_dir(examples).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut models: Vec<PathBuf> = paths
        .filter(|path| path.extension().is_some_and(|e| e == "onnx"))
        .collect();
    models.sort();
    assert!(!models.is_empty());
    models
}

/// The graph with two rows of eight tokens.
fn bound(mut graph: Graph) -> Graph {
    let mut symbols = BTreeSet::new();
    for value in graph.ops().flat_map(|op| &op.results) {
        let shape = &graph.ty(*value).shape;
        shape.iter().for_each(|d| d.symbols(&mut symbols));
    }
    let size = |name: &str| if name.contains("batch") { 2 } else { 8 };
    let bindings: Bindings = symbols
        .into_iter()
        .map(|name| (name.clone(), size(&name)))
        .collect();
    bind(&mut graph, &bindings);
    graph.verify().unwrap_or_else(|e| panic!("{e}"));
    graph
}

/// Outputs with their types, and names of the parameters that are read.
fn signature(graph: &Graph) -> (Vec<(String, TensorType)>, BTreeSet<String>) {
    let outputs = graph.outputs().iter();
    let outputs = outputs.map(|o| (o.name.to_string(), graph.ty(o.value).clone()));
    let params = graph.params().filter(|(value, _)| graph.is_used(*value));
    (
        outputs.collect(),
        params.map(|(_, p)| p.name.to_string()).collect(),
    )
}

#[test]
fn examples_are_read_back_with_the_same_signature() {
    for path in models() {
        let model = ModelFile::open(&path).unwrap();
        let graph = bound(import(&model).unwrap());
        let written = write(&graph);
        assert_eq!(written, write(&graph));
        let again = read_back(&written);
        assert_eq!(signature(&again), signature(&graph), "{}", path.display());
    }
}
