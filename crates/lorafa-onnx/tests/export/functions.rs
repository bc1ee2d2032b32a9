//! Fused ops: functions, and the standard operators of opset 23.

use crate::{
    Values, bodies, evaluate, graph_of, nodes, parse, read_back, same, try_read_back, try_write_at,
    well_formed,
};
use lorafa_ir::interp::Array;
use lorafa_ir::{Graph, Op};
use lorafa_onnx::proto::{FunctionProto, ModelProto};
use std::collections::BTreeSet;

fn write_at(graph: &Graph, opset: i64) -> ModelProto {
    let model = try_write_at(graph, opset).unwrap_or_else(|e| panic!("{e}\n{graph}"));
    well_formed(&model);
    assert_eq!(model, try_write_at(graph, opset).unwrap());
    model
}

fn function_names(model: &ModelProto) -> Vec<&str> {
    model.functions.iter().map(FunctionProto::name).collect()
}

fn operators(model: &ModelProto) -> Vec<&str> {
    graph_of(model).node.iter().map(|n| n.op_type()).collect()
}

/// Numbers that are all different.
fn values(graph: &Graph) -> Values {
    let mut next = 0.0;
    let params = graph.params();
    params
        .map(|(_, param)| {
            let number = |_: &[usize]| {
                next += 1.0;
                f64::sin(next)
            };
            let array = Array::from_fn(&param.ty, number).unwrap();
            (param.name.to_string(), array)
        })
        .collect()
}

/// What is written computes what the graph does, as ops and as the nodes of functions.
#[track_caller]
fn means_the_same(graph: &Graph, model: &ModelProto) {
    let values = values(graph);
    let expected = evaluate(graph.clone(), &values);
    for (read, what) in [(model.clone(), "as ops"), (bodies(model), "as nodes")] {
        same(&evaluate(read_back(&read), &values), &expected, 1e-6, what);
    }
}

#[test]
fn ops_alike_share_a_function() {
    let graph = parse(
        "graph @g {
           param %x : f32[2,3,4] input
           param %y : f32[5,4] input
           param %w : f32[4] input
           v3, v4 = rms_norm %x, %w {axis=2, eps=1e-6} : f32[2,3,4], f32[2,3,1] @layers.0.norm
           v5, v6 = rms_norm v3, %w {axis=2, eps=1e-6} : f32[2,3,4], f32[2,3,1] @layers.1.norm
           v7, v8 = rms_norm v5, %w {axis=2, eps=0.5} : f32[2,3,4], f32[2,3,1] @norm
           v9, v10 = rms_norm %y, %w {axis=1, eps=1e-6} : f32[5,4], f32[5,1] @other
           out \"a\" = v7
           out \"b\" = v9
           out \"c\" = v10
         }",
    );
    let model = write_at(&graph, 20);
    let names = ["rms_norm", "rms_norm_2", "rms_norm_3"];
    assert_eq!(function_names(&model), names);
    assert_eq!(
        operators(&model),
        ["rms_norm", "rms_norm", "rms_norm_2", "rms_norm_3"]
    );
    let outputs = graph_of(&model).node.iter().map(|n| n.output.len());
    assert_eq!(outputs.collect::<Vec<_>>(), [1, 1, 1, 2]);
    let of = |n: &lorafa_onnx::proto::NodeProto| (n.domain().to_string(), n.name().to_string());
    assert_eq!(
        of(&graph_of(&model).node[1]),
        ("ai.lorafa".into(), "/layers.1.norm/rms_norm_4".into())
    );
    let domains = model.opset_import.iter().map(|o| (o.domain(), o.version()));
    assert_eq!(domains.collect::<Vec<_>>(), [("", 20), ("ai.lorafa", 1)]);
    let first = &model.functions[0];
    assert_eq!(first.doc_string(), "rms_norm {axis=2, eps=1e-6}");
    assert!(first.node.iter().all(|n| n.domain().is_empty()));
    let modules: BTreeSet<String> = {
        let again = read_back(&model);
        let modules = again.ops().map(|op| op.site.module.to_string());
        modules.filter(|m| !m.is_empty()).collect()
    };
    let expected = ["layers.0.norm", "layers.1.norm", "norm", "other"];
    assert_eq!(modules, expected.map(String::from).into());
    means_the_same(&graph, &model);
}

