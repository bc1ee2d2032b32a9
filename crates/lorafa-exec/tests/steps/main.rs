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

/// One step, in the arena and with an allocation for everything: the same bits, and PyTorch's loss and gradients. The errors
/// are relative.
fn held_against_pytorch(model: &Model, answers: &Tensors, options: Options) -> (f64, f64) {
    let method = options.method;
    let apart: Vec<&str> = options.disabled.iter().copied().collect();
    let label = format!("{} {} without {apart:?}", model.name, method.name());
    let graph = Arc::new(models::compiled_with(model, options));
    let mut arena = start(model, &graph, answers, Mode::Arena);
    let mut separate = start(model, &graph, answers, Mode::Separate);
    arena
        .step()
        .unwrap_or_else(|error| panic!("{label}: {error}"));
    separate.step().unwrap();

    let loss = graph.loss().unwrap().name.to_string();
    let loss = relative(&output(&arena, &loss), &answers["loss"].numbers());
    assert!(loss <= LOSS_TOLERANCE, "{label}: loss {loss:.1e}");
    let mut worst = 0.0f64;
    let mut trained = BTreeSet::new();
    for found in graph.outputs() {
        let name = &found.name;
        let both = [&arena, &separate].map(|program| program.output(name).unwrap());
        assert_eq!(both[0], both[1], "{label}: {name}");
        let OutputKind::Gradient(_) = found.kind else {
            continue;
        };
        let gradient = model.canonical(name.trim_start_matches("grad::"));
        let expected = answers[&format!("grad::{gradient}")].numbers();
        trained.insert(gradient);
        let norm = expected.iter().map(|x| x * x).sum::<f64>().sqrt();
        if norm >= NOISE {
            let error = relative(&output(&arena, name), &expected);
            let what = format!("{label}: {name} {error:.1e}, norm {norm:.1e}");
            assert!(error <= GRADIENT_TOLERANCE, "{what}");
            worst = worst.max(error);
        }
    }
    assert_eq!(trained, models::trained(method, answers), "{label}");
    (loss, worst)
}

/// Holds one step of every model for each of the methods that it has answers for; `methods` gets the model's number.
fn all_held(
    methods: impl Fn(usize) -> Vec<Method>,
    change: impl Fn(&mut Options),
    least: usize,
    what: &str,
) {
    let mut errors = Vec::new();
    let models = models::all();
    let models = models.iter().filter(|model| model.is_comparable());
    for (index, model) in models.enumerate() {
        for method in methods(index) {
            if let Some(answers) = model.answers(method) {
                let mut options = models::keeping_gradients(model, method, &answers);
                change(&mut options);
                errors.push(held_against_pytorch(model, &answers, options));
            }
        }
    }
    let worst = |of: fn(&(f64, f64)) -> f64| errors.iter().map(of).fold(0.0, f64::max);
    let (loss, gradient) = (worst(|e| e.0), worst(|e| e.1));
    let done = errors.len();
    println!("{what}: {done} steps, loss {loss:.1e}, gradient {gradient:.1e} at worst");
    assert!(done >= least, "{what}: {done}");
}

#[test]
fn losses_and_gradients_are_those_of_pytorch() {
    all_held(|_| METHODS.to_vec(), |_| {}, 45, "all passes");
}

#[test]
fn those_of_packed_products_are_too() {
    let methods = |_| vec![Method::Lora, Method::LoraFa];
    let packed = |options: &mut Options| options.pack_frozen = true;
    all_held(methods, packed, 30, "packed products");
}

/// Without any pass that no other needs, and with each of them alone; the models take turns with the methods.
#[test]
fn those_of_each_pass_alone_are_too() {
    for (turn, (alone, others)) in models::alone().into_iter().enumerate() {
        let change = |options: &mut Options| {
            options.disabled = others.clone();
            options.pack_frozen = true;
        };
        let method = |index| vec![METHODS[(index + turn) % METHODS.len()]];
        all_held(method, change, 12, alone);
    }
}

/// Whose backward pass others wrote, with and without what no pass needs.
#[test]
fn those_of_training_graphs_are_too() {
    let (_, optional) = models::alone().swap_remove(0);
    let ort = models::ort().into_iter().map(|(model, _)| model);
    let models: Vec<Model> = models::joint().into_iter().chain(ort).collect();
    for (model, method) in models
        .iter()
        .flat_map(|m| m.methods().iter().map(move |n| (m, *n)))
    {
        let answers = model.answers(method).unwrap();
        for (pack_frozen, disabled) in [
            (false, BTreeSet::new()),
            (true, BTreeSet::new()),
            (false, optional.clone()),
        ] {
            let options = Options {
                pack_frozen,
                disabled,
                ..models::keeping_gradients(model, method, &answers)
            };
            held_against_pytorch(model, &answers, options);
        }
    }
    assert!(models.len() >= 9);
}
