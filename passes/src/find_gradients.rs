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
//! trains, or training would go on with the old one. A gradient that is the sum of products with several adapters' inputs is that of
//! one matrix, which these adapters share.
//!
//! What has a gradient trains, all else stays as it is.

mod pattern;

use crate::pass::{Changed, Method, Pass, PassCx, PassError, PassKind};
use lorafa_ir::ops::Role;
use lorafa_ir::outputs::{gradient_of, is_named};
use lorafa_ir::{Graph, OutputKind, Region, ValueId};
use pattern::{Gradient, Pattern, are_equal};
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
        let (mut found, mut tied) = (Vec::new(), BTreeMap::new());
        let mut by_name: Vec<ValueId> = Vec::new();
        for (output, value) in open {
            let gradient = choose(graph, pattern.summands(graph, value), &output);
            let param = match &gradient {
                Some((param, _)) => *param,
                None => named(graph, &output)?,
            };
            if gradient.is_none() {
                by_name.push(param);
            }
            for summand in gradient.iter().flat_map(|(_, summands)| summands) {
                if summand.param != param {
                    tied.insert(summand.param, param);
                }
                found.push(Gradient { param, ..*summand });
            }
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
        tie(graph, cx, &tied, &taken)?;
        refuse_parted(graph, &by_name, &taken)?;
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
            "{} gradients of adapters by their structure, {} gradients by their names",
            taken.len() - by_name.len(),
            by_name.len()
        ));
        let weights = graph.params().filter(|(_, p)| p.is_weight()).count();
        cx.warn(format_args!(
            "a training graph: its own backward pass, with gradients of {} of {weights} weights",
            taken.len()
        ));
        Ok(Changed::from_count(changes))
    }
}

/// The one matrix whose gradient a value may be, by its summands, and these as gradients of the matrix or of a copy of it. Of
/// several the one of that name, or else the only one that is read itself.
fn choose(
    graph: &Graph,
    summands: Vec<Vec<Gradient>>,
    output: &str,
) -> Option<(ValueId, Vec<Gradient>)> {
    let of = |summand: &[Gradient], param: ValueId, taken: &[Gradient]| {
        let of = summand.iter().filter(|g| are_equal(graph, g.param, param));
        let taken = |g: &Gradient| taken.iter().any(|t| t.adapter == g.adapter);
        of.min_by_key(|g| (g.param != param, taken(g), !g.exact))
            .copied()
    };
    let of_all = |g: &&Gradient| summands.iter().all(|s| of(s, g.param, &[]).is_some());
    let found: Vec<Gradient> = summands.iter().flatten().filter(of_all).copied().collect();
    let only = |found: Vec<Gradient>| {
        let first = found.iter().map(|g| g.param).min()?;
        // Of a sum, `find-lora` may have parted the one matrix: copies come after it.
        let is_copy = |g: &Gradient| summands.len() > 1 && are_equal(graph, g.param, first);
        (found.len() == 1 || found.iter().all(is_copy)).then_some(first)
    };
    let mut named = found.iter().filter(|g| is_of(graph, g.param, output));
    let param = match (found.len(), named.next()) {
        (1, _) => only(found),
        (_, Some(named)) => Some(named.param),
        _ => only(found.into_iter().filter(|g| g.exact).collect()),
    }?;
    let mut chosen: Vec<Gradient> = Vec::new();
    for summand in &summands {
        chosen.extend(of(summand, param, &chosen));
    }
    Some((param, chosen))
}

/// Makes one matrix again of those that have one gradient.
fn tie(
    graph: &mut Graph,
    cx: &mut PassCx,
    tied: &BTreeMap<ValueId, ValueId>,
    taken: &BTreeMap<ValueId, Arc<str>>,
) -> Result<(), PassError> {
    for (matrix, with) in tied {
        let (matrix_name, with_name) = (name(graph, *matrix), name(graph, *with));
        if let (Some(own), Some(sum)) = (taken.get(matrix), taken.get(with)) {
            return Err(PassError::Refused(format!(
                "{sum:?} is the gradient of {with_name} and {matrix_name}, and {own:?} that of {matrix_name} alone: one of \
                 them is too many"
            )));
        }
        cx.note(format_args!(
            "{matrix_name} is {with_name}: they have one gradient"
        ));
        graph.patch("find-gradients").replace(*matrix, *with)?;
    }
    Ok(())
}

/// Refuses a gradient of an adapter's matrix that may be that of another's, too: `find-lora` parted them, and the forward pass
/// would read a copy that does not train.
fn refuse_parted(
    graph: &Graph,
    by_name: &[ValueId],
    taken: &BTreeMap<ValueId, Arc<str>>,
) -> Result<(), PassError> {
    let matrices: BTreeSet<ValueId> = graph.adapters().iter().flat_map(|a| [a.a, a.b]).collect();
    let is_copy = |value: &&ValueId| {
        let uses = graph.uses(**value);
        let mut regions = uses.iter().map(|read| graph.op(read.op).site.region);
        !taken.contains_key(*value) && regions.all(|region| region == Region::Forward)
    };
    for copy in matrices.iter().filter(is_copy) {
        let of = |value: &&ValueId| matrices.contains(value) && are_equal(graph, **value, *copy);
        if let Some(param) = by_name.iter().find(of) {
            return Err(PassError::Refused(format!(
                "{} and {} were equal when the model was written, only the first has a gradient, {:?}, and its structure \
                 does not tell whether they are one: train both, or neither",
                name(graph, *param),
                name(graph, *copy),
                taken[param]
            )));
        }
    }
    Ok(())
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
