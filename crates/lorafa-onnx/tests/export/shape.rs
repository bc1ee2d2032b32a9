//! How the file looks: names, constants, outputs, opsets.

use crate::{graph_of, nodes, parse, read_back, write};
use lorafa_onnx::proto::{ModelProto, NodeProto};

fn names(nodes: &[&NodeProto]) -> Vec<String> {
    nodes.iter().map(|n| n.name().to_string()).collect()
}

fn opsets(model: &ModelProto) -> Vec<(&str, i64)> {
    let sets = model.opset_import.iter();
    sets.map(|set| (set.domain(), set.version())).collect()
}

#[test]
fn the_header_says_what_is_needed_and_who_wrote_it() {
    let graph = parse(
        "graph @tiny {
           param %x : f32[2] input
           v1 = neg %x : f32[2]
           out \"y\" = v1
         }",
    );
    let model = write(&graph);
    assert_eq!((model.ir_version(), opsets(&model)), (10, vec![("", 20)]));
    assert_eq!(model.producer_name(), "lorafa-opt");
    assert_eq!(model.producer_version(), env!("CARGO_PKG_VERSION"));
    assert_eq!(graph_of(&model).name(), "tiny");
    assert!(model.metadata_props.is_empty() && graph_of(&model).metadata_props.is_empty());
}

#[test]
fn nodes_carry_module_mnemonic_and_number() {
    let graph = parse(
        "graph @g {
           param %x : f32[2,3,4] input
           param %w : f32[5,4] input
           v2 = matmul %x, %w {trans_b} : f32[2,3,5] @layers.0.q_proj
           v3 = neg v2 : f32[2,3,5]
           out \"y\" = v3
         }",
    );
    let model = write(&graph);
    let all: Vec<&NodeProto> = graph_of(&model).node.iter().collect();
    assert_eq!(
        names(&all),
        [
            "/layers.0.q_proj/matmul_2.1",
            "/layers.0.q_proj/matmul_2",
            "neg_3"
        ]
    );
    let again = read_back(&model);
    let modules: Vec<&str> = again.ops().skip(2).map(|op| &*op.site.module).collect();
    assert_eq!(modules, ["layers.0.q_proj", "layers.0.q_proj", ""]);
}

#[test]
fn values_are_called_by_output_import_or_number() {
    let mut graph = parse(
        "graph @g {
           param %v3 : f32[2] input
           v1 = neg %v3 : f32[2]
           v2 = abs v1 : f32[2]
           v3 = exp v2 : f32[2]
           v4 = neg v3 : f32[2]
           out \"y\" = v4
         }",
    );
    for op in graph.ops().map(|op| op.id).collect::<Vec<_>>() {
        let value = graph.op(op).results[0];
        if ["neg", "abs"].contains(&graph.op(op).kind.name()) {
            graph.patch("test").name(value, Some("hidden".into()));
        }
    }
    let model = write(&graph);
    let outputs: Vec<&String> = graph_of(&model).node.iter().map(|n| &n.output[0]).collect();
    assert_eq!(outputs, ["hidden", "v2", "v3.1", "y"]);
}

#[test]
fn outputs_that_are_something_else_already_are_copies() {
    let graph = parse(
        "graph @g {
           param %x : f32[2] input
           v1 = neg %x : f32[2]
           v2 = constant {dtype=f32, value=2.0} : f32[]
           out \"a\" = v1
           out \"b\" = v1
           out \"c\" = %x
           out \"d\" = v2
           out \"x\" = %x
         }",
    );
    let model = write(&graph);
    let copies = nodes(&model, "Identity");
    let copies: Vec<_> = copies
        .iter()
        .map(|n| (&*n.input[0], &*n.output[0]))
        .collect();
    assert_eq!(copies, [("a", "b"), ("x", "c"), ("const_0", "d")]);
}

