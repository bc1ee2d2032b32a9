//! Several steps, one after the other.

use crate::models::{self, METHODS, Model, compiled, compiled_with};
use crate::numbers::{Tensor, Tensors, read, relative};
use crate::{output, start};

use lorafa_exec::{Mode, Program, write_inverses};
use lorafa_ir::{DType, OutputKind, ops};
use lorafa_onnx::dtype::decode;
use lorafa_onnx::file::ModelFile;
use lorafa_passes::attach_optimizer::{OptimizerKind, OptimizerOptions};
use lorafa_passes::pass::{Method, Options};
use std::collections::BTreeSet;
use std::sync::Arc;

const STEPS: i64 = 20;

/// `torch.optim.AdamW`'s formula in f64, fed with the gradients of the run.
struct AdamW {
    p: Vec<f64>,
    m: Vec<f64>,
    v: Vec<f64>,
}

impl AdamW {
    fn step(&mut self, g: &[f64], step: i64, lr: f64) {
        let (beta1, beta2, eps) = (0.9f64, 0.999f64, 1e-8);
        let (c1, c2) = (1.0 - beta1.powi(step as i32), 1.0 - beta2.powi(step as i32));
        for (i, g) in g.iter().enumerate() {
            self.m[i] = beta1 * self.m[i] + (1.0 - beta1) * g;
            self.v[i] = beta2 * self.v[i] + (1.0 - beta2) * g * g;
            self.p[i] -= lr / c1 * self.m[i] / ((self.v[i] / c2).sqrt() + eps);
        }
    }
}

pub fn param(program: &Program, name: &str) -> Vec<f64> {
    let (ty, bytes) = program.param(name).unwrap();
    decode(ty.dtype, &bytes)
}

#[test]
fn twenty_steps_follow_the_formula_of_adamw() {
    let lr = 1e-2f32;
    let mut worst = 0.0f64;
    let models = models::all();
    for family in ["llama", "gpt2", "roberta", "t5"] {
        let lora =
            |m: &&Model| m.family() == family && m.is_comparable() && m.name.contains("lora");
        let model = models.iter().find(lora).unwrap();
        for method in METHODS {
            let answers = model.answers(method).unwrap();
            let graph = Arc::new(compiled(model, method, &answers));
            let mut program = start(model, &graph, &answers, Mode::Arena);
            program.write("optim::lr", &lr.to_le_bytes()).unwrap();
            let trained: Vec<(String, String)> = graph
                .outputs()
                .iter()
                .filter_map(|output| match output.kind {
                    OutputKind::Gradient(p) => {
                        Some((output.name.to_string(), graph.param(p)?.name.to_string()))
                    }
                    _ => None,
                })
                .collect();
            let begin = |(_, name): &(String, String)| {
                let p = param(&program, name);
                let zeros = vec![0.0; p.len()];
                let (m, v) = (zeros.clone(), zeros);
                AdamW { p, m, v }
            };
            let mut expected: Vec<AdamW> = trained.iter().map(begin).collect();
            let first: Vec<Vec<f64>> = expected.iter().map(|e| e.p.clone()).collect();
            let loss = graph.loss().unwrap().name.to_string();
            let mut losses = Vec::new();
            for step in 1..=STEPS {
                program.write("optim::step", &step.to_le_bytes()).unwrap();
                program.step().unwrap();
                losses.push(output(&program, &loss)[0]);
                for ((gradient, _), adamw) in trained.iter().zip(&mut expected) {
                    adamw.step(&output(&program, gradient), step, f64::from(lr));
                }
            }
            let label = format!("{} {}", model.name, method.name());
            assert!(losses.iter().all(|loss| loss.is_finite()), "{label}");
            assert!(losses[19] < losses[0], "{label}: {losses:?}");
            for (((_, name), adamw), first) in trained.iter().zip(&expected).zip(&first) {
                let change = |p: &[f64]| p.iter().zip(first).map(|(a, b)| a - b).collect();
                let (found, wanted): (Vec<f64>, Vec<f64>) =
                    (change(&param(&program, name)), change(&adamw.p));
                // What rounding the parameter itself does to a change that is much smaller.
                let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
                let rounding = STEPS as f64 * f64::from(f32::EPSILON) * norm(&adamw.p);
                let error = relative(&found, &wanted);
                let limit = 1e-4 + rounding / norm(&wanted);
                assert!(error < limit, "{label}: {name} {error:.1e}");
                worst = worst.max(error);
            }
        }
    }
    println!("change of a parameter over {STEPS} steps: {worst:.1e} at worst");
}

/// What PyTorch did with a model: `examples/runs.py` says what the files hold.
struct Runs {
    tensors: Tensors,
    json: serde_json::Value,
}

