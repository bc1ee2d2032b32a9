//! Names of parameters and modules, and what wrappers make of them.

use lorafa_ir::ops::{Op, Role, is_path};
use lorafa_ir::{Graph, ValueId};
use std::collections::BTreeSet;
use std::fmt;

/// What PEFT puts before every name of the model that it wraps.
pub(crate) const PEFT_PREFIX: &str = "base_model.model.";

/// Last components of modules that give logits and may share the embedding's weight.
const OUTPUT_EMBEDDINGS: &[&str] = &["lm_head", "embed_out", "lm_head.decoder", "decoder"];

/// Last components of modules that look tokens up.
const INPUT_EMBEDDINGS: &[&str] = &[
    "shared",
    "embed_tokens",
    "wte",
    "word_embeddings",
    "tok_embeddings",
    "embed_in",
];

/// How many entries of a list a message shows.
const SHOWN: usize = 20;

/// A parameter's or module's path in the model itself: without what stands before PEFT's prefix, and without what PEFT and
/// `torch.compile` put in between.
///
/// ```
/// use lorafa_weights::names::plain;
///
/// assert_eq!(plain("base_model.model.lm.q_proj.base_layer.weight"), "lm.q_proj.weight");
/// assert_eq!(plain("base_model.model.score.modules_to_save.default.weight"), "score.weight");
/// assert_eq!(plain("_orig_mod.h.0.ln_1.bias"), "h.0.ln_1.bias");
/// ```
pub fn plain(name: &str) -> String {
    let mut parts: Vec<&str> = name.split('.').filter(|p| *p != "_orig_mod").collect();
    let wrapped = parts.windows(2).position(|w| w == ["base_model", "model"]);
    if let Some(at) = wrapped {
        parts.drain(..at + 2);
    }
    while let Some(at) = parts.iter().position(|p| *p == "modules_to_save") {
        let name_too = (at + 2).min(parts.len());
        parts.drain(at..name_too);
    }
    parts.retain(|p| *p != "base_layer");
    parts.join(".")
}

/// Whether a parameter belongs to an adapter, and to no checkpoint but that of the whole adapted model.
pub(crate) fn is_adapter(name: &str) -> bool {
    name.contains(".lora_")
}

/// The module that PEFT saves as a whole, if the parameter is in one: `base_model.model.score.modules_to_save.default.weight`
/// is in `score`.
pub(crate) fn saved_module(name: &str) -> Option<String> {
    let (module, _) = name.split_once(".modules_to_save.")?;
    Some(plain(module))
}

/// The path that a weight's module has: all but the last component.
pub(crate) fn module_of(name: &str) -> &str {
    name.rsplit_once('.').map_or("", |(module, _)| module)
}

/// Whether a module's last component is one of `names`.
fn ends_in(module: &str, names: &[&str]) -> bool {
    let ends = |name: &&str| {
        let rest = module.strip_suffix(*name);
        rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    names.iter().any(ends)
}

/// Whether the parameter of this path is the output embedding.
pub(crate) fn is_output_embedding(plain: &str) -> bool {
    ends_in(module_of(plain), OUTPUT_EMBEDDINGS)
}

/// Whether the parameter of this path looks tokens up.
pub(crate) fn is_input_embedding(plain: &str) -> bool {
    ends_in(module_of(plain), INPUT_EMBEDDINGS)
}

/// The names under which a checkpoint may hold a weight, most telling first.
///
/// A weight that several modules share, such as an embedding that also gives the logits, has the name of one of them in a
/// graph, and may have another's in a checkpoint. Which modules share it is what the ops that read it say.
pub(crate) fn aliases(graph: &Graph, value: ValueId, name: &str) -> Vec<String> {
    let own = plain(name);
    let suffix = own.rsplit('.').next().unwrap_or_default().to_string();
    let mut lookups: BTreeSet<String> = BTreeSet::new();
    let mut products: BTreeSet<String> = BTreeSet::new();
    for read in graph.uses(value) {
        let op = graph.op(read.op);
        let module = plain(&op.site.module);
        match &op.kind {
            Op::Gather(_) if read.slot == 0 => lookups.insert(module),
            kind if read.slot == 1 && kind.product().is_some() => products.insert(module),
            _ => false,
        };
    }
    let tied = lookups.len() > 1 || !lookups.is_empty() && !products.is_empty();
    let mut names = Vec::new();
    if tied {
        // What encoder and decoder share is called `shared` in T5 and BART.
        let sides = ["encoder.embed_tokens", "decoder.embed_tokens"];
        let parents = sides.map(|side| lookups.iter().find_map(|m| m.strip_suffix(side)));
        if let [Some(encoder), Some(decoder)] = parents
            && encoder == decoder
        {
            names.push(format!("{encoder}shared.{suffix}"));
        }
        let modules = lookups.iter().chain(&products).filter(|m| !m.is_empty());
        names.extend(modules.map(|module| format!("{module}.{suffix}")));
    }
    if !names.contains(&own) {
        names.push(own);
    }
    names
}

/// Weights that products read and whose names an exporter lost, so that no checkpoint can name them.
pub(crate) fn nameless(graph: &Graph) -> Vec<String> {
    let mut names = Vec::new();
    for (value, param) in graph.params() {
        let weight = matches!(param.role, Role::Constant | Role::Frozen | Role::Trained)
            && param.ty.rank() == 2
            && param.ty.dtype.is_float()
            && !is_path(&param.name);
        let reads = |op, slot| slot == 1 && graph.op(op).kind.product().is_some();
        if weight && graph.uses(value).iter().any(|u| reads(u.op, u.slot)) {
            names.push(param.name.to_string());
        }
    }
    names
}

/// The first entries of a list, a line each, and how many more there are.
pub(crate) struct Lines<'a, T>(pub(crate) &'a [T]);

impl<T: fmt::Display> fmt::Display for Lines<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, entry) in self.0.iter().take(SHOWN).enumerate() {
            let start = if i == 0 { "  " } else { "\n  " };
            write!(f, "{start}{entry}")?;
        }
        match self.0.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, "\n  … and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_are_cut_with_a_count() {
        let names: Vec<String> = (0..23).map(|i| format!("w{i}")).collect();
        let text = Lines(&names).to_string();
        assert_eq!(text.lines().count(), SHOWN + 1);
        assert!(text.ends_with("  w19\n  … and 3 more"), "{text}");
        assert_eq!(Lines(&names[..1]).to_string(), "  w0");
    }

    #[test]
    fn wrappers_around_peft_are_dropped_too() {
        let name = "model.base_model.model.transformer.h.0.attn.c_attn.base_layer.bias";
        assert_eq!(plain(name), "transformer.h.0.attn.c_attn.bias");
        assert_eq!(plain("model.layers.0.weight"), "model.layers.0.weight");
        let saved = "base_model.model.classifier.modules_to_save.default.dense.weight";
        assert_eq!(saved_module(saved).as_deref(), Some("classifier"));
        assert_eq!(plain("a.modules_to_save"), "a");
    }
}
