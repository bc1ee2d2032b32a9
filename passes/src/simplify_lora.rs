//! `simplify-lora`: the gradient of an adapter's B in its cheapest spelling.
//!
//! ```text
//!   v1 = matmul %x, %a {trans_b}        : f32[4,2]
//!   …
//! - v7 = matmul v6, %x {trans_a}        : f32[8,8]
//! - v8 = matmul v7, %a {trans_b}        : f32[8,2]
//! + v8 = matmul v6, v1 {trans_a}        : f32[8,2]
//!   out "grad::b" = v8 gradient %b
//! ```
//!
//! The gradient of B is `(x·A)ᵀ·dy`. Who spells it `Aᵀ·(xᵀ·dy)`, or computes `x·A` again, keeps `x` for the backward pass and
//! not the narrow `x·A`. Equality saturation (`eqsat/`) finds all that its rules make of a gradient, and the
//! cheapest is taken, if it is cheaper than what is there: fewer bytes kept for the backward pass, then fewer
//! FLOPs, then fewer ops. Adapters that share an input, or part of a gradient, are chosen together: what several keep or compute
//! counts once, and what the rest of the step keeps or computes anyway counts nothing. A is a constant here: before
//! `freeze-lora-a`, its own gradient would need `x`.
//!
//! Gradients that are one product with `x·A` are left as they are where those that they share something with are, too: less would
//! be kept only where `x` is kept anyway, at the price of one more product. What would raise the peak of the
//! step that `attach-optimizer` makes of the graph stays out, in all layers that are alike.

