//! `find-gradients`: says which parameter each gradient of a training graph belongs to.
//!
//! ```text
//! - param %a : f32[2,8] frozen
//! + param %a : f32[2,8] trained
//!   v1 = matmul %x, %a {trans_b}   : f32[4,2]
//!   …
//!   v7 = matmul v6, v1 {trans_a}   : f32[8,2]
//!   v8 = matmul v6, %b             : f32[4,2]
//!   v9 = matmul v8, %x {trans_a}   : f32[2,8]
//! - out "grad::b" = v7
//! - out "grad::a" = v9
//! + out "grad::b" = v7 gradient %b
//! + out "grad::a" = v9 gradient %a
//! ```
//!
//! Of adapters, structure tells: the gradient of B is a product with `x·A`, that of A a product of `x` with what is a
//! product with B. Names decide where several would do, as of matrices that exporters merged because they were equal
//! when the graph was written, and for all other weights. What the backward pass reads of an adapter is the matrix that
//! trains, or training would go on with the old one.
//!
//! What has a gradient trains, all else stays as it is.

mod pattern;

use crate::pass::{Changed, Method, Pass, PassCx, PassError, PassKind};
use lorafa_ir::ops::Role;
use lorafa_ir::outputs::{gradient_of, is_named};
use lorafa_ir::{Graph, OutputKind, Region, ValueId};
use pattern::{Gradient, Pattern};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// See the module.
pub struct FindGradients;

impl Pass for FindGradients {
    fn name(&self) -> &'static str {
        "find-gradients"
    }

    fn kind(&self) -> PassKind {
        PassKind::Canonicalize
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<Changed, PassError> {
        let backward = graph.ops().any(|op| op.site.region == Region::Backward);
        let outputs = graph.outputs().iter();
        let open: Vec<(Arc<str>, ValueId)> = outputs
            .filter(|o| backward && o.kind == OutputKind::Value && gradient_of(&o.name).is_some())
            .map(|o| (o.name.clone(), o.value))
            .collect();
        if open.is_empty() {
            return Ok(Changed::No);
        }
        let pattern = Pattern::of(graph);
        let mut owners: BTreeMap<Arc<str>, ValueId> = BTreeMap::new();
        let mut taken: BTreeMap<ValueId, Arc<str>> = BTreeMap::new();
        let mut found: Vec<Gradient> = Vec::new();
        let mut by_name = 0;
        for (output, value) in open {
            let gradient = choose(graph, pattern.gradients(graph, value), &output);
            let param = match gradient {
                Some(gradient) => gradient.param,
                None => named(graph, &output)?,
            };
            by_name += usize::from(gradient.is_none());
            found.extend(gradient);
            refuse_other_type(graph, &output, value, param)?;
            if let Some(first) = taken.insert(param, output.clone()) {
                return Err(PassError::Refused(format!(
                    "{first:?} and {output:?} are both the gradient of {}",
                    name(graph, param)
                )));
            }
            if gradient.is_some() && !is_of(graph, param, &output) {
                cx.note(format_args!(
                    "{output:?} is the gradient of {}, by its structure",
                    name(graph, param)
                ));
            }
            owners.insert(output, param);
        }
        pattern::read_what_trains(graph, &found)?;
        let mut patch = graph.patch("find-gradients");
        for param in owners.values() {
            patch.set_role(*param, Role::Trained);
        }
        patch.classify_outputs(|o| match owners.get(&o.name) {
            Some(param) => OutputKind::Gradient(*param),
            None => o.kind,
        });
        let changes = patch.changes();
        refuse_method(graph, cx, taken.keys().copied().collect())?;
        cx.note(format_args!(
            "{} gradients of adapters by their structure, {by_name} gradients by their names",
            found.len()
        ));
        let weights = graph.params().filter(|(_, p)| p.is_weight()).count();
        cx.warn(format_args!(
            "a training graph: its own backward pass, with gradients of {} of {weights} weights",
            taken.len()
        ));
        Ok(Changed::from_count(changes))
    }
}

