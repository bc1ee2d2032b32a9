//! What cannot be done ends with exit status 2, one message, and nothing written.

mod common;

use common::{Job, copy_example, example, onnx};
use lorafa_onnx::proto::tensor_proto::{DataLocation, DataType};
use lorafa_onnx::proto::{ModelProto, NodeProto, StringStringEntryProto, TensorProto};
use std::fs;

const LLAMA: &str = "llama-tiny-lora-r4-dynamo-noopt-sdpa-fp32-eval-loss-dyn.onnx";
const PLAIN: &str = "llama-tiny-plain-dynamo-noopt-sdpa-fp32-eval-logits-dyn.onnx";
const STATIC: &str = "llama-tiny-plain-dynamo-opt-sdpa-fp32-eval-logits-static.onnx";
const SIZES: [&str; 4] = ["--batch", "2", "--seq", "8"];

/// Runs the main job on a file with this content and expects it to be refused.
#[track_caller]
fn refuses(content: &[u8], message: &str) {
    let job = Job::new();
    fs::write(job.path("model.onnx"), content).unwrap();
    job.refused(
        &["model.onnx", "--rank", "4", "--batch", "2", "--seq", "8"],
        &[message],
    );
}

/// As [`refuses`], for a real model that was changed.
#[track_caller]
fn refuses_changed(name: &str, message: &[&str], change: impl FnOnce(&mut ModelProto)) {
    let job = Job::new();
    let mut model = onnx::decode(&example(name));
    change(&mut model);
    fs::write(job.path("model.onnx"), onnx::encode(&model)).unwrap();
    job.refused(
        &["model.onnx", "--rank", "4", "--batch", "2", "--seq", "8"],
        message,
    );
}

fn graph(model: &mut ModelProto) -> &mut lorafa_onnx::proto::GraphProto {
    model.graph.as_mut().unwrap()
}

fn node<'m>(model: &'m mut ModelProto, op: &str) -> &'m mut NodeProto {
    let nodes = &mut graph(model).node;
    nodes.iter_mut().find(|n| n.op_type() == op).unwrap()
}

fn weight<'m>(model: &'m mut ModelProto, name: &str) -> &'m mut TensorProto {
    let weights = &mut graph(model).initializer;
    weights
        .iter_mut()
        .find(|t| t.name().ends_with(name))
        .unwrap()
}

/// Moves a weight to a file.
fn make_external(tensor: &mut TensorProto, location: &str, offset: u64) {
    let entry = |key: &str, value: String| StringStringEntryProto {
        key: Some(key.into()),
        value: Some(value),
    };
    tensor.raw_data = None;
    tensor.data_location = Some(DataLocation::External as i32);
    tensor.external_data = vec![
        entry("location", location.into()),
        entry("offset", offset.to_string()),
    ];
}

#[test]
fn files_that_are_no_models() {
    refuses(b"", "empty");
    refuses(b"{\"not\": \"a protobuf\"}", "not an ONNX model");
    refuses(&[0xff; 4096], "not an ONNX model");
    // A hundred thousand messages inside each other.
    let mut nested = Vec::new();
    for _ in 0..100_000 {
        nested.extend_from_slice(&[0x3a, 0xff, 0xff, 0x03]);
    }
    refuses(&nested, "model.onnx");
    Job::new().refused(&["missing.onnx", "--rank", "4"], &["missing.onnx"]);
    Job::new().refused(&[".", "--rank", "4"], &["folder"]);
}

#[test]
fn a_model_truncated_anywhere() {
    let whole = example(LLAMA);
    for length in (0..whole.len()).step_by(1000) {
        refuses(&whole[..length], "model.onnx");
    }
}

#[test]
fn versions_that_are_not_known_yet() {
    refuses_changed(LLAMA, &["ir_version", "99"], |m| m.ir_version = Some(99));
    refuses_changed(LLAMA, &["opset", "99"], |m| {
        m.opset_import[0].version = Some(99);
    });
}

#[test]
fn an_operator_that_is_not_supported_is_named_with_its_place() {
    let rename = |m: &mut ModelProto| {
        let node = node(m, "Sigmoid");
        node.op_type = Some("Quux".into());
        node.domain = Some("com.example".into());
        graph(m).value_info.clear();
    };
    let place = [
        "com.example::Quux",
        "opset",
        "model.layers.0.mlp.act_fn",
        "not supported",
    ];
    refuses_changed(LLAMA, &place, rename);
}

