//! Models that have their gradients in them.

mod common;

use common::{Job, copy_example, example, onnx};
use lorafa_onnx::proto::ModelProto;
use serde_json::Value;
use std::fs;

const JOINT: &str = "joint/llama-tiny-lora-r4-joint-opt-eager-fp32-eval-loss-static.onnx";
const KEPT: &str = "joint/gpt2-tiny-lora-r4-joint-noopt-eager-fp32-eval-loss-static.onnx";
const FORWARD: &str = "llama-tiny-lora-r4-dynamo-noopt-sdpa-fp32-eval-loss-dyn.onnx";
const CLASSIFIER: &str = "roberta-tiny-lora-r4-dynamo-opt-sdpa-fp32-eval-loss-dyn.onnx";
const PLAIN: &str = "llama-tiny-plain-dynamo-opt-sdpa-fp32-eval-logits-static.onnx";

/// A job with an example as `model.onnx`.
fn job(name: &str) -> Job {
    let job = Job::new();
    copy_example(&job, name, "model.onnx");
    job
}

/// A job with an example that was changed.
fn changed(name: &str, change: impl FnOnce(&mut ModelProto)) -> Job {
    let job = Job::new();
    let mut model = onnx::decode(&example(name));
    change(&mut model);
    fs::write(job.path("model.onnx"), onnx::encode(&model)).unwrap();
    job
}

/// Names an output, and what makes it, anew.
fn rename(model: &mut ModelProto, from: &str, to: &str) {
    let graph = model.graph.as_mut().unwrap();
    let outputs = graph.output.iter_mut().filter(|o| o.name() == from);
    let renamed = outputs.map(|o| o.name = Some(to.into())).count();
    assert_eq!(renamed, 1, "{from}");
    for node in &mut graph.node {
        let names = node.output.iter_mut().chain(&mut node.input);
        names
            .filter(|name| *name == from)
            .for_each(|name| *name = to.into());
    }
}

fn methods(job: &Job, model: &str) -> Vec<String> {
    let text = job.done(&[model, "--no-write", "--json", "-"]);
    let report: Value = serde_json::from_str(&text).unwrap();
    let methods = report["methods"].as_object().unwrap();
    methods.keys().cloned().collect()
}

/// The gradients that a written model gives.
fn gradients(job: &Job, model: &str) -> Vec<String> {
    let model = onnx::decode(&fs::read(job.path(model)).unwrap());
    let outputs = model.graph.unwrap().output.into_iter();
    let names = outputs.map(|o| o.name().to_owned());
    let (gradients, others): (Vec<_>, Vec<_>) = names.partition(|n| n.starts_with("grad::"));
    assert_eq!(others, ["loss"]);
    gradients
}

#[test]
fn a_joint_graph_is_lora_and_becomes_lora_fa() {
    for (name, adapters) in [(JOINT, 14), (KEPT, 8)] {
        let job = job(name);
        let report = job.done(&["model.onnx", "-o", "lora-fa.onnx"]);
        assert!(report.contains("a training graph: its own backward pass, with gradients of"));
        assert!(
            report.contains("                LoRA    LoRA-FA\n"),
            "{report}"
        );
        let certificate = format!("certificate: {adapters} of {adapters} adapters release x");
        assert!(report.contains(&certificate), "{report}");
        job.done(&["model.onnx", "--method", "lora", "-o", "lora.onnx"]);
        let lora = gradients(&job, "lora.onnx");
        assert_eq!(lora, gradients(&job, "model.onnx"));
        let of_b = |name: &&String| name.contains("lora_B");
        let expected: Vec<&String> = lora.iter().filter(of_b).collect();
        let lora_fa = gradients(&job, "lora-fa.onnx");
        assert_eq!(lora_fa.iter().collect::<Vec<_>>(), expected);
    }
}

/// Outputs of adapters' gradients may be called anything, as long as they are called gradients.
#[test]
fn structure_tells_whose_gradients_they_are() {
    let expected = job(JOINT).done(&["model.onnx", "--no-write"]);
    let job = changed(JOINT, |model| {
        for output in model.graph.clone().unwrap().output {
            if let Some(name) = output.name().strip_prefix("grad::") {
                let length = name.len();
                let to = format!("grad::{}", &name[length - 40..length].replace('.', "!"));
                rename(
                    model,
                    output.name(),
                    &format!("{to}{}", length + name.matches("1.").count()),
                );
            }
        }
    });
    assert_eq!(job.done(&["model.onnx", "--no-write"]), expected);
}

/// With gradients of our own all that is fused of forward graphs is fused of joint ones.
#[test]
fn gradients_can_be_computed_anew() {
    let job = job(JOINT);
    job.done(&["model.onnx", "-o", "given.onnx"]);
    let report = job.done(&["model.onnx", "--differentiate", "-o", "own.onnx"]);
    assert!(report.contains("peak of full"), "{report}");
    let names = |file| gradients(&job, file);
    assert_eq!(names("own.onnx").len(), names("given.onnx").len());
    let written = onnx::decode(&fs::read(job.path("own.onnx")).unwrap());
    let functions: Vec<&str> = written.functions.iter().map(|f| f.name()).collect();
    for fused in [
        "attention",
        "linear_cross_entropy_grad",
        "rms_norm",
        "rotary",
    ] {
        assert!(functions.contains(&fused), "{functions:?}");
    }
    let plain = self::job(PLAIN);
    plain.refused(&["model.onnx", "--differentiate"], &["no gradients in it"]);
}

