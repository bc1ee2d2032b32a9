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
//! FLOPs, then fewer ops. Bytes count whether something else keeps them or not, so that what becomes of an adapter does not depend on
//! the rest of the graph. Each adapter is looked at by itself. A is a constant here: before `freeze-lora-a`, its own gradient would need `x`.

use crate::eqsat::extract::Extracted;
use crate::eqsat::read::Gradient;
use crate::eqsat::{Simplified, read, simplify, write};
use crate::freeze_lora_a::certify;
use crate::pass::{Changed, Pass, PassCx, PassError, PassKind};
use lorafa_ir::{Graph, OutputKind, ValueId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// See the module.
pub struct SimplifyLora;

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
                _ => cx.note(format_args!("the gradients of B of {first} and {} others: each {why}", all - 1)),
            }
        }
        let mut found = Vec::new();
        for component in components {
            let gradients = component.gradients.clone();
            match simplify(component) {
                Some(simplified) => found.push((gradients, simplified)),
                None => cx.note(format_args!("{}: no spelling is cheaper", modules(&gradients))),
            }
        }
        let mut scalars = write::scalars(graph);
        for (gradients, simplified) in &found {
            let values: Vec<Option<ValueId>> = gradients
                .iter()
                .zip(&simplified.rules)
                .map(|(gradient, rules)| rules.as_ref().map(|_| gradient.value))
                .collect();
            let plan = &simplified.plan;
            write::write(plan, graph, &mut scalars, &values, self.name())?;
            note(cx, gradients, simplified);
        }
        if let Some(old) = cx.certificate.as_ref().filter(|_| !found.is_empty()) {
            let (before, new) = (old.released().count(), certify(graph));
            let (after, all) = (new.released().count(), new.proofs.len());
            cx.note(format_args!(
                "{before} of {all} adapters release x before, {after} after"
            ));
            cx.certificate = Some(new);
        }
        Ok(Changed::from_count(found.len()))
    }
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

/// Adapters whose B trains, each with its gradient.
fn gradients(graph: &Graph) -> Vec<Gradient> {
    let found = graph.outputs().iter().filter_map(|output| {
        let OutputKind::Gradient(param) = output.kind else {
            return None;
        };
        let mut adapters = graph.adapters().iter();
        let adapter = adapters.find(|adapter| adapter.b == param)?;
        Some(Gradient {
            adapter: adapter.clone(),
            value: output.value,
        })
    });
    found.collect()
}
