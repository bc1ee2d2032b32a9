//! Every example model becomes a training step of every method, whose plan is sound.

#[path = "../crates/lorafa-plan/tests/arena/mod.rs"]
mod arena;
mod common;

use common::{Model, examples, joint, loss_and_gradients, numbers, options, ort, values};
use lorafa_ir::interp::Array;
use lorafa_ir::ops::{ActivationKind, Concat, Data, ReduceKind, Role, UnaryKind};
use lorafa_ir::text::OpDisplay;
use lorafa_ir::{DType, Graph, Op, Region, ValueId};
use lorafa_onnx::dtype::decode;
use lorafa_passes::attach_optimizer::{OptimizerKind, OptimizerOptions};
use lorafa_passes::freeze_lora_a::Certificate;
use lorafa_passes::pass::{Method, Options};
use lorafa_passes::{Manager, PassCx, PassKind, registry};
use lorafa_plan::{ALIGN, Category, check, peak, plan};
use std::collections::{BTreeMap, BTreeSet};

/// A training step, and what was proven of it if it is LoRA-FA's.
fn compile(model: &Model, method: Method) -> (Graph, Option<Certificate>) {
    compile_with(model, options(model, method))
}

fn compile_with(model: &Model, options: Options) -> (Graph, Option<Certificate>) {
    let method = options.method;
    let mut graph = model.graph.clone();
    let mut cx = PassCx::new(options);
    let built = Manager::new().build(&mut graph, &mut cx);
    built.unwrap_or_else(|e| panic!("{} {}: {e}", model.name, method.name()));
    (graph, cx.certificate)
}

/// Every model with the methods that it allows.
fn all() -> Vec<(Model, &'static [Method])> {
    const METHODS: [Method; 3] = [Method::Full, Method::Lora, Method::LoraFa];
    let examples = examples().into_iter().map(|model| (model, &METHODS[..]));
    let ort = ort().into_iter().map(|(lora, _)| lora);
    let given = joint().into_iter().chain(ort);
    let given = given.map(|model| (model, &METHODS[1..]));
    examples.chain(given).collect()
}

#[test]
fn plans_of_examples_check_and_add_up() {
    for (model, methods) in all() {
        for method in methods {
            let (graph, _) = compile(&model, *method);
            checked(&graph, &format!("{} {}", model.name, method.name()));
        }
    }
}

/// Bytes at the peak of a plan that is sound.
fn checked(graph: &Graph, what: &str) -> u64 {
    let plan = plan(graph).unwrap_or_else(|e| panic!("{what}: {e}"));
    check(plan.problem(), plan.layout()).unwrap_or_else(|e| panic!("{what}: {e}"));
    let report = plan.report(graph, 0);
    assert_eq!(report.breakdown.total(), report.peak_bytes, "{what}");
    let saved: u64 = report.saved.iter().map(|s| s.bytes).sum();
    let expected = report.breakdown[Category::SavedActivations];
    assert_eq!(saved, expected, "{what}");
    assert!(report.lower_bound_bytes <= report.peak_bytes, "{what}");
    let peak = peak(graph).unwrap();
    assert_eq!(
        (peak.bytes, peak.position),
        (report.lower_bound_bytes, plan.lower_bound().position),
        "{what}"
    );
    report.peak_bytes
}

