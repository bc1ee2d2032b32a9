//! What PyTorch's exporter says about a program's parameters, in the graph's metadata.

use crate::file::ModelFile;
use std::collections::{BTreeMap, BTreeSet};

/// Key of the exported program's signature.
const KEY: &str = "pkg.torch.export.ExportedProgram.graph_signature";
/// Key of what the optimizer computed a tensor from, a list as Python prints it.
const FOLDED: &str = "pkg.onnxscript.optimizer.folded_from";

/// PyTorch's names of parameters and buffers; empty if the exporter did not say.
#[derive(Debug, Default)]
pub(super) struct Signature {
    pub(super) parameters: BTreeSet<String>,
    pub(super) buffers: BTreeSet<String>,
    /// Initializers that the exporter's optimizer computed from one parameter, each with that parameter's name.
    pub(super) folded: BTreeMap<String, String>,
}

impl Signature {
    /// Reads lines such as `p_wte_weight: PARAMETER target='transformer.wte.weight'`.
    pub(super) fn read(model: &ModelFile) -> Signature {
        let mut signature = Signature::default();
        let text = model.graph().metadata_props.iter().find(|p| p.key() == KEY);
        for line in text.map_or("", |p| p.value()).lines() {
            let Some((kind, rest)) = line.split_once(" target='") else {
                continue;
            };
            let Some((target, _)) = rest.split_once('\'') else {
                continue;
            };
            if kind.ends_with(": PARAMETER") {
                signature.parameters.insert(target.into());
            } else if kind.ends_with(": BUFFER") {
                signature.buffers.insert(target.into());
            }
        }
        for info in &model.graph().value_info {
            let from = info.metadata_props.iter().find(|p| p.key() == FOLDED);
            let names = from
                .map_or("", |p| p.value())
                .split('\'')
                .skip(1)
                .step_by(2);
            let mut listed = names.filter(|name| signature.parameters.contains(*name));
            if let (Some(name), None) = (listed.next(), listed.next()) {
                signature.folded.insert(info.name().into(), name.into());
            }
        }
        signature
    }
}
