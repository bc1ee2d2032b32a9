//! The main job: what it prints and writes.

mod common;

use common::{Job, copy_example, onnx};
use serde_json::Value;
use std::fs;

const LLAMA: &str = "llama-tiny-lora-r4-dynamo-noopt-sdpa-fp32-eval-loss-dyn.onnx";
const PLAIN: &str = "llama-tiny-plain-dynamo-noopt-sdpa-fp32-eval-logits-dyn.onnx";
const T5: &str = "t5-tiny-lora-r4-dynamo-noopt-sdpa-fp32-eval-loss-dyn.onnx";
const T5_PLAIN: &str = "t5-tiny-plain-dynamo-opt-eager-fp32-eval-logits-dyn.onnx";
const METHODS: [&str; 3] = ["full", "lora", "lora-fa"];

fn json(job: &Job, args: &[&str]) -> Value {
    let text = job.done(&[args, &["--no-write", "--json", "-"]].concat());
    serde_json::from_str(&text).unwrap()
}

fn sum<'a>(values: impl IntoIterator<Item = &'a Value>) -> u64 {
    values.into_iter().map(|v| v.as_u64().unwrap()).sum()
}

#[test]
fn the_same_command_gives_the_same_bytes() {
    let runs = [Job::new(), Job::new()].map(|job| {
        copy_example(&job, PLAIN, "model.onnx");
        let args = [
            "model.onnx",
            "--rank",
            "4",
            "--dtype",
            "bf16",
            "--json",
            "plan.json",
        ];
        let text = job.done(&args);
        let read = |name| fs::read(job.path(name)).unwrap();
        (text, read("model.lorafa.onnx"), read("plan.json"))
    });
    assert!(runs[0] == runs[1]);
}

#[test]
fn every_byte_of_the_json_report_is_accounted_for() {
    let job = Job::new();
    copy_example(&job, LLAMA, "model.onnx");
    let flags = [
        "model.onnx",
        "--batch",
        "2",
        "--seq",
        "8",
        "--reserve",
        "1KiB",
    ];
    let report = json(&job, &flags);
    assert_eq!(report["model"], "model.onnx");
    assert_eq!(report["dtype"], "f32");
    assert_eq!(report["dims"], serde_json::json!({"batch": 2, "seq": 8}));
    for method in METHODS {
        let m = &report["methods"][method];
        let breakdown = m["breakdown"].as_object().unwrap();
        assert_eq!(breakdown.len(), 8);
        assert_eq!(
            sum(breakdown.values()),
            m["peak_bytes"].as_u64().unwrap(),
            "{method}"
        );
        let saved = m["saved"].as_array().unwrap().iter().map(|s| &s["bytes"]);
        assert_eq!(
            sum(saved),
            m["breakdown"]["saved_activations"].as_u64().unwrap(),
            "{method}"
        );
        assert_eq!(breakdown["runtime_reserve"], 1024);
        assert_eq!(
            sum([&m["arena_bytes"], &breakdown["runtime_reserve"]]),
            sum([&m["peak_bytes"]])
        );
        assert!(m["lower_bound_bytes"].as_u64() <= m["peak_bytes"].as_u64());
    }
    let peak = |method: &str| report["methods"][method]["peak_bytes"].as_u64().unwrap();
    assert!(peak("full") > peak("lora") && peak("lora") > peak("lora-fa"));
    let certificate = &report["certificate"];
    assert_eq!(
        (&certificate["adapters"], &certificate["released"]),
        (&14.into(), &12.into())
    );
    // Attention's gradient reads what attention gave.
    for kept in certificate["kept"].as_array().unwrap() {
        let module = kept["module"].as_str().unwrap();
        assert!(module.ends_with(".self_attn.o_proj"), "{module}");
        let by = kept["by"].as_str().unwrap();
        assert!(by.starts_with("attention in "), "{by}");
    }
}

