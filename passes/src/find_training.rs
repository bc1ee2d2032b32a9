//! `find-training`: tells a training graph from a forward graph, and its backward pass from its forward pass.
//!
//! ```text
//! - v4 = matmul v3, %x {trans_a}  : f32[8,4]
//!   out "loss" = v2 loss
//! - out "logits" = v1
//! + backward:
//! + v4 = matmul v3, %x {trans_a}  : f32[8,4]
//!   out "grad::w" = v4
//! ```
//!
//! A training graph gives gradients: an output is called `grad::w`, or `w_grad` where there is a weight `w`. Whatever the
//! loss needs is the forward pass, all else the backward pass, in the file's order. Outputs that are
//! neither go, as a training step has no use for them. Which parameter a gradient belongs to, `find-gradients` says.
//!
//! An optimizer that `lorafa-opt` wrote goes, too: `attach-optimizer` adds the one that is asked for.
//!
//! Exporters write such graphs without modules. An op that reads a weight belongs to the weight's module, any other to the one
//! that is common to what it reads.

use crate::convert_precision::main_dtype;
use crate::pass::{Changed, Pass, PassCx, PassError, PassKind};
use lorafa_ir::ops::{Op, is_path};
use lorafa_ir::outputs::{GRADIENT, gradient_of};
use lorafa_ir::{Graph, OpId, Output, OutputKind, Patch, Region, ValueId, ValueMap};
use std::collections::BTreeSet;
use std::sync::Arc;

/// See the module.
pub struct FindTraining;

impl Pass for FindTraining {
    fn name(&self) -> &'static str {
        "find-training"
    }

    fn kind(&self) -> PassKind {
        PassKind::Canonicalize
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<Changed, PassError> {
        let gradients = gradients(graph);
        let Some(first) = gradients.first() else {
            if cx.options.differentiate {
                return Err(PassError::Refused(
                    "--differentiate: the model has no gradients in it, which are computed anyway: leave that out".into(),
                ));
            }
            cx.note("a forward graph: no output is called `grad::…`");
            return Ok(Changed::No);
        };
        let Some(loss) = graph.loss().map(|loss| loss.value) else {
            return Err(PassError::Refused(format!(
                "the model gives gradients ({first:?}), and none of its outputs is a loss: call \
                 the scalar that they are the gradients of \"loss\""
            )));
        };
        if !cx.options.differentiate {
            refuse_what_forward_graphs_take(graph, cx, first)?;
        }
        let backward = behind(graph, loss);
        let mut patch = graph.patch("find-training");
        if cx.options.differentiate {
            place_in_modules(&mut patch);
            patch.retain_outputs(|o| o.kind != OutputKind::Value);
            let changes = patch.changes();
            cx.note(format_args!(
                "a training graph, of whose {} ops the {} of the backward pass are left out",
                graph.op_count(),
                backward.len()
            ));
            return Ok(Changed::from_count(changes));
        }
        for id in &backward {
            patch.set_region(*id, Region::Backward);
        }
        place_in_modules(&mut patch);
        let kept = |o: &Output| o.kind != OutputKind::Value || gradients.contains(&o.name);
        patch.retain_outputs(kept);
        let changes = patch.changes();
        if let Some(update) = written_update(graph) {
            cx.warn(format_args!(
                "the optimizer of the file is left out: {update}; flags choose the one of the step"
            ));
        }
        cx.note(format_args!(
            "a training graph: {} gradients, {} of {} ops are the backward pass",
            gradients.len(),
            backward.len(),
            graph.op_count()
        ));
        Ok(Changed::from_count(changes))
    }
}

/// The outputs that are gradients by their names.
fn gradients(graph: &Graph) -> BTreeSet<Arc<str>> {
    let weights: BTreeSet<&str> = graph.params().map(|(_, p)| &*p.name).collect();
    let is_gradient = |o: &&Output| {
        let of = gradient_of(&o.name).filter(|_| o.kind == OutputKind::Value);
        of.is_some_and(|of| o.name.starts_with(GRADIENT) || weights.contains(of))
    };
    let found = graph.outputs().iter().filter(is_gradient);
    found.map(|o| o.name.clone()).collect()
}

