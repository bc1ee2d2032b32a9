//! The classification head, which trains in full next to adapters.
//!
//! PEFT keeps adapters out of it for sequences. For tokens it matches targets before it knows the
//! head, and fails or adapts the head's copy if they match; here the head is kept out there, too.

use super::layers::plain_path;
use crate::attach_loss::{self, LossKind};
use lorafa_ir::{Graph, Patch, ValueId};
use std::collections::BTreeSet;
use std::sync::Arc;

/// What PEFT adds to `modules_to_save` for classification tasks.
const HEADS: [&str; 2] = ["classifier", "score"];

/// What the model is for: what was asked, or what its logits suggest.
pub(super) fn task(graph: &Graph, asked: Option<LossKind>) -> Option<LossKind> {
    asked.or_else(|| {
        let (_, logits) = attach_loss::logits(graph)?;
        attach_loss::choose(graph, logits)
    })
}

/// Whether the module or parameter at a path is in a classification head, which PEFT trains in full next to adapters.
pub fn in_head(module: &str) -> bool {
    module.split('.').any(is_head)
}

/// PEFT compares ends of names, so `pre_classifier` is a head, too.
fn is_head(part: &str) -> bool {
    HEADS.iter().any(|head| part.ends_with(head))
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
    let head = parts.iter().position(|part| is_head(part))?;
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
        assert!(in_head("classifier.dense") && in_head("score") && in_head("pre_classifier"));
        assert!(!in_head("scores.dense") && !in_head("classification_head.dense"));
    }
}
