//! The weights that a step begins with.

use crate::args::WeightArgs;
use crate::error::Error;
use lorafa_ir::Graph;
use lorafa_onnx::external::ExternalStore;
use lorafa_weights::shards::Shards;
use lorafa_weights::{missing, peft};
use std::path::Path;

/// Gives a graph the weights that the flags name, or else those of the `checkpoint` that comes with it, and makes sure that
/// every weight has values. Says what a person should know about names that differ.
///
/// # Errors
///
/// Files that cannot be read; every weight that is missing or has the wrong shape, in one message.
pub fn bind(
    graph: &mut Graph,
    args: &WeightArgs,
    checkpoint: Option<&Path>,
    store: &ExternalStore,
) -> Result<Option<String>, Error> {
    let weights = args.weights.as_deref().or(checkpoint);
    let bound = match weights {
        Some(path) => Some(lorafa_weights::bind(graph, &Shards::open(path)?)?.to_string()),
        None => None,
    };
    if let Some(path) = &args.adapter {
        peft::bind(graph, &peft::read(path)?)?;
    }
    missing(graph, store)?;
    Ok(bound)
}