/// LoRA computes again what LoRA-FA releases, and says so; LoRA-FA has nothing to compute again.
#[test]
fn what_is_computed_again_is_reported() {
    let job = Job::new();
    copy_example(&job, LLAMA, "model.onnx");
    let flags = ["model.onnx", "--batch", "2", "--seq", "8"];
    let keep = ["--disable", "rematerialize"];
    let [again, kept] = [&[][..], &keep].map(|more| json(&job, &[&flags, more].concat()));
    let tensors = |report: &Value, recomputed: bool| {
        let tensors = report["certificate"]["released_tensors"].as_array();
        let tensors = tensors.unwrap().iter();
        let tensors = tensors.filter(|tensor| tensor["recomputed"] == recomputed);
        sum(tensors.map(|tensor| &tensor["bytes"]))
    };
    let released = tensors(&kept, false);
    assert!(released > 0);
    assert_eq!((tensors(&kept, true), tensors(&again, false)), (0, 0));
    assert_eq!(tensors(&again, true), released);
    let of = |report: &Value, method: &str| report["methods"][method].clone();
    for method in METHODS {
        assert_eq!(of(&kept, method)["recomputed"], Value::Null);
    }
    assert_eq!(of(&again, "lora-fa"), of(&kept, "lora-fa"));
    let lora = &of(&again, "lora")["recomputed"];
    assert_eq!(
        (&lora["tensors"], &lora["bytes"]),
        (&6.into(), &released.into())
    );
    let share = lora["flops"].as_f64().unwrap() / lora["step_flops"].as_f64().unwrap();
    assert!(0.0 < share && share < 0.05, "{share}");

    let text = job.done(&[&flags[..], &["--no-write", "--explain"]].concat());
    let parts = [
        "recomputed, not saved",
        "of which LoRA computes",
        "[lora] rematerialize: the peak falls from",
        "[lora-fa] rematerialize: changed nothing",
    ];
    for part in parts {
        assert!(text.contains(part), "{part}: {text}");
    }
    let text = job.done(&[&flags[..], &keep, &["--no-write"]].concat());
    assert!(!text.contains("recomputed"), "{text}");
}

#[test]
fn trained_parameters_are_counted_by_method() {
    let job = Job::new();
    copy_example(&job, LLAMA, "model.onnx");
    let report = json(&job, &["model.onnx", "--batch", "2", "--seq", "8"]);
    let trained = |method: &str| {
        report["methods"][method]["trainable_params"]
            .as_u64()
            .unwrap()
    };
    // Hidden 32, feed-forward 88, rank 4, two layers of four attention and three MLP projections.
    let (a, b) = (2 * 4 * (6 * 32 + 88), 2 * 4 * (5 * 32 + 2 * 88));
    assert_eq!((trained("lora-fa"), trained("lora")), (b, a + b));
    let base = 2 * (4 * 32 * 32 + 3 * 32 * 88 + 2 * 32) + 2 * 64 * 32 + 32;
    assert_eq!(trained("full"), base + a + b);
}

#[test]
fn relus_release_their_results_too() {
    let job = Job::new();
    copy_example(&job, T5, "t5.onnx");
    let args = [
        "t5.onnx",
        "--batch",
        "2",
        "--seq",
        "8",
        "--no-write",
        "--explain",
    ];
    let text = job.done(&args);
    assert!(text.contains("26 of 32 adapters release x"), "{text}");
    assert!(
        text.contains("[lora-fa] mask-relu: 4 relus keep a mask instead of their result"),
        "{text}"
    );
}

#[test]
fn defaults_of_dimensions_are_said() {
    let job = Job::new();
    copy_example(&job, LLAMA, "model.onnx");
    let text = job.done(&["model.onnx", "--no-write"]);
    assert!(
        text.contains("batch = 1 by default: set it with --batch N"),
        "{text}"
    );
    assert!(
        text.contains("seq = 1024 by default: set it with --seq N"),
        "{text}"
    );
}