/// The update of a parameter that a graph has, as text.
fn written_update(graph: &Graph) -> Option<String> {
    let mut ops = graph.ops();
    let update = ops.find(|op| matches!(op.kind, Op::AdamW(_)))?;
    Some(format!("{}{}", update.kind.name(), update.kind.attrs()))
}

/// What would need a backward pass of our own making.
fn refuse_what_forward_graphs_take(
    graph: &Graph,
    cx: &PassCx,
    output: &str,
) -> Result<(), PassError> {
    let options = &cx.options;
    let anew = ", or give --differentiate, which computes gradients anew";
    let (flag, remedy) = match (options.loss, options.dtype) {
        (Some(kind), _) => (format!("--loss {kind}"), ""),
        _ if options.replace_adapters => ("--replace-adapters".into(), anew),
        (_, Some(dtype)) if main_dtype(graph).is_some_and(|own| own != dtype) => {
            (format!("--dtype {dtype}"), anew)
        }
        _ => return Ok(()),
    };
    Err(PassError::Refused(format!(
        "{flag}: the model has its gradients in it already (output {output:?}): leave that out{remedy}"
    )))
}

/// The ops that a value does not need, parameters and constants left out: these are of no region.
fn behind(graph: &Graph, value: ValueId) -> Vec<OpId> {
    let mut needed = vec![false; graph.value_bound()];
    let mut work = vec![value];
    while let Some(value) = work.pop() {
        if !std::mem::replace(&mut needed[value.index()], true) {
            work.extend(&graph.def(value).operands);
        }
    }
    let is_source = |op: &Op| matches!(op, Op::Param(_) | Op::Constant(_));
    graph
        .ops()
        .filter(|op| !is_source(&op.kind) && op.results.iter().all(|v| !needed[v.index()]))
        .map(|op| op.id)
        .collect()
}

/// Gives ops a module that have none.
fn place_in_modules(patch: &mut Patch<'_>) {
    let mut modules: ValueMap<Arc<str>> = ValueMap::new("".into());
    let mut weights: ValueMap<bool> = ValueMap::new(false);
    for id in patch.graph().order() {
        let op = patch.graph().op(id);
        let results = op.results.clone();
        let module = match &op.kind {
            Op::Param(param) => {
                let path = is_path(&param.name) && param.is_weight();
                weights.set(results[0], path);
                let module = param.name.rsplit_once('.').filter(|_| path);
                module.map_or("".into(), |(module, _)| module.into())
            }
            _ if op.site.module.is_empty() => {
                let read = op.operands.iter();
                match read.clone().find(|v| *weights.get(**v)) {
                    Some(weight) => modules.get(*weight).clone(),
                    None => common(read.map(|v| &**modules.get(*v))).into(),
                }
            }
            _ => op.site.module.clone(),
        };
        if let Op::Transpose(_) | Op::Cast(_) = op.kind {
            weights.set(results[0], *weights.get(op.operands[0]));
        }
        let placed = !op.operands.is_empty() && op.site.module != module;
        for result in results {
            modules.set(result, module.clone());
        }
        if placed {
            patch.set_module(id, module);
        }
    }
}

/// The module that all of these are in, as far as they are known.
fn common<'m>(modules: impl Iterator<Item = &'m str>) -> String {
    let mut known = modules.filter(|module| !module.is_empty());
    let first: Vec<&str> = known.next().map_or(Vec::new(), |m| m.split('.').collect());
    let shared = known.fold(first.len(), |length, module| {
        let pairs = first[..length].iter().zip(module.split('.'));
        pairs.take_while(|(a, b)| **a == *b).count()
    });
    first[..shared].join(".")
}
