//! Parameters in the file: their form, and where their values are.

use crate::{Values, evaluate, graph_of, nodes, parse, same, well_formed};
use bytes::Bytes;
use lorafa_ir::interp::Array;
use lorafa_ir::ops::Data;
use lorafa_ir::text::parse_type;
use lorafa_ir::{DType, Graph};
use lorafa_onnx::dtype::{decode, encode};
use lorafa_onnx::export::{ExportError, ExportOptions, export};
use lorafa_onnx::external::{ExternalRef, ExternalStore};
use lorafa_onnx::file::ModelFile;
use lorafa_onnx::import::import;
use lorafa_onnx::proto::{ModelProto, TensorProto};
use prost::Message as _;
use std::path::Path;

fn write(graph: &Graph, folder: &Path, embed_weights: bool) -> Result<ModelProto, ExportError> {
    let store = ExternalStore::new(folder);
    let options = ExportOptions {
        store: &store,
        embed_weights,
        trained_inputs: false,
        opset: 20,
    };
    let model = export(graph, &options)?;
    well_formed(&model);
    Ok(model)
}

fn write_here(graph: &Graph) -> ModelProto {
    write(graph, Path::new("."), false).unwrap()
}

/// `y = w` for a weight with these attributes.
fn weight(ty: &str, attrs: &str) -> Graph {
    parse(&format!(
        "graph @g {{\n  param %m.weight : {ty} frozen {attrs}\n  v1 = abs %m.weight : {ty}\n  out \"y\" = v1\n}}"
    ))
}

fn with_bytes(mut graph: Graph, bytes: &Bytes) -> Graph {
    let value = graph.params().next().unwrap().0;
    let mut patch = graph.patch("test");
    patch.update_param(value, |p| p.stored.data = Data::Inline(bytes.clone()));
    graph
}

fn only(model: &ModelProto) -> &TensorProto {
    let [tensor] = graph_of(model).initializer.as_slice() else {
        panic!("{} initializers", graph_of(model).initializer.len());
    };
    tensor
}

fn raw(tensor: &TensorProto) -> &Bytes {
    tensor.raw_data.as_ref().unwrap()
}

fn tensor_names(model: &ModelProto) -> Vec<&str> {
    let tensors = graph_of(model).initializer.iter();
    tensors.map(|t| t.name()).collect()
}

#[test]
fn values_in_the_parameters_own_form_are_not_copied() {
    let bytes: Bytes = encode(DType::F32, (0..6).map(f64::from)).into();
    let model = write_here(&with_bytes(weight("f32[2,3]", ""), &bytes));
    let tensor = only(&model);
    assert_eq!((tensor.name(), &*tensor.dims), ("m.weight", &[2, 3][..]));
    assert_eq!(raw(tensor).as_ptr(), bytes.as_ptr());
}

#[test]
fn values_are_transposed_and_converted() {
    let bytes: Bytes = encode(DType::F32, (0..6).map(f64::from)).into();
    let graph = with_bytes(weight("bf16[2,3]", "{stored=f32, transposed}"), &bytes);
    let model = write_here(&graph);
    let tensor = only(&model);
    assert_eq!((tensor.name(), &*tensor.dims), ("m.weight", &[2, 3][..]));
    assert_eq!(
        decode(DType::BF16, raw(tensor)),
        [0.0, 2.0, 4.0, 1.0, 3.0, 5.0]
    );
    assert!(nodes(&model, "Transpose").is_empty() && nodes(&model, "Cast").is_empty());
}

#[test]
fn conversion_rounds_ties_to_even() {
    let ulp = 2f64.powi(-7);
    let bytes: Bytes = encode(DType::F32, [1.0 + 0.5 * ulp, 1.0 + 1.5 * ulp, -3.4e38]).into();
    let graph = with_bytes(weight("bf16[3]", "{stored=f32}"), &bytes);
    let found = decode(DType::BF16, raw(only(&write_here(&graph))));
    assert_eq!(found[..2], [1.0, 1.0 + 2.0 * ulp]);
    assert!(found[2].is_finite());
}

#[test]
fn long_weights_are_converted_whole() {
    let numbers: Vec<f64> = (0..10_000).map(|i| f64::from(i % 251)).collect();
    let bytes: Bytes = encode(DType::BF16, numbers.iter().copied()).into();
    let graph = with_bytes(weight("f32[100,100]", "{stored=bf16}"), &bytes);
    assert_eq!(decode(DType::F32, raw(only(&write_here(&graph)))), numbers);
}

#[test]
fn external_values_stay_where_they_are() {
    let attrs = "{external=\"w.bin\", offset=8, length=24}";
    let model = write_here(&weight("f32[2,3]", attrs));
    let tensor = only(&model);
    assert_eq!((tensor.name(), &*tensor.dims), ("m.weight", &[2, 3][..]));
    let reference = ExternalRef::from_entries(&tensor.external_data).unwrap();
    assert_eq!(reference, ExternalRef::new("w.bin", 8, Some(24)).unwrap());
    assert_eq!(graph_of(&model).node.len(), 1);
}