#[test]
fn adapters_are_injected_or_replaced_at_the_rank_asked_for() {
    let job = Job::new();
    copy_example(&job, PLAIN, "plain.onnx");
    copy_example(&job, LLAMA, "lora.onnx");
    let sizes = ["--batch", "2", "--seq", "8", "--rank", "3"];
    let plain = json(&job, &[&["plain.onnx"], &sizes[..]].concat());
    let replaced = json(
        &job,
        &[&["lora.onnx", "--replace-adapters"], &sizes[..]].concat(),
    );
    for report in [&plain, &replaced] {
        assert_eq!(report["certificate"]["adapters"], 14);
        assert_eq!(
            report["methods"]["lora-fa"]["trainable_params"],
            2 * 3 * (5 * 32 + 2 * 88)
        );
    }
    let some = ["--targets", "q_proj,v_proj", "--layers", "1"];
    let some = json(&job, &[&["plain.onnx"], &sizes[..], &some].concat());
    assert_eq!(some["certificate"]["adapters"], 2);
}

#[test]
fn outputs_are_the_loss_and_the_methods_gradients() {
    let job = Job::new();
    copy_example(&job, T5, "t5.onnx");
    for (method, gradients) in [("lora", 64), ("lora-fa", 32)] {
        job.done(&["t5.onnx", "--batch", "2", "--seq", "8", "--method", method]);
        let written = onnx::decode(&fs::read(job.path("t5.lorafa.onnx")).unwrap());
        let outputs = written.graph.unwrap().output;
        let names: Vec<&str> = outputs.iter().map(|o| o.name()).collect();
        assert_eq!(names[0], "loss");
        assert_eq!(
            names.iter().filter(|n| n.starts_with("grad::")).count(),
            gradients,
            "{method}"
        );
        assert_eq!(names.len(), gradients + 1);
    }
}

#[test]
fn dump_prints_the_graph_after_a_pass() {
    let job = Job::new();
    copy_example(&job, LLAMA, "model.onnx");
    let dump = |pass: &str| {
        job.done(&[
            "dump",
            "model.onnx",
            "--after",
            pass,
            "--batch",
            "2",
            "--seq",
            "8",
        ])
    };
    assert!(dump("import").contains("i64[batch,seq]"));
    assert!(dump("bind-dims").contains("i64[2,8]") && !dump("bind-dims").contains("adapter"));
    assert!(
        dump("find-lora").contains("adapter \"base_model.model.model.layers.0.mlp.down_proj\"")
    );
    assert!(
        dump("differentiate").contains("backward:") && !dump("differentiate").contains("update:")
    );
    let last = job.done(&["dump", "model.onnx", "--batch", "2", "--seq", "8"]);
    assert!(last.contains("update:") && !last.contains("grad::base_model.model.lm_head"));
    lorafa_ir::text::parse(&last).unwrap().verify().unwrap();
    job.refused(
        &[
            "dump",
            "model.onnx",
            "--after",
            "freeze-lora-a",
            "--method",
            "lora",
        ],
        &["does not run that pass"],
    );
}

#[test]
fn explain_says_what_passes_did_not_do() {
    let job = Job::new();
    copy_example(&job, LLAMA, "model.onnx");
    let text = job.done(&[
        "model.onnx",
        "--batch",
        "2",
        "--seq",
        "8",
        "--no-write",
        "--explain",
    ]);
    assert!(
        text.contains("inject-lora: nothing to inject: the model has adapters"),
        "{text}"
    );
    assert!(
        text.contains("convert-precision: the model is in f32"),
        "{text}"
    );
}

/// Which of some ops the graph has that `dump` prints.
fn ops<'a>(job: &Job, flags: &[&str], names: &[&'a str]) -> Vec<&'a str> {
    let text = job.done(&[&["dump", "model.onnx", "--batch", "2", "--seq", "8"], flags].concat());
    lorafa_ir::text::parse(&text).unwrap().verify().unwrap();
    let has = |name: &&&str| text.contains(&format!(" = {name} "));
    names.iter().filter(has).copied().collect()
}

