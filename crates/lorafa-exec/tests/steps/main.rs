//! Whole training steps against PyTorch's answers: loss, gradients, AdamW, and the memory they take.
//!
//! `LORAFA_EXTRA_MODELS` names a folder of more models with their answers.
#![cfg(feature = "torch")]

mod dropout;
mod finite;
mod memory;
mod models;
mod numbers;
mod optimizer;
mod training;

use models::{METHODS, Model};
use numbers::{Tensors, relative};

use lorafa_exec::{Mode, OpenDevice, Program};
use lorafa_ir::OutputKind;
use lorafa_onnx::dtype::decode;
use lorafa_onnx::external::ExternalStore;
use lorafa_passes::pass::{Method, Options};
use std::collections::BTreeSet;
use std::sync::Arc;

const LOSS_TOLERANCE: f64 = 1e-6;
const GRADIENT_TOLERANCE: f64 = 1e-5;
/// Smaller gradients are rounding noise of what is zero in exact arithmetic.
const NOISE: f64 = 1e-9;

/// A step of a model with its weights and PyTorch's batch.
fn start(model: &Model, graph: &Arc<lorafa_ir::Graph>, answers: &Tensors, mode: Mode) -> Program {
    let plan = lorafa_plan::plan(graph).unwrap();
    let mut program = Program::compile(graph.clone(), &plan, mode, OpenDevice::CPU)
        .unwrap_or_else(|error| panic!("{}: {error}", model.name));
    program.load(&ExternalStore::new(&model.folder)).unwrap();
    let names: Vec<String> = program.params().map(str::to_string).collect();
    for name in names {
        for prefix in ["input::", "param::"] {
            if let Some(tensor) = answers.get(&format!("{prefix}{name}")) {
                program.write(&name, &tensor.bytes).unwrap();
            }
        }
    }
    program.write("optim::step", &1i64.to_le_bytes()).unwrap();
    program
}

fn output(program: &Program, name: &str) -> Vec<f64> {
    let (ty, bytes) = program.output(name).unwrap();
    decode(ty.dtype, &bytes)
}

#[test]
fn losses_and_gradients_are_those_of_pytorch() {
    held_against_pytorch(&models::all(), &METHODS, false, 45);
}

#[test]
fn those_of_packed_products_are_too() {
    held_against_pytorch(&models::all(), &METHODS[1..], true, 30);
}

/// Whose backward pass others wrote.
#[test]
fn those_of_training_graphs_are_too() {
    for pack_frozen in [false, true] {
        held_against_pytorch(&models::joint(), &METHODS[1..], pack_frozen, 6);
    }
}

fn held_against_pytorch(models: &[Model], methods: &[Method], pack_frozen: bool, least: usize) {
    let mut worst = (0.0f64, 0.0f64);
    let mut done = 0;
    for model in models.iter().filter(|model| model.is_comparable()) {
        for &method in methods {
            let Some(answers) = model.answers(method) else {
                continue;
            };
            let options = Options {
                pack_frozen,
                ..models::keeping_gradients(model, method, &answers)
            };
            let graph = Arc::new(models::compiled_with(model, options));
            let label = format!("{} {}", model.name, method.name());
            let mut arena = start(model, &graph, &answers, Mode::Arena);
            let mut separate = start(model, &graph, &answers, Mode::Separate);
            arena
                .step()
                .unwrap_or_else(|error| panic!("{label}: {error}"));
            separate.step().unwrap();

            let loss = graph.loss().unwrap().name.to_string();
            let error = relative(&output(&arena, &loss), &answers["loss"].numbers());
            assert!(error <= LOSS_TOLERANCE, "{label}: loss {error:.1e}");
            worst.0 = worst.0.max(error);
            let mut trained = BTreeSet::new();
            for found in graph.outputs() {
                assert_eq!(
                    arena.output(&found.name).unwrap(),
                    separate.output(&found.name).unwrap(),
                    "{label}: {}",
                    found.name
                );
                let OutputKind::Gradient(_) = found.kind else {
                    continue;
                };
                let name = model.canonical(found.name.trim_start_matches("grad::"));
                let expected = answers[&format!("grad::{name}")].numbers();
                trained.insert(name);
                let norm = expected.iter().map(|x| x * x).sum::<f64>().sqrt();
                if norm >= NOISE {
                    let error = relative(&output(&arena, &found.name), &expected);
                    assert!(
                        error <= GRADIENT_TOLERANCE,
                        "{label}: {} {error:.1e}, norm {norm:.1e}",
                        found.name
                    );
                    worst.1 = worst.1.max(error);
                }
            }
            assert_eq!(trained, models::trained(method, &answers), "{label}");
            done += 1;
        }
    }
    println!(
        "{done} steps: loss {:.1e}, gradient {:.1e} at worst",
        worst.0, worst.1
    );
    assert!(done >= least, "{done}");
}
