//! The linear layers of a graph.

use crate::attach_loss::{self, LossKind};
use crate::matching::{only_use, plain_product};
use lorafa_ir::ops::{Binary, BinaryKind, Op};
use lorafa_ir::{Graph, OpData, OpId, OutputKind, ValueId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// `x·W (+ bias)`.
#[derive(Clone, Debug)]
pub(super) struct Linear {
    /// Its path, as PEFT would call it: without `base_model.model.` and `.base_layer`.
    pub(super) module: Arc<str>,
    /// The op that gives the layer's result: the product, or the sum with the bias.
    pub(super) op: OpId,
    /// The product, which reads the layer's input.
    pub(super) product: OpId,
    /// Its weight.
    pub(super) weight: ValueId,
    /// Its result.
    pub(super) y: ValueId,
    /// Input width.
    pub(super) inputs: u64,
    /// Output width.
    pub(super) outputs: u64,
    /// Whether it is the output embedding, which `all-linear` leaves out.
    pub(super) is_output: bool,
}

/// The path that PEFT gives a module.
pub(super) fn plain_path(module: &str) -> &str {
    let module = module.strip_prefix("base_model.model.").unwrap_or(module);
    module.strip_suffix(".base_layer").unwrap_or(module)
}

/// Every linear layer with a path, in schedule order.
///
/// A path belongs to one weight: where several claim it, the first gets it, and the others are
/// called after their weight's name. A classifier of sequences has no output embedding.
pub(super) fn linear_layers(graph: &Graph, task: Option<LossKind>) -> Vec<Linear> {
    let embeds = task != Some(LossKind::SeqCls);
    let logits = attach_loss::logits(graph).map(|(_, value)| value);
    let mut owners: BTreeMap<Arc<str>, ValueId> = BTreeMap::new();
    let mut layers = Vec::new();
    for id in graph.order() {
        let op = graph.op(id);
        let Some(mut layer) = linear(graph, op) else {
            continue;
        };
        let names = [
            plain_path(&op.site.module).into(),
            weight_path(graph, layer.weight),
        ];
        let free = names.into_iter().find(|name: &Arc<str>| {
            !name.is_empty() && *owners.entry(name.clone()).or_insert(layer.weight) == layer.weight
        });
        let Some(module) = free else {
            continue;
        };
        layer.module = module;
        layer.is_output =
            is_output_embedding(graph, &layer) || embeds && leads_to_logits(graph, &layer, logits);
        layers.push(layer);
    }
    layers
}

/// The paths of all modules, in order: those of ops and weights, and those around them.
pub(super) fn module_paths(graph: &Graph) -> BTreeSet<String> {
    let of_ops = graph.ops().map(|op| plain_path(&op.site.module));
    let of_weights = graph.params().filter(|(_, p)| p.is_weight());
    let of_weights = of_weights.filter_map(|(_, p)| p.name.rsplit_once('.'));
    let inner: BTreeSet<&str> = of_ops
        .chain(of_weights.map(|(module, _)| plain_path(module)))
        .collect();
    let around = |path: &'_ str| -> Vec<String> {
        let dots = path
            .match_indices('.')
            .map(|(at, _)| path[..at].to_string());
        dots.chain([path.to_string()]).collect()
    };
    inner.into_iter().flat_map(around).collect()
}

fn weight_path(graph: &Graph, weight: ValueId) -> Arc<str> {
    let name = graph.param(weight).map_or("", |p| &*p.name);
    plain_path(name.strip_suffix(".weight").unwrap_or("")).into()
}

fn linear(graph: &Graph, op: &OpData) -> Option<Linear> {
    let m = plain_product(op)?;
    let (weight, y) = (op.operands[1], op.results[0]);
    let param = graph.param(weight)?;
    if m.trans_a || !param.is_weight() || param.ty.rank() != 2 {
        return None;
    }
    let shape = param.ty.known_shape()?;
    let (inputs, outputs) = if m.trans_b {
        (shape[1], shape[0])
    } else {
        (shape[0], shape[1])
    };
    let product = op.id;
    let (op, y) = bias(graph, y).unwrap_or((product, y));
    let (module, is_output) = (Arc::from(""), false);
    Some(Linear {
        module,
        op,
        product,
        weight,
        y,
        inputs,
        outputs,
        is_output,
    })
}

