//! The report as JSON.

use crate::compile::Compiled;
use lorafa_ir::text::ValueDisplay;
use lorafa_passes::pass::Method;
use lorafa_plan::MethodReport;
use serde::Serialize;
use std::collections::BTreeMap;

/// The whole report. Sizes are in bytes.
#[derive(Serialize)]
struct Report<'a> {
    model: &'a str,
    dtype: Option<String>,
    dims: BTreeMap<&'a str, i64>,
    methods: BTreeMap<&'static str, &'a MethodReport>,
    certificate: Certificate<'a>,
}

#[derive(Serialize)]
struct Certificate<'a> {
    adapters: usize,
    released: usize,
    kept: Vec<Kept<'a>>,
    /// The tensors that LoRA keeps for the backward pass and LoRA-FA does not; adapters that read
    /// the same input share one.
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
    modules: Vec<String>,
    bytes: u64,
}

/// The report as JSON text, with a final newline.
pub fn json(model: &str, compiled: &Compiled, reports: &[MethodReport; 3]) -> String {
    let step = compiled.step(Method::LoraFa);
    let mut dims: BTreeMap<&str, i64> = compiled
        .dims
        .bindings
        .iter()
        .map(|(name, n)| (&**name, *n))
        .collect();
    dims.extend(compiled.dims.batch.map(|n| ("batch", n)));
    dims.extend(compiled.dims.seq.map(|n| ("seq", n)));
    let methods = Method::ALL
        .iter()
        .map(|(_, name)| *name)
        .zip(reports)
        .collect();
    let report = Report {
        model,
        dtype: crate::compile::dtype(&step.graph).map(|d| d.to_string()),
        dims,
        methods,
        certificate: certificate(compiled),
    };
    // Maps with string keys, strings and integers: nothing that serialization could refuse.
    let mut text = serde_json::to_string_pretty(&report).unwrap_or_default();
    text.push('\n');
    text
}

fn certificate(compiled: &Compiled) -> Certificate<'_> {
    let certificate = &compiled.certificate;
    let graph = &compiled.step(Method::LoraFa).graph;
    let kept = certificate.proofs.iter().filter_map(|proof| {
        let keeper = proof.kept.as_ref()?;
        Some(Kept {
            module: &proof.module,
            by: &keeper.by,
            reason: &keeper.reason,
        })
    });
    let tensors = certificate
        .released_tensors()
        .into_iter()
        .map(|(root, bytes)| Released {
            value: match &graph.value(root).name {
                Some(name) => name.to_string(),
                None => ValueDisplay(graph, root).to_string(),
            },
            modules: certificate
                .released()
                .filter(|proof| proof.root == root)
                .map(|proof| proof.module.to_string())
                .collect(),
            bytes,
        });
    Certificate {
        adapters: certificate.proofs.len(),
        released: certificate.released().count(),
        kept: kept.collect(),
        released_tensors: tensors.collect(),
    }
}
