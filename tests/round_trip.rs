//! Steps that were written come back as they were: the same ops, numbers and certificate, and no higher peak.

#[path = "../crates/lorafa-plan/tests/arena/mod.rs"]
#[allow(dead_code)]
mod arena;
mod common;

use common::{Model, examples, joint, loss_and_gradients, options, ort, values};
use lorafa_ir::Graph;
use lorafa_ir::ops::{Op, Role};
use lorafa_onnx::export::{ExportOptions, export};
use lorafa_onnx::external::ExternalStore;
use lorafa_onnx::file::ModelFile;
use lorafa_onnx::import::import;
use lorafa_onnx::write::write_atomic;
use lorafa_passes::attach_optimizer::OptimizerOptions;
use lorafa_passes::inject_lora::InjectOptions;
use lorafa_passes::pass::{Method, Options};
use lorafa_passes::{Manager, PassCx, registry};
use lorafa_plan::{ALIGN, plan};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A step: as it is written, and with its optimizer; and the adapters of which it is proven that they release x.
struct Step {
    gradients: Graph,
    graph: Graph,
    releasing: BTreeSet<String>,
}

/// In the order that it has: in another one, `fuse-products` may join another two summands when it is read again.
fn step(model: &Model, mut options: Options) -> Step {
    options.disabled.insert("schedule-backward");
    let what = format!("{} {}", model.name, options.method.name());
    let method = options.method;
    let mut cx = PassCx::new(options);
    let mut run = |graph: &mut Graph, stage: registry::Stage| {
        let ran = Manager::new().run(stage, graph, &mut cx);
        ran.unwrap_or_else(|e| panic!("{what}: {e}"));
    };
    let mut gradients = model.graph.clone();
    run(&mut gradients, registry::PREPARE);
    let stages = registry::stages(&gradients, method);
    let (update, others) = stages.split_last().unwrap();
    for stage in others {
        run(&mut gradients, stage);
    }
    let mut graph = gradients.clone();
    run(&mut graph, update);
    let proofs = cx.certificate.into_iter().flat_map(|c| c.proofs);
    let releasing = proofs.filter(|proof| proof.kept.is_none());
    Step {
        gradients,
        graph,
        releasing: releasing.map(|proof| proof.module.to_string()).collect(),
    }
}