/// The sum with a vector of weights, if nothing else reads the product.
fn bias(graph: &Graph, product: ValueId) -> Option<(OpId, ValueId)> {
    let only = only_use(graph, product)?;
    let add = graph.op(only.op);
    let is_add = matches!(add.kind, Op::Binary(Binary(BinaryKind::Add)));
    let other = graph.param(*add.operands.get(1 - only.slot.min(1))?)?;
    let fits = is_add && other.is_weight() && other.ty.rank() == 1;
    fits.then(|| (add.id, add.results[0]))
}

/// Whether a layer's weight is also looked up by token or its path says that it is the output
/// embedding.
fn is_output_embedding(graph: &Graph, layer: &Linear) -> bool {
    let tied = graph
        .uses(layer.weight)
        .iter()
        .any(|u| u.slot == 0 && matches!(graph.op(u.op).kind, Op::Gather(_)));
    let last = layer.module.rsplit('.').next().unwrap_or_default();
    tied || matches!(last, "lm_head" | "embed_out")
}

/// Whether a layer's result leads to the logits or the loss and nowhere else.
fn leads_to_logits(graph: &Graph, layer: &Linear, logits: Option<ValueId>) -> bool {
    let mut queue = vec![layer.y];
    let mut seen: BTreeSet<ValueId> = BTreeSet::new();
    let mut reached = false;
    while let Some(value) = queue.pop() {
        if !seen.insert(value) {
            continue;
        }
        for output in graph.outputs().iter().filter(|o| o.value == value) {
            let is_end = output.kind == OutputKind::Loss || Some(value) == logits;
            if !is_end {
                return false;
            }
            reached = true;
        }
        for reader in graph.uses(value) {
            let op = graph.op(reader.op);
            match &op.kind {
                Op::CrossEntropy(_) => reached = true,
                Op::Cast(_) | Op::Reshape(_) | Op::Slice(_) | Op::Pad(_) => {
                    queue.extend(&op.results);
                }
                Op::Binary(Binary(BinaryKind::Add)) if adds_bias(graph, op) => {
                    queue.extend(&op.results);
                }
                _ => return false,
            }
        }
    }
    reached
}

fn adds_bias(graph: &Graph, add: &OpData) -> bool {
    let is_vector = |v: &ValueId| graph.param(*v).is_some_and(|p| p.ty.rank() == 1);
    add.operands.iter().any(is_vector)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lorafa_ir::text;

    const CLASSIFIER: &str = "graph @c {
  param %x : f32[2,8] input
  param %head.dense.weight : f32[8,8] frozen
  param %head.out_proj.weight : f32[3,8] frozen
  v0 = matmul %x, %head.dense.weight {trans_b} : f32[2,8] @head.dense
  v1 = matmul v0, %head.out_proj.weight {trans_b} : f32[2,3] @head.out_proj
  out \"logits\" = v1
}";

    #[test]
    fn only_a_classifier_adapts_the_layer_that_gives_the_logits() {
        let graph = text::parse(CLASSIFIER).unwrap();
        let outputs = |task| -> Vec<bool> {
            let layers = linear_layers(&graph, task);
            layers.iter().map(|l| l.is_output).collect()
        };
        assert_eq!(outputs(Some(LossKind::SeqCls)), [false, false]);
        assert_eq!(outputs(Some(LossKind::TokenCls)), [false, true]);
        assert_eq!(outputs(None), [false, true]);
    }

    #[test]
    fn paths_come_of_ops_and_weights_and_include_what_is_around() {
        let graph = text::parse(CLASSIFIER).unwrap();
        let paths: Vec<String> = module_paths(&graph).into_iter().collect();
        assert_eq!(paths, ["", "head", "head.dense", "head.out_proj"]);
    }
}
