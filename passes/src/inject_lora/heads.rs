//! The classification head, which trains in full next to adapters.

use super::layers::plain_path;
use crate::attach_loss::{self, LossKind};
use lorafa_ir::{Graph, Patch, ValueId};
use std::collections::BTreeSet;
use std::sync::Arc;

/// What PEFT adds to `modules_to_save` for classification tasks.
const HEADS: [&str; 2] = ["classifier", "score"];

/// Whether the model classifies: sequences, or tokens under a head of the known names.
pub(super) fn is_classifier(graph: &Graph, loss: Option<LossKind>) -> bool {
    let kind = loss.or_else(|| {
        let (_, logits) = attach_loss::logits(graph)?;
        attach_loss::choose(graph, logits)
    });
    matches!(kind, Some(LossKind::SeqCls | LossKind::TokenCls))
}

/// Whether a module is a head or below one.
pub(super) fn in_head(module: &str) -> bool {
    module.split('.').any(|part| HEADS.contains(&part))
}

/// Names the weights of heads as PEFT does, `base_model.model.classifier.modules_to_save.default.…`,
/// which marks them as trained.
pub(super) fn mark(patch: &mut Patch<'_>) -> usize {
    let graph = patch.graph();
    let mut names: BTreeSet<Arc<str>> = graph.params().map(|(_, p)| p.name.clone()).collect();
    let heads: Vec<(ValueId, String)> = graph
        .params()
        .filter(|(_, p)| p.is_weight() && !p.name.contains(".modules_to_save."))
        .filter_map(|(value, p)| Some((value, saved(&path(graph, value, &p.name)?)?)))
        .collect();
    let mut marked = 0;
    for (value, name) in heads {
        let name: Arc<str> = name.into();
        if names.insert(name.clone()) {
            patch.name(value, Some(name.clone()));
            patch.update_param(value, |p| p.name = name);
            marked += 1;
        }
    }
    marked
}

/// The path of a head's weight: its name, or what its reader's module says if it lost that.
fn path(graph: &Graph, value: ValueId, name: &str) -> Option<String> {
    if in_head(plain_path(name)) {
        return Some(plain_path(name).to_string());
    }
    let uses = graph.uses(value);
    let module = &graph.op(uses.first()?.op).site.module;
    let kind = if graph.ty(value).rank() == 1 {
        "bias"
    } else {
        "weight"
    };
    // A name with a path of its own says that the weight belongs elsewhere.
    let lost = !name.contains('.') && in_head(plain_path(module));
    lost.then(|| format!("{}.{kind}", plain_path(module)))
}

/// The path with `modules_to_save.default` after the head.
fn saved(path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split('.').collect();
    let head = parts.iter().position(|part| HEADS.contains(part))?;
    let (before, after) = parts.split_at(head + 1);
    let all = [
        &["base_model", "model"],
        before,
        &["modules_to_save", "default"],
        after,
    ];
    Some(all.concat().join("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_pefts() {
        let name = saved("classifier.out_proj.weight");
        let expected = "base_model.model.classifier.modules_to_save.default.out_proj.weight";
        assert_eq!(name.as_deref(), Some(expected));
        assert_eq!(saved("model.layers.0.weight"), None);
        assert!(in_head("classifier.dense") && in_head("score") && !in_head("scores.dense"));
    }
}
