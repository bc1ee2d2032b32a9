//! Every example model becomes a training step of every method, whose plan is sound.

#[path = "../crates/lorafa-plan/tests/arena/mod.rs"]
mod arena;
mod common;

use common::{Model, examples, options};
use lorafa_ir::interp::Array;
use lorafa_ir::ops::{Param, Role};
use lorafa_ir::{Graph, ValueId};
use lorafa_passes::freeze_lora_a::Certificate;
use lorafa_passes::pass::Method;
use lorafa_passes::{Manager, PassCx, registry};
use lorafa_plan::{ALIGN, Category, check, plan};
use std::collections::BTreeMap;

/// A training step, and what was proven of it if it is LoRA-FA's.
fn compile(model: &Model, method: Method) -> (Graph, Option<Certificate>) {
    let mut graph = model.graph.clone();
    let mut cx = PassCx::new(options(model, method));
    let mut manager = Manager::new();
    for stage in registry::stages(method) {
        let done = manager.run(stage, &mut graph, &mut cx);
        done.unwrap_or_else(|e| panic!("{} {}: {e}", model.name, method.name()));
    }
    (graph, cx.certificate)
}

#[test]
fn plans_of_examples_check_and_add_up() {
    for model in examples() {
        for (method, name) in Method::ALL {
            let (graph, _) = compile(&model, method);
            let plan = plan(&graph).unwrap();
            check(plan.problem(), plan.layout()).unwrap();
            let report = plan.report(&graph, 0);
            let what = format!("{} {name}", model.name);
            assert_eq!(report.breakdown.total(), report.peak_bytes, "{what}");
            let saved: u64 = report.saved.iter().map(|s| s.bytes).sum();
            assert_eq!(
                saved,
                report.breakdown[Category::SavedActivations],
                "{what}"
            );
            assert!(report.lower_bound_bytes <= report.peak_bytes, "{what}");
        }
    }
}

/// What LoRA saves and LoRA-FA does not is what the certificate says, tensor by tensor.
#[test]
fn saved_bytes_drop_by_the_tensors_that_the_certificate_names() {
    for model in examples() {
        let (lora, _) = compile(&model, Method::Lora);
        let (lora_fa, certificate) = compile(&model, Method::LoraFa);
        let certificate = certificate.unwrap();
        assert!(!certificate.proofs.is_empty(), "{}", model.name);
        let mut dropped = saved(&lora);
        for (value, bytes) in saved(&lora_fa) {
            assert_eq!(
                dropped.remove(&value),
                Some(bytes),
                "{}: {value}",
                model.name
            );
        }
        let released = certificate.released_tensors().into_iter();
        let released = released.filter(|(value, _)| lora.param(*value).is_none());
        let released: BTreeMap<ValueId, u64> = released
            .map(|(value, bytes)| (value, bytes.next_multiple_of(ALIGN)))
            .collect();
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

/// Of the base model's ops, attention saves its result and T5's ReLU too; no other saves an adapter's input.
#[test]
fn what_keeps_inputs_of_adapters_is_known() {
    for model in examples() {
        let (_, certificate) = compile(&model, Method::LoraFa);
        for proof in certificate.unwrap().proofs {
            let relu = model.name.starts_with("t5-") && proof.module.ends_with("DenseReluDense.wo");
            // In training, and where adapters are f32 alone, A reads a copy of what attention gives.
            let copied = ["-drop", "bf16base"]
                .iter()
                .any(|part| model.name.contains(part));
            let after = AFTER_ATTENTION
                .iter()
                .any(|name| proof.module.ends_with(name));
            assert_eq!(
                proof.kept.is_some(),
                relu || after && !copied,
                "{} {}",
                model.name,
                proof.module
            );
        }
    }
}

/// Runs the steps byte by byte in their arenas: no value is overwritten before its last read.
#[test]
fn examples_run_in_their_arenas() {
    for model in examples() {
        for (method, name) in Method::ALL {
            let (graph, _) = compile(&model, method);
            let plan = plan(&graph).unwrap();
            let params = params(&graph);
            let what = format!("{} {name}", model.name);
            let expected = arena::run(&graph, &params).unwrap_or_else(|e| panic!("{what}: {e}"));
            let met = arena::simulate(&graph, &plan, &expected);
            met.unwrap_or_else(|e| panic!("{what}: {e}"));
        }
    }
}

/// Numbers of a size that keeps a tiny model finite.
fn params(graph: &Graph) -> arena::Values {
    let mut state = 1u64;
    let mut uniform = move || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 40) as f64 / (1u64 << 24) as f64
    };
    let mut number = move |param: &Param| {
        let u = uniform();
        match param.role {
            _ if param.name.contains("mask") || param.name.contains("step") => 1.0,
            _ if !param.ty.dtype.is_float() => (2.0 * u).floor(),
            Role::Constant => u,
            Role::OptState => 0.01 * u,
            _ => 0.4 * u - 0.2,
        }
    };
    let arrays = graph.params().map(|(value, param)| {
        let array = Array::from_fn(&param.ty, |_| number(param)).unwrap();
        (value, array)
    });
    arrays.collect()
}
