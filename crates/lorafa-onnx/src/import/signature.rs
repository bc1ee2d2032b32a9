//! What PyTorch's exporter says about a program's parameters, in the graph's metadata.

use crate::file::ModelFile;
use std::collections::BTreeSet;

/// Key of the exported program's signature.
const KEY: &str = "pkg.torch.export.ExportedProgram.graph_signature";

/// PyTorch's names of parameters and buffers; empty if the exporter did not say.
#[derive(Debug, Default)]
pub(super) struct Signature {
    pub(super) parameters: BTreeSet<String>,
    pub(super) buffers: BTreeSet<String>,
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
        signature
    }
}
