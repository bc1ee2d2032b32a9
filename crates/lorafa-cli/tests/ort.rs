//! What onnxruntime-training writes.

mod common;

use common::{Job, copy_example, example, onnx};
use lorafa_onnx::proto::{AttributeProto, ModelProto, NodeProto, TensorProto};
use std::fs;

const MODEL: &str = "training_model.onnx";

/// A job with the artifacts of an example in a folder of its name.
fn job(name: &str) -> Job {
    let job = Job::new();
    fs::create_dir(job.path(name)).unwrap();
    for file in [MODEL, "optimizer_model.onnx"] {
        let path = format!("{name}/{file}");
        copy_example(&job, &format!("ort/{path}"), &path);
    }
    job
}

/// A job with artifacts one of whose models was changed.
fn changed(name: &str, file: &str, change: impl FnOnce(&mut ModelProto)) -> Job {
    let job = job(name);
    let path = format!("{name}/{file}");
    let mut model = onnx::decode(&example(&format!("ort/{path}")));
    change(&mut model);
    fs::write(job.path(&path), onnx::encode(&model)).unwrap();
    job
}

/// Gives a name another one, wherever it is.
fn rename(model: &mut ModelProto, from: &str, to: &str) {
    let graph = model.graph.as_mut().unwrap();
    let nodes = graph.node.iter_mut();
    let nodes = nodes.flat_map(|node| node.input.iter_mut().chain(&mut node.output));
    let infos = graph.input.iter_mut().chain(&mut graph.output);
    let infos = infos.map(|info| info.name.get_or_insert_default());
    let tensors = graph.initializer.iter_mut();
    let tensors = tensors.map(|tensor| tensor.name.get_or_insert_default());
    let named = nodes.chain(infos).chain(tensors);
    let renamed = named.filter(|name| *name == from);
    assert!(renamed.map(|name| *name = to.into()).count() > 0, "{from}");
}

/// The accumulators of a training graph.
fn accumulators(model: &mut ModelProto) -> Vec<&mut NodeProto> {
    let nodes = model.graph.as_mut().unwrap().node.iter_mut();
    nodes
        .filter(|node| node.op_type() == "InPlaceAccumulatorV2")
        .collect()
}

#[test]
fn a_folder_of_artifacts_is_lora_and_becomes_lora_fa() {
    for (name, adapters, released) in [
        ("llama-lora", 14, 14),
        ("roberta-lora", 14, 12),
        ("gpt2-lora", 8, 8),
    ] {
        let job = job(name);
        let flags: &[&str] = match name {
            "gpt2-lora" => &["--batch", "2", "--seq", "12"],
            _ => &[],
        };
        let report = job.done(&[&[name], flags].concat());
        for line in [
            "made by onnxruntime-training, whose accumulators are left out: --accumulate sums gradients\n",
            "AdamW, transformers' form, betas 0.9 and 0.999, eps 1e-6, weight decay 0 (optimizer_model.onnx)\n",
            "a training graph: its own backward pass, with gradients of",
            "                LoRA    LoRA-FA\n",
            &format!("certificate: {released} of {adapters} adapters release x"),
        ] {
            assert!(report.contains(line), "{line}{report}");
        }
        let written = fs::read(job.path(&format!("{name}/training_model.lorafa.onnx"))).unwrap();
        let graph = onnx::decode(&written).graph.unwrap();
        let outputs: Vec<&str> = graph.output.iter().map(|o| o.name()).collect();
        let gradients = outputs
            .iter()
            .filter_map(|name| name.strip_prefix("grad::"));
        assert!(gradients.clone().count() >= adapters, "{outputs:?}");
        let inputs: Vec<&str> = graph.input.iter().map(|i| i.name()).collect();
        for parameter in gradients {
            assert!(!parameter.contains("lora_A"), "{parameter}");
            assert!(inputs.contains(&parameter), "{parameter}");
        }
        let left = |name: &&&str| name.contains("accumulation") || **name == "lazy_reset_grad";
        assert_eq!(inputs.iter().chain(&outputs).find(left), None);
    }
    // Its forward pass, with a backward pass of our own.
    let report = job("llama-lora").done(&["llama-lora", "--no-write", "--differentiate"]);
    for line in [
        "made by onnxruntime-training",
        "(optimizer_model.onnx)\n",
        "full       LoRA    LoRA-FA\n",
        "adapters release x",
    ] {
        assert!(report.contains(line), "{line}: {report}");
    }
    // What its producer makes with A frozen has no other method.
    let frozen = job("llama-lora-fa");
    let report = frozen.done(&["llama-lora-fa", "--no-write"]);
    assert!(report.contains("certificate: 14 of 14 adapters release x"));
    let remedy = ["no gradient of an adapter's A", "--method lora-fa"];
    frozen.refused(&["llama-lora-fa", "--method", "lora"], &remedy);
}

