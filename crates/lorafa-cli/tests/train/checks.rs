//! `--check-memory` and `--check-finite`, and what happens to numbers that are none without them.

use crate::common::{Job, onnx};
use crate::*;

/// Names of all example models.
fn examples() -> Vec<String> {
    let entries = fs::read_dir(file("examples")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut models: Vec<_> = names
        .filter_map(|n| Some(n.strip_suffix(".onnx")?.to_owned()))
        .collect();
    models.sort();
    assert!(models.len() > 15);
    models
}

#[test]
fn every_example_allocates_what_was_planned() {
    for model in examples() {
        let rank = if model.contains("-plain-") {
            "--rank 4"
        } else {
            ""
        };
        let (mut on, mut flags) = ("text.jsonl", format!("--max-steps 1 --check-memory {rank}"));
        if model.contains("-static") {
            flags.push_str(" --seq 8");
        }
        match model.split('-').next().unwrap() {
            "roberta" => on = "label.jsonl",
            "t5" => on = "completion.jsonl",
            _ => {}
        }
        done(&Job::new(), &train(&model, on, &flags));
    }
}

/// An example with one number of one weight replaced.
fn planted(job: &Job, weight: &str, number: f32) {
    let mut model = onnx::decode(&fs::read(example(LLAMA)).unwrap());
    let weights = &mut model.graph.as_mut().unwrap().initializer;
    let tensor = weights
        .iter_mut()
        .find(|t| t.name().ends_with(weight))
        .unwrap();
    let mut raw = tensor.raw_data().to_vec();
    raw[40..44].copy_from_slice(&number.to_le_bytes());
    tensor.raw_data = Some(raw.into());
    fs::write(job.path("model.onnx"), onnx::encode(&model)).unwrap();
}

#[test]
fn a_planted_nan_is_found_where_it_is() {
    let job = Job::new();
    let weight = "layers.1.mlp.up_proj.base_layer.weight";
    planted(&job, weight, f32::NAN);
    let with = |flags: &str| {
        let mut args = train(LLAMA, "text.jsonl", flags);
        args[1] = "model.onnx".to_owned();
        args
    };
    fails(&job, &with("--check-finite"), 2, &[weight, "NaN"]);
    let parts = [
        "update 1",
        "the loss is NaN",
        "no checkpoint yet",
        "--check-finite",
    ];
    fails(&job, &with("--save other"), 2, &parts);
    assert_eq!(fs::read(job.path("other/metrics.jsonl")).unwrap(), b"");
}

#[test]
fn an_overflow_is_found_at_its_op() {
    let job = Job::new();
    // Nearly the largest f16: times two it is none.
    planted(&job, "layers.1.mlp.up_proj.base_layer.weight", 6e4);
    let mut args = train(LLAMA, "text.jsonl", "--check-finite --dtype f16");
    args[1] = "model.onnx".to_owned();
    fails(&job, &args, 2, &["model.layers.1.mlp", "matmul"]);
}

#[test]
fn numbers_that_are_none_reach_no_checkpoint() {
    let job = Job::new();
    let run = |flags: &str| {
        train(
            PLAIN,
            "text.jsonl",
            &format!("--rank 4 --dtype f16 --keep 1 --save-every 1 {flags}"),
        )
    };
    done(&job, &run("--max-steps 2"));
    let checkpoint = || fs::read(job.path("save/checkpoint-2/trained.safetensors")).unwrap();
    let before = checkpoint();
    // The loss of the third update is finite; what it makes of the parameters is not.
    let parts = [
        "update 3",
        "parameter",
        "lora_B",
        "inf",
        "save/checkpoint-2 is the last good checkpoint",
    ];
    fails(&job, &run("--max-steps 4 --resume --lr 1e6"), 2, &parts);
    assert!(checkpoint() == before);
    assert!(!job.path("save/checkpoint-3").exists());
    done(&job, &run("--max-steps 4 --resume"));
    assert_eq!(losses(&job, "save").len(), 4);
}
