//! What cannot be done is said in one message, and nothing is written.

use crate::common::{Job, onnx};
use crate::*;
use lorafa_onnx::proto::tensor_proto::DataLocation;
use lorafa_onnx::proto::{StringStringEntryProto, TensorProto};

#[test]
fn a_broken_line_is_named_or_counted() {
    let job = Job::new();
    let text = fs::read_to_string(data("text.jsonl")).unwrap();
    let mut lines: Vec<_> = text.lines().collect();
    lines.insert(5, "{\"text\": \"the");
    fs::write(job.path("broken.jsonl"), lines.join("\n")).unwrap();
    let args = train(LLAMA, "", "--data broken.jsonl");
    refused(&job, &args, &["broken.jsonl:6", "JSON"]);
    let output = done(&job, &[&args[..], &["--skip-bad".to_owned()]].concat());
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("24 examples"), "{said}");
    assert!(
        said.contains("1 cannot be used") && said.contains("broken.jsonl:6"),
        "{said}"
    );
}

#[test]
fn text_takes_a_tokenizer_that_the_model_knows() {
    let job = Job::new();
    let without = format!(
        "train {} --data {} --save save",
        example(LLAMA),
        data("text.jsonl")
    );
    refused(&job, &words(&without), &["text.jsonl:1", "tokenizer"]);
    let tokenizer = fs::read_to_string(data("tokenizer.json")).unwrap();
    let mut tokenizer: Value = serde_json::from_str(&tokenizer).unwrap();
    tokenizer["model"]["vocab"]["extra"] = 64.into();
    fs::write(job.path("tokenizer.json"), tokenizer.to_string()).unwrap();
    let args = train(LLAMA, "text.jsonl", "--tokenizer tokenizer.json");
    refused(&job, &args, &["tokenizer.json", "65", "64"]);
}

#[test]
fn a_token_id_that_the_model_does_not_know() {
    let job = Job::new();
    let ids = |last: i64| (1..32).chain([last]).flat_map(i64::to_le_bytes).collect();
    safetensors(
        &job.path("ids.safetensors"),
        &[("input_ids", "I64", &[2, 16], ids(64))],
    );
    let args = train(LLAMA, "", "--data ids.safetensors");
    refused(&job, &args, &["ids.safetensors", "64"]);
    safetensors(
        &job.path("ids.safetensors"),
        &[("input_ids", "I64", &[2, 16], ids(63))],
    );
    done(&job, &args);
}

/// Moves a weight to a file.
pub(crate) fn make_external(tensor: &mut TensorProto, location: &str) {
    let entry = StringStringEntryProto {
        key: Some("location".into()),
        value: Some(location.into()),
    };
    tensor.raw_data = None;
    tensor.data_location = Some(DataLocation::External as i32);
    tensor.external_data = vec![entry];
}

#[test]
fn missing_weights_are_all_listed() {
    let job = Job::new();
    let mut model = onnx::decode(&fs::read(example(LLAMA)).unwrap());
    let weights = &mut model.graph.as_mut().unwrap().initializer;
    let names = [
        "layers.0.self_attn.q_proj.base_layer.weight",
        "layers.1.mlp.up_proj.base_layer.weight",
    ];
    let ours = weights
        .iter_mut()
        .filter(|t| names.iter().any(|name| t.name().ends_with(name)));
    ours.for_each(|tensor| make_external(tensor, "weights.bin"));
    fs::write(job.path("model.onnx"), onnx::encode(&model)).unwrap();
    let mut args = train(LLAMA, "text.jsonl", "");
    args[1] = "model.onnx".to_owned();
    refused(&job, &args, &[names[0], names[1], "weights.bin"]);
}

#[test]
fn weights_of_another_shape_and_missing_ones_are_all_listed() {
    let job = Job::new();
    let floats = |n: usize| vec![0; 4 * n];
    let tensors: &[(&str, &str, &[usize], Vec<u8>)] = &[
        (
            "model.embed_tokens.weight",
            "F32",
            &[32, 64],
            floats(64 * 32),
        ),
        ("model.norm.weight", "F32", &[33], floats(33)),
        ("lm_head.weight", "F32", &[64, 32], floats(64 * 32)),
    ];
    safetensors(&job.path("model.safetensors"), tensors);
    let args = train(PLAIN, "text.jsonl", "--rank 4 --weights model.safetensors");
    let parts = [
        "model.safetensors",
        "model.embed_tokens.weight",
        "[32, 64]",
        "[64, 32]",
        "model.norm.weight",
        "[33]",
        "model.layers.0.self_attn.q_proj.weight",
    ];
    refused(&job, &args, &parts);
}

#[test]
fn devices_that_are_not_there() {
    let job = Job::new();
    let with = |device: &str| train(LLAMA, "text.jsonl", &format!("--device {device}"));
    refused(&job, &with("cuda:99"), &["cuda:99"]);
    refused(&job, &with("gpu"), &["`gpu`", "cuda:N"]);
}