/// Functions of their own would each draw another mask.
#[test]
fn attention_and_its_gradient_drop_the_same() {
    let graph = parse(
        "graph @g {
           param %q : f32[1,2,3,4] input
           param %k : f32[1,2,3,4] input
           param %dy : f32[1,3,2,4] input
           v3, v4 = attention %q, %k, %k {scale=0.5, dropout=0.25, seed=3} : f32[1,3,2,4], f32[1,2,3]
           backward:
           v5, v6, v7 = attention_grad %dy, %q, %k, %k, v3, v4 {scale=0.5, dropout=0.25, seed=3} : f32[1,3,2,4], f32[1,3,2,4], f32[1,3,2,4]
           out \"y\" = v3
           out \"dq\" = v5
           out \"dk\" = v6
           out \"dv\" = v7
         }",
    );
    for opset in [20, 23] {
        let model = write_at(&graph, opset);
        let mut functions = function_names(&model).into_iter();
        assert!(!functions.any(|name| name.starts_with("attention")));
        let is_dropout = |op: &&&str| **op == "Dropout";
        assert_eq!(operators(&model).iter().filter(is_dropout).count(), 1);
    }
}

/// The mnemonics of what computes.
fn mnemonics(graph: &Graph) -> Vec<&'static str> {
    let ops = graph.ops().filter(|op| !matches!(op.kind, Op::Param(_)));
    ops.map(|op| op.kind.name()).collect()
}

fn two_norms() -> (Graph, ModelProto) {
    let graph = parse(
        "graph @g {
           param %x : f32[2,3] input
           param %w : f32[3] input
           v2, v3 = rms_norm %x, %w {axis=1, eps=0.5} : f32[2,3], f32[2,1]
           v4, v5 = rms_norm v2, %w {axis=1, eps=0.5} : f32[2,3], f32[2,1]
           out \"y\" = v4
         }",
    );
    let model = write_at(&graph, 20);
    assert_eq!(operators(&model), ["rms_norm", "rms_norm"]);
    (graph, model)
}

#[test]
fn calls_come_back_as_the_ops_they_were_written_for() {
    let (graph, model) = two_norms();
    let again = read_back(&model);
    assert_eq!(mnemonics(&again), ["rms_norm", "rms_norm"]);
    let kinds = |graph: &Graph| graph.ops().map(|op| op.kind.clone()).collect::<Vec<_>>();
    assert_eq!(kinds(&again), kinds(&graph));
}

/// A function means what its nodes do, whatever it says that it is.
#[test]
fn functions_that_others_changed_are_what_their_nodes_are() {
    let (graph, written) = two_norms();
    let changes: [fn(&mut FunctionProto); 4] = [
        |f| f.doc_string = None,
        |f| f.doc_string = Some("rms_norm {axis=1, eps=0.25}".into()),
        |f| f.doc_string = Some("softmax {axis=1}".into()),
        |f| f.doc_string = Some("rms_norm {".into()),
    ];
    for change in changes {
        let mut model = written.clone();
        change(&mut model.functions[0]);
        assert!(!mnemonics(&read_back(&model)).contains(&"rms_norm"));
        means_the_same(&graph, &model);
    }
    let mut model = written.clone();
    let mut nodes = model.functions[0].node.iter_mut();
    nodes.find(|n| n.op_type() == "Sqrt").unwrap().op_type = Some("Exp".into());
    let again = read_back(&model);
    assert!(mnemonics(&again).contains(&"exp"), "{again}");
    assert!(!mnemonics(&again).contains(&"rms_norm"), "{again}");
}

