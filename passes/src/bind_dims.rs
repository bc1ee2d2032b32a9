//! `bind-dims`: puts numbers in for symbolic dimensions.
//!
//! ```text
//! - param %input_ids : i64[batch,seq] input
//! + param %input_ids : i64[16,1024] input
//! ```
//!
//! Afterwards every size in the graph is known. Positions beyond a table's end are refused, and a
//! dimension that comes out different at two places: an input whose batch is called `b` here and
//! `n` there, bound to different numbers.

mod positions;

use crate::pass::{Changed, Pass, PassCx, PassError, PassKind, in_module};
use lorafa_ir::ops::Op;
use lorafa_ir::text::OpDisplay;
use lorafa_ir::{Graph, OpId, PatchError};
use std::collections::BTreeSet;
use std::sync::Arc;

/// See the module.
pub struct BindDims;

impl Pass for BindDims {
    fn name(&self) -> &'static str {
        "bind-dims"
    }

    fn kind(&self) -> PassKind {
        PassKind::Canonicalize
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<Changed, PassError> {
        let unbound: Vec<Arc<str>> = symbols(graph)
            .into_iter()
            .filter(|s| !cx.options.bindings.contains_key(&**s))
            .collect();
        if !unbound.is_empty() {
            let flags: Vec<String> = unbound.iter().map(|s| format!("--dim {s}=N")).collect();
            let names = unbound
                .iter()
                .map(|s| format!("`{s}`"))
                .collect::<Vec<_>>()
                .join(", ");
            return Err(PassError::Refused(format!(
                "no number is given for the dimension {names}: add {}",
                flags.join(" ")
            )));
        }
        let mut changed = 0;
        for id in graph.order() {
            changed += usize::from(bind(graph, id, cx)?);
        }
        positions::check(graph)?;
        Ok(Changed::from_count(changed))
    }
}

/// Every symbol in the type of a value.
pub fn symbols(graph: &Graph) -> BTreeSet<Arc<str>> {
    let mut names = BTreeSet::new();
    for value in graph.ops().flat_map(|op| &op.results) {
        graph
            .ty(*value)
            .shape
            .iter()
            .for_each(|d| d.symbols(&mut names));
    }
    names
}

fn bind(graph: &mut Graph, id: OpId, cx: &PassCx) -> Result<bool, PassError> {
    let op = graph.op(id);
    let before = op.kind.clone();
    let Some(kind) = before.bind(&cx.options.bindings) else {
        return Err(impossible(
            graph,
            id,
            "a dimension would be negative, undefined or too large",
            cx,
        ));
    };
    let symbolic = |v| graph.ty(v).known_shape().is_none();
    let changed = kind != before || op.results.iter().any(|v| symbolic(*v));
    let param = op.results[0];
    let mut patch = graph.patch("bind-dims");
    match kind {
        Op::Param(bound) if changed => patch.update_param(param, |p| *p = *bound),
        Op::Param(_) => {}
        // What does not change itself may read what did.
        kind => {
            if changed {
                patch.set_kind(id, kind);
            }
            if let Err(PatchError::IllTyped { error, .. }) = patch.reinfer(id) {
                return Err(impossible(graph, id, &error.to_string(), cx));
            }
        }
    }
    Ok(changed)
}

fn impossible(graph: &Graph, id: OpId, why: &str, cx: &PassCx) -> PassError {
    let given = cx
        .options
        .bindings
        .iter()
        .map(|(name, n)| format!("{name}={n}"));
    let place = in_module(&graph.op(id).site.module);
    PassError::Refused(format!(
        "the model does not work with {}: {why}, at `{}`{place}",
        given.collect::<Vec<_>>().join(", "),
        OpDisplay(graph, id)
    ))
}