#[test]
fn its_optimizer_is_the_default_of_ours() {
    let job = job("roberta-lora");
    let updates = |flags: &[&str]| {
        let text = job.done(&[&["dump", "roberta-lora"], flags].concat());
        let updates = text.lines().filter(|line| line.contains(" = adamw "));
        let attributes = updates.map(|line| match line.split_once(" {") {
            Some((_, rest)) => rest.split('}').next().unwrap().to_owned(),
            None => String::new(),
        });
        let mut attributes: Vec<String> = attributes.collect();
        attributes.dedup();
        attributes
    };
    assert_eq!(updates(&[]), ["eps=1e-6, form=peft"]);
    let own = ["--eps", "1e-4", "--weight-decay", "0.1"];
    assert_eq!(updates(&own), ["eps=0.0001, form=peft, weight_decay=0.1"]);
    assert_eq!(updates(&["--optimizer", "adamw"]), [""]);
    let report = job.done(&["roberta-lora", "--no-write", "--optimizer", "lorafa"]);
    assert!(!report.contains("optimizer_model.onnx"), "{report}");
    // The file alone comes without.
    let path = format!("roberta-lora/{MODEL}");
    let report = job.done(&[&path, "--no-write"]);
    assert!(report.contains("made by onnxruntime-training"), "{report}");
    assert!(!report.contains("optimizer_model.onnx"), "{report}");

    let job = changed("roberta-lora", "optimizer_model.onnx", |model| {
        let graph = model.graph.as_mut().unwrap();
        let number = |attribute: &mut AttributeProto, f| attribute.f = Some(f);
        for attribute in &mut graph.node[0].attribute {
            match attribute.name() {
                "adam_mode" => attribute.i = Some(0),
                "weight_decay" => number(attribute, 0.01),
                _ => {}
            }
        }
        let clip = NodeProto {
            op_type: Some("InplaceClipGradNorm".into()),
            domain: Some("com.microsoft".into()),
            attribute: vec![AttributeProto {
                name: Some("max_norm".into()),
                f: Some(0.5),
                ..AttributeProto::default()
            }],
            ..NodeProto::default()
        };
        graph.node.insert(0, clip);
    });
    let report = job.done(&["roberta-lora", "--no-write", "--explain"]);
    let line =
        "AdamW, PyTorch's form, betas 0.9 and 0.999, eps 1e-6, weight decay 0.01, clipped to 0.5";
    assert!(report.contains(line), "{report}");
    assert!(
        report.contains("gradients clipped to a norm of 0.5"),
        "{report}"
    );
}

#[test]
fn optimizers_and_folders_that_are_not_known() {
    let remedy = "--optimizer";
    type Change = fn(&mut NodeProto);
    let changes: [(Change, &str); 3] = [
        (
            |node| node.op_type = Some("SGDOptimizerV2".into()),
            "com.microsoft::SGDOptimizerV2",
        ),
        (
            |node| node.attribute.iter_mut().for_each(|a| a.i = Some(7)),
            "adam_mode is 7",
        ),
        (
            |node| {
                let correct = node.attribute.iter_mut();
                correct
                    .filter(|a| a.name() == "correct_bias")
                    .for_each(|a| a.i = Some(0));
            },
            "bias",
        ),
    ];
    for (change, part) in changes {
        let job = changed("roberta-lora", "optimizer_model.onnx", |model| {
            change(&mut model.graph.as_mut().unwrap().node[0]);
        });
        job.refused(&["roberta-lora"], &["optimizer_model.onnx", part, remedy]);
        job.done(&["roberta-lora", "--no-write", "--optimizer", "adamw"]);
    }
    for nodes in [0, 2] {
        let job = changed("roberta-lora", "optimizer_model.onnx", |model| {
            let nodes_of = &mut model.graph.as_mut().unwrap().node;
            *nodes_of = vec![nodes_of[0].clone(); nodes];
        });
        job.refused(&["roberta-lora"], &["AdamWOptimizer", remedy]);
    }
    let job = Job::new();
    fs::create_dir(job.path("empty")).unwrap();
    job.refused(&["empty"], &["empty", MODEL]);
}

#[test]
fn an_operator_that_is_not_known_is_named_with_its_place() {
    let job = changed("llama-lora", MODEL, |model| {
        let nodes = &mut model.graph.as_mut().unwrap().node;
        let mut gradients = nodes.iter_mut().filter(|n| n.op_type() == "SoftmaxGrad_13");
        let node = gradients.next().unwrap();
        node.op_type = Some("FlashGrad".into());
        node.domain = Some("org.example".into());
    });
    let place = "node `/m/base_model/model/layers.1/self_attn/Softmax_Grad/SoftmaxGrad_13_0` (org.example::FlashGrad";
    let parts = [
        place,
        "in module m.base_model.model.layers.1.self_attn",
        "forward graph",
    ];
    job.refused(&["llama-lora"], &parts);
}

