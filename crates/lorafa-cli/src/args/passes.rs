//! Which passes run.

use clap::Args;
use lorafa_passes::{PassKind, registry};
use std::collections::BTreeSet;

/// Which passes run.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Passes")]
pub struct PassArgs {
    /// Leave attention, norms, activations, rotary embeddings, the loss and sums of products in the ops that the exporter
    /// wrote.
    #[arg(long)]
    pub no_fuse: bool,

    /// Compute the products that projections and adapters take of one input at once, from matrices that lie side by side,
    /// where that does not raise the peak.
    #[arg(long)]
    pub pack_frozen: bool,

    /// Leave out a pass that saves memory or time; may be repeated.
    #[arg(long, value_name = "PASS", value_parser = optional_pass)]
    pub disable: Vec<&'static str>,
}

impl PassArgs {
    /// The names of passes to leave out.
    pub fn disabled(&self) -> BTreeSet<&'static str> {
        let fusions = registry::fusions().filter(|_| self.no_fuse);
        let fusions = fusions.map(|pass| pass.name());
        fusions.chain(self.disable.iter().copied()).collect()
    }
}

/// The name of a pass that no other needs.
fn optional_pass(text: &str) -> Result<&'static str, String> {
    let passes = registry::all();
    let optional = |kind| kind == PassKind::Equivalence;
    match passes.iter().find(|pass| pass.name() == text) {
        Some(pass) if optional(pass.kind()) => Ok(pass.name()),
        found => {
            let names = passes.iter().filter(|pass| optional(pass.kind()));
            let names: Vec<&str> = names.map(|pass| pass.name()).collect();
            let why = match found {
                Some(_) => "other passes need it",
                None => "no pass is called that",
            };
            Err(format!("{why}; one can leave out {}", names.join(", ")))
        }
    }
}
