//! `lorafa-opt check`: wrong gradients are found, right ones are not.

use crate::common::{Job, onnx};
use crate::*;
use lorafa_onnx::proto::tensor_shape_proto::{Dimension, dimension};
use lorafa_onnx::proto::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};

const LLAMA_JOINT: &str = "joint/llama-tiny-lora-r4-joint-opt-eager-fp32-eval-loss-static";
const GPT2_JOINT: &str = "joint/gpt2-tiny-lora-r4-joint-noopt-eager-fp32-eval-loss-static";
const BF16: &str = "llama-tiny-lora-r4-dynamo-noopt-sdpa-bf16base-eval-loss-dyn";

/// PyTorch's own file of inputs and answers.
fn inputs(of: &str) -> String {
    file(&format!("examples/{of}.expected.safetensors"))
}

fn check(model: &str, inputs: &str) -> Vec<String> {
    words(&format!("check {model} --inputs {inputs}"))
}

/// What is said of so many gradients that are right.
fn agree(n: usize, of: usize) -> String {
    format!("\n{n} of {of} gradients agree with ours within 1e-5 and with finite differences\n")
}

/// Checks a model, which must end with this status; what it printed.
#[track_caller]
fn checked(job: &Job, model: &str, inputs: &str, status: i32) -> String {
    let output = command(job, &check(model, inputs)).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{error}");
    String::from_utf8(output.stdout).unwrap()
}

/// The name of the gradient of the `n`-th parameter whose name ends so.
fn gradient(end: &str, n: usize) -> String {
    let model = onnx::decode(&fs::read(example(LLAMA_JOINT)).unwrap());
    let outputs = model.graph.unwrap().output.into_iter();
    let mut names = outputs
        .map(|o| o.name().to_owned())
        .filter(|name| name.ends_with(end));
    names.nth(n).unwrap()
}

/// The Llama's training graph with another node in the place of one gradient, which reads that and a number.
fn spoilt(job: &Job, gradient: &str, op: &str, number: f32) {
    let mut model = onnx::decode(&fs::read(example(LLAMA_JOINT)).unwrap());
    let graph = model.graph.as_mut().unwrap();
    let right = format!("{gradient}.right");
    let mut outputs = graph.node.iter_mut().flat_map(|node| &mut node.output);
    *outputs.find(|name| *name == gradient).unwrap() = right.clone();
    graph.initializer.push(TensorProto {
        name: Some("number".into()),
        data_type: Some(1),
        raw_data: Some(number.to_le_bytes().to_vec().into()),
        ..TensorProto::default()
    });
    graph.node.push(NodeProto {
        op_type: Some(op.into()),
        input: vec![right, "number".into()],
        output: vec![gradient.into()],
        ..NodeProto::default()
    });
    fs::write(job.path("model.onnx"), onnx::encode(&model)).unwrap();
}

#[test]
fn pytorchs_gradients_are_right() {
    let job = Job::new();
    for (model, of, n) in [
        (LLAMA_JOINT, "llama-lora", 28),
        (GPT2_JOINT, "gpt2-lora", 16),
    ] {
        let text = checked(&job, &example(model), &inputs(of), 0);
        assert!(text.ends_with(&agree(n, n)), "{text}");
    }
    let text = checked(&job, &example(JOINT), &inputs("llama-lora-zeroB"), 0);
    assert!(text.contains("\n14 of them are zero"), "{text}");
}

/// Fused and in mixed precision, with masks that are drawn, with symbolic dimensions and without: ours are training graphs,
/// too. The gradient of the bias of attention's keys is zero but for rounding.
#[test]
fn our_own_steps_are_right() {
    let cases = [
        (BF16, "llama-lora", "lora", 28),
        (DROPOUT, "llama-lora", "lora-fa", 14),
        (ROBERTA, "roberta-lora", "full", 65),
        (T5, "t5-lora", "lora --dim tgt_seq=6", 64),
    ];
    let job = Job::new();
    for (model, of, method, n) in cases {
        let model = example(model);
        let line = format!("{model} -o step.onnx --batch 2 --seq 8 --method {method}");
        job.done(&strs(&words(&line)));
        let text = checked(&job, "step.onnx", &inputs(of), 0);
        assert!(text.contains(&agree(n, n)), "{of}: {text}");
    }
}