/// Without any pass that no other needs there are sound plans, too, and larger ones without all that fuse, if nothing is
/// computed again either: on a few tokens that outweighs fusions. Of full fine-tuning there gradients are at the peak, not
/// what is saved.
#[test]
fn steps_come_out_without_optional_passes() {
    let all = registry::all().into_iter();
    let optional = all.filter(|pass| pass.kind() == PassKind::Equivalence);
    let mut left_out: Vec<BTreeSet<&str>> = optional.map(|p| BTreeSet::from([p.name()])).collect();
    let fusions: BTreeSet<&str> = registry::fusions().map(|pass| pass.name()).collect();
    assert!(left_out.len() > fusions.len());
    let again = BTreeSet::from(["rematerialize"]);
    let apart: BTreeSet<&str> = fusions.union(&again).copied().collect();
    left_out.push(apart.clone());
    for model in examples() {
        for (method, name) in Method::ALL {
            // Of the few positions of other tests an attention's scratch is more than all its scores.
            let mut options = options(&model, method);
            let seq = options.bindings.values_mut().filter(|size| **size == 8);
            seq.for_each(|size| *size = 32);
            let mut peaks = BTreeMap::new();
            for disabled in &left_out {
                let what = format!("{} {name} without {disabled:?}", model.name);
                let options = Options {
                    disabled: disabled.clone(),
                    ..options.clone()
                };
                let (graph, certificate) = compile_with(&model, options);
                assert_eq!(certificate.is_some(), method == Method::LoraFa, "{what}");
                peaks.insert(disabled, checked(&graph, &what));
            }
            let (fused, apart) = (peaks[&again], peaks[&apart]);
            let larger = method != Method::Full;
            let what = format!("{} {name}", model.name);
            assert!(!larger || fused < apart, "{what}: {fused}, {apart}");
        }
    }
}

/// A step that keeps what it could compute again.
fn keeping(model: &Model, method: Method) -> (Graph, Option<Certificate>) {
    let options = Options {
        disabled: BTreeSet::from(["rematerialize"]),
        ..options(model, method)
    };
    compile_with(model, options)
}

/// What LoRA saves and LoRA-FA does not is what the certificate says, tensor by tensor; what LoRA-FA alone saves is the
/// masks of relus that are released.
#[test]
fn saved_bytes_drop_by_the_tensors_that_the_certificate_names() {
    for (model, _) in all() {
        let (lora, _) = keeping(&model, Method::Lora);
        let (lora_fa, certificate) = keeping(&model, Method::LoraFa);
        let certificate = certificate.unwrap();
        assert!(!certificate.proofs.is_empty(), "{}", model.name);
        let mut dropped = saved(&lora);
        for (value, bytes) in saved(&lora_fa) {
            if let Some(before) = dropped.remove(&value) {
                assert_eq!(before, bytes, "{}: {value}", model.name);
                continue;
            }
            let relu = masked(&lora_fa, value).and_then(|relu| dropped.get(&relu));
            assert!(relu > Some(&bytes), "{}: {value}", model.name);
        }
        let released = certificate.released_tensors().into_iter();
        let released = released.filter(|(value, _)| lora.param(*value).is_none());
        let released: BTreeMap<ValueId, u64> = released
            .map(|(value, bytes)| (value, bytes.next_multiple_of(ALIGN)))
            .collect();
        // Where x is kept anyway, x·A need not be.
        let adapters = lora.adapters().iter().zip(&certificate.proofs);
        for (adapter, _) in adapters.filter(|(_, proof)| proof.kept.is_some()) {
            dropped.remove(&adapter.xa);
        }
        assert_eq!(dropped, released, "{}", model.name);
        for proof in certificate.proofs.iter().filter(|p| p.kept.is_some()) {
            assert!(
                saved(&lora_fa).contains_key(&proof.root),
                "{}: {}",
                model.name,
                proof.module
            );
        }
    }
}

/// Backward passes that others wrote give the gradients that differentiating the forward pass gives, of theirs or of another
/// export, whatever the parameters are by then: also where exporters merged what was equal in the beginning.
#[test]
fn given_gradients_are_those_of_our_own() {
    let examples = examples();
    for model in joint() {
        let family = model.name.split('-').next().unwrap();
        let is_forward = |m: &&Model| {
            m.name.starts_with(&format!("{family}-"))
                && m.name.contains("-lora-r4-dynamo-")
                && m.name.ends_with("-fp32-eval-loss-dyn")
        };
        let forward = examples.iter().find(is_forward);
        for method in [Method::Lora, Method::LoraFa] {
            let [given, own] = [&model, forward.unwrap()].map(|m| gradients(m, method, false));
            let anew = gradients(&model, method, true);
            assert!(given.keys().eq(own.keys()) && anew.keys().eq(own.keys()));
            assert!(given.len() > 8);
            let all = own
                .iter()
                .flat_map(|(name, own)| [(name, own, &given), (name, own, &anew)]);
            for (name, expected, found) in all {
                let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
                let apart = expected.iter().zip(&found[name]).map(|(a, b)| a - b);
                let error = norm(&apart.collect::<Vec<_>>()) / norm(expected);
                assert!(
                    error < 1e-4,
                    "{} {}: {name}: {error:.1e}",
                    model.name,
                    method.name()
                );
            }
        }
    }
}