use crate::eliminate_dead_code::EliminateDeadCode;
use crate::eqsat::extract::Extracted;
use crate::eqsat::read::Gradient;
use crate::eqsat::{Simplified, read, simplify, write};
use crate::freeze_lora_a::certify;
use crate::matching::binary;
use crate::pass::{Changed, Pass, PassCx, PassError, PassKind, layer_pattern};
use crate::rematerialize::step;
use lorafa_ir::ops::BinaryKind;
use lorafa_ir::{Adapter, Graph, OutputKind, ValueId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// See the module.
pub struct SimplifyLora;

/// Most adapters of one B that are looked at: a bound for hostile input.
const MAX_SHARING: usize = 64;

/// Gradients with their cheaper spellings.
type Found = (Vec<Gradient>, Simplified);

impl Pass for SimplifyLora {
    fn name(&self) -> &'static str {
        "simplify-lora"
    }

    fn kind(&self) -> PassKind {
        PassKind::Equivalence
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<Changed, PassError> {
        let (components, left) = read::components(graph, gradients(graph));
        let mut reasons: BTreeMap<read::Left, Vec<Arc<str>>> = BTreeMap::new();
        for (gradient, why) in left {
            let module = gradient.adapter.module;
            reasons.entry(why).or_default().push(module);
        }
        for (why, modules) in reasons {
            let (first, all) = (&modules[0], modules.len());
            match all {
                1 => cx.note(format_args!("the gradient of B of {first} {why}")),
                _ => cx.note(format_args!(
                    "the gradients of B of {first} and {} others: each {why}",
                    all - 1
                )),
            }
        }
        let mut found: Vec<Found> = Vec::new();
        for component in components {
            let gradients = component.gradients.clone();
            match simplify(component) {
                Some(simplified) => found.push((gradients, simplified)),
                None => cx.note(format_args!(
                    "{}: no spelling is cheaper",
                    modules(&gradients)
                )),
            }
        }
        let taken = choose(graph, cx, &found)?;
        for ((gradients, simplified), _) in found.iter().zip(&taken).filter(|(_, taken)| **taken) {
            note(cx, gradients, simplified);
        }
        if !taken.contains(&true) {
            return Ok(Changed::No);
        }
        if let Some(old) = cx.certificate.take() {
            let (before, new) = (old.released().count(), certify(graph));
            let (after, all) = (new.released().count(), new.proofs.len());
            cx.note(format_args!(
                "{before} of {all} adapters release x before, {after} after"
            ));
            cx.certificate = Some(new);
        }
        Ok(Changed::Yes)
    }
}

/// Writes all spellings that do not raise the peak, those of layers that are alike together; which they are.
fn choose(graph: &mut Graph, cx: &mut PassCx, found: &[Found]) -> Result<Vec<bool>, PassError> {
    let none = vec![false; found.len()];
    if found.is_empty() {
        return Ok(none);
    }
    let all = written(graph, found, &vec![true; found.len()])?;
    let (Some(mut lowest), Some(peak)) = (peak(graph, cx), peak(&all, cx)) else {
        cx.note("there is no peak to compare");
        *graph = all;
        return Ok(vec![true; found.len()]);
    };
    if peak <= lowest {
        *graph = all;
        return Ok(vec![true; found.len()]);
    }
    let (unchanged, mut taken) = (graph.clone(), none);
    for alike in alike(found) {
        let mut trial = taken.clone();
        alike.iter().for_each(|at| trial[*at] = true);
        let edited = written(&unchanged, found, &trial)?;
        match self::peak(&edited, cx) {
            Some(peak) if peak <= lowest => {
                (*graph, taken, lowest) = (edited, trial, peak);
            }
            Some(peak) => cx.note(format_args!(
                "{}, {} times: would raise the peak by {} bytes",
                modules(&found[alike[0]].0),
                alike.len(),
                peak - lowest
            )),
            None => cx.note(format_args!(
                "{}, {} times: cannot be planned",
                modules(&found[alike[0]].0),
                alike.len()
            )),
        }
    }
    Ok(taken)
}

/// A graph with some of the spellings.
fn written(graph: &Graph, found: &[Found], chosen: &[bool]) -> Result<Graph, PassError> {
    let mut graph = graph.clone();
    let mut scalars = write::scalars(&graph);
    let chosen = found.iter().zip(chosen).filter(|(_, chosen)| **chosen);
    for ((gradients, Simplified { plan, rules, .. }), _) in chosen {
        let values = gradients.iter().zip(rules);
        let values: Vec<Option<ValueId>> = values
            .map(|(gradient, rules)| rules.as_ref().map(|_| gradient.value))
            .collect();
        write::write(plan, &mut graph, &mut scalars, &values, SimplifyLora.name())?;
    }
    Ok(graph)
}

/// The peak of the step that a graph becomes, if it can be planned.
fn peak(graph: &Graph, cx: &PassCx) -> Option<u64> {
    let mut graph = graph.clone();
    let mut quiet = PassCx::new(cx.options.clone());
    EliminateDeadCode.run(&mut graph, &mut quiet).ok()?;
    step(&graph, &cx.options).ok().map(|(_, peak)| peak.bytes)
}

/// Places of components in lists of those whose modules are alike, in the order of their first.
fn alike(found: &[Found]) -> Vec<Vec<usize>> {
    let mut lists: Vec<(String, Vec<usize>)> = Vec::new();
    for (at, (gradients, _)) in found.iter().enumerate() {
        let pattern = layer_pattern(&modules(gradients));
        match lists.iter_mut().find(|(known, _)| *known == pattern) {
            Some((_, list)) => list.push(at),
            None => lists.push((pattern, vec![at])),
        }
    }
    lists.into_iter().map(|(_, list)| list).collect()
}

fn modules(gradients: &[Gradient]) -> String {
    let modules: Vec<&str> = gradients.iter().map(|g| &*g.adapter.module).collect();
    modules.join(", ")
}

fn note(cx: &mut PassCx, gradients: &[Gradient], simplified: &Simplified) {
    let Extracted { cost, proven, .. } = &simplified.plan.found;
    let proof = match proven {
        true => "",
        false => ", the best of what was tried",
    };
    cx.note(format_args!(
        "{}: from {} to {cost}{proof}",
        modules(gradients),
        simplified.before,
    ));
    for (gradient, rules) in gradients.iter().zip(&simplified.rules) {
        let module = &gradient.adapter.module;
        match rules {
            Some(rules) => cx.note(format_args!("{module}: by {}", rules.join(", "))),
            None => cx.note(format_args!("{module}: stays")),
        }
    }
}

/// The gradients of all B that train, each with the adapters that it may be one of: that of a B which several share is the sum
/// of theirs.
fn gradients(graph: &Graph) -> Vec<(ValueId, Vec<Adapter>)> {
    let mut found = Vec::new();
    for output in graph.outputs() {
        let OutputKind::Gradient(param) = output.kind else {
            continue;
        };
        let adapters = graph.adapters().iter().filter(|a| a.b == param);
        let adapters: Vec<Adapter> = adapters.take(MAX_SHARING).cloned().collect();
        let mut values = vec![output.value];
        while values.len() < adapters.len() {
            let sums = values.iter().map(|v| binary(graph, *v, BinaryKind::Add));
            let Some((at, summands)) = sums.enumerate().find_map(|(at, s)| Some((at, s?))) else {
                break;
            };
            values.splice(at..=at, summands);
        }
        let values = values.into_iter().filter(|_| !adapters.is_empty());
        found.extend(values.map(|value| (value, adapters.clone())));
    }
    found
}
