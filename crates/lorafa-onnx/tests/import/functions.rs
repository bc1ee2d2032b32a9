//! Calls of model-local functions are what the functions say.

use lorafa_ir::Graph;
use lorafa_onnx::file::ModelFile;
use lorafa_onnx::import::import;
use lorafa_onnx::proto::attribute_proto::AttributeType;
use lorafa_onnx::proto::tensor_shape_proto::{Dimension, dimension};
use lorafa_onnx::proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};
use prost::Message as _;

fn info(name: &str) -> ValueInfoProto {
    let dim = |n| Dimension {
        value: Some(dimension::Value::DimValue(n)),
        ..Dimension::default()
    };
    let tensor = type_proto::Tensor {
        elem_type: Some(1),
        shape: Some(TensorShapeProto {
            dim: vec![dim(2), dim(3)],
        }),
    };
    ValueInfoProto {
        name: Some(name.into()),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(tensor)),
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    }
}

fn names(names: &str) -> Vec<String> {
    let names = names.split(' ').filter(|n| !n.is_empty());
    names.map(|n| n.trim_matches('_').to_string()).collect()
}

/// `Concat(x y) -> z`; `_` is a name that is left out, a domain is `my`.
fn node(op: &str, input: &str, output: &str, attribute: Vec<AttributeProto>) -> NodeProto {
    let (domain, op) = op.split_once("::").unwrap_or(("", op));
    let (op, overload) = op.split_once('/').unwrap_or((op, ""));
    NodeProto {
        op_type: Some(op.into()),
        domain: Some(domain.into()),
        overload: Some(overload.into()),
        input: names(input),
        output: names(output),
        attribute,
        ..NodeProto::default()
    }
}

fn function(name: &str, input: &str, output: &str, node: Vec<NodeProto>) -> FunctionProto {
    let (name, overload) = name.split_once('/').unwrap_or((name, ""));
    FunctionProto {
        name: Some(name.into()),
        domain: Some("my".into()),
        overload: Some(overload.into()),
        input: names(input),
        output: names(output),
        node,
        opset_import: vec![opset("", 18)],
        ..FunctionProto::default()
    }
}

fn opset(domain: &str, version: i64) -> OperatorSetIdProto {
    OperatorSetIdProto {
        domain: Some(domain.into()),
        version: Some(version),
    }
}

fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(AttributeType::Int as i32),
        i: Some(i),
        ..AttributeProto::default()
    }
}

/// An attribute of a body that is one of the call's.
fn refers(name: &str, to: &str) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(AttributeType::Int as i32),
        ref_attr_name: Some(to.into()),
        ..AttributeProto::default()
    }
}

fn imported(functions: Vec<FunctionProto>, node: Vec<NodeProto>) -> Result<Graph, String> {
    let model = ModelProto {
        ir_version: Some(10),
        opset_import: vec![opset("", 20), opset("my", 1)],
        functions,
        graph: Some(GraphProto {
            name: Some("g".into()),
            input: vec![info("x"), info("y")],
            output: vec![info("out")],
            node,
            ..GraphProto::default()
        }),
        ..ModelProto::default()
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, model.encode_to_vec()).unwrap();
    let file = ModelFile::open(&path).map_err(|e| e.to_string())?;
    let graph = import(&file).map_err(|e| e.to_string())?;
    graph.verify().unwrap_or_else(|e| panic!("{e}\n{graph}"));
    Ok(graph)
}

/// The lines of ops that compute something.
fn lines(graph: &Graph) -> Vec<String> {
    let text = graph.to_string();
    let lines = text.lines().map(str::trim);
    let computed = lines.filter(|line| line.starts_with('v'));
    computed.map(str::to_string).collect()
}

#[test]
fn names_of_a_body_are_its_own() {
    let twice = function(
        "twice",
        "a",
        "b",
        vec![node("Neg", "a", "x", vec![]), node("Exp", "x", "b", vec![])],
    );
    let graph = imported(
        vec![twice],
        vec![
            node("my::twice", "x", "t", vec![]),
            node("my::twice", "t", "u", vec![]),
            node("Add", "u x", "out", vec![]),
        ],
    );
    assert_eq!(
        lines(&graph.unwrap()),
        [
            "v2 = neg %x : f32[2,3]",
            "v3 = exp v2 : f32[2,3]",
            "v4 = neg v3 : f32[2,3]",
            "v5 = exp v4 : f32[2,3]",
            "v6 = add v5, %x : f32[2,3]",
        ]
    );
}

