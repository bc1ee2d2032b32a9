//! PyTorch's parameters, recovered from what the exporters left of them.
//!
//! Exporters fold `Wᵀ` into a new initializer called `val_48` or `onnx::MatMul_1145`, and merge
//! initializers with equal elements, so that one may stand for twenty adapters' B. The module
//! that an op belongs to tells which parameter it reads:
//!
//! | found | becomes |
//! |---|---|
//! | `matmul x, %val_48` in module `m` | `matmul x, %m.weight {trans_b}`, stored transposed |
//! | `%a.weight` read in modules `a` and `b`, ≤ 1024 elements | `%a.weight` and `%b.weight` |
//! | `%lm_head.weight` also read as an embedding | one parameter, by the name PyTorch lists it under |
//! | `%rotary_emb.inv_freq` | a constant |
//!
//! Where the exporter says what it folded, `folded` believes that first. A file that we wrote has lost nothing.

mod folded;

use super::signature::Signature;
use crate::export::PRODUCER;
use lorafa_ir::ops::{Gather, MatMul, Op, Param, Role, is_path};
use lorafa_ir::{Graph, OpId, Region, Site, TensorType, ValueId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The largest initializer that PyTorch's optimizer merges with an equal one, in elements.
/// Larger ones that several modules read are tied on purpose.
const MAX_MERGED: u64 = 1024;

/// Last components of names that are buffers, not parameters, where no signature tells.
const BUFFERS: &[&str] = &[
    "inv_freq",
    "original_inv_freq",
    "position_ids",
    "token_type_ids",
    "masked_bias",
    "bias_mask",
];

/// Gives the weights of an imported graph their names, shapes and identities back.
pub(super) fn recover(graph: &mut Graph, signature: &Signature, producer: &str) {
    mark_buffers(graph, signature);
    if producer == PRODUCER {
        return;
    }
    folded::restore(graph, signature);
    unfold(graph);
    unshare(graph, signature);
    rename_tied(graph, signature);
}

fn last(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

fn params(graph: &Graph) -> Vec<(ValueId, Param)> {
    graph.params().map(|(v, p)| (v, p.clone())).collect()
}

fn mark_buffers(graph: &mut Graph, signature: &Signature) {
    for (value, param) in params(graph) {
        let name = &*param.name;
        let made_up = last(name).starts_with("lifted_tensor") || last(name).starts_with("_tensor_");
        let buffer = signature.buffers.contains(name)
            || made_up
            || (!signature.parameters.contains(name) && BUFFERS.contains(&last(name)));
        if param.role == Role::Frozen && buffer {
            graph.patch("mark-buffers").set_role(value, Role::Constant);
        }
    }
}

fn module(graph: &Graph, op: OpId) -> Arc<str> {
    graph.op(op).site.module.clone()
}

/// Products with a folded transpose read the parameter itself again.
fn unfold(graph: &mut Graph) {
    let mut named = by_name(graph);
    for (value, param) in params(graph) {
        let folded = param.role == Role::Constant
            && param.ty.dtype.is_float()
            && param.ty.rank() == 2
            && !is_path(&param.name);
        let uses = graph.uses(value);
        let reads_weight = |op: OpId, slot: usize| {
            let trans_b = match &graph.op(op).kind {
                Op::MatMul(m) => m.trans_b,
                _ => true,
            };
            slot == 1 && !trans_b && !module(graph, op).is_empty()
        };
        if !folded || uses.is_empty() || !uses.iter().all(|u| reads_weight(u.op, u.slot)) {
            continue;
        }
        let mut by_module: BTreeMap<Arc<str>, Vec<OpId>> = BTreeMap::new();
        for u in &uses {
            by_module.entry(module(graph, u.op)).or_default().push(u.op);
        }
        for (module, readers) in by_module {
            let name: Arc<str> = format!("{module}.weight").into();
            let swapped = param
                .ty
                .with_shape([param.ty.shape[1].clone(), param.ty.shape[0].clone()]);
            let Some(weight) = weight(graph, &mut named, name, &param, swapped) else {
                continue;
            };
            let mut patch = graph.patch("unfold-transpose");
            for op in readers {
                if let Op::MatMul(m) = patch.graph().op(op).kind.clone() {
                    patch.set_kind(op, MatMul { trans_b: true, ..m }.into());
                    patch.set_operand(op, 1, weight);
                }
            }
        }
        remove_unused(graph, value);
    }
}

/// The parameter of this name and type: the one there is, if it has the same elements (the model
/// ties it), or a new one stored as the transpose of `folded`.
fn weight(
    graph: &mut Graph,
    named: &mut ByName,
    name: Arc<str>,
    folded: &Param,
    ty: TensorType,
) -> Option<ValueId> {
    let taken = named.get(&name).copied();
    if let Some(value) = taken.filter(|v| graph.get_value(*v).is_some()) {
        let there = graph.param(value)?;
        let tied = there.ty == ty && same_elements(there, folded);
        return tied.then_some(value);
    }
    let mut param = folded.clone();
    param.name = name.clone();
    param.role = Role::Frozen;
    param.ty = ty;
    param.stored.transposed = !folded.stored.transposed;
    let value = add(graph, param)?;
    named.insert(name, value);
    Some(value)
}

/// Parameters by name.
type ByName = BTreeMap<Arc<str>, ValueId>;

fn by_name(graph: &Graph) -> ByName {
    graph.params().map(|(v, p)| (p.name.clone(), v)).collect()
}

fn add(graph: &mut Graph, param: Param) -> Option<ValueId> {
    let mut patch = graph.patch("recover-names");
    patch.at_site(beginning());
    patch.add1(Op::Param(Box::new(param)), &[]).ok()
}

/// Before all nodes.
fn beginning() -> Site {
    Site {
        region: Region::Forward,
        seq: i64::MIN,
        module: Arc::from(""),
        of: None,
    }
}

/// Whether `folded` holds the transpose of what `param` holds. Weights in other files are not
/// read: there, the module they share a name with is believed.
fn same_elements(param: &Param, folded: &Param) -> bool {
    param
        .same_elements(&folded::swapped(folded))
        .unwrap_or(true)
}

fn remove_unused(graph: &mut Graph, value: ValueId) {
    let op = graph.value(value).op;
    // An error means that something reads it still, and it stays.
    let _ = graph.patch("recover-names").remove(op);
}

/// A small weight that several modules read was merged: each gets its own again.
fn unshare(graph: &mut Graph, signature: &Signature) {
    let mut named = by_name(graph);
    for (value, param) in params(graph) {
        let small = param.ty.elements().is_some_and(|n| n <= MAX_MERGED);
        if param.role != Role::Frozen || !small {
            continue;
        }
        let own = param
            .name
            .rsplit_once('.')
            .map_or("", |(module, _)| module)
            .to_string();
        let mut by_module: BTreeMap<Arc<str>, Vec<(OpId, usize)>> = BTreeMap::new();
        for u in graph.uses(value) {
            by_module
                .entry(module(graph, u.op))
                .or_default()
                .push((u.op, u.slot));
        }
        let embeds = graph
            .uses(value)
            .iter()
            .any(|u| matches!(graph.op(u.op).kind, Op::Gather(Gather { .. })));
        if by_module.len() < 2 || embeds {
            continue;
        }
        for (module, readers) in by_module {
            if module.is_empty() || *module == *own {
                continue;
            }
            let mut copy = param.clone();
            copy.name = format!("{module}.{}", last(&param.name)).into();
            // PyTorch lists a parameter that modules share under one name only.
            let listed = |name: &str| signature.parameters.contains(name);
            if listed(&param.name) && !listed(&copy.name) {
                continue;
            }
            if named.contains_key(&copy.name) {
                continue;
            }
            let name = copy.name.clone();
            let Some(copy) = add(graph, copy) else {
                continue;
            };
            named.insert(name, copy);
            let mut patch = graph.patch("unshare");
            for (op, slot) in readers {
                patch.set_operand(op, slot, copy);
            }
        }
        if !graph.is_used(value) {
            remove_unused(graph, value);
        }
    }
}

/// A tied weight has the name of one of its modules; PyTorch lists it under the first.
fn rename_tied(graph: &mut Graph, signature: &Signature) {
    let taken: BTreeSet<Arc<str>> = graph.params().map(|(_, p)| p.name.clone()).collect();
    let mut free: BTreeSet<&str> = signature
        .parameters
        .iter()
        .map(String::as_str)
        .filter(|name| !taken.contains(*name))
        .collect();
    for (value, param) in params(graph) {
        if param.role != Role::Frozen || signature.parameters.contains(&*param.name) {
            continue;
        }
        let modules: BTreeSet<Arc<str>> = graph
            .uses(value)
            .iter()
            .map(|u| module(graph, u.op))
            .collect();
        let suffix = last(&param.name);
        let of_module = |m: &Arc<str>| free.get(format!("{m}.{suffix}").as_str()).copied();
        let by_module = modules.iter().find_map(of_module);
        // What no module is left for can only be the one that is read under other names.
        let only = (free.len() == 1 && modules.len() > 1)
            .then(|| free.first().copied())
            .flatten();
        if let Some(name) = by_module.or(only) {
            free.remove(name);
            let name: Arc<str> = name.into();
            graph
                .patch("rename-tied")
                .update_param(value, |p| p.name = name);
        }
    }
}