#[test]
fn an_operator_without_a_gradient_is_named_with_its_place() {
    let rename = |m: &mut ModelProto| {
        let node = node(m, "Sigmoid");
        node.op_type = Some("Quux".into());
        node.domain = Some("com.example".into());
        let name = node.output[0].clone();
        let gate = graph(m)
            .value_info
            .iter()
            .find(|v| v.name() == "add_374")
            .cloned();
        let mut info = gate.unwrap();
        info.name = Some(name);
        graph(m).value_info.push(info);
    };
    let place = ["Quux", "opset", "model.layers.0.mlp.act_fn", "no gradient"];
    refuses_changed(LLAMA, &place, rename);
}

#[test]
fn graphs_that_do_not_hang_together() {
    refuses_changed(LLAMA, &["cycle"], |m| {
        let nodes = &mut graph(m).node;
        let last = nodes.last().unwrap().output[0].clone();
        let matmul = nodes.iter_mut().find(|n| n.op_type() == "MatMul").unwrap();
        matmul.input[0] = last;
    });
    refuses_changed(LLAMA, &["`nowhere`", "not defined", "MatMul"], |m| {
        node(m, "MatMul").input[0] = "nowhere".into();
    });
    refuses_changed(LLAMA, &["defined twice"], |m| {
        let name = graph(m).node[0].output[0].clone();
        graph(m).node[1].output[0] = name;
    });
    refuses_changed(LLAMA, &["defined twice"], |m| {
        let copy = graph(m).initializer[0].clone();
        graph(m).initializer.push(copy);
    });
    refuses_changed(LLAMA, &["no output"], |m| graph(m).output.clear());
}

#[test]
fn weights_of_a_type_that_cannot_train() {
    refuses_changed(LLAMA, &["q_proj", "FLOAT8E4M3FN"], |m| {
        let tensor = weight(m, "layers.0.self_attn.q_proj.base_layer.weight");
        tensor.data_type = Some(DataType::Float8e4m3fn as i32);
    });
    let job = Job::new();
    copy_example(&job, PLAIN, "model.onnx");
    job.refused(
        &["model.onnx", "--rank", "4", "--dtype", "int8"],
        &["cannot train in int8"],
    );
}

#[test]
fn external_data_is_read_only_where_values_are_needed() {
    let name = "layers.0.self_attn.q_proj.base_layer.weight";
    let job = Job::new();
    let mut model = onnx::decode(&example(LLAMA));
    make_external(weight(&mut model, name), "weights.bin", 0);
    fs::write(job.path("model.onnx"), onnx::encode(&model)).unwrap();
    let args = ["model.onnx", "--rank", "4", "--batch", "2", "--seq", "8"];
    job.done(&args);
    let written = onnx::decode(&fs::read(job.path("model.lorafa.onnx")).unwrap());
    let kept = written.graph.unwrap().initializer;
    let kept = kept.iter().find(|t| t.name().ends_with(name)).unwrap();
    assert_eq!(kept.external_data[0].value(), "weights.bin");

    fs::remove_file(job.path("model.lorafa.onnx")).unwrap();
    job.refused(
        &[&args[..], &["--embed-weights"]].concat(),
        &["weights.bin", name],
    );
    fs::write(job.path("weights.bin"), [0u8; 16]).unwrap();
    job.refused(
        &[&args[..], &["--embed-weights"]].concat(),
        &["weights.bin", "16"],
    );
    job.refused(
        &[&args[..], &["-o", "elsewhere/out.onnx"]].concat(),
        &["--embed-weights"],
    );
}

#[test]
fn external_data_outside_the_models_folder() {
    for location in ["../weights.bin", "/etc/passwd", "a/../../b"] {
        refuses_changed(LLAMA, &[location], |m| {
            make_external(weight(m, "q_proj.base_layer.weight"), location, 0);
        });
    }
    refuses_changed(LLAMA, &["weights.bin"], |m| {
        make_external(
            weight(m, "q_proj.base_layer.weight"),
            "weights.bin",
            u64::MAX,
        );
    });
}

#[test]
fn dimensions_that_contradict() {
    let job = Job::new();
    copy_example(&job, STATIC, "static.onnx");
    let args = ["static.onnx", "--rank", "4"];
    let remedy = ["--batch 4", "batch 2 fixed", "dynamic_shapes"];
    job.refused(&[&args[..], &["--batch", "4"]].concat(), &remedy);
    job.refused(
        &[&args[..], &["--dim", "batch=4"]].concat(),
        &["no dimension of that name"],
    );
    copy_example(&job, LLAMA, "dynamic.onnx");
    let args = ["dynamic.onnx", "--rank", "4"];
    job.refused(
        &[&args[..], &["--dim", "bach=4"]].concat(),
        &["bach", "batch, seq"],
    );
    job.refused(&[&args[..], &["--batch", "0"]].concat(), &["--batch"]);
    job.refused(
        &[&args[..], &["--dim", "seq=3", "--dim", "seq=4"]].concat(),
        &["3 and 4"],
    );
    job.refused(
        &[&args[..], &["--batch", "2147483648", "--seq", "2147483648"]].concat(),
        &["too large"],
    );
}