impl Runs {
    fn of(model: &Model) -> Option<Runs> {
        let file = |end: &str| {
            let name = format!("{}-train.{end}", model.family());
            model.folder.join(name)
        };
        let tensors = read(&file("safetensors"))?;
        let json = std::fs::read(file("json")).unwrap();
        let json = serde_json::from_slice(&json).unwrap();
        Some(Runs { tensors, json })
    }

    fn batch(&self, i: usize) -> Tensors {
        let prefix = format!("batch.{i}::");
        let of = |(name, tensor): (&String, &Tensor)| {
            let name = format!("input::{}", name.strip_prefix(&prefix)?);
            Some((name, tensor.clone()))
        };
        self.tensors.iter().filter_map(of).collect()
    }

    /// Runs the same updates; gives the worst errors: of losses, and of what was trained. `change` may choose passes.
    fn follow(&self, model: &Model, run: &Run, change: impl Fn(&mut Options)) -> (f64, f64) {
        let first = self.batch(0);
        // As the scripts have it that made the files.
        let optimizer = OptimizerOptions {
            eps: 1e-6,
            projection: DType::BF16,
            ..OptimizerOptions::new(run.kind)
        };
        let mut options = Options {
            optimizer,
            ..models::options(model, run.method, models::bindings(model, &first))
        };
        change(&mut options);
        let graph = Arc::new(compiled_with(model, options));
        let mut program = start(model, &graph, &first, Mode::Arena);
        let lr = self.json["lr"].as_f64().unwrap() as f32;
        program.write("optim::lr", &lr.to_le_bytes()).unwrap();
        let loss = graph.loss().unwrap().name.to_string();
        let label = format!("{} {}", model.name, run.name);
        write_inverses(&mut program).unwrap();
        // With AdamW they train adapters alone.
        let kept: Vec<(String, Vec<u8>)> = graph
            .params()
            .filter(|(_, p)| p.role == ops::Role::Trained && !p.name.contains("lora_"))
            .filter(|_| run.kind == OptimizerKind::AdamW)
            .map(|(_, p)| (p.name.to_string(), program.param(&p.name).unwrap().1))
            .collect();
        let mut worst = (0.0f64, 0.0f64);
        let losses = self.json["methods"][run.name].as_array().unwrap();
        assert_eq!(losses.len(), STEPS as usize, "{label}");
        for (i, expected) in losses.iter().enumerate() {
            for (name, tensor) in self.batch(i) {
                let name = name.trim_start_matches("input::");
                if program.params().any(|p| p == name) {
                    program.write(name, &tensor.bytes).unwrap();
                }
            }
            program
                .write("optim::step", &(i as i64 + 1).to_le_bytes())
                .unwrap();
            program.step().unwrap();
            for (name, bytes) in &kept {
                program.write(name, bytes).unwrap();
            }
            let expected = expected.as_f64().unwrap();
            let error = (output(&program, &loss)[0] - expected).abs() / expected;
            assert!(error <= 1e-5, "{label}: step {i}: {error:.1e}");
            worst.0 = worst.0.max(error);
        }
        let prefix = format!("{}::", run.name);
        let mut compared = 0;
        for (name, tensor) in &self.tensors {
            let Some(name) = name.strip_prefix(&prefix) else {
                continue;
            };
            let mut names = program.params();
            let found = names.find(|p| model.canonical(p) == name);
            let found = found.unwrap_or_else(|| panic!("{label}: no {name}"));
            let error = relative(&param(&program, found), &tensor.numbers());
            assert!(error <= run.limit, "{label}: {name} {error:.1e}");
            worst.1 = worst.1.max(error);
            compared += 1;
        }
        let trained = graph.params().filter(|(_, p)| p.name.contains("lora_"));
        let trained = trained.filter(|(_, p)| p.role == ops::Role::Trained);
        assert!(compared >= trained.count(), "{label}");
        worst
    }
}

struct Run {
    name: &'static str,
    method: Method,
    kind: OptimizerKind,
    /// The error of what was trained. Rounded to bf16, the last bit of another processor's f32 shows.
    limit: f64,
}

const RUNS: [Run; 3] = [
    Run {
        name: "lora-adamw",
        method: Method::Lora,
        kind: OptimizerKind::AdamW,
        limit: 1e-4,
    },
    Run {
        name: "lorafa-adamw",
        method: Method::LoraFa,
        kind: OptimizerKind::AdamW,
        limit: 1e-4,
    },
    Run {
        name: "lorafa-peft",
        method: Method::LoraFa,
        kind: OptimizerKind::LoraFa,
        limit: 1e-3,
    },
];

