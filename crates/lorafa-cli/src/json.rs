//! The report as JSON.

use crate::compile::Compiled;
use crate::fit::Fit;
use lorafa_ir::ValueId;
use lorafa_passes::freeze_lora_a::Certificate;
use lorafa_plan::MethodReport;
use serde::Serialize;
use std::collections::BTreeMap;

/// The whole report. Sizes are in bytes.
#[derive(Serialize)]
struct Report<'a> {
    model: &'a str,
    dtype: Option<String>,
    dims: BTreeMap<&'a str, i64>,
    /// The loss, in words.
    loss: &'a str,
    methods: BTreeMap<&'static str, Reported<'a>>,
    certificate: Option<Certified<'a>>,
    /// What `--budget` asked.
    budget: Option<&'a Fit>,
}

/// A method: its plan, and what it computes twice.
#[derive(Serialize)]
struct Reported<'a> {
    #[serde(flatten)]
    plan: &'a MethodReport,
    recomputed: Option<Recomputed>,
}

#[derive(Serialize)]
struct Recomputed {
    tensors: usize,
    bytes: u64,
    flops: u64,
    step_flops: u64,
}

#[derive(Serialize)]
struct Certified<'a> {
    adapters: usize,
    released: usize,
    kept: Vec<Kept<'a>>,
    /// What LoRA needs in the backward pass and LoRA-FA does not; adapters that read the same input
    /// share one.
    released_tensors: Vec<Released>,
}

#[derive(Serialize)]
struct Kept<'a> {
    module: &'a str,
    by: &'a str,
    reason: &'a str,
}

#[derive(Serialize)]
struct Released {
    value: String,
    adapters: Vec<String>,
    bytes: u64,
    /// Whether LoRA computes it again; it keeps it otherwise.
    recomputed: bool,
}

/// The report as JSON text, with a final newline.
pub fn json(
    model: &str,
    compiled: &Compiled,
    reports: &[MethodReport],
    budget: Option<&Fit>,
) -> String {
    let symbols = compiled.dims.bindings.iter();
    let mut dims: BTreeMap<&str, i64> = symbols.map(|(name, n)| (&**name, *n)).collect();
    // A symbol of that name is what it is.
    for (name, number) in [("batch", compiled.dims.batch), ("seq", compiled.dims.seq)] {
        if let Some(number) = number {
            dims.entry(name).or_insert(number);
        }
    }
    let methods = compiled.steps.iter().zip(reports).map(|(step, plan)| {
        let recomputed = step.recomputed.as_ref().map(|again| Recomputed {
            tensors: again.values.len(),
            bytes: again.bytes,
            flops: again.flops,
            step_flops: again.step_flops,
        });
        (step.method.name(), Reported { plan, recomputed })
    });
    let report = Report {
        model,
        dtype: compiled.dtype().map(|d| d.to_string()),
        dims,
        loss: &compiled.loss,
        methods: methods.collect(),
        certificate: compiled
            .certificate
            .as_ref()
            .map(|c| certified(c, compiled)),
        budget,
    };
    // Maps with string keys, strings and integers: nothing that serialization could refuse.
    let mut text = serde_json::to_string_pretty(&report).unwrap_or_default();
    text.push('\n');
    text
}

fn certified<'a>(certificate: &'a Certificate, compiled: &Compiled) -> Certified<'a> {
    let kept = certificate.proofs.iter().filter_map(|proof| {
        let keeper = proof.kept.as_ref()?;
        Some(Kept {
            module: &proof.module,
            by: &keeper.by,
            reason: &keeper.reason,
        })
    });
    let readers = |root: ValueId| {
        let proofs = certificate
            .released()
            .filter(move |proof| proof.root == root);
        proofs.map(|proof| proof.module.to_string()).collect()
    };
    let tensors = compiled.released().into_iter().map(|tensor| Released {
        adapters: readers(tensor.id),
        value: tensor.value,
        bytes: tensor.bytes,
        recomputed: tensor.recomputed,
    });
    Certified {
        adapters: certificate.proofs.len(),
        released: certificate.released().count(),
        kept: kept.collect(),
        released_tensors: tensors.collect(),
    }
}
