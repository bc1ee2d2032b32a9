//! Real models with damage: each is refused with a message, or becomes a valid training step.

mod common;

use clap::Parser;
use common::{Job, example, onnx};
use lorafa_cli::args::Cli;
use lorafa_cli::run;
use lorafa_onnx::file::ModelFile;
use lorafa_onnx::proto::{ModelProto, NodeProto};
use proptest::prelude::*;
use std::fs;

const MODELS: [&str; 7] = [
    "llama-tiny-lora-r4-ts-fold-sdpa-fp32-eval-logits-dyn.onnx",
    "llama-tiny-plain-dynamo-opt-sdpa-fp32-eval-logits-static.onnx",
    "gpt2-tiny-lora-r4-dynamo-opt-sdpa-fp32-eval-loss-dyn.onnx",
    "roberta-tiny-plain-dynamo-opt-sdpa-fp32-eval-logits-dyn.onnx",
    "joint/llama-tiny-lora-r4-joint-opt-eager-fp32-eval-loss-static-zeroB.onnx",
    "ort/gpt2-lora/training_model.onnx",
    "ort/llama-lora/training_model.onnx",
];

/// Damaged models a property: some seconds in a debug build.
const CASES: u32 = 512;

/// Compiles a file with this content, in this process: a panic fails the test.
fn error_or_valid(content: &[u8]) -> Result<(), TestCaseError> {
    let job = Job::new();
    let (model, out) = (job.path("model.onnx"), job.path("out.onnx"));
    fs::write(&model, content).unwrap();
    let args = [
        "lorafa-opt",
        model.to_str().unwrap(),
        "--rank",
        "4",
        "--batch",
        "2",
        "--seq",
        "8",
    ];
    let cli = Cli::parse_from(args.into_iter().chain(["-o", out.to_str().unwrap()]));
    let mut report = Vec::new();
    match run(&cli, &mut report) {
        Err(error) => {
            prop_assert!(!error.to_string().is_empty());
            prop_assert!(report.is_empty());
            prop_assert!(!out.exists(), "refused, but written: {error}");
        }
        Ok(()) => {
            let written = ModelFile::open(&out);
            prop_assert!(
                written.is_ok(),
                "written, but not readable: {:?}",
                written.err()
            );
        }
    }
    Ok(())
}

/// New values for bytes somewhere in a file.
fn edits() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)
}

/// Damage to the graph, so that what decodes is wrong.
#[derive(Clone, Debug)]
enum Damage {
    DropNode(prop::sample::Index),
    SwapOps(prop::sample::Index, prop::sample::Index),
    Rewire(prop::sample::Index, prop::sample::Index),
    DropInput(prop::sample::Index),
    DropAttributes(prop::sample::Index),
    ChangeAttribute(prop::sample::Index, i64),
    ChangeShape(prop::sample::Index, i64),
    DropWeight(prop::sample::Index),
    ChangeType(prop::sample::Index, i32),
    DropOutput(prop::sample::Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    use Damage::*;
    let at = any::<prop::sample::Index>;
    prop_oneof![
        at().prop_map(DropNode),
        (at(), at()).prop_map(|(a, b)| SwapOps(a, b)),
        (at(), at()).prop_map(|(a, b)| Rewire(a, b)),
        at().prop_map(DropInput),
        at().prop_map(DropAttributes),
        (at(), any::<i64>()).prop_map(|(a, n)| ChangeAttribute(a, n)),
        (at(), -3i64..1 << 40).prop_map(|(a, n)| ChangeShape(a, n)),
        at().prop_map(DropWeight),
        (at(), 0i32..25).prop_map(|(a, n)| ChangeType(a, n)),
        at().prop_map(DropOutput),
    ]
}

fn apply(model: &mut ModelProto, damage: &Damage) {
    let graph = model.graph.as_mut().unwrap();
    let nodes = graph.node.len();
    match damage {
        Damage::DropNode(at) if nodes > 0 => drop(graph.node.remove(at.index(nodes))),
        Damage::SwapOps(a, b) if nodes > 0 => {
            let op = graph.node[a.index(nodes)].op_type.clone();
            graph.node[b.index(nodes)].op_type = op;
        }
        Damage::Rewire(a, b) if nodes > 0 => {
            let value = graph.node[a.index(nodes)].output[0].clone();
            with_input(&mut graph.node[b.index(nodes)], |input| *input = value);
        }
        Damage::DropInput(at) if nodes > 0 => {
            with_input(&mut graph.node[at.index(nodes)], String::clear);
        }
        Damage::DropAttributes(at) if nodes > 0 => graph.node[at.index(nodes)].attribute.clear(),
        Damage::ChangeAttribute(at, number) if nodes > 0 => {
            for attribute in &mut graph.node[at.index(nodes)].attribute {
                attribute.i = Some(*number);
                attribute
                    .ints
                    .iter_mut()
                    .for_each(|i| *i = i.wrapping_add(*number));
            }
        }
        Damage::ChangeShape(at, size) if !graph.initializer.is_empty() => {
            let at = at.index(graph.initializer.len());
            graph.initializer[at].dims.push(*size);
        }
        Damage::DropWeight(at) if !graph.initializer.is_empty() => {
            graph.initializer.remove(at.index(graph.initializer.len()));
        }
        Damage::ChangeType(at, code) if !graph.initializer.is_empty() => {
            let at = at.index(graph.initializer.len());
            graph.initializer[at].data_type = Some(*code);
        }
        Damage::DropOutput(at) if !graph.output.is_empty() => {
            graph.output.remove(at.index(graph.output.len()));
        }
        _ => {}
    }
}

/// Changes a node's last input.
fn with_input(node: &mut NodeProto, change: impl FnOnce(&mut String)) {
    if let Some(input) = node.input.last_mut() {
        change(input);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_bytes_are_an_error_or_a_valid_model(model in 0..MODELS.len(), edits in edits()) {
        let mut content = example(MODELS[model]);
        for (at, byte) in edits {
            let at = at.index(content.len());
            content[at] = byte;
        }
        error_or_valid(&content)?;
    }

    #[test]
    fn damaged_graphs_are_an_error_or_a_valid_model(
        model in 0..MODELS.len(),
        damages in prop::collection::vec(damage(), 1..4),
    ) {
        let mut model = onnx::decode(&example(MODELS[model]));
        damages.iter().for_each(|damage| apply(&mut model, damage));
        error_or_valid(&onnx::encode(&model))?;
    }
}