#[test]
fn passes_that_no_other_needs_can_be_left_out() {
    let job = Job::new();
    copy_example(&job, LLAMA, "model.onnx");
    let names = [
        "attention",
        "softmax",
        "rms_norm",
        "reduce_mean",
        "gated",
        "sigmoid",
        "rotary",
    ];
    let fused = ["attention", "rms_norm", "gated", "rotary"];
    assert_eq!(ops(&job, &[], &names), fused);
    assert_eq!(
        ops(&job, &["--no-fuse"], &names),
        ["softmax", "reduce_mean", "sigmoid"]
    );
    let some = ["--disable", "fuse-attention", "--disable", "fuse-norms"];
    assert_eq!(
        ops(&job, &some, &names),
        ["softmax", "reduce_mean", "gated", "rotary"]
    );

    let sizes = ["model.onnx", "--batch", "2", "--seq", "8"];
    // On a few tokens, computing again outweighs fusions.
    let keep = ["--disable", "rematerialize"];
    let [fused, apart] = [&[][..], &["--no-fuse"]].map(|flags| {
        let report = json(&job, &[&sizes[..], &keep, flags].concat());
        METHODS.map(|method| report["methods"][method]["peak_bytes"].as_u64().unwrap())
    });
    assert!(
        fused.iter().zip(&apart).all(|(a, b)| a < b),
        "{fused:?} {apart:?}"
    );

    let refused = |pass: &str, why: &str| {
        let flags = ["--disable", pass, "--no-write"];
        job.refused(
            &[&sizes, &flags[..]].concat(),
            &[why, "fuse-attention, fuse-norms"],
        );
    };
    refused("canonicalize", "other passes need it");
    refused("fuse", "no pass is called that");
    let flags = ["dump", "model.onnx", "--no-fuse", "--after", "fuse-norms"];
    job.refused(&flags, &["--after fuse-norms: that pass is disabled"]);
}

#[test]
fn full_fine_tuning_alone_needs_no_rank() {
    let job = Job::new();
    copy_example(&job, PLAIN, "plain.onnx");
    let report = json(
        &job,
        &[
            "plain.onnx",
            "--batch",
            "2",
            "--seq",
            "8",
            "--method",
            "full",
        ],
    );
    let methods: Vec<&String> = report["methods"].as_object().unwrap().keys().collect();
    assert_eq!(methods, ["full"]);
    assert_eq!(report["certificate"], Value::Null);
}

#[test]
fn dimensions_are_those_of_the_main_input() {
    let job = Job::new();
    copy_example(&job, T5_PLAIN, "t5.onnx");
    let args = ["t5.onnx", "--rank", "4", "--batch", "2", "--seq", "8"];
    let report = json(&job, &[&args[..], &["--dim", "tgt_seq=6"]].concat());
    assert_eq!(
        report["dims"],
        serde_json::json!({"batch": 2, "seq": 8, "tgt_seq": 6})
    );
    let text = job.done(&[&args[..], &["--no-write"]].concat());
    assert!(
        text.contains("tgt_seq = 8, too: set it with --dim tgt_seq=N"),
        "{text}"
    );
}

#[test]
fn a_file_behind_a_link_is_replaced_and_the_link_stays() {
    let job = Job::new();
    copy_example(&job, LLAMA, "model.onnx");
    fs::write(job.path("real.onnx"), "old").unwrap();
    std::os::unix::fs::symlink("real.onnx", job.path("link.onnx")).unwrap();
    job.done(&[
        "model.onnx",
        "--batch",
        "2",
        "--seq",
        "8",
        "-o",
        "link.onnx",
    ]);
    assert!(
        fs::symlink_metadata(job.path("link.onnx"))
            .unwrap()
            .is_symlink()
    );
    onnx::decode(&fs::read(job.path("real.onnx")).unwrap());
}