/// What was written is a training graph itself.
#[test]
fn our_own_steps_are_read_again() {
    for name in [FORWARD, CLASSIFIER, JOINT] {
        let job = job(name);
        let flags: &[&str] = match name {
            JOINT => &[],
            _ => &["--batch", "2", "--seq", "8"],
        };
        for no_fuse in [&[][..], &["--no-fuse"]] {
            let write = |method, to| {
                let own = ["model.onnx", "--method", method, "-o", to];
                job.done(&[&own, flags, no_fuse].concat());
            };
            write("lora", "lora.onnx");
            write("lora-fa", "lora-fa.onnx");
            assert_eq!(methods(&job, "lora.onnx"), ["lora", "lora-fa"]);
            assert_eq!(methods(&job, "lora-fa.onnx"), ["lora-fa"]);
            job.done(&["lora.onnx", "-o", "again.onnx"]);
            let [again, expected] = ["again.onnx", "lora-fa.onnx"].map(|f| gradients(&job, f));
            assert_eq!(again, expected);
            job.refused(
                &["lora-fa.onnx", "--method", "lora"],
                &["no gradient of an adapter's A", "--method lora-fa"],
            );
        }
    }
}

#[test]
fn without_adapters_it_is_planned_as_it_is() {
    let job = job(PLAIN);
    job.done(&["model.onnx", "--method", "full", "-o", "full.onnx"]);
    let report = job.done(&["full.onnx", "--method", "full", "--no-write"]);
    assert!(report.contains("\nno adapters\n"), "{report}");
    assert!(!report.contains("LoRA"), "{report}");
    let refused = ["no adapters", "--method full", "--differentiate"];
    job.refused(&["full.onnx"], &refused);
    job.refused(&["full.onnx", "--rank", "4"], &refused);
    job.refused(&["full.onnx", "--rank", "4", "--method", "full"], &refused);
}

#[test]
fn what_takes_a_forward_graph_is_refused() {
    let job = job(JOINT);
    let remedy = "give --differentiate";
    for flags in [
        &["--dtype", "bf16"][..],
        &["--replace-adapters", "--rank", "8"],
        &["--method", "full"],
    ] {
        let args = [&["model.onnx"], flags].concat();
        job.refused(&args, &["has its gradients in it already", remedy]);
        job.done(&[&args, &["--differentiate", "--no-write"][..]].concat());
    }
    let refused = ["has its gradients in it already", "leave that out"];
    job.refused(&["model.onnx", "--loss", "causal-lm"], &refused);
    job.refused(&["model.onnx", "--rank", "8"], &["rank 4", "--rank 4"]);
    job.done(&["model.onnx", "--rank", "4", "--dtype", "f32", "--no-write"]);
}

#[test]
fn gradients_of_nothing_and_of_nothing_known() {
    // The only output that is no gradient is the loss, whatever its name.
    let job = changed(JOINT, |model| rename(model, "loss", "objective"));
    job.done(&["model.onnx", "--no-write"]);
    let job = changed(JOINT, |model| {
        model.graph.as_mut().unwrap().output.remove(0);
    });
    job.refused(
        &["model.onnx"],
        &["none of its outputs is a loss", "\"loss\""],
    );

    // A gradient that is no product with what an adapter reads.
    let job = changed(JOINT, |model| {
        let graph = model.graph.as_mut().unwrap();
        let mut other = graph.output[1].clone();
        other.name = Some("grad::somewhere.weight".into());
        let logits = graph
            .node
            .iter()
            .find(|n| n.op_type() == "LogSoftmax")
            .unwrap();
        let copy = lorafa_onnx::proto::NodeProto {
            op_type: Some("Identity".into()),
            input: vec![logits.output[0].clone()],
            output: vec!["grad::somewhere.weight".into()],
            ..Default::default()
        };
        graph.node.push(copy);
        graph.output.push(other);
    });
    job.refused(
        &["model.onnx"],
        &[
            "grad::somewhere.weight",
            "belongs to no parameter",
            "somewhere.weight",
        ],
    );

    // Nobody says what the optimizer folded.
    let job = changed(JOINT, |model| {
        let graph = model.graph.as_mut().unwrap();
        graph
            .value_info
            .iter_mut()
            .for_each(|v| v.metadata_props.clear());
    });
    job.refused(&["model.onnx"], &["belongs to no parameter", "lora_"]);

    let job = changed(JOINT, |model| {
        let name = model.graph.as_ref().unwrap().output[1].name().to_owned();
        rename(model, &name, "w_grad.accumulation.out");
    });
    job.refused(
        &["model.onnx"],
        &[
            "accumulators",
            "w_grad.accumulation.out",
            "`grad::<parameter>`",
        ],
    );
}

#[test]
fn dump_shows_the_regions_and_whose_gradients_they_are() {
    let job = job(JOINT);
    let imported = job.done(&["dump", "model.onnx", "--after", "import"]);
    assert!(!imported.contains("backward:") && !imported.contains(" gradient %"));
    // A weight and its transpose are one again.
    assert!(!imported.contains("param %permute"));
    let text = job.done(&["dump", "model.onnx", "--after", "find-gradients"]);
    assert!(text.contains("backward:"));
    assert_eq!(text.matches(" gradient %m.base_model").count(), 28);
    let text = job.done(&["dump", "model.onnx", "--after", "freeze-lora-a"]);
    assert_eq!(text.matches(" gradient %m.base_model").count(), 14);
}