#[test]
fn a_wrong_gradient_is_named_with_its_factor() {
    let cases = [
        ("lora_A.default.weight", "Mul", 0.5, "5.0e-1", "0.5000×"),
        ("lora_B.default.weight", "Mul", -1.0, "2.0e0", "-1.0000×"),
        ("lora_B.default.weight", "Mul", 0.0, "1.0e0", "0.0000×"),
        ("lora_A.default.weight", "Mul", 1.001, "1.0e-3", "1.0010×"),
        ("lora_B.default.weight", "Add", 0.1, "e-1", "× and more"),
        ("lora_B.default.weight", "Div", 0.0, "NaN", "NaN"),
    ];
    for (i, (end, op, number, difference, factor)) in cases.into_iter().enumerate() {
        let job = Job::new();
        let output = gradient(end, i);
        spoilt(&job, &output, op, number);
        let text = checked(&job, "model.onnx", &inputs("llama-lora"), 1);
        let parameter = &output.replace("grad::", "m.");
        let lines: Vec<&str> = text.lines().filter(|line| line.contains("lora_")).collect();
        assert_eq!(lines.len(), 1, "{text}");
        for part in [parameter, difference, factor, "agree with ours"] {
            assert!(lines[0].contains(part), "no {part} in {text}");
        }
        assert!(text.ends_with(&agree(27, 28)), "{text}");
        let json = [
            check("model.onnx", &inputs("llama-lora")),
            words("--json -"),
        ]
        .concat();
        let output = command(&job, &json).output().unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["wrong"], 1);
        let gradients = report["gradients"].as_array().unwrap();
        let wrong = gradients
            .iter()
            .filter(|g| g["finite_differences"] == "ours");
        let wrong: Vec<&Value> = wrong.map(|g| &g["parameter"]).collect();
        assert_eq!(
            (gradients.len(), wrong),
            (28, vec![&Value::from(parameter.as_str())])
        );
        assert_eq!(
            String::from_utf8(output.stderr).unwrap(),
            "lorafa-opt: 1 of 28 gradients are wrong\n"
        );
    }
}

/// A tensor of a file: its name, type, shape and bytes.
type Tensor<'a> = (&'a str, &'a str, &'a [usize], Vec<u8>);

/// Little-endian bytes of token ids.
fn ids(count: i64) -> Vec<u8> {
    (0..count).flat_map(|n| (n % 64).to_le_bytes()).collect()
}

#[test]
fn inputs_that_do_not_fit_are_named() {
    let job = Job::new();
    let model = example(LLAMA_JOINT);
    let args = check(&model, "batch.safetensors");
    let mask = vec![1; 16];
    let whole: [Tensor; 3] = [
        ("input_ids", "I64", &[2, 8], ids(16)),
        ("input::attention_mask", "BOOL", &[2, 8], mask),
        ("input.labels", "I32", &[2, 8], vec![0; 64]),
    ];
    let write = |tensors: &[_]| safetensors(&job.path("batch.safetensors"), tensors);
    write(&whole);
    done(&job, &args);
    let cases: [(Tensor, &str); 4] = [
        (
            ("other", "I64", &[1], ids(1)),
            "there is no input labels; the file has input::attention_mask, input_ids, other",
        ),
        (
            ("labels", "I64", &[2, 4], ids(8)),
            "the input labels has shape [2, 4], the model reads i64[2,8]",
        ),
        (
            ("labels", "I64", &[16], ids(16)),
            "the input labels has shape [16], the model reads i64[2,8]",
        ),
        (
            ("labels", "F32", &[2, 8], vec![0; 64]),
            "the input labels holds F32, the model reads i64",
        ),
    ];
    for (labels, message) in cases {
        write(&[&whole[..2], &[labels]].concat());
        refused(&job, &args, &["batch.safetensors: ", message]);
    }
    write(&[&whole[..2], &[("labels", "I64", &[2, 8], vec![0x11; 128])]].concat());
    refused(&job, &args, &["out of"]);
    fs::write(job.path("batch.safetensors"), "").unwrap();
    refused(&job, &args, &["batch.safetensors", "the file is empty"]);
    refused(
        &job,
        &check(&model, "none.safetensors"),
        &["none.safetensors", "no such file"],
    );
}

#[test]
fn forward_graphs_have_nothing_to_compare() {
    let job = Job::new();
    let args = check(&example(LLAMA), &inputs("llama-lora"));
    refused(
        &job,
        &args,
        &["forward graph", "no gradients", "training graph"],
    );
}

