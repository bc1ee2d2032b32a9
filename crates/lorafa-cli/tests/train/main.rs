//! `lorafa-opt train` and `bench`, as they are run.

mod bench;
mod checks;
#[path = "../common/mod.rs"]
mod common;
#[cfg(unix)]
mod disk;
mod gradients;
mod learns;
mod ort;
mod refused;
mod results;
#[cfg(target_os = "linux")]
mod resume;

use common::Job;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

const LLAMA: &str = "llama-tiny-lora-r4-dynamo-noopt-sdpa-fp32-eval-loss-dyn";
const PLAIN: &str = "llama-tiny-plain-dynamo-noopt-sdpa-fp32-eval-logits-dyn";
const DROPOUT: &str = "llama-tiny-lora-r4-drop0.05-dynamo-noopt-sdpa-fp32-train-loss-dyn";
const JOINT: &str = "joint/llama-tiny-lora-r4-joint-opt-eager-fp32-eval-loss-static-zeroB";
const GPT2: &str = "gpt2-tiny-lora-r4-dynamo-opt-sdpa-fp32-eval-loss-dyn";
const ROBERTA: &str = "roberta-tiny-lora-r4-dynamo-opt-sdpa-fp32-eval-loss-dyn";
const T5: &str = "t5-tiny-lora-r4-dynamo-noopt-sdpa-fp32-eval-loss-dyn";

/// A file of the repository.
fn file(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.join(path).to_str().unwrap().to_owned()
}

fn example(name: &str) -> String {
    file(&format!("examples/{name}.onnx"))
}

fn data(name: &str) -> String {
    file(&format!("tests/fixtures/data/{name}"))
}

/// The command line that trains an example on data of the repository: two rows of 16 tokens, into `save`, where the flags
/// do not say otherwise.
fn train(model: &str, on: &str, flags: &str) -> Vec<String> {
    let mut line = format!("train {} {flags}", example(model));
    let (on, tokenizer) = (data(on), data("tokenizer.json"));
    let defaults = [
        ("--batch", "2"),
        ("--seq", "16"),
        ("--data", &on),
        ("--tokenizer", &tokenizer),
        ("--save", "save"),
    ];
    for (flag, value) in defaults {
        if !flags.split_whitespace().any(|given| given == flag) {
            line.push_str(&format!(" {flag} {value}"));
        }
    }
    words(&line)
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

fn strs(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

/// The command on one thread, of which there are enough while tests run beside each other.
fn command(job: &Job, args: &[String]) -> Command {
    let mut command = job.command(&strs(args));
    command.env("OMP_NUM_THREADS", "1");
    command
}

/// Runs the command, which must succeed.
#[track_caller]
fn done(job: &Job, args: &[String]) -> Output {
    let output = command(job, args).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {error}");
    output
}

/// Runs the command, which must be refused before anything is written.
#[track_caller]
fn refused(job: &Job, args: &[String], parts: &[&str]) {
    job.refused(&strs(args), parts);
}

/// Runs the command, which must fail with this status; its standard error.
#[track_caller]
fn fails(job: &Job, args: &[String], status: i32, parts: &[&str]) -> String {
    let output = command(job, args).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{args:?}: {error}");
    for part in parts {
        assert!(error.contains(part), "no `{part}` in: {error}");
    }
    assert!(!error.contains("panicked"), "{error}");
    error
}

/// The lines of a run's log, all of which must be whole.
fn metrics(job: &Job, save: &str) -> Vec<Value> {
    let text = fs::read_to_string(job.path(save).join("metrics.jsonl")).unwrap();
    assert!(text.ends_with('\n'), "{text}");
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The losses of all updates, which must be numbered without a gap.
fn losses(job: &Job, save: &str) -> Vec<f64> {
    let lines = metrics(job, save);
    let updates: Vec<_> = lines
        .iter()
        .filter(|line| line.get("loss").is_some())
        .collect();
    for (i, line) in updates.iter().enumerate() {
        assert_eq!(line["step"], i as u64 + 1);
    }
    updates
        .iter()
        .map(|line| line["loss"].as_f64().unwrap())
        .collect()
}

/// The last evaluation's loss.
fn evaluated(job: &Job, save: &str) -> f64 {
    let lines = metrics(job, save);
    lines.last().unwrap()["eval_loss"].as_f64().unwrap()
}

#[track_caller]
fn close(a: f64, b: f64, relative: f64) {
    assert!((a - b).abs() <= relative * b.abs(), "{a} and {b}");
}

/// Writes a safetensors file: names, types, shapes and bytes.
fn safetensors(path: &Path, tensors: &[(&str, &str, &[usize], Vec<u8>)]) {
    let (mut header, mut bytes) = (serde_json::Map::new(), Vec::new());
    for (name, dtype, shape, content) in tensors {
        let offsets = [bytes.len(), bytes.len() + content.len()];
        let entry = serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": offsets});
        header.insert((*name).to_owned(), entry);
        bytes.extend_from_slice(content);
    }
    let header = serde_json::to_vec(&header).unwrap();
    let length = (header.len() as u64).to_le_bytes();
    fs::write(path, [&length[..], &header, &bytes].concat()).unwrap();
}
