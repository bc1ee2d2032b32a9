//! Optimizers, clipping and accumulation against PyTorch's and PEFT's own runs, which `optimizer/expected.py` makes.

use crate::models::{self, Model, bindings, compiled_with};
use crate::numbers::{Tensor, Tensors, read, relative};
use crate::training::param;
use crate::{output, start};

use lorafa_exec::{ExecError, Mode, OpenDevice, Program, write_inverses};
use lorafa_ir::ops::Role;
use lorafa_ir::{DType, Graph};
use lorafa_onnx::dtype::{decode, encode};
use lorafa_passes::attach_optimizer::{OptimizerKind, OptimizerOptions};
use lorafa_passes::pass::{Method, Options};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

const STEPS: usize = 20;
const PARTS: usize = 3;
const LR: f32 = 1e-3;

fn expected() -> Tensors {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/steps/optimizer");
    read(&folder.join("expected.safetensors")).unwrap()
}

/// A micro-batch by input names.
fn batch(expected: &Tensors, i: usize) -> Tensors {
    let prefix = format!("batch.{i}::");
    let inputs = expected.iter().filter_map(|(name, tensor)| {
        let name = format!("input::{}", name.strip_prefix(&prefix)?);
        Some((name, tensor.clone()))
    });
    inputs.collect()
}

/// The labels that count: of each row, all but the first one.
fn labels(batch: &Tensors) -> f64 {
    let labels = &batch["input::labels"];
    let rows = labels.numbers();
    let counted = rows.chunks(labels.shape[1]).flat_map(|row| &row[1..]);
    counted.filter(|label| **label >= 0.0).count() as f64
}

fn model() -> Model {
    let name = "llama-tiny-lora-r4-dynamo-noopt-sdpa-fp32-eval-loss-dyn";
    let mut models = models::all().into_iter();
    models.find(|model| model.name == name).unwrap()
}

fn write(program: &mut Program, name: &str, value: f64) {
    program.write(name, &encode(DType::F32, [value])).unwrap();
}

/// Holds our run against theirs, with products packed and apart.
fn follow(run: &str, method: Method, optimizer: OptimizerOptions) {
    for pack_frozen in [false, true] {
        follow_packed(run, method, optimizer, pack_frozen);
    }
}

/// Prints the worst errors, too: of losses and norms, and of parameters.
fn follow_packed(run: &str, method: Method, optimizer: OptimizerOptions, pack_frozen: bool) {
    let (model, expected) = (model(), expected());
    let first = batch(&expected, 0);
    let options = Options {
        optimizer,
        pack_frozen,
        ..models::options(&model, method, bindings(&model, &first))
    };
    let graph = Arc::new(compiled_with(&model, options));
    let mut program = start(&model, &graph, &first, Mode::Arena);
    write(&mut program, "optim::lr", f64::from(LR));
    write_inverses(&mut program).unwrap();
    let loss = graph.loss().unwrap().name.to_string();
    let losses = expected[&format!("{run}::loss")].numbers();
    let norms = expected.get(&format!("{run}::grad_norm"));
    let norms = norms.map(Tensor::numbers);
    let mut worst = (0.0f64, 0.0f64);
    for step in 0..STEPS {
        let parts = if optimizer.accumulate { PARTS } else { 1 };
        let parts = (0..parts).map(|part| batch(&expected, step * PARTS + part));
        let parts: Vec<Tensors> = parts.collect();
        let all: f64 = parts.iter().map(labels).sum();
        let number = step as i64 + 1;
        program.write("optim::step", &number.to_le_bytes()).unwrap();
        let mut found = 0.0;
        for (i, part) in parts.iter().enumerate() {
            for (name, tensor) in part {
                let name = name.trim_start_matches("input::");
                program.write(name, &tensor.bytes).unwrap();
            }
            let weight = labels(part) / all;
            if optimizer.accumulate {
                write(&mut program, "optim::keep", f64::from(u8::from(i > 0)));
                write(&mut program, "optim::weight", weight);
            }
            if i + 1 < parts.len() {
                program.micro_step().unwrap();
            } else {
                program.step().unwrap();
            }
            found += weight * output(&program, &loss)[0];
        }
        let error = relative(&[found], &losses[step..=step]);
        assert!(error <= 1e-5, "{run}: loss of step {step}: {error:.1e}");
        worst.0 = worst.0.max(error);
        if let Some(norms) = &norms {
            let error = relative(&output(&program, "grad_norm"), &norms[step..=step]);
            assert!(error <= 1e-5, "{run}: norm of step {step}: {error:.1e}");
            worst.0 = worst.0.max(error);
        }
    }
    // Rounded to bf16, the last bit of another processor's f32 shows.
    let limit = match optimizer.projection {
        DType::BF16 => 1e-3,
        _ => 1e-4,
    };
    let prefix = format!("{run}::param::");
    let mut trained = 0;
    for (name, tensor) in &expected {
        let Some(name) = name.strip_prefix(&prefix) else {
            continue;
        };
        let error = relative(&param(&program, name), &tensor.numbers());
        assert!(error <= limit, "{run}: {name} {error:.1e}");
        worst.1 = worst.1.max(error);
        trained += 1;
    }
    let roles = graph.params().filter(|(_, p)| p.role == Role::Trained);
    assert_eq!(trained, roles.count(), "{run}");
    let trace = program.step_traced().unwrap();
    assert_eq!(trace.allocations, [], "{run}");
    println!("{run}: loss {:.1e}, parameters {:.1e}", worst.0, worst.1);
}

