//! What `bench` prints.

use crate::common::{Job, onnx};
use crate::*;

/// What `bench/results.py` expects, which reads it.
const KEYS: [&str; 21] = [
    "adapter_dtype",
    "attention",
    "batch",
    "device",
    "device_name",
    "dtype",
    "flops_per_second",
    "loss",
    "memory",
    "method",
    "model",
    "optimizer",
    "rank",
    "seq",
    "step_seconds",
    "steps",
    "tokens_per_second",
    "tool",
    "trained_parameters",
    "version",
    "warmup",
];

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<_> = value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    keys.sort_unstable();
    keys
}

fn figures(job: &Job, model: &str, flags: &str) -> Value {
    let line = format!("bench {model} --batch 2 --seq 8 --steps 3 --check-memory --json - {flags}");
    serde_json::from_slice(&done(job, &words(&line)).stdout).unwrap()
}

#[test]
fn json_has_the_schemas_keys_and_the_planned_peak() {
    for (model, flags) in [
        (LLAMA, ""),
        (LLAMA, "--method lora --accumulate 2 --clip 1"),
        (PLAIN, "--method full"),
        (
            PLAIN,
            "--rank 2 --optimizer lorafa --dtype bf16 --adapter-dtype f32",
        ),
        (T5, ""),
    ] {
        let figures = figures(&Job::new(), &example(model), flags);
        assert_eq!(keys(&figures), KEYS);
        let memory = &figures["memory"];
        assert_eq!(
            keys(memory),
            [
                "allocated_peak",
                "device_before",
                "device_peak",
                "planned_peak",
                "reserved_peak"
            ]
        );
        assert_eq!(
            memory["allocated_peak"], memory["planned_peak"],
            "{model} {flags}"
        );
        assert!(memory["device_peak"].as_u64() > memory["planned_peak"].as_u64());
        assert!(memory["reserved_peak"].is_null());
        let seconds = &figures["step_seconds"];
        assert_eq!(keys(seconds), ["max", "median", "min", "p10", "p90"]);
        let [min, median, max] = ["min", "median", "max"].map(|key| seconds[key].as_f64().unwrap());
        assert!(0.0 < min && min <= median && median <= max);
        let loss = &figures["loss"];
        assert_eq!(keys(loss), ["first", "last"]);
        assert!(
            loss["last"].as_f64().unwrap() < loss["first"].as_f64().unwrap(),
            "{loss}"
        );
        let full = flags.contains("full");
        assert_eq!(figures["rank"].is_null(), full);
        assert_eq!(figures["adapter_dtype"].is_null(), full);
        assert!(figures["trained_parameters"].as_u64().unwrap() > 0);
    }
}

#[test]
fn text_says_the_same() {
    let line = format!("bench {} --batch 2 --seq 8 --steps 3", example(LLAMA));
    let said = String::from_utf8(done(&Job::new(), &words(&line)).stdout).unwrap();
    for part in [
        "planned peak",
        "allocated peak",
        "1.0000 of the plan",
        "tokens/s",
        "lora-fa",
        "over 3 steps",
    ] {
        assert!(said.contains(part), "no `{part}` in {said}");
    }
}

#[test]
fn random_weights_take_no_file() {
    let job = Job::new();
    let mut model = onnx::decode(&fs::read(example(LLAMA)).unwrap());
    for tensor in &mut model.graph.as_mut().unwrap().initializer {
        let matrix = tensor.dims.len() == 2;
        if matrix && tensor.name().ends_with("weight") {
            refused::make_external(tensor, "weights.bin");
        }
    }
    fs::write(job.path("model.onnx"), onnx::encode(&model)).unwrap();
    let line = words("bench model.onnx --batch 2 --seq 8");
    refused(&job, &line, &["weights.bin"]);
    let random = || figures(&job, "model.onnx", "--random-weights");
    let (a, b) = (random(), random());
    assert!(a["loss"]["first"].as_f64().unwrap().is_finite());
    assert_eq!(a["loss"], b["loss"]);
}

/// For programs, a step that does not fit is a result; for people, an error with what would fit.
#[test]
fn a_step_that_does_not_fit_is_a_result() {
    let job = Job::new();
    let line = format!("bench {} --batch 2000000000 --seq 16", example(LLAMA));
    let figures = done(&job, &words(&format!("{line} --json -")));
    let figures: Value = serde_json::from_slice(&figures.stdout).unwrap();
    assert_eq!(figures["error"], "out of memory");
    assert!(figures["memory"]["planned_peak"].as_u64().unwrap() > 1 << 40);
    for measured in [
        "step_seconds",
        "tokens_per_second",
        "flops_per_second",
        "loss",
        "trained_parameters",
    ] {
        assert!(figures[measured].is_null(), "{measured}");
    }
    fails(&job, &words(&line), 3, &["needs", "--batch ", " fits"]);
}