#[test]
fn a_step_that_does_not_fit_is_refused_with_what_does() {
    let job = Job::new();
    let with = |flags: &str| train(LLAMA, "text.jsonl", flags);
    let fits = ["needs", "has", "free", "--batch ", " fits"];
    job.refused_with(3, &strs(&with("--batch 2000000000 --seq 16")), &fits);
    let named = ["needs", "--dim batch=", " fits"];
    let mut by_name = with("--batch 2000000000 --seq 16");
    let flag = by_name.iter().position(|word| word == "--batch").unwrap();
    by_name.splice(flag..flag + 2, words("--dim batch=2000000000"));
    job.refused_with(3, &strs(&by_name), &named);
    let none = ["needs", "no smaller --batch fits", "--seq"];
    job.refused_with(3, &strs(&with("--batch 4 --seq 10000000")), &none);
}

#[test]
fn a_rank_where_no_adapter_is_trained() {
    let job = Job::new();
    let args = train(PLAIN, "text.jsonl", "--method full --rank 4");
    refused(&job, &args, &["--rank", "--method full"]);
}

#[test]
fn results_that_have_no_place() {
    let job = Job::new();
    fs::write(job.path("file"), "").unwrap();
    let with = |save: &str| train(LLAMA, "text.jsonl", &format!("--save {save}"));
    refused(&job, &with("file"), &["folder file ", "Not a directory"]);
    refused(
        &job,
        &with("file/inside"),
        &["folder file/inside ", "Not a directory"],
    );
}

/// A folder with a run of four updates, of which the last two are kept.
fn a_run() -> Job {
    let job = Job::new();
    done(
        &job,
        &train(LLAMA, "text.jsonl", "--max-steps 4 --save-every 1"),
    );
    job
}

#[test]
fn a_run_does_not_begin_over_another_nor_go_on_with_nothing() {
    let job = a_run();
    refused(
        &job,
        &train(LLAMA, "text.jsonl", ""),
        &["save/checkpoint-4", "--resume"],
    );
    let other = train(LLAMA, "text.jsonl", "--save other --resume");
    refused(&job, &other, &["--resume", "no checkpoint", "other"]);
}

#[test]
fn a_checkpoint_of_another_run_is_refused_with_what_differs() {
    let job = a_run();
    // A model of the same form: what full fine-tuning makes of the plain one.
    let full = train(
        PLAIN,
        "text.jsonl",
        "--method full --max-steps 1 --save full",
    );
    done(&job, &full);
    fs::rename(job.path("full/model"), job.path("other")).unwrap();
    for (model, on, flags, parts) in [
        (LLAMA, "text.jsonl", "--seq 8", &["seq 16", "seq 8"][..]),
        (LLAMA, "text.jsonl", "--batch 4", &["batch 2", "batch 4"]),
        (LLAMA, "text.jsonl", "--method lora", &["lora-fa", "lora "]),
        (
            LLAMA,
            "text.jsonl",
            "--rank 8 --replace-adapters",
            &["another"],
        ),
        (
            PLAIN,
            "text.jsonl",
            "--rank 4",
            &["llama-tiny-lora", "llama-tiny-plain"],
        ),
        (LLAMA, "chat.jsonl", "", &["data"]),
        (LLAMA, "text.jsonl", "--seed 3", &["--seed 0", "--seed 3"]),
        (
            LLAMA,
            "text.jsonl",
            "--no-shuffle",
            &["takes the data shuffled", "in order"],
        ),
        (
            LLAMA,
            "text.jsonl",
            "--accumulate 2",
            &["--accumulate 1", "2"],
        ),
        (
            LLAMA,
            "text.jsonl",
            "--weights other",
            &["weights", "others"],
        ),
    ] {
        let args = train(model, on, &format!("--resume {flags}"));
        refused(
            &job,
            &args,
            &[&["save/checkpoint-4", "another run"], parts].concat(),
        );
    }
}

#[test]
fn a_damaged_checkpoint_is_named() {
    let job = a_run();
    let args = train(LLAMA, "text.jsonl", "--resume --epochs 2");
    for (file, status) in [
        ("state.json", "state"),
        ("trained.safetensors", ""),
        ("optimizer.safetensors", ""),
    ] {
        let path = job.path("save/checkpoint-4").join(file);
        let whole = fs::read(&path).unwrap();
        for length in [0, whole.len() / 2, whole.len() - 3] {
            fs::write(&path, &whole[..length]).unwrap();
            let before = job.files();
            fails(&job, &args, 2, &["save/checkpoint-4", file, status]);
            assert_eq!(job.files(), before);
        }
        fs::remove_file(&path).unwrap();
        fails(&job, &args, 2, &["save/checkpoint-4", file]);
        fs::write(&path, whole).unwrap();
    }
    done(&job, &args);
}
