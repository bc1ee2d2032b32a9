//! The optimizer's flags: what they add to the report and to the written model, and what is refused.

mod common;

use common::{Job, copy_example, onnx};
use serde_json::Value;
use std::fs;

const LLAMA: &str = "llama-tiny-lora-r4-dynamo-noopt-sdpa-fp32-eval-loss-dyn.onnx";

fn job() -> Job {
    let job = Job::new();
    copy_example(&job, LLAMA, "model.onnx");
    job
}

fn with<'a>(flags: &[&'a str]) -> Vec<&'a str> {
    [&["model.onnx", "--batch", "2", "--seq", "8"], flags].concat()
}

/// A category of the report, in bytes.
fn counted(job: &Job, flags: &[&str], method: &str, category: &str) -> u64 {
    let flags = [flags, &["--no-write", "--json", "-"]].concat();
    let report: Value = serde_json::from_str(&job.done(&with(&flags))).unwrap();
    let breakdown = &report["methods"][method]["breakdown"];
    breakdown[category].as_u64().unwrap()
}

/// Storage comes in multiples of this.
const ALIGN: u64 = 512;

#[test]
fn the_report_counts_accumulators_and_inverses() {
    let job = job();
    // In each of two layers five B are 32×4, and two are 88×4.
    let bytes = |rows: u64| (4 * rows * 4).next_multiple_of(ALIGN);
    let sums = 2 * (5 * bytes(32) + 2 * bytes(88));
    let gradients = counted(&job, &["--accumulate", "4"], "lora-fa", "gradients");
    assert_eq!(gradients, sums);
    let state = |flags: &[&str], method: &str| counted(&job, flags, method, "optimizer_state");
    let lorafa = &["--optimizer", "lorafa"][..];
    assert_eq!(state(lorafa, "lora-fa"), state(&[], "lora-fa") + 14 * ALIGN);
    for method in ["full", "lora"] {
        assert_eq!(state(lorafa, method), state(&[], method), "{method}");
    }
}

#[test]
fn a_written_step_without_its_optimizer_has_plain_gradients() {
    let job = job();
    let written = |flags: &[&str]| -> (Vec<String>, Vec<String>) {
        job.done(&with(flags));
        let written = onnx::decode(&fs::read(job.path("model.lorafa.onnx")).unwrap());
        let graph = written.graph.unwrap();
        let of_optimizer = graph.input.iter().find(|i| i.name().starts_with("optim::"));
        assert_eq!(of_optimizer, None, "{flags:?}");
        let outputs = graph.output.iter().map(|o| o.name().to_owned());
        let nodes = graph.node.iter().map(|n| n.op_type().to_owned());
        (outputs.collect(), nodes.collect())
    };
    let plain = written(&[]);
    let flags = ["--optimizer", "lorafa", "--clip", "1", "--accumulate", "4"];
    assert_eq!(written(&flags), plain);
}

#[test]
fn a_written_optimizer_takes_inverses_and_gives_the_norm() {
    let job = job();
    job.done(&with(&[
        "--with-optimizer",
        "--optimizer",
        "lorafa",
        "--clip",
        "1",
    ]));
    let written = onnx::decode(&fs::read(job.path("model.lorafa.onnx")).unwrap());
    let graph = written.graph.unwrap();
    let inverses = graph
        .input
        .iter()
        .filter(|i| i.name().starts_with("optim::inverse::"));
    assert_eq!(inverses.count(), 14);
    assert!(graph.output.iter().any(|o| o.name() == "grad_norm"));
}

#[test]
fn settings_reach_the_update() {
    let job = job();
    let dump = |flags: &[&str]| job.done(&[&["dump"], &with(flags)[..]].concat());
    let all = [
        "--beta1",
        "0.8",
        "--beta2",
        "0.9",
        "--eps",
        "1e-7",
        "--weight-decay",
        "0.5",
    ];
    let attrs = "{beta1=0.8, beta2=0.9, eps=1e-7, weight_decay=0.5}";
    assert_eq!(dump(&all).matches(attrs).count(), 14);
    let lorafa = dump(&["--optimizer", "lorafa"]);
    assert_eq!(lorafa.matches("{eps=1e-6, form=peft}").count(), 14);
    let rounded = dump(&["--optimizer", "lorafa", "--projection", "bf16"]);
    assert_eq!(
        (
            lorafa.matches("bf16").count(),
            rounded.matches(" : bf16[4,4]").count()
        ),
        (0, 14)
    );
}

#[test]
fn what_makes_no_sense_is_refused() {
    let job = job();
    let refused = |flags: &[&str], parts: &[&str]| job.refused(&with(flags), parts);
    let lora = ["--optimizer", "lorafa", "--method", "lora"];
    refused(&lora, &["--optimizer lorafa", "--method lora-fa"]);
    refused(&["--projection", "bf16"], &["--projection", "lorafa"]);
    let accumulate = ["--with-optimizer", "--accumulate", "2"];
    refused(&accumulate, &["--with-optimizer", "--accumulate"]);
    refused(&["--accumulate", "0"], &["--accumulate"]);
    for (flag, bad) in [
        ("--clip", "0"),
        ("--clip", "NaN"),
        ("--beta1", "1"),
        ("--beta2", "-0.1"),
        ("--eps", "-1"),
        ("--weight-decay", "inf"),
    ] {
        refused(&[flag, bad], &[flag, "expected"]);
    }
}