#[test]
fn external_values_in_another_form_are_brought_into_it() {
    let model = write_here(&weight(
        "f32[2,3]",
        "{external=\"w.bin\", offset=0, transposed}",
    ));
    assert_eq!(only(&model).name(), "m.weight.stored");
    assert_eq!(only(&model).dims, [3, 2]);
    assert_eq!(nodes(&model, "Transpose")[0].output, ["m.weight"]);

    let model = write_here(&weight(
        "f32[2,3]",
        "{external=\"w.bin\", offset=0, stored=bf16}",
    ));
    assert_eq!(nodes(&model, "Cast")[0].input, ["m.weight.stored"]);
    assert_eq!(nodes(&model, "Cast")[0].output, ["m.weight"]);

    let attrs = "{external=\"w.bin\", offset=0, stored=bf16, transposed}";
    let model = write_here(&weight("f32[2,3]", attrs));
    assert_eq!(nodes(&model, "Cast")[0].output, ["m.weight.transposed"]);
    assert_eq!(nodes(&model, "Transpose")[0].input, ["m.weight.transposed"]);
}

/// A linear layer and its input's gradient, the weight stored as an exporter folded it.
fn linear(batch: &str, stored: &str) -> Graph {
    parse(&format!(
        "graph @g {{
           param %x : f32[{batch}3] input
           param %m.weight : f32[2,3] frozen {{external=\"w.bin\", offset=4{stored}}}
           v2 = matmul %x, %m.weight {{trans_b}} : f32[{batch}2] @m
           v3 = matmul v2, %m.weight : f32[{batch}3] @m
           out \"y\" = v2
           out \"z\" = v3
         }}"
    ))
}

#[test]
fn products_read_what_is_stored() {
    // Batches have no flag: only the product that wants the weight itself needs a node.
    let model = write_here(&linear("5,4,", ", transposed"));
    let inputs: Vec<&str> = nodes(&model, "MatMul")
        .iter()
        .map(|n| &*n.input[1])
        .collect();
    assert_eq!(inputs, ["m.weight.stored", "m.weight"]);
    assert_eq!(nodes(&model, "Transpose").len(), 1);
    // Matrices have.
    let model = write_here(&linear("4,", ", transposed"));
    assert_eq!(nodes(&model, "MatMul")[0].input[1], "m.weight.stored");
    assert_eq!(nodes(&model, "Gemm")[0].input[1], "m.weight.stored");
    assert_eq!(graph_of(&model).node.len(), 2);
}

#[test]
fn kept_and_embedded_weights_compute_the_same() {
    let folder = tempfile::tempdir().unwrap();
    for (dtype, stored) in [
        (DType::F32, ""),
        (DType::F32, ", transposed"),
        (DType::BF16, ", stored=bf16"),
        (DType::BF16, ", stored=bf16, transposed"),
    ] {
        let numbers: Vec<f64> = (0..6).map(|i| f64::from(i) - 1.5).collect();
        let mut bytes = vec![0; 4];
        bytes.extend(encode(dtype, numbers.iter().copied()));
        std::fs::write(folder.path().join("w.bin"), bytes).unwrap();
        for batch in ["4,", "5,4,"] {
            let graph = linear(batch, stored);
            let evaluate = |embed| {
                let model = write(&graph, folder.path(), embed).unwrap();
                let path = folder.path().join("model.onnx");
                std::fs::write(&path, model.encode_to_vec()).unwrap();
                let again = import(&ModelFile::open(&path).unwrap()).unwrap();
                let array = |ty: &str, data: &[f64]| {
                    let ty = parse_type(ty).unwrap();
                    let n = ty.elements().unwrap() as usize;
                    Array::new(&ty, data.iter().copied().cycle().take(n).collect()).unwrap()
                };
                let mut values = Values::new();
                values.insert(
                    "x".into(),
                    array(&format!("f32[{batch}3]"), &[1.0, -2.0, 0.5, 3.0]),
                );
                for (_, param) in again.params() {
                    if let Data::External(_) = param.stored.data {
                        values.insert(
                            param.name.to_string(),
                            array(&param.ty.to_string(), &numbers),
                        );
                    }
                }
                evaluate(again, &values)
            };
            let label = format!("{batch} {stored}");
            same(&evaluate(false), &evaluate(true), 1e-12, &label);
        }
    }
}

#[test]
fn embedded_weights_must_be_there() {
    let folder = tempfile::tempdir().unwrap();
    let error = write(&linear("4,", ""), folder.path(), true).unwrap_err();
    assert!(
        matches!(&error, ExportError::Weight { name, error } if name == "m.weight" && error.is_missing_file())
    );
    assert!(error.to_string().contains("m.weight"), "{error}");
}

#[test]
fn only_runtime_parameters_are_inputs_and_only_weights_that_are_read_are_written() {
    let graph = parse(
        "graph @g {
           param %b : f32[2] trained {init=zeros}
           param %x : f32[2] input
           param %unread : f32[2] trained {init=zeros}
           param %m : f32[2] optstate
           param %a : f32[2] constant {init=zeros}
           v5 = add %a, %b : f32[2]
           v6 = add v5, %x : f32[2]
           out \"y\" = v6
         }",
    );
    let model = write_here(&graph);
    let inputs: Vec<&str> = graph_of(&model).input.iter().map(|i| i.name()).collect();
    assert_eq!(inputs, ["x", "m"]);
    assert_eq!(tensor_names(&model), ["b", "a"]);
}