/// The graph, written to a file and imported.
fn back(name: &str, graph: &Graph, trained_inputs: bool) -> Model {
    let options = ExportOptions {
        store: &ExternalStore::new(Path::new(".")),
        embed_weights: false,
        trained_inputs,
        opset: 20,
    };
    let written = export(graph, &options).unwrap_or_else(|e| panic!("{name}: {e}"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("step.onnx");
    write_atomic(&path, &written).unwrap();
    let graph = import(&ModelFile::open(&path).unwrap());
    Model {
        name: name.into(),
        graph: graph.unwrap_or_else(|e| panic!("{name}: {e}")),
    }
}

/// What was written and read, as a step: it has all the adapters it will have.
fn again(read: &Model, method: Method) -> Step {
    let options = Options {
        inject: InjectOptions::default(),
        ..options(read, method)
    };
    step(read, options)
}

/// Every step that examples have.
fn steps() -> Vec<(Model, Method)> {
    let all = |model: Model, methods: &[Method]| -> Vec<(Model, Method)> {
        let again = |method: &Method| {
            let (name, graph) = (model.name.clone(), model.graph.clone());
            (Model { name, graph }, *method)
        };
        methods.iter().map(again).collect()
    };
    let methods = Method::ALL.map(|(method, _)| method);
    let own = examples().into_iter().flat_map(|m| all(m, &methods));
    let given = joint().into_iter();
    let given = given.chain(ort().into_iter().map(|(lora, _)| lora));
    own.chain(given.flat_map(|m| all(m, &[Method::Lora, Method::LoraFa])))
        .collect()
}

/// How many there are of products and of the ops that ONNX spells with many; how often norms and activations are computed
/// is up to `rematerialize`.
fn fused(graph: &Graph) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for op in graph.ops() {
        if let Op::Attention(_)
        | Op::AttentionGrad(_)
        | Op::RmsNormGrad(_)
        | Op::LayerNormGrad(_)
        | Op::GatedGrad(_)
        | Op::ActivationGrad(_)
        | Op::SoftmaxGrad(_)
        | Op::LinearCrossEntropy(_)
        | Op::LinearCrossEntropyGrad(_)
        | Op::CrossEntropyGrad(_)
        | Op::GatherGrad(_)
        | Op::MatMul(_) = op.kind
        {
            *counts.entry(op.kind.name()).or_default() += 1;
        }
    }
    counts
}

/// Bytes of tables, which arithmetic on indices becomes where dimensions are numbers from the start.
fn tables(graph: &Graph) -> u64 {
    let tables = graph.ops().filter(|op| match &op.kind {
        Op::Param(param) => param.role == Role::Constant,
        kind => matches!(kind, Op::Constant(_)),
    });
    let bytes = tables.filter_map(|op| graph.ty(op.results[0]).bytes());
    bytes.map(|bytes| bytes.next_multiple_of(ALIGN)).sum()
}

fn numbers(graph: &Graph) -> BTreeMap<String, Vec<f64>> {
    let results = arena::run(graph, &values(graph, |param| param.name.to_string())).unwrap();
    let outputs = loss_and_gradients(graph);
    outputs
        .map(|o| (o.name.to_string(), results[&o.value].data.clone()))
        .collect()
}

/// Attention that drops at random is written in parts, since a function would draw masks of its own.
fn is_written_whole(graph: &Graph) -> bool {
    graph.ops().all(|op| match &op.kind {
        Op::Attention(attention) => attention.dropout.is_none(),
        _ => true,
    })
}

#[test]
fn written_steps_come_back_as_they_were() {
    for (model, method) in steps() {
        let what = format!("{} {}", model.name, method.name());
        let first = step(&model, options(&model, method));
        let read = back(&what, &first.gradients, false);
        let again = again(&read, method);
        let [expected, found] = [&first, &again].map(|step| numbers(&step.gradients));
        assert!(expected.keys().eq(found.keys()), "{what}");
        let whole = is_written_whole(&first.gradients);
        let tolerance = if whole { 0.0 } else { 1e-6 };
        for (name, expected) in expected {
            let mut pairs = expected.iter().zip(&found[&name]);
            let same = pairs.all(|(a, b)| (a - b).abs() <= tolerance);
            assert!(same, "{what}: {name}");
        }
        if whole {
            assert_eq!(again.releasing, first.releasing, "{what}");
            assert_eq!(fused(&again.gradients), fused(&first.gradients), "{what}");
            let [before, after] = [&first, &again].map(arena_bytes);
            let folded = tables(&again.graph).saturating_sub(tables(&first.graph));
            assert!(
                after <= before + folded,
                "{what}: {before}, {after}, {folded}"
            );
        }
    }
}

fn arena_bytes(step: &Step) -> u64 {
    plan(&step.graph).unwrap().arena_bytes()
}

/// The optimizer that a file has makes way for that of the flags. Among its updates ops stand in another order, so that
/// others may be worth computing again.
#[test]
fn steps_with_an_optimizer_come_back_without() {
    for (model, method) in steps() {
        let what = format!("{} {}", model.name, method.name());
        let first = step(&model, options(&model, method));
        let optimizer = OptimizerOptions {
            keep_gradients: true,
            max_grad_norm: Some(1.0),
            ..OptimizerOptions::default()
        };
        let with = Options {
            optimizer,
            ..options(&model, method)
        };
        let with = step(&model, with).graph;
        let [without, with] = [(&first.gradients, false), (&with, true)].map(|(graph, fed)| {
            let read = back(&what, graph, fed);
            again(&read, method)
        });
        assert_eq!(with.releasing, without.releasing, "{what}");
        let [with, without] = [with, without].map(|step| arena_bytes(&step));
        assert!(
            with.abs_diff(without) * 100 <= without,
            "{what}: {with}, {without}"
        );
    }
}