/// Loss and gradients for parameters that follow from their names; of our own, if `differentiate`, whatever the model has.
fn gradients(model: &Model, method: Method, differentiate: bool) -> BTreeMap<String, Vec<f64>> {
    let optimizer = OptimizerOptions {
        keep_gradients: true,
        ..OptimizerOptions::default()
    };
    let options = Options {
        optimizer,
        differentiate,
        ..options(model, method)
    };
    let (graph, _) = compile_with(model, options);
    let canonical = |name: &str| {
        let name = name.trim_start_matches("grad::");
        let name = name.strip_prefix("m.").unwrap_or(name);
        name.replace("model.lm_head", "model.transformer.wte")
    };
    // Norms that are alike may be one weight: none of them trains.
    let values = values(&graph, |param| match param.ty.rank() {
        1 => String::new(),
        _ => canonical(&param.name),
    });
    let results = arena::run(&graph, &values).unwrap();
    loss_and_gradients(&graph)
        .map(|o| (canonical(&o.name), results[&o.value].data.clone()))
        .collect()
}

/// Steps that compute activations again take less memory, keep nothing that they would not keep otherwise, and give the
/// same numbers.
#[test]
fn what_is_computed_again_lowers_the_peak_and_changes_no_number() {
    let mut again = BTreeMap::new();
    for model in examples() {
        for (method, name) in Method::ALL {
            let what = format!("{} {name}", model.name);
            let (kept, _) = keeping(&model, method);
            let (graph, _) = compile(&model, method);
            let copies = graph.ops().filter(|op| op.rule == "rematerialize").count();
            if copies == 0 {
                assert_eq!(graph.to_string(), kept.to_string(), "{what}");
                continue;
            }
            *again.entry(name).or_insert(0) += 1;
            let [peak, before] = [&graph, &kept].map(|graph| peak(graph).unwrap().bytes);
            assert!(peak < before, "{what}: {peak} of {before}");
            let saved = [&graph, &kept].map(saved);
            let news = saved[0]
                .iter()
                .find(|(value, _)| !saved[1].contains_key(value));
            assert!(news.is_none(), "{what}: {news:?}");
            assert!(saved[0].len() < saved[1].len(), "{what}");
            let [given, expected] = [&graph, &kept].map(|graph| {
                let values = arena::run(graph, &params(graph)).unwrap();
                let outputs = graph.outputs().iter();
                let outputs = outputs.map(|o| (o.name.clone(), values[&o.value].data.clone()));
                outputs.collect::<BTreeMap<_, _>>()
            });
            assert!(given == expected, "{what}");
        }
    }
    assert!(again["lora"] >= 12 && again["full"] >= 12, "{again:?}");
}

/// The relu whose mask a value is.
fn masked(graph: &Graph, value: ValueId) -> Option<ValueId> {
    let def = graph.def(value);
    (def.rule == "mask-relu").then(|| def.operands[0])
}

fn saved(graph: &Graph) -> BTreeMap<ValueId, u64> {
    let saved = plan(graph).unwrap().all_saved(graph);
    saved.into_iter().map(|s| (s.id, s.bytes)).collect()
}

/// What the layer after an attention is called.
const AFTER_ATTENTION: [&str; 5] = [
    ".self_attn.o_proj",
    ".attn.c_proj",
    ".attention.output.dense",
    "SelfAttention.o",
    "EncDecAttention.o",
];