/// What the file states of a value must be so: the op was made for that.
#[test]
fn calls_with_operands_of_other_types_are_refused() {
    let (_, mut model) = two_norms();
    let infos = &mut model.graph.as_mut().unwrap().value_info;
    let info = infos.iter_mut().find(|info| info.name() == "v2").unwrap();
    let first = parse(
        "graph @g {
           param %x : f32[5,3] input
           v1 = exp %x : f32[5,3]
           v2 = exp v1 : f32[5,3]
           out \"y\" = v2
         }",
    );
    info.r#type = graph_of(&write_at(&first, 20)).value_info[0].r#type.clone();
    let error = try_read_back(&model).unwrap_err().to_string();
    let expected = "`v2` is f32[2,3], and the file states f32[5,3]";
    assert!(error.contains(expected), "{error}");
}

#[test]
fn the_opset_says_whether_there_is_an_operator() {
    let graph = parse(
        "graph @g {
           param %q : f32[2,4,3,6] input
           param %k : f32[2,2,3,6] input
           param %v : f32[2,2,3,5] input
           param %cos : f32[1,1,3,3] input
           param %sin : f32[1,1,3,3] input
           param %w : f32[5] input
           v6 = rotary %q, %cos, %sin : f32[2,4,3,6]
           v7 = rotary %k, %cos, %sin {inverse} : f32[2,2,3,6]
           v8, v9 = attention v6, v7, %v {scale=0.25, causal} : f32[2,3,4,5], f32[2,4,3]
           v10, v11 = rms_norm v8, %w {axis=3, eps=0.5} : f32[2,3,4,5], f32[2,3,4,1]
           out \"y\" = v10
         }",
    );
    let model = write_at(&graph, 23);
    assert!(model.functions.is_empty());
    assert_eq!(
        operators(&model),
        [
            "Reshape",
            "Expand",
            "Reshape",
            "Expand",
            "RotaryEmbedding",
            "Neg",
            "Reshape",
            "Expand",
            "RotaryEmbedding",
            "Attention",
            "Transpose",
            "RMSNormalization",
        ]
    );
    means_the_same(&graph, &model);
    // Later opsets are not written, and earlier ones lack the operators.
    assert_eq!(model, write_at(&graph, 28));
    let model = write_at(&graph, 18);
    let names = ["rotary", "rotary_2", "attention", "rms_norm"];
    assert_eq!(function_names(&model), names);
    means_the_same(&graph, &model);
}

#[test]
fn operators_that_lack_what_is_read_are_functions() {
    let graph = parse(
        "graph @g {
           param %q : f32[2,4,3,6] input
           param %mask : bool[3,3] input
           param %w : f32[6] input
           v3, v4 = attention %q, %q, %q {scale=0.25, causal} : f32[2,3,4,6], f32[2,4,3]
           v5, v6 = attention %q, %q, %q, %mask {scale=0.25} : f32[2,3,4,6], f32[2,4,3]
           v7, v8 = rms_norm v3, %w {axis=3, eps=0.5} : f32[2,3,4,6], f32[2,3,4,1]
           out \"lse\" = v4
           out \"masked\" = v5
           out \"y\" = v7
           out \"rstd\" = v8
         }",
    );
    let model = write_at(&graph, 23);
    let names = ["attention", "attention_2", "rms_norm"];
    assert_eq!(function_names(&model), names);
    assert_eq!(nodes(&model, "Attention").len(), 0);
}

/// A weight that another file holds transposed is read as it is there.
#[test]
fn functions_are_given_weights_as_they_are_held() {
    let graph = parse(
        "graph @g {
           param %x : f32[4,2] input
           param %w : f32[3,2] frozen {external=\"w.bin\", offset=0, length=24, transposed}
           param %labels : i64[4] input
           v3 = linear_cross_entropy %x, %w, %labels {trans_b} : f32[]
           out \"loss\" = v3
         }",
    );
    let model = write_at(&graph, 20);
    assert_eq!(operators(&model), ["linear_cross_entropy"]);
    assert_eq!(graph_of(&model).initializer[0].dims, [2, 3]);
    let body = &model.functions[0].node;
    assert!(body.iter().any(|n| n.op_type() == "MatMul"));
    assert!(body.iter().all(|n| n.op_type() != "Transpose"));
    let again = read_back(&model);
    assert_eq!(mnemonics(&again), ["transpose", "linear_cross_entropy"]);
}
