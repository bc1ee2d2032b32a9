//! What cannot be written is an error that says where and what to do.

use crate::{parse, try_write};
use lorafa_ir::ops::Data;
use lorafa_ir::{Graph, OutputKind};

#[track_caller]
fn refused(graph: &Graph, expected: &str) {
    let found = try_write(graph).unwrap_err().to_string();
    assert_eq!(found, expected);
}

#[test]
fn symbols_must_be_bound() {
    let graph = parse(
        "graph @g {
           param %x : f32[batch,4] input
           v1 = neg %x : f32[batch,4]
           out \"y\" = v1
         }",
    );
    refused(
        &graph,
        "`param %x : f32[batch,4] input`: f32[batch,4] has a symbolic dimension; bind it to a number first",
    );
    let graph = parse(
        "graph @g {
           param %x : f32[9,4] input
           v1 = slice %x {axes=[0:past:2:1]} : f32[2,4]
           out \"y\" = v1
         }",
    );
    refused(
        &graph,
        "`v1 = slice %x {axes=[0:past:2:1]} : f32[2,4]`: past is not bound to a number; bind it first",
    );
    let graph = parse(
        "graph @g {
           v1 = dims {shape=[1], value=[batch]} : i64[1]
           out \"y\" = v1
         }",
    );
    refused(
        &graph,
        "`v1 = dims {shape=[1], value=[batch]} : i64[1]`: batch is not bound to a number; bind it first",
    );
}

#[test]
fn weights_need_their_values() {
    let mut graph = parse(
        "graph @g {
           param %w : f32[2,3] frozen {digest=00000000000000ff}
           v1 = neg %w : f32[2,3]
           out \"y\" = v1
         }",
    );
    refused(
        &graph,
        "parameter `w`: only the digest of its values is known, because the graph was read from text; \
         export the graph that was imported from the model",
    );
    let w = graph.params().next().unwrap().0;
    let mut patch = graph.patch("test");
    patch.update_param(w, |p| p.stored.data = Data::Inline(vec![0; 20].into()));
    refused(
        &graph,
        "parameter `w`: tensor `w` has 20 bytes of raw data; its shape and type need 24",
    );
}

#[test]
fn only_matrices_are_stored_transposed() {
    let graph = parse(
        "graph @g {
           param %w : f32[2,3,4] frozen {external=\"w.bin\", offset=0, transposed}
           v1 = neg %w : f32[2,3,4]
           out \"y\" = v1
         }",
    );
    refused(
        &graph,
        "parameter `w`: it is stored transposed, but has 3 axes",
    );
}

#[test]
fn first_values_fit_into_a_model() {
    let graph = parse(
        "graph @g {
           param %a : f32[65536,65536] trained {init=kaiming}
           v1 = neg %a : f32[65536,65536]
           out \"y\" = v1
         }",
    );
    refused(
        &graph,
        "parameter `a`: its first values take 17179869184 bytes, and a model holds 2147483647",
    );
    let graph = parse(
        "graph @g {
           param %a : f32[4] trained {init=orthogonal}
           v1 = neg %a : f32[4]
           out \"y\" = v1
         }",
    );
    refused(
        &graph,
        "parameter `a`: `orthogonal` makes matrices, not f32[4]",
    );
}

#[test]
fn names_must_be_usable() {
    let text = "graph @g {
           param %x : f32[2] input
           v1 = neg %x : f32[2]
           out \"y\" = v1
         }";
    let mut graph = parse(text);
    let y = graph.outputs()[0].value;
    graph.patch("test").output("x", y, OutputKind::Value);
    refused(
        &graph,
        "output `x` has the name of a parameter; rename the output",
    );
    let mut graph = parse(text);
    graph.patch("test").output("", y, OutputKind::Value);
    refused(
        &graph,
        "output `` has an empty name, which ONNX reads as left out; name it",
    );
}

#[test]
fn attributes_must_fit() {
    let graph = parse(
        "graph @g {
           v1 = iota {dtype=i64, len=3, start=9223372036854775800, step=4} : i64[3]
           out \"y\" = v1
         }",
    );
    refused(
        &graph,
        "`v1 = iota {dtype=i64, len=3, start=9223372036854775800, step=4} : i64[3]`: \
         its last element is beyond 64 bits",
    );
    let graph = parse(
        "graph @g {
           param %x : f32[2] input
           v1 = onnx %x {op=\"F\", domain=\"d\", opset=1, attributes=\"2a05\", inputs=[1], results=[f32[2]]} : f32[2]
           out \"y\" = v1
         }",
    );
    let found = try_write(&graph).unwrap_err().to_string();
    assert!(found.contains("its attributes are no protobuf"), "{found}");
}

#[test]
fn a_graph_that_does_not_verify_is_refused() {
    let graph = lorafa_ir::text::parse(
        "graph @g {
           param %x : f32[2] input
           v1 = matmul %x, %x : f32[2]
           out \"y\" = v1
         }",
    );
    let found = try_write(&graph.unwrap()).unwrap_err().to_string();
    assert!(found.starts_with("the graph is not valid"), "{found}");
}