#[test]
fn equal_constants_are_one() {
    let graph = parse(
        "graph @g {
           param %x : f32[4] input
           v1 = constant {dtype=f32, value=2.0} : f32[]
           v2 = constant {dtype=f32, value=2.0} : f32[]
           v3 = constant {dtype=i64, shape=[2], value=[2,2]} : i64[2]
           v4 = mul %x, v1 : f32[4]
           v5 = add v4, v2 : f32[4]
           v6 = reshape v5 {shape=[2,2]} : f32[2,2]
           v7 = constant {dtype=f32, value=9.0} : f32[]
           out \"y\" = v6
           out \"n\" = v3
         }",
    );
    let model = write(&graph);
    let constants: Vec<&str> = graph_of(&model)
        .initializer
        .iter()
        .map(|t| t.name())
        .collect();
    assert_eq!(constants, ["const_0", "const_1"]);
}

#[test]
fn results_that_nothing_reads_are_left_out() {
    let norm = |outs: &str| {
        let graph = parse(&format!(
            "graph @g {{
               param %x : f32[2,4] input
               param %s : f32[4] input
               v2, v3, v4 = layer_norm %x, %s {{axis=1, eps=1e-5}} : f32[2,4], f32[2,1], f32[2,1]
               {outs}
             }}"
        ));
        nodes(&write(&graph), "LayerNormalization")[0]
            .output
            .clone()
    };
    assert_eq!(norm("out \"y\" = v2"), ["y"]);
    assert_eq!(norm("out \"rstd\" = v4"), ["v2", "", "rstd"]);
}

#[test]
fn products_of_matrices_are_gemms_and_others_are_transposed() {
    let graph = parse(
        "graph @g {
           param %a : f32[4,3] input
           param %b : f32[4,2] input
           param %x : f32[5,4,3] input
           v3 = matmul %a, %b {trans_a} : f32[3,2]
           v4 = matmul %x, %b {trans_a} : f32[5,3,2]
           v5 = matmul v4, v3 {trans_b} : f32[5,3,3]
           out \"y\" = v5
         }",
    );
    let model = write(&graph);
    let flags: Vec<&str> = nodes(&model, "Gemm")[0]
        .attribute
        .iter()
        .map(|a| a.name())
        .collect();
    assert_eq!(flags, ["transA"]);
    let perms: Vec<&[i64]> = nodes(&model, "Transpose")
        .iter()
        .map(|n| &*n.attribute[0].ints)
        .collect();
    assert_eq!(perms, [&[0, 2, 1][..], &[1, 0]]);
    assert_eq!(nodes(&model, "MatMul").len(), 2);
}

#[test]
fn opsets_are_those_of_the_nodes_carried_along() {
    let graph = parse(
        "graph @g {
           param %x : f32[2] input
           v1 = onnx %x {op=\"A\", domain=\"\", opset=21, attributes=\"\", inputs=[1], results=[f32[2]]} : f32[2]
           v2 = onnx v1 {op=\"B\", domain=\"my.ops\", opset=3, attributes=\"\", inputs=[1,0], results=[f32[2]]} : f32[2]
           v3 = onnx v2 {op=\"C\", domain=\"my.ops\", opset=2, attributes=\"\", inputs=[0,1], results=[f32[2]]} : f32[2]
           out \"y\" = v3
         }",
    );
    let model = write(&graph);
    assert_eq!(opsets(&model), [("", 21), ("my.ops", 3)]);
    let inputs: Vec<&Vec<String>> = graph_of(&model).node.iter().map(|n| &n.input).collect();
    assert_eq!(inputs, [&vec!["x"], &vec!["v1", ""], &vec!["", "v2"]]);
}

/// A dropout that is computed again drops what the first did; operators draw each their own.
#[test]
fn equal_dropouts_are_drawn_once() {
    let graph = parse(
        "graph @g {
           param %x : f32[2,3] input
           v1, v2 = dropout %x {ratio=0.25, seed=3} : f32[2,3], bool[2,3]
           v3, v4 = dropout %x {ratio=0.25, seed=4} : f32[2,3], bool[2,3]
         backward:
           v5, v6 = dropout %x {ratio=0.25, seed=3} : f32[2,3], bool[2,3]
           v7 = dropout_mask {ratio=0.25, seed=4, shape=[2,3]} : bool[2,3]
           out \"a\" = v1
           out \"b\" = v3
           out \"a again\" = v5
           out \"mask of b\" = v7
         }",
    );
    let model = write(&graph);
    assert_eq!(nodes(&model, "Dropout").len(), 2);
    let again = read_back(&model);
    assert_eq!(again.outputs().len(), 4);
}
