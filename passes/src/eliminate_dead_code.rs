//! `eliminate-dead-code`: removes what no output needs.
//!
//! ```text
//!   v0 = matmul %x, %w  : f32[4,8]
//! - v1 = exp v0         : f32[4,8]
//!   out "y" = v0
//! ```
//!
//! The model's inputs stay, so that callers need not change what they feed.

use crate::pass::{Changed, Pass, PassCx, PassError, PassKind};
use lorafa_ir::ops::{Op, Role};
use lorafa_ir::{Adapter, Graph, OpId};

/// See the module.
pub struct EliminateDeadCode;

impl Pass for EliminateDeadCode {
    fn name(&self) -> &'static str {
        "eliminate-dead-code"
    }

    fn kind(&self) -> PassKind {
        PassKind::Canonicalize
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<Changed, PassError> {
        let live = live_ops(graph);
        let mut dead: Vec<OpId> = graph.order();
        dead.retain(|op| !live[op.index()]);
        let ops = dead.len();
        let gone = |graph: &Graph, a: &Adapter| {
            a.values()
                .iter()
                .any(|(_, v)| !live[graph.value(*v).op.index()])
        };
        let adapters: Vec<bool> = graph.adapters().iter().map(|a| gone(graph, a)).collect();

        let mut patch = graph.patch("eliminate-dead-code");
        let mut fate = adapters.iter();
        patch.retain_adapters(|_| fate.next() != Some(&true));
        for op in dead.into_iter().rev() {
            patch.remove(op)?;
        }
        if ops > 0 {
            cx.note(format_args!("removed {ops} ops"));
        }
        Ok(Changed::from_count(ops))
    }
}

/// By op index, whether an output needs the op or it is an input.
pub(crate) fn live_ops(graph: &Graph) -> Vec<bool> {
    let bound = graph.ops().last().map_or(0, |op| op.id.index() + 1);
    let mut live = vec![false; bound];
    let inputs = graph
        .ops()
        .filter(|op| matches!(&op.kind, Op::Param(p) if p.role == Role::Input));
    let outputs = graph.outputs().iter().map(|o| graph.value(o.value).op);
    let mut work: Vec<OpId> = inputs.map(|op| op.id).chain(outputs).collect();
    while let Some(id) = work.pop() {
        if !std::mem::replace(&mut live[id.index()], true) {
            work.extend(graph.op(id).operands.iter().map(|v| graph.value(*v).op));
        }
    }
    live
}