/// What PyTorch did with a model, if we can follow it.
fn runs_of(model: &Model) -> Option<Runs> {
    let noisy = ["zeroB", "nomask"].iter().any(|v| model.name.contains(v));
    let follows = !noisy && model.is_comparable() && model.name.contains("lora");
    follows.then(|| Runs::of(model))?
}

/// One model a family, without any optional pass and with each alone; the runs take turns.
#[test]
fn twenty_steps_with_each_pass_alone_follow_pytorch() {
    let mut models = models::all();
    models.dedup_by(|a, b| a.family() == b.family() && runs_of(b).is_some());
    for (turn, (alone, others)) in models::alone().into_iter().enumerate() {
        let mut worst = (0.0f64, 0.0f64);
        let mut done = 0;
        for (model, runs) in models.iter().filter_map(|m| Some((m, runs_of(m)?))) {
            let run = &RUNS[(done + turn) % RUNS.len()];
            let errors = runs.follow(model, run, |options| {
                options.disabled = others.clone();
                options.pack_frozen = true;
            });
            worst = (worst.0.max(errors.0), worst.1.max(errors.1));
            done += 1;
        }
        println!(
            "{alone}: {done} runs, loss {:.1e}, adapters {:.1e} at worst",
            worst.0, worst.1
        );
        assert!(done >= 6, "{alone}: {done}");
    }
}

/// The runs of `examples/`, and of the folder that `LORAFA_EXTRA_MODELS` names.
#[test]
fn twenty_steps_follow_pytorch() {
    let mut worst = (0.0f64, 0.0f64);
    let (mut done, mut families) = (0, BTreeSet::new());
    let mut models = models::all();
    models.extend(models::joint());
    for model in &models {
        let Some(runs) = runs_of(model) else {
            continue;
        };
        for run in &RUNS {
            let errors = runs.follow(model, run, |_| ());
            worst = (worst.0.max(errors.0), worst.1.max(errors.1));
            done += 1;
        }
        families.insert(model.family());
    }
    println!(
        "{done} runs: loss {:.1e}, adapters {:.1e} at worst",
        worst.0, worst.1
    );
    let all = ["gpt2", "llama", "llamagqa", "qwen2", "roberta", "t5"];
    assert_eq!(families.into_iter().collect::<Vec<_>>(), all);
}

/// With the optimizer that comes with a training graph, its numbers and its form.
#[test]
fn five_steps_follow_onnxruntime_training() {
    const LR: f32 = 1e-3;
    let mut worst = (0.0f64, 0.0f64);
    for (model, folder) in models::ort() {
        let file = ModelFile::open(folder.join("optimizer_model.onnx")).unwrap();
        let adamw = lorafa_onnx::optimizer::read(&file).unwrap();
        assert_eq!(adamw.form, ops::AdamWForm::Peft, "{}", model.name);
        for method in model.methods() {
            let label = format!("{} {}", model.name, method.name());
            let answers = model.answers(*method).unwrap();
            let optimizer = OptimizerOptions {
                form: adamw.form,
                beta1: adamw.betas[0],
                beta2: adamw.betas[1],
                eps: adamw.eps,
                weight_decay: adamw.weight_decay,
                ..OptimizerOptions::default()
            };
            let options = Options {
                optimizer,
                ..models::options(&model, *method, models::bindings(&model, &answers))
            };
            let graph = Arc::new(compiled_with(&model, options));
            let mut program = start(&model, &graph, &answers, Mode::Arena);
            program.write("optim::lr", &LR.to_le_bytes()).unwrap();
            let loss = graph.loss().unwrap().name.to_string();
            let losses = match method {
                Method::Lora => &answers["losses"],
                _ => &answers["losses-lora-fa"],
            };
            for (i, expected) in losses.numbers().iter().enumerate() {
                let step = i as i64 + 1;
                program.write("optim::step", &step.to_le_bytes()).unwrap();
                program.step().unwrap();
                let error = (output(&program, &loss)[0] - expected).abs() / expected;
                assert!(error <= 1e-6, "{label}: step {i}: {error:.1e}");
                worst.0 = worst.0.max(error);
                if i > 0 {
                    continue;
                }
                for name in models::trained(*method, &answers) {
                    let [before, after] = ["param", "updated"]
                        .map(|kind| answers[&format!("{kind}::{name}")].numbers());
                    let change = |to: &[f64]| -> Vec<f64> {
                        to.iter().zip(&before).map(|(a, b)| a - b).collect()
                    };
                    let error = relative(&change(&param(&program, &name)), &change(&after));
                    assert!(error <= 1e-4, "{label}: {name} {error:.1e}");
                    worst.1 = worst.1.max(error);
                }
            }
        }
    }
    println!(
        "loss {:.1e}, first change of a parameter {:.1e} at worst",
        worst.0, worst.1
    );
}