#[test]
fn full_fine_tuning_with_weight_decay_is_pytorchs() {
    let optimizer = OptimizerOptions {
        weight_decay: 0.01,
        ..OptimizerOptions::default()
    };
    follow("full", Method::Full, optimizer);
}

#[test]
fn clipping_is_pytorchs() {
    let optimizer = OptimizerOptions {
        max_grad_norm: Some(0.1),
        ..OptimizerOptions::default()
    };
    follow("clip", Method::Lora, optimizer);
}

#[test]
fn accumulated_micro_batches_are_one_batch() {
    let optimizer = OptimizerOptions {
        accumulate: true,
        ..OptimizerOptions::default()
    };
    follow("accumulate", Method::Lora, optimizer);
}

#[test]
fn the_lora_fa_optimizer_is_pefts() {
    let lorafa = OptimizerOptions {
        weight_decay: 0.1,
        ..OptimizerOptions::new(OptimizerKind::LoraFa)
    };
    follow("lorafa", Method::LoraFa, lorafa);
    let optimizer = OptimizerOptions {
        max_grad_norm: Some(0.1),
        accumulate: true,
        ..lorafa
    };
    follow("lorafa-clip-accumulate", Method::LoraFa, optimizer);
}

/// As PEFT's users have it: under autocast.
#[test]
fn the_lora_fa_optimizer_is_pefts_in_bf16() {
    let optimizer = OptimizerOptions {
        projection: DType::BF16,
        ..OptimizerOptions::new(OptimizerKind::LoraFa)
    };
    follow("lorafa-bf16", Method::LoraFa, optimizer);
}

/// Updates within the backward pass and after it are the same to the bit. They wait where gradients are clipped, here to a
/// norm that none has, and where they are accumulated, here of one micro-batch.
#[test]
fn when_parameters_are_updated_makes_no_difference() {
    let mut done = 0;
    for model in models::all() {
        if !model.name.contains("-lora-") || model.name.contains("-ts-") {
            continue;
        }
        for (method, kind) in [
            (Method::Full, OptimizerKind::AdamW),
            (Method::Lora, OptimizerKind::AdamW),
            (Method::LoraFa, OptimizerKind::LoraFa),
        ] {
            let mut answers = model.any_answers(method);
            answers.retain(|name, _| name.starts_with("input::"));
            for dtype in [None, Some(DType::BF16)] {
                let trained = |max_grad_norm, accumulate| {
                    let optimizer = OptimizerOptions {
                        weight_decay: 0.1,
                        max_grad_norm,
                        accumulate,
                        ..OptimizerOptions::new(kind)
                    };
                    let options = Options {
                        dtype,
                        optimizer,
                        ..models::options(&model, method, bindings(&model, &answers))
                    };
                    three_steps(&model, compiled_with(&model, options), &answers)
                };
                let label = format!("{} {} {dtype:?}", model.name, method.name());
                let within = trained(None, false);
                for after in [trained(Some(1e30), false), trained(None, true)] {
                    for (name, bytes) in &within {
                        assert!(after[name] == *bytes, "{label}: {name}");
                    }
                }
                done += 1;
            }
        }
    }
    assert!(done >= 20, "{done}");
}

