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

use crate::eliminate_dead_code::live_ops;
use crate::eqsat::{read, simplify, write};
use crate::freeze_lora_a::certify;
use crate::pass::{Changed, Pass, PassCx, PassError, PassKind};
use lorafa_ir::layout::Views;
use lorafa_ir::{Adapter, Graph, OutputKind, ValueId};

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
        let gradients = gradients(graph);
        let (views, live) = (Views::of(graph), live_ops(graph));
        let mut found = Vec::new();
        for (adapter, gradient) in &gradients {
            let read = read::gradient(graph, &views, &live, adapter, *gradient);
            let Some((terms, root)) = read else {
                continue;
            };
            match simplify(terms, root) {
                Some(simplified) => found.push((adapter, *gradient, simplified)),
                None => cx.note(format_args!("{}: no spelling is cheaper", adapter.module)),
            }
        }
        let mut scalars = write::scalars(graph);
        for (adapter, gradient, simplified) in &found {
            let plan = &simplified.plan;
            write::write(plan, graph, &mut scalars, *gradient, self.name())?;
            cx.note(format_args!(
                "{}: from {} to {} by {}",
                adapter.module,
                simplified.before,
                plan.cost,
                simplified.rules.join(", ")
            ));
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

/// Adapters whose B trains, each with its gradient.
fn gradients(graph: &Graph) -> Vec<(Adapter, ValueId)> {
    let found = graph.outputs().iter().filter_map(|output| {
        let OutputKind::Gradient(param) = output.kind else {
            return None;
        };
        let mut adapters = graph.adapters().iter();
        let adapter = adapters.find(|adapter| adapter.b == param)?;
        Some((adapter.clone(), output.value))
    });
    found.collect()
}