#[test]
fn accumulators_of_nothing() {
    const PARAM: &str = "m.base_model.model.transformer.h.0.attn.c_attn.lora_A.default.weight";
    let sizes = ["gpt2-lora", "--batch", "2", "--seq", "8"];
    let refused = |change: &dyn Fn(&mut ModelProto), parts: &[&str]| {
        changed("gpt2-lora", MODEL, change).refused(&sizes, parts);
    };
    job("gpt2-lora").done(&sizes);
    refused(&|m| rename(m, PARAM, "m.other"), &[PARAM, "no such input"]);
    let buffer = format!("{PARAM}_grad.accumulation.buffer");
    refused(
        &|m| rename(m, &buffer, "sum"),
        &["`sum`", "accumulation.buffer", "whose gradient"],
    );
    refused(
        &|m| {
            let inputs = &mut m.graph.as_mut().unwrap().input;
            inputs.retain(|input| input.name() != buffer);
        },
        &[&buffer, "is no input"],
    );
    refused(
        &|m| accumulators(m)[0].input.truncate(1),
        &["no buffer and gradient"],
    );
    refused(
        &|m| {
            let mut accumulators = accumulators(m);
            let first = accumulators[0].input.clone();
            accumulators[1].input = first;
        },
        &[PARAM, "InPlaceAccumulatorV2", "as node"],
    );
    refused(
        &|m| {
            let nodes = &mut m.graph.as_mut().unwrap().node;
            let add = nodes.iter_mut().find(|n| n.op_type() == "Add").unwrap();
            add.input[1] = buffer.clone();
        },
        &["(Add, ", &buffer, "accumulators alone"],
    );
    let gradient = format!("{PARAM}_grad");
    refused(
        &|m| {
            accumulators(m)
                .iter_mut()
                .for_each(|n| n.input[1] = n.input[1].replace(&gradient, "x"))
        },
        &["`x`"],
    );
}

#[test]
fn inputs_that_may_be_weights_or_data() {
    const FIRST: &str = "m.base_model.model.model.embed_tokens.weight";
    let job = changed("llama-lora", MODEL, |m| rename(m, FIRST, "embedding"));
    job.refused(
        &["llama-lora"],
        &["`embedding`", "frozen weight or data", "module path"],
    );
    // A parameter among the data.
    let job = changed("llama-lora", MODEL, |m| {
        for node in accumulators(m) {
            node.input[0] = node.input[0].replace(
                "m.base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight",
                "labels",
            );
        }
        let of = |name: &str| format!("{name}_grad.accumulation.buffer");
        let a = of("m.base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight");
        rename(m, &a, &of("labels"));
    });
    job.refused(&["llama-lora"], &["labels", "among the data"]);
    let job = changed("llama-lora", MODEL, |m| {
        let inputs = &mut m.graph.as_mut().unwrap().input;
        let mask = inputs.remove(1);
        assert_eq!(mask.name(), "attention_mask");
        let mut symbolic = onnx::decode(&example(&format!("ort/gpt2-lora/{MODEL}")));
        let mut symbolic = symbolic.graph.take().unwrap().input.swap_remove(1);
        symbolic.name = mask.name;
        inputs.insert(10, symbolic);
    });
    job.refused(
        &["llama-lora"],
        &["`attention_mask`", "after the first weight"],
    );
}

#[test]
fn which_output_is_the_loss() {
    let seed = |name: &str| TensorProto {
        name: Some(name.into()),
        data_type: Some(1),
        float_data: vec![1.0],
        ..TensorProto::default()
    };
    let job = changed("roberta-lora", MODEL, |m| {
        m.graph
            .as_mut()
            .unwrap()
            .initializer
            .push(seed("logits_grad"));
        // The node that gives a value of that name gives another one.
        let nodes = m.graph.as_mut().unwrap().node.iter_mut();
        for name in nodes.flat_map(|n| n.output.iter_mut().chain(&mut n.input)) {
            if name == "logits_grad" {
                *name = "d_logits".into();
            }
        }
    });
    job.refused(
        &["roberta-lora"],
        &["onnx::loss::2, logits could each be the loss"],
    );
    let job = changed("roberta-lora", MODEL, |m| {
        rename(m, "onnx::loss::2_grad", "one")
    });
    job.refused(
        &["roberta-lora"],
        &["onnx::loss::2, logits", "`<loss>_grad`"],
    );
}