/// A training graph without adapters: the loss is the sum of `(x·w)²`, its gradient `2·xᵀ·(x·w)`, of any number of rows.
fn squares(job: &Job) {
    let node = |op: &str, inputs: &[&str], output: &str| NodeProto {
        op_type: Some(op.into()),
        input: inputs.iter().map(|name| (*name).to_owned()).collect(),
        output: vec![output.into()],
        ..NodeProto::default()
    };
    let value = |name: &str, dims: &[Value]| {
        let dim = |dim: &Value| Dimension {
            value: Some(match dim.as_str() {
                Some(symbol) => dimension::Value::DimParam(symbol.into()),
                None => dimension::Value::DimValue(dim.as_i64().unwrap()),
            }),
            ..Dimension::default()
        };
        let tensor = type_proto::Tensor {
            elem_type: Some(1),
            shape: Some(TensorShapeProto {
                dim: dims.iter().map(dim).collect(),
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
    };
    let tensor = |name: &str, dims: &[i64], numbers: &[f32]| TensorProto {
        name: Some(name.into()),
        dims: dims.to_vec(),
        data_type: Some(1),
        raw_data: Some(numbers.iter().flat_map(|x| x.to_le_bytes()).collect()),
        ..TensorProto::default()
    };
    let graph = GraphProto {
        name: Some("squares".into()),
        node: vec![
            node("MatMul", &["x", "layer.weight"], "y"),
            node("Mul", &["y", "y"], "yy"),
            node("ReduceSum", &["yy"], "sum"),
            node("Squeeze", &["sum"], "loss"),
            node("Add", &["y", "y"], "dy"),
            node("Transpose", &["x"], "xt"),
            node("MatMul", &["xt", "dy"], "grad::layer.weight"),
        ],
        input: vec![value("x", &["rows".into(), 3.into()])],
        output: vec![
            value("loss", &[]),
            value("grad::layer.weight", &[3.into(), 2.into()]),
        ],
        initializer: vec![tensor(
            "layer.weight",
            &[3, 2],
            &[1.0, -2.0, 0.5, 3.0, -1.0, 0.25],
        )],
        ..GraphProto::default()
    };
    let opset = OperatorSetIdProto {
        version: Some(18),
        ..OperatorSetIdProto::default()
    };
    let model = ModelProto {
        ir_version: Some(9),
        opset_import: vec![opset],
        graph: Some(graph),
        ..ModelProto::default()
    };
    fs::write(job.path("model.onnx"), onnx::encode(&model)).unwrap();
}

#[test]
fn symbolic_dimensions_are_those_of_the_inputs() {
    let job = Job::new();
    squares(&job);
    let args = check("model.onnx", "batch.safetensors");
    let numbers = |n: u8| (1..=n).flat_map(|x| f32::from(x).to_le_bytes()).collect();
    for (rows, loss) in [(1usize, "23.5625"), (2, "96.0625")] {
        let x = ("x", "F32", &[rows, 3][..], numbers(rows as u8 * 3));
        safetensors(&job.path("batch.safetensors"), &[x]);
        let output = done(&job, &args);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            text.contains(&format!("1 gradients · loss {loss}")),
            "{text}"
        );
        assert!(text.ends_with(&agree(1, 1)), "{text}");
    }
    for (x, message) in [
        (
            ("y", "F32", &[1usize, 3][..], numbers(3)),
            "there is no input x; the file has y",
        ),
        (
            ("x", "F32", &[3], numbers(3)),
            "the input x has shape [3], the model reads f32[rows,3]",
        ),
        (
            ("x", "F32", &[1, 4], numbers(4)),
            "the input x has shape [1, 4], the model reads f32[1,3]",
        ),
    ] {
        safetensors(&job.path("batch.safetensors"), &[x]);
        refused(&job, &args, &[message]);
    }
}

#[test]
fn weights_that_are_missing_are_named() {
    let job = Job::new();
    let mut model = onnx::decode(&fs::read(example(LLAMA_JOINT)).unwrap());
    let weights = &mut model.graph.as_mut().unwrap().initializer;
    let embedding = weights
        .iter_mut()
        .find(|t| t.name().ends_with("embed_tokens.weight"));
    let embedding = embedding.unwrap();
    embedding.raw_data = None;
    embedding.data_location = Some(1);
    embedding.external_data = vec![StringStringEntryProto {
        key: Some("location".into()),
        value: Some("gone.bin".into()),
    }];
    fs::write(job.path("model.onnx"), onnx::encode(&model)).unwrap();
    let args = check("model.onnx", &inputs("llama-lora"));
    refused(
        &job,
        &args,
        &[
            "1 parameters have no values",
            "embed_tokens.weight",
            "gone.bin",
            "--weights",
        ],
    );
}