/// The one gradient that a value may be; of several the one of that name, or else the only one that reads the adapter's own
/// matrix.
fn choose(graph: &Graph, found: Vec<Gradient>, output: &str) -> Option<Gradient> {
    let only = |found: Vec<Gradient>| match found.as_slice() {
        [gradient] => Some(*gradient),
        _ => None,
    };
    let mut named = found.iter().filter(|g| is_of(graph, g.param, output));
    match (found.len(), named.next()) {
        (1, _) => only(found),
        (_, Some(named)) => Some(*named),
        _ => only(found.into_iter().filter(|g| g.exact).collect()),
    }
}

fn name(graph: &Graph, param: ValueId) -> &str {
    graph.param(param).map_or("", |p| &*p.name)
}

/// Whether an output is the gradient of a parameter by their names.
fn is_of(graph: &Graph, param: ValueId, output: &str) -> bool {
    gradient_of(output).is_some_and(|of| is_named(name(graph, param), of))
}

/// The weight whose gradient an output is by its name.
fn named(graph: &Graph, output: &str) -> Result<ValueId, PassError> {
    let of = gradient_of(output).unwrap_or_default();
    let weights = graph
        .params()
        .filter(|(_, p)| p.ty.dtype.is_float() && !matches!(p.role, Role::Input | Role::OptState));
    let found: Vec<(ValueId, &str)> = weights
        .filter(|(_, p)| is_named(&p.name, of))
        .map(|(value, p)| (value, &*p.name))
        .collect();
    let exact = found.iter().find(|(_, name)| *name == of);
    match (exact, found.as_slice()) {
        (Some((param, _)), _) | (None, [(param, _)]) => Ok(*param),
        (None, []) => Err(PassError::Refused(format!(
            "the gradient {output:?} belongs to no parameter: no weight is called {of}, and it is the gradient of no \
             adapter's A or B by its structure; export with parameter names, or take the output out"
        ))),
        (None, several) => {
            let names: Vec<&str> = several.iter().map(|(_, name)| *name).collect();
            Err(PassError::Refused(format!(
                "the gradient {output:?} may be that of {}: call it `grad::` and the whole name",
                names.join(" or ")
            )))
        }
    }
}

fn refuse_other_type(
    graph: &Graph,
    output: &str,
    gradient: ValueId,
    param: ValueId,
) -> Result<(), PassError> {
    let (gradient, ty) = (graph.ty(gradient), graph.ty(param));
    if gradient == ty {
        return Ok(());
    }
    Err(PassError::Refused(format!(
        "the gradient {output:?} is {gradient}, and its parameter {} is {ty}: export with `optimize=False`, which \
         leaves weights as they are",
        name(graph, param)
    )))
}

/// A training graph has the gradients of one method, and those of LoRA-FA if it has LoRA's.
fn refuse_method(graph: &Graph, cx: &PassCx, trained: BTreeSet<ValueId>) -> Result<(), PassError> {
    let adapters = graph.adapters();
    let trains_a = adapters.iter().any(|adapter| trained.contains(&adapter.a));
    let mut weights = graph.params().filter(|(_, p)| p.is_weight());
    let trains_all = weights.all(|(weight, _)| trained.contains(&weight));
    let (has, remedy) = match (cx.options.method, adapters.len()) {
        (Method::Full, 0) if cx.options.inject.rank.is_none() => return Ok(()),
        (_, 0) => (
            "no adapters",
            "--method full plans it as it is; to add adapters, give --differentiate",
        ),
        (Method::Lora, _) if !trains_a => (
            "no gradient of an adapter's A",
            "it is LoRA-FA already, which --method lora-fa plans",
        ),
        (Method::Full, _) if !trains_all => (
            "adapters, and not the gradients of all weights",
            "it trains what it has gradients of; for full fine-tuning, give --differentiate",
        ),
        _ => return Ok(()),
    };
    Err(PassError::Refused(format!(
        "the model has its gradients in it already, and {has}: {remedy}"
    )))
}