#[test]
fn attributes_are_the_calls_the_default_or_none() {
    let mut soft = function(
        "soft",
        "a",
        "b",
        vec![node("Softmax", "a", "b", vec![refers("axis", "dim")])],
    );
    let calls = |attributes: Vec<AttributeProto>, soft: &FunctionProto| {
        let graph = imported(
            vec![soft.clone()],
            vec![node("my::soft", "x", "out", attributes)],
        );
        lines(&graph.unwrap())
    };
    soft.attribute = vec!["dim".into()];
    let last = ["v2 = softmax %x {axis=1} : f32[2,3]"];
    let first = ["v2 = softmax %x {axis=0} : f32[2,3]"];
    assert_eq!(calls(vec![int("dim", 0)], &soft), first);
    assert_eq!(calls(vec![], &soft), last);
    soft.attribute.clear();
    soft.attribute_proto = vec![int("dim", 0)];
    assert_eq!(calls(vec![], &soft), first);
    assert_eq!(calls(vec![int("dim", 1)], &soft), last);
}

#[test]
fn calls_are_nested_overloaded_and_leave_out_what_they_need_not() {
    let clip = function(
        "f",
        "a low high",
        "b c",
        vec![
            node("Clip", "a low high", "b", vec![]),
            node("my::f/abs", "b", "c", vec![]),
        ],
    );
    let abs = function("f/abs", "a", "b", vec![node("Abs", "a", "b", vec![])]);
    let same = function("same", "a", "a", vec![]);
    let graph = imported(
        vec![clip, abs, same],
        vec![
            node("my::f", "x", "_ t", vec![]),
            node("my::same", "t", "out", vec![]),
        ],
    );
    let graph = graph.unwrap();
    let found = lines(&graph);
    assert_eq!(found.last().unwrap(), "v2 = abs %x : f32[2,3]");
}

#[track_caller]
fn refused(functions: Vec<FunctionProto>, node: Vec<NodeProto>, expected: &str) {
    let found = imported(functions, node).unwrap_err();
    assert_eq!(found, expected);
}

#[test]
fn functions_that_cannot_be_put_in_place_are_refused() {
    let calls = |name: &str, op: &str| function(name, "a", "b", vec![node(op, "a", "b", vec![])]);
    let call = |input: &str| vec![node("my::f", input, "out", vec![])];
    refused(
        vec![calls("f", "my::g"), calls("g", "my::f")],
        call("x"),
        "node `out` (my::f, opset 1): the function calls itself",
    );
    refused(
        vec![calls("f", "Neg")],
        call("x y"),
        "node `out` (my::f, opset 1): it has 2 inputs, and its function 1",
    );
    refused(
        vec![calls("f", "Neg"), calls("f", "Abs")],
        call("x"),
        "`f` is defined twice: by a function and by a function",
    );
    let inner = function("f", "a", "b", vec![node("Add", "a y", "b", vec![])]);
    let found = imported(vec![inner], call("x")).unwrap_err();
    assert!(found.contains("is not defined by any node"), "{found}");
    let mut old = calls("f", "Neg");
    old.opset_import = vec![opset("", 11)];
    let found = imported(vec![old], call("x")).unwrap_err();
    assert!(found.starts_with("opset 11 is too old"), "{found}");
}

/// Each of thirty functions calls the next twice; each of two hundred calls the next.
#[test]
fn calls_of_calls_end() {
    let chain = |depth: usize, times: usize| -> Vec<FunctionProto> {
        let level = |i: usize| {
            let next = format!("my::f{}", i + 1);
            let calls = (0..times).map(|_| node(&next, "a", "_", vec![]));
            let own = node("Neg", "a", "b", vec![]);
            let nodes = calls.filter(|_| i + 1 < depth).chain([own]);
            function(&format!("f{i}"), "a", "b", nodes.collect())
        };
        (0..depth).map(level).collect()
    };
    let call = || vec![node("my::f0", "x", "out", vec![])];
    assert!(imported(chain(20, 1), call()).is_ok());
    let found = imported(chain(40, 2), call()).unwrap_err();
    assert!(found.contains("functions take more than"), "{found}");
    let found = imported(chain(200, 1), call()).unwrap_err();
    assert!(found.contains("nested more than 100 deep"), "{found}");
}
