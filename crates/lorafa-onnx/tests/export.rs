//! What is written means what the graph means.

#[path = "export/case.rs"]
mod case;
#[path = "export/cases.rs"]
mod cases;
#[path = "../../lorafa-ir/tests/common/decompose.rs"]
mod decompose;
#[path = "export/errors.rs"]
mod errors;
#[path = "export/functions.rs"]
mod functions;
#[path = "export/init.rs"]
mod init;
#[path = "../../lorafa-ir/tests/common/mnemonics.rs"]
mod mnemonics;
#[path = "export/models.rs"]
mod models;
#[path = "export/ops.rs"]
mod ops;
#[path = "../../lorafa-ir/tests/common/rng.rs"]
mod rng;
#[path = "export/shape.rs"]
mod shape;
#[path = "export/weights.rs"]
mod weights;

use lorafa_ir::interp::{Array, run};
use lorafa_ir::ops::Data;
use lorafa_ir::text::OpDisplay;
use lorafa_ir::{Bindings, Graph, Op, ValueId};
use lorafa_onnx::export::{ExportError, ExportOptions, export};
use lorafa_onnx::external::ExternalStore;
use lorafa_onnx::file::ModelFile;
use lorafa_onnx::import::{ImportError, import};
use lorafa_onnx::proto::{GraphProto, ModelProto, NodeProto};
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Values by the name of a parameter or output.
type Values = BTreeMap<String, Array>;

/// Exports a graph whose weights are not in other files.
fn try_write(graph: &Graph) -> Result<ModelProto, ExportError> {
    try_write_at(graph, 20)
}

fn try_write_at(graph: &Graph, opset: i64) -> Result<ModelProto, ExportError> {
    let store = ExternalStore::new(Path::new("."));
    export(
        graph,
        &ExportOptions {
            store: &store,
            embed_weights: false,
            trained_inputs: false,
            opset,
        },
    )
}

/// Exports a graph that can be, and checks that names are unique and defined before they are read.
#[track_caller]
fn write(graph: &Graph) -> ModelProto {
    let model = try_write(graph).unwrap_or_else(|e| panic!("{e}\n{graph}"));
    well_formed(&model);
    model
}

#[track_caller]
fn well_formed(model: &ModelProto) {
    let graph = graph_of(model);
    let mut defined = BTreeSet::new();
    let sources = graph.input.iter().map(|i| i.name());
    for name in sources.chain(graph.initializer.iter().map(|t| t.name())) {
        assert!(defined.insert(name), "{name} is defined twice");
    }
    let functions = model.functions.iter().map(|f| f.name());
    let functions: BTreeSet<&str> = functions.collect();
    assert_eq!(functions.len(), model.functions.len());
    let mut nodes = BTreeSet::new();
    for node in &graph.node {
        let called = node.domain() != "ai.lorafa" || functions.contains(node.op_type());
        assert!(called, "{} is no function", node.op_type());
        assert!(nodes.insert(node.name()), "two nodes are {}", node.name());
        for name in node.input.iter().filter(|n| !n.is_empty()) {
            assert!(defined.contains(name.as_str()), "{name} is not defined");
        }
        for name in node.output.iter().filter(|n| !n.is_empty()) {
            assert!(defined.insert(name), "{name} is defined twice");
        }
    }
    for output in &graph.output {
        let name = output.name();
        assert!(defined.contains(name), "output {name} is not defined");
    }
    for info in &graph.value_info {
        let name = info.name();
        assert!(defined.contains(name), "{name} is described, not defined");
    }
}

#[track_caller]
fn parse(text: &str) -> Graph {
    let graph = lorafa_ir::text::parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    graph.verify().unwrap_or_else(|e| panic!("{e}"));
    graph
}

/// Writes the model to a file and imports that.
#[track_caller]
fn read_back(model: &ModelProto) -> Graph {
    let graph = try_read_back(model).unwrap_or_else(|e| panic!("{e}"));
    graph.verify().unwrap_or_else(|e| panic!("{e}\n{graph}"));
    graph
}

/// The model with functions that do not say which ops they are.
fn bodies(model: &ModelProto) -> ModelProto {
    let mut model = model.clone();
    model.functions.iter_mut().for_each(|f| f.doc_string = None);
    model
}

fn try_read_back(model: &ModelProto) -> Result<Graph, ImportError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, model.encode_to_vec()).unwrap();
    let file = ModelFile::open(&path).unwrap_or_else(|e| panic!("{e}"));
    import(&file)
}

fn graph_of(model: &ModelProto) -> &GraphProto {
    model.graph.as_ref().unwrap()
}

/// The nodes of an operator.
fn nodes<'m>(model: &'m ModelProto, op: &str) -> Vec<&'m NodeProto> {
    let nodes = graph_of(model).node.iter();
    nodes.filter(|n| n.op_type() == op).collect()
}

/// Puts numbers in for symbols.
#[track_caller]
fn bind(graph: &mut Graph, bindings: &Bindings) {
    for id in graph.order() {
        let op = graph.op(id).clone();
        let kind = op.kind.bind(bindings);
        let kind = kind.unwrap_or_else(|| panic!("{}", OpDisplay(graph, id)));
        let mut patch = graph.patch("bind");
        match kind {
            Op::Param(bound) => patch.update_param(op.results[0], |p| *p = *bound),
            kind => {
                patch.set_kind(id, kind);
                patch.reinfer(id).unwrap_or_else(|e| panic!("{e}"));
            }
        }
    }
}

/// Runs a graph on values for its runtime parameters; gives its outputs.
#[track_caller]
fn evaluate(mut graph: Graph, values: &Values) -> Values {
    bind(&mut graph, &Bindings::new());
    decompose::decompose(&mut graph);
    let params: BTreeMap<ValueId, Array> = graph
        .params()
        .map(|(value, param)| {
            let array = match &param.stored.data {
                Data::Inline(bytes) => {
                    let data = lorafa_onnx::dtype::decode(param.ty.dtype, bytes);
                    Array::new(&param.ty, data).unwrap()
                }
                _ => values[&*param.name].clone(),
            };
            (value, array)
        })
        .collect();
    let results = run(&graph, &params).unwrap_or_else(|e| panic!("{e}\n{graph}"));
    let outputs = graph.outputs().iter();
    outputs
        .map(|o| (o.name.to_string(), results[&o.value].clone()))
        .collect()
}

/// Compares outputs element by element, relative to the larger of the two and one.
#[track_caller]
fn same(found: &Values, expected: &Values, tolerance: f64, label: &str) {
    assert_eq!(
        found.keys().collect::<Vec<_>>(),
        expected.keys().collect::<Vec<_>>(),
        "{label}"
    );
    for (name, a) in found {
        let b = &expected[name];
        assert_eq!((a.dtype, &a.shape), (b.dtype, &b.shape), "{label}: {name}");
        for (i, (x, y)) in a.data.iter().zip(&b.data).enumerate() {
            let near = x == y
                || x.is_nan() && y.is_nan()
                || (x - y).abs() <= tolerance * x.abs().max(y.abs()).max(1.0);
            assert!(near, "{label}: {name}[{i}] is {x}, expected {y}");
        }
    }
}