/// Of the base models' ops, attention saves its result; no other saves an adapter's input.
#[test]
fn what_keeps_inputs_of_adapters_is_known() {
    for model in examples() {
        let (_, certificate) = compile(&model, Method::LoraFa);
        for proof in certificate.unwrap().proofs {
            // In training, and where adapters are f32 alone, A reads a copy of what attention gives.
            let copied = ["-drop", "bf16base"]
                .iter()
                .any(|part| model.name.contains(part));
            let after = AFTER_ATTENTION
                .iter()
                .any(|name| proof.module.ends_with(name));
            assert_eq!(
                proof.kept.is_some(),
                after && !copied,
                "{} {}",
                model.name,
                proof.module
            );
        }
    }
}

/// No attention, norm, activation, rotary embedding or output projection is left in the ops that exporters spell it with;
/// only a classifier of sequences, which has a bias, and a projection that trains on a few tokens have their logits apart.
#[test]
fn everything_that_can_be_one_op_is() {
    for model in examples() {
        for (method, name) in Method::ALL {
            let (graph, _) = compile(&model, method);
            let forward = graph.ops().filter(|op| op.site.region == Region::Forward);
            for op in forward {
                let apart = match &op.kind {
                    Op::Reduce(reduce) => reduce.kind == ReduceKind::Mean,
                    Op::Softmax(softmax) => !softmax.log,
                    Op::CrossEntropy(_) => {
                        method != Method::Full && !model.name.starts_with("roberta")
                    }
                    Op::Activation(act) => match act.0 {
                        ActivationKind::Sigmoid | ActivationKind::Silu => true,
                        ActivationKind::Tanh => !op.site.module.contains("classifier"),
                        _ => false,
                    },
                    Op::Unary(unary) => match unary.0 {
                        UnaryKind::Erf => true,
                        UnaryKind::Neg => graph.ty(op.results[0]).dtype.is_float(),
                        _ => false,
                    },
                    _ => false,
                };
                let line = OpDisplay(&graph, op.id);
                assert!(!apart, "{} {name}: {line}", model.name);
            }
        }
    }
}

/// Runs the steps byte by byte in their arenas: no value is overwritten before its last read.
#[test]
fn examples_run_in_their_arenas() {
    for (model, methods) in all() {
        for method in methods {
            let (graph, _) = compile(&model, *method);
            let plan = plan(&graph).unwrap();
            let params = params(&graph);
            let what = format!("{} {}", model.name, method.name());
            let expected = arena::run(&graph, &params).unwrap_or_else(|e| panic!("{what}: {e}"));
            let met = arena::simulate(&graph, &plan, &expected);
            met.unwrap_or_else(|e| panic!("{what}: {e}"));
        }
    }
}

/// Products of frozen matrices that are packed raise no peak, keep nothing more, and run in their arenas.
#[test]
fn packed_products_keep_the_peak() {
    let mut joined = BTreeMap::new();
    for model in examples() {
        for (method, name) in Method::ALL {
            let what = format!("{} {name}", model.name);
            let apart = options(&model, method);
            let packed = Options {
                pack_frozen: true,
                ..apart.clone()
            };
            let (apart, _) = compile_with(&model, apart);
            let (packed, _) = compile_with(&model, packed);
            let bytes = |graph: &Graph| peak(graph).unwrap().bytes;
            assert!(bytes(&packed) <= bytes(&apart), "{what}");
            let kept = |graph: &Graph| -> u64 {
                let saved = plan(graph).unwrap().all_saved(graph);
                saved.iter().map(|saved| saved.bytes).sum()
            };
            let (before, after) = (kept(&apart), kept(&packed));
            assert!(after <= before, "{what}: {before}, {after}");
            for op in packed.ops() {
                if let Op::Concat(Concat { joined: true, .. }) = op.kind {
                    let made = packed.def(op.operands[0]).operands.len();
                    *joined.entry((method, made > 0)).or_insert(0) += 1;
                }
            }
            checked(&packed, &what);
            let plan = plan(&packed).unwrap();
            let params = params(&packed);
            let expected = arena::run(&packed, &params).unwrap_or_else(|e| panic!("{what}: {e}"));
            let met = arena::simulate(&packed, &plan, &expected);
            met.unwrap_or_else(|e| panic!("{what}: {e}"));
        }
    }
    let count = |method, made| joined.get(&(method, made)).copied().unwrap_or(0);
    assert!(count(Method::LoraFa, false) > 50, "{joined:?}");
    assert!(count(Method::LoraFa, true) > 50, "{joined:?}");
}

