//! How equality saturation's time grows with the model: training graphs of Llama-2-7B's layer, 1 to 32 times, whose
//! gradients of B are all spelled badly, as products with the gradient of the weight.
//!
//! `cargo bench -p lorafa-cli --bench joint` prints, for each number of layers, the median time of `simplify-lora`
//! (saturation, extraction, and the peaks of the step before and after) and of the whole command, the written file included.
//! The columns an adapter are what must not grow. Sizes are measured in turn, so that a slower moment of the machine
//! hits all of them.

mod llama;

use clap::Parser;
use llama::Builder;
use lorafa_cli::args::Cli;
use lorafa_cli::run;
use lorafa_ir::layout::Views;
use lorafa_ir::ops::MatMul;
use lorafa_ir::{Adapter, Graph, Op, OutputKind, ValueId};
use lorafa_onnx::export::{ExportOptions, export};
use lorafa_onnx::external::ExternalStore;
use lorafa_onnx::file::ModelFile;
use lorafa_onnx::import::import;
use lorafa_onnx::write::write_atomic;
use lorafa_passes::pass::{Method, Options};
use lorafa_passes::{Manager, PassCx, registry};
use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

const LAYERS: [usize; 6] = [1, 2, 4, 8, 16, 32];
const ROUNDS: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let path = |layers: usize| folder.path().join(format!("{layers}.joint.onnx"));
    let mut adapters = Vec::new();
    for layers in LAYERS {
        let forward = folder.path().join("forward.onnx");
        write_atomic(&forward, &Builder::model(layers))?;
        adapters.push(write_joint(&forward, &path(layers))?);
    }
    let mut times = vec![(Vec::new(), Vec::new()); LAYERS.len()];
    for _ in 0..ROUNDS {
        for (times, layers) in times.iter_mut().zip(LAYERS) {
            times.0.push(simplify(&path(layers))?);
            times.1.push(whole(&path(layers))?);
        }
    }
    println!(
        "{:>6} {:>8} {:>17} {:>13} {:>16} {:>13}",
        "layers",
        "adapters",
        "simplify-lora, ms",
        "µs an adapter",
        "whole command, ms",
        "µs an adapter"
    );
    for ((layers, adapters), (simplify, whole)) in LAYERS.iter().zip(adapters).zip(&mut times) {
        let [simplify, whole] = [simplify, whole].map(|times| {
            times.sort_unstable();
            times[ROUNDS / 2]
        });
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let each = |time: Duration| time.as_micros() / adapters as u128;
        println!(
            "{layers:>6} {adapters:>8} {:>17.1} {:>13} {:>17.1} {:>13}",
            ms(simplify),
            each(simplify),
            ms(whole),
            each(whole)
        );
    }
    Ok(())
}

/// Writes the training graph of a model, op by op as autograd leaves it, with badly spelled gradients; its number of adapters.
fn write_joint(forward: &Path, to: &Path) -> Result<usize, Box<dyn Error>> {
    let model = ModelFile::open(forward)?;
    let mut graph = import(&model)?;
    let mut cx = PassCx::new(Options {
        method: Method::Lora,
        bindings: [("batch".into(), 2), ("seq".into(), 512)]
            .into_iter()
            .collect(),
        disabled: registry::fusions().map(|pass| pass.name()).collect(),
        ..Options::default()
    });
    for stage in [registry::PREPARE, registry::TRAIN] {
        Manager::new().run(stage, &mut graph, &mut cx)?;
    }
    let adapters = graph.adapters().to_vec();
    for adapter in &adapters {
        spoil(&mut graph, adapter)?;
    }
    let store = ExternalStore::new(model.folder());
    let options = ExportOptions {
        store: &store,
        embed_weights: false,
        trained_inputs: false,
        opset: 20,
    };
    write_atomic(to, &export(&graph, &options)?)?;
    Ok(adapters.len())
}

/// Makes the gradient of B, a product of dy with x·A, one of A with the gradient of the weight.
fn spoil(graph: &mut Graph, adapter: &Adapter) -> Result<(), Box<dyn Error>> {
    let mut outputs = graph.outputs().iter();
    let gradient = outputs.find(|o| o.kind == OutputKind::Gradient(adapter.b));
    let mut value = gradient.ok_or("B has no gradient")?.value;
    while let Op::Reshape(_) | Op::Transpose(_) | Op::Cast(_) = graph.def(value).kind {
        value = graph.def(value).operands[0];
    }
    let views = Views::of(graph);
    let is_xa = |v: ValueId| views.root(v).is_some_and(|(root, _)| root == adapter.xa);
    let op = graph.def(value);
    let (Op::MatMul(product), Op::MatMul(with_a)) = (&op.kind, &graph.def(adapter.xa).kind) else {
        return Err("the gradient of B is no product".into());
    };
    let (product, turned, id) = (*product, with_a.trans_b, op.id);
    let (l, r) = (op.operands[0], op.operands[1]);
    let a = graph.def(adapter.xa).operands[1];
    let xa = if is_xa(l) { l } else { r };
    let mut patch = graph.patch("spoil");
    patch.at(id);
    let rows = patch.ty(xa).shape[0].clone();
    let inner = patch
        .ty(adapter.x)
        .shape
        .last()
        .cloned()
        .ok_or("x is a scalar")?;
    let x = patch.reshape(adapter.x, [rows, inner])?;
    if xa == l {
        let weight = patch.matmul(x, r, true, product.trans_b)?;
        patch.rewrite(id, MatMul::new(!turned, false).into(), &[a, weight])?;
    } else {
        let weight = patch.matmul(l, x, product.trans_a, false)?;
        patch.rewrite(id, MatMul::new(false, turned).into(), &[weight, a])?;
    }
    Ok(())
}

/// The pass alone.
fn simplify(model: &Path) -> Result<Duration, Box<dyn Error>> {
    let mut graph = import(&ModelFile::open(model)?)?;
    let mut cx = PassCx::new(Options::default());
    for stage in [registry::PREPARE, registry::GIVEN] {
        Manager::new().run(stage, &mut graph, &mut cx)?;
    }
    for pass in registry::FREEZE {
        let start = Instant::now();
        Manager::new().run(&[*pass], &mut graph, &mut cx)?;
        if pass.name() == "simplify-lora" {
            return Ok(start.elapsed());
        }
    }
    Err("simplify-lora is one of the passes".into())
}

/// The main job, written file included.
fn whole(model: &Path) -> Result<Duration, Box<dyn Error>> {
    let cli = Cli::try_parse_from(["lorafa-opt", &model.display().to_string()])?;
    let start = Instant::now();
    run(&cli, &mut Vec::new())?;
    Ok(start.elapsed())
}