/// Parameters and state after three steps.
fn three_steps(model: &Model, graph: Graph, answers: &Tensors) -> BTreeMap<String, Vec<u8>> {
    let mut program = start(model, &Arc::new(graph), answers, Mode::Arena);
    write_inverses(&mut program).unwrap();
    let names: Vec<String> = program.params().map(str::to_string).collect();
    for (name, value) in [
        ("optim::lr", 1e-2),
        ("optim::keep", 0.0),
        ("optim::weight", 1.0),
    ] {
        if names.iter().any(|n| n == name) {
            write(&mut program, name, value);
        }
    }
    for step in 1..=3i64 {
        program.write("optim::step", &step.to_le_bytes()).unwrap();
        program.step().unwrap();
    }
    let bytes = |name: String| {
        let (_, bytes) = program.param(&name).unwrap();
        (name, bytes)
    };
    names.into_iter().map(bytes).collect()
}

/// In 16 bits, too: what goes through blocks and copies.
#[test]
fn all_of_it_in_bf16_allocates_nothing() {
    let model = model();
    for (method, kind, pack_frozen) in [
        (Method::Full, OptimizerKind::AdamW, false),
        (Method::LoraFa, OptimizerKind::LoraFa, false),
        (Method::LoraFa, OptimizerKind::LoraFa, true),
    ] {
        let options = Options {
            pack_frozen,
            dtype: Some(DType::BF16),
            optimizer: OptimizerOptions {
                weight_decay: 0.1,
                max_grad_norm: Some(0.1),
                accumulate: true,
                ..OptimizerOptions::new(kind)
            },
            ..models::options(&model, method, models::sizes(&model, 24, 30))
        };
        let graph = Arc::new(compiled_with(&model, options));
        let mut program = start(&model, &graph, &Tensors::new(), Mode::Arena);
        program
            .write("attention_mask", &encode(DType::I64, vec![1.0; 24 * 30]))
            .unwrap();
        write_inverses(&mut program).unwrap();
        for (name, value) in [
            ("optim::lr", 1e-3),
            ("optim::keep", 0.0),
            ("optim::weight", 1.0),
        ] {
            write(&mut program, name, value);
        }
        program.step().unwrap();
        let trace = program.step_traced().unwrap();
        assert_eq!(trace.allocations, []);
        for output_name in ["loss", "grad_norm"] {
            let found = output(&program, output_name)[0];
            assert!(found.is_finite(), "{output_name}: {found}");
        }
    }
}

/// The pseudoinverse `P` of `M` has `P·M·P = P`, whatever the rank of A.
#[test]
fn inverses_are_of_any_a() -> Result<(), ExecError> {
    let text = "graph @inverse {
        param %a : f32[3,4] frozen
        param %optim::inverse::a : f32[3,3] optstate
        v0 = add %optim::inverse::a, %optim::inverse::a : f32[3,3]
        out \"y\" = v0
      }";
    let graph = Arc::new(lorafa_ir::text::parse(text).unwrap());
    let plan = lorafa_plan::plan(&graph).unwrap();
    let mut program = Program::compile(graph, &plan, Mode::Arena, OpenDevice::CPU)?;
    let full = [
        1.0, 2.0, 0.5, 0.0, -1.0, 1.0, 1.0, 3.0, 0.0, 0.25, -2.0, 1.0,
    ];
    let mut twice = full;
    twice.copy_within(0..4, 4);
    for a in [full, twice] {
        program.write("a", &encode(DType::F32, a))?;
        write_inverses(&mut program)?;
        let (_, bytes) = program.param("optim::inverse::a")?;
        let p = decode(DType::F32, &bytes);
        let row = |i: usize| &a[4 * i..4 * i + 4];
        let gram = |i: usize, j: usize| {
            let products = row(i).iter().zip(row(j)).map(|(x, y)| x * y);
            products.sum::<f64>()
        };
        let again = (0..9).map(|n| {
            let (i, l) = (n / 3, n % 3);
            let terms = (0..9).map(|n| p[3 * i + n / 3] * gram(n / 3, n % 3) * p[3 * (n % 3) + l]);
            terms.sum()
        });
        assert!(relative(&again.collect::<Vec<f64>>(), &p) < 1e-5);
    }
    program.write("a", &encode(DType::F32, [f64::NAN; 12]))?;
    assert!(write_inverses(&mut program).is_err());
    Ok(())
}