/// Nothing stands between an update and the last of what it waits for but updates and the rest of one op's gradients, and no
/// gradient outlives its update.
#[test]
fn gradients_do_not_pile_up() {
    for model in examples() {
        for (method, name) in Method::ALL {
            let (graph, _) = compile(&model, method);
            let plan = plan(&graph).unwrap();
            let storage = |value: ValueId| plan.place(value).unwrap().storage;
            let mut made: BTreeMap<ValueId, u32> = BTreeMap::new();
            let mut read = BTreeMap::new();
            let mut backward: Vec<(u32, i64)> = Vec::new();
            let mut updates = 0;
            for (position, id) in plan.schedule().iter() {
                let op = graph.op(id);
                if let Op::AdamW(_) = op.kind {
                    let (param, gradient) = (op.operands[0], op.operands[1]);
                    let waits_for = made[&gradient].max(read[&storage(param)]);
                    let what = format!("{} {name}: {}", model.name, OpDisplay(&graph, id));
                    let between = backward.iter().rev();
                    let mut between = between.take_while(|(position, _)| *position > waits_for);
                    assert!(between.all(|(_, place)| *place == op.site.seq), "{what}");
                    let range = plan.live_range(storage(gradient));
                    assert_eq!(range.positions.end, position + 1, "{what}");
                    updates += 1;
                    continue;
                }
                if op.site.region != Region::Forward {
                    backward.push((position, op.site.seq));
                }
                made.extend(op.results.iter().map(|value| (*value, position)));
                read.extend(op.operands.iter().map(|value| (storage(*value), position)));
            }
            let trained = graph.params().filter(|(_, p)| p.role == Role::Trained);
            assert_eq!(updates, trained.count(), "{} {name}", model.name);
        }
    }
}

/// With accumulation, clipping and projection, too.
#[test]
fn all_that_optimizers_do_runs_in_its_arena() {
    let models = examples();
    let mut done = 0;
    for model in models
        .iter()
        .filter(|model| model.name.contains("-eval-loss-"))
    {
        for (method, dtype) in [(Method::Full, None), (Method::LoraFa, Some(DType::BF16))] {
            let optimizer = OptimizerOptions {
                max_grad_norm: Some(0.5),
                accumulate: true,
                ..OptimizerOptions::new(OptimizerKind::LoraFa)
            };
            let options = Options {
                optimizer,
                dtype,
                ..options(model, method)
            };
            let (graph, _) = compile_with(model, options);
            let plan = plan(&graph).unwrap();
            check(plan.problem(), plan.layout()).unwrap();
            let params = params(&graph);
            let what = format!("{} {}", model.name, method.name());
            let expected = arena::run(&graph, &params).unwrap_or_else(|e| panic!("{what}: {e}"));
            let met = arena::simulate(&graph, &plan, &expected);
            met.unwrap_or_else(|e| panic!("{what}: {e}"));
            done += 1;
        }
    }
    assert!(done >= 8, "{done}");
}

fn params(graph: &Graph) -> arena::Values {
    let mut number = numbers(1);
    let arrays = graph.params().map(|(value, param)| {
        let array = match &param.stored.data {
            // Indices and masks.
            Data::Inline(bytes) if !param.ty.dtype.is_float() => {
                Array::new(&param.ty, decode(param.stored.dtype, bytes))
            }
            _ => Array::from_fn(&param.ty, |_| number(param)),
        };
        (value, array.unwrap())
    });
    arrays.collect()
}