#[test]
fn ranks_and_targets_that_do_not_fit_the_model() {
    let job = Job::new();
    copy_example(&job, LLAMA, "lora.onnx");
    let both = ["rank 4", "not 64", "--rank 4", "--replace-adapters"];
    job.refused(
        &[&["lora.onnx", "--rank", "64"], &SIZES[..]].concat(),
        &both,
    );
    copy_example(&job, PLAIN, "plain.onnx");
    let plain = |flags: &[&'static str]| [&["plain.onnx"], &SIZES[..], flags].concat();
    job.refused(&plain(&[]), &["no adapters", "--rank"]);
    job.refused(
        &plain(&["--rank", "4", "--targets", "nothing"]),
        &["--targets", "q_proj"],
    );
    job.refused(
        &plain(&["--rank", "4", "--targets", "(q"]),
        &["--targets", "regular expression"],
    );
    job.refused(
        &plain(&["--rank", "4", "--loss", "seq-cls"]),
        &["--loss seq-cls", "rank 2"],
    );
}

#[test]
fn output_that_cannot_be_written() {
    let job = Job::new();
    copy_example(&job, LLAMA, "model.onnx");
    let to = |flags: &[&'static str]| [&["model.onnx", "--rank", "4"], &SIZES[..], flags].concat();
    job.refused(&to(&["-o", "no/such/folder/out.onnx"]), &["no folder"]);
    job.refused(&to(&["-o", "."]), &["folder"]);
    // The model could be written, the JSON not: neither is.
    job.refused(
        &to(&["-o", "out.onnx", "--json", "no/such/folder/out.json"]),
        &["no folder"],
    );
    fs::create_dir(job.path("taken.lorafa.onnx")).unwrap();
    job.refused(
        &to(&["-o", "taken.lorafa.onnx"]),
        &["taken.lorafa.onnx", "folder"],
    );
}

#[test]
fn outputs_never_replace_what_is_read_or_is_no_file() {
    let job = Job::new();
    let mut model = onnx::decode(&example(LLAMA));
    make_external(
        weight(&mut model, "q_proj.base_layer.weight"),
        "weights.bin",
        0,
    );
    fs::write(job.path("model.onnx"), onnx::encode(&model)).unwrap();
    fs::write(job.path("weights.bin"), [7u8; 1 << 16]).unwrap();
    let to = |flags: &[&'static str]| [&["model.onnx", "--rank", "4"], &SIZES[..], flags].concat();
    job.refused(&to(&["-o", "model.onnx"]), &["this is the model"]);
    job.refused(&to(&["--json", "model.onnx"]), &["this is the model"]);
    job.refused(&to(&["-o", "weights.bin"]), &["this is the weights"]);
    job.refused(
        &to(&["-o", "a", "--json", "a"]),
        &["this is the written model"],
    );
    std::os::unix::fs::symlink("weights.bin", job.path("link")).unwrap();
    job.refused(&to(&["-o", "link"]), &["this is the weights"]);
    // Weights that the step no longer has are the model's all the same.
    let replaced = ["--replace-adapters", "-o", "adapters.bin"];
    let mut model = onnx::decode(&example(LLAMA));
    make_external(
        weight(&mut model, "q_proj.lora_A.default.weight"),
        "adapters.bin",
        0,
    );
    fs::write(job.path("model.onnx"), onnx::encode(&model)).unwrap();
    fs::write(job.path("adapters.bin"), [7u8; 1 << 16]).unwrap();
    job.refused(&to(&replaced), &["this is the weights"]);
    let _socket = std::os::unix::net::UnixListener::bind(job.path("socket")).unwrap();
    job.refused(&to(&["-o", "socket"]), &["no regular file"]);
    fs::write(job.path("kept"), "kept").unwrap();
    let mut permissions = fs::metadata(job.path("kept")).unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(job.path("kept"), permissions).unwrap();
    job.refused(&to(&["--json", "kept"]), &["read-only"]);
}

#[test]
fn flags_that_would_do_nothing() {
    let job = Job::new();
    copy_example(&job, LLAMA, "lora.onnx");
    let lora = |flags: &[&'static str]| [&["lora.onnx"], &SIZES[..], flags].concat();
    job.refused(
        &lora(&["--alpha", "8"]),
        &["--alpha", "has 14", "--replace-adapters"],
    );
    job.refused(&lora(&["--targets", "q_proj"]), &["--targets", "has 14"]);
    job.refused(
        &lora(&["--loss", "causal-lm"]),
        &["--loss causal-lm", "\"loss\""],
    );
    job.refused(&lora(&["--json", "-", "--explain"]), &["--explain"]);
    job.refused(
        &lora(&["--no-write", "--with-optimizer"]),
        &["--with-optimizer"],
    );
    copy_example(&job, PLAIN, "plain.onnx");
    let full = [
        "plain.onnx",
        "--method",
        "full",
        "--targets",
        "q_proj",
        "--batch",
        "2",
    ];
    job.refused(&full, &["--targets", "--rank"]);
    let narrow = [
        "plain.onnx",
        "--rank",
        "4",
        "--adapter-dtype",
        "bf16",
        "--batch",
        "2",
    ];
    job.refused(&narrow, &["not narrower", "f32"]);
    let twice = [
        "lora.onnx",
        "--dim",
        "batch=3",
        "--batch",
        "2",
        "--seq",
        "8",
    ];
    job.refused(&twice, &["--batch 2", "is 3 already"]);
}

#[test]
fn a_sequence_longer_than_the_models_positions() {
    let job = Job::new();
    let gpt2 = "gpt2-tiny-lora-r4-dynamo-opt-sdpa-fp32-eval-loss-dyn.onnx";
    copy_example(&job, gpt2, "gpt2.onnx");
    let message = ["wpe.weight", "32 positions", "1023", "--seq"];
    job.refused(&["gpt2.onnx", "--batch", "2"], &message);
    job.done(&["gpt2.onnx", "--batch", "2", "--seq", "32"]);
    job.refused(
        &["gpt2.onnx", "--batch", "2", "--seq", "33"],
        &["position 32"],
    );
    copy_example(
        &job,
        "roberta-tiny-lora-r4-dynamo-opt-sdpa-fp32-eval-loss-dyn.onnx",
        "r.onnx",
    );
    job.done(&["r.onnx", "--batch", "2", "--seq", "32"]);
    job.refused(
        &["r.onnx", "--batch", "2", "--seq", "33"],
        &["34 positions", "position 34"],
    );
}

#[test]
fn an_adapter_of_a_form_that_is_not_known() {
    // B is read by another product: x·A goes nowhere.
    refuses_changed(LLAMA, &["lora_A", "known form"], |m| {
        let down = "layers.0.mlp.down_proj.lora_B.default.weight";
        let b = graph(m)
            .node
            .iter_mut()
            .find(|n| n.input.iter().any(|i| i.ends_with(down)));
        b.unwrap().op_type = Some("Abs".into());
        b_is_no_transpose(m, down);
    });
}

/// What `Abs` gives has the weight's shape: transpose it.
fn b_is_no_transpose(model: &mut ModelProto, weight: &str) {
    let nodes = &mut graph(model).node;
    let abs = nodes
        .iter()
        .position(|n| n.input.iter().any(|i| i.ends_with(weight)))
        .unwrap();
    let mut swap = nodes[abs].clone();
    let inner = format!("{}_abs", nodes[abs].output[0]);
    nodes[abs].output[0].clone_from(&inner);
    nodes[abs].attribute.clear();
    swap.op_type = Some("Transpose".into());
    swap.input = vec![inner];
    nodes.insert(abs + 1, swap);
}

#[test]
fn outputs_that_could_all_be_the_loss() {
    refuses_changed(LLAMA, &["other_loss", "the_loss", "call the one"], |m| {
        let first = graph(m).output[0].clone();
        let mut rename = std::collections::BTreeMap::new();
        for name in ["the_loss", "other_loss"] {
            let mut output = first.clone();
            output.name = Some(name.into());
            rename.insert(name, output);
        }
        let loss = first.name().to_owned();
        let outputs = rename.into_values().collect::<Vec<_>>();
        for output in &outputs {
            graph(m).node.push(NodeProto {
                op_type: Some("Neg".into()),
                input: vec![loss.clone()],
                output: vec![output.name().to_owned()],
                ..NodeProto::default()
            });
        }
        graph(m).output = outputs;
    });
}

#[cfg(not(feature = "torch"))]
#[test]
fn commands_that_take_libtorch_say_how_to_get_it() {
    let job = Job::new();
    let remedy = ["without libtorch", "setup.sh", "--features torch"];
    job.refused(&["bench", "model.onnx"], &remedy);
    let train = ["train", "model.onnx", "--data", "a.jsonl", "--save", "a"];
    job.refused(&train, &remedy);
}