#[test]
fn with_the_optimizer_trained_parameters_are_inputs_with_first_values() {
    let job = Job::new();
    copy_example(&job, LLAMA, "model.onnx");
    job.done(&[
        "model.onnx",
        "--batch",
        "2",
        "--seq",
        "8",
        "--with-optimizer",
    ]);
    let graph = onnx::decode(&fs::read(job.path("model.lorafa.onnx")).unwrap())
        .graph
        .unwrap();
    let inputs: Vec<&str> = graph.input.iter().map(|i| i.name()).collect();
    let initializers: Vec<&str> = graph.initializer.iter().map(|t| t.name()).collect();
    let updated = graph
        .output
        .iter()
        .filter_map(|o| o.name().strip_prefix("updated::"));
    let updated: Vec<&str> = updated.collect();
    assert_eq!(updated.len(), 14);
    for name in updated {
        assert!(
            inputs.contains(&name) && initializers.contains(&name),
            "{name}"
        );
        assert!(inputs.contains(&&*format!("optim::m::{name}")), "{name}");
    }
    assert!(inputs.contains(&"optim::lr") && inputs.contains(&"optim::step"));
}

/// What is said to be the most that fits does, and one more does not; that is not written.
#[test]
fn a_budget_says_what_fits() {
    let job = Job::new();
    copy_example(&job, PLAIN, "model.onnx");
    let step = ["model.onnx", "--rank", "4", "--budget", "2MiB"];
    let small = ["--batch", "2", "--seq", "8", "--reserve", "1MiB"];
    let report = json(&job, &[&step[..], &small].concat());
    let budget = &report["budget"];
    let planned = report["methods"]["lora-fa"]["arena_bytes"]
        .as_u64()
        .unwrap();
    assert_eq!(budget["needed"].as_u64(), Some(planned + (1 << 20)));
    assert_eq!(budget["fits"], true);
    let axes = [
        ("batch", "--batch", ["--seq", "8"]),
        ("seq", "--seq", ["--batch", "2"]),
    ];
    for (axis, flag, other) in axes {
        let largest = budget[axis]["number"].as_i64().unwrap();
        assert_eq!(budget[axis]["flag"], flag);
        let with = |n: i64| {
            let number = n.to_string();
            let flags = [flag, &number, "--reserve", "1MiB"];
            [&step[..], &flags, &other]
                .concat()
                .iter()
                .map(|s| (*s).to_owned())
                .collect::<Vec<_>>()
        };
        let more = with(largest + 1);
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        let output = job.run(&more);
        let said = String::from_utf8(output.stderr).unwrap();
        let fits = format!("{flag} {largest}");
        assert_eq!(output.status.code(), Some(3), "{said}");
        assert!(
            said.contains("budget of 2.0 MiB") && said.contains(&fits),
            "{said}"
        );
        assert!(!job.path("model.lorafa.onnx").exists());

        let most = with(largest);
        let most: Vec<&str> = most.iter().map(String::as_str).collect();
        let text = job.done(&most);
        assert!(text.contains(&fits) && text.contains("wrote"), "{text}");
        fs::remove_file(job.path("model.lorafa.onnx")).unwrap();
    }
    // By the name that was given.
    let report = json(
        &job,
        &[&step[..], &["--dim", "batch=2", "--seq", "8"]].concat(),
    );
    assert_eq!(report["budget"]["batch"]["flag"], "--dim batch=");
}

/// Where the model has both axes fixed, there is nothing to advise.
#[test]
fn a_budget_for_a_fixed_model() {
    let job = Job::new();
    copy_example(
        &job,
        "llama-tiny-plain-dynamo-opt-sdpa-fp32-eval-logits-static.onnx",
        "model.onnx",
    );
    let output = job.run(&["model.onnx", "--rank", "4", "--budget", "100KiB"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(
        said.contains("nothing smaller that the model allows"),
        "{said}"
    );
}
