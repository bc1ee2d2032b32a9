//! `schedule-backward`: a backward pass that is given, in the order that takes less memory.
//!
//! ```text
//!   v4 = matmul v3, %w               : f32[64,64]
//!   v5 = matmul v3, %b               : f32[64,2]
//! - v6 = matmul v4, %w               : f32[64,64]
//!   v7 = matmul v5, v1 {trans_a}     : f32[2,2]
//! + v6 = matmul v4, %w               : f32[64,64]
//!   out "grad::b" = v7 gradient %b
//! ```
//!
//! Gradients of our own come in the order of the forward pass, and each parameter's as soon as it can be. Who wrote the
//! file may have had another order, or none. Of the ops that can run, the next is the one after which least memory is taken:
//! what it makes less what it reads last, the file's order deciding where that is equal. A gradient counts nothing, as its
//! update follows it. If the planner's peak of the step does not fall, what `rematerialize` will do counted in, the file's
//! order stays.

use crate::pass::{Changed, Pass, PassCx, PassError, PassKind};
use crate::rematerialize::{Rematerialize, step};
use lorafa_ir::layout::Views;
use lorafa_ir::ops::Op;
use lorafa_ir::{Graph, OpId, Region, ValueId};

/// Ops that are looked at, those that can run again and again: a bound for hostile input.
const MAX_TRIES: usize = 1 << 24;

/// See the module.
pub struct ScheduleBackward;

impl Pass for ScheduleBackward {
    fn name(&self) -> &'static str {
        "schedule-backward"
    }

    fn kind(&self) -> PassKind {
        PassKind::Equivalence
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<Changed, PassError> {
        let order = graph.order();
        let backward = |id: &OpId| graph.op(*id).site.region == Region::Backward;
        let backward: Vec<OpId> = order.into_iter().filter(backward).collect();
        let own = |id: &OpId| graph.op(*id).site.of.is_some();
        if backward.is_empty() || backward.iter().any(own) {
            return Ok(Changed::No);
        }
        let mut places: Vec<i64> = backward.iter().map(|id| graph.op(*id).site.seq).collect();
        places.sort_unstable();
        let mut scheduled = graph.clone();
        let mut patch = scheduled.patch("schedule-backward");
        let Some(order) = schedule(graph, &backward) else {
            cx.note("the file's order stays: too many ops can run at once");
            return Ok(Changed::No);
        };
        for (id, place) in order.into_iter().zip(places) {
            patch.set_place(id, place);
        }
        let (Some(before), Some(after)) = (peak(graph, cx), peak(&scheduled, cx)) else {
            cx.note("there is no peak to compare");
            return Ok(Changed::No);
        };
        if after >= before {
            cx.note(format_args!(
                "the file's order stays: the peak would not fall from {before} bytes"
            ));
            return Ok(Changed::No);
        }
        cx.note(format_args!(
            "the peak falls from {before} to {after} bytes"
        ));
        *graph = scheduled;
        Ok(Changed::Yes)
    }
}

/// The peak of the step that a graph becomes, with what is computed again then.
fn peak(graph: &Graph, cx: &PassCx) -> Option<u64> {
    let mut graph = graph.clone();
    if !cx.options.disabled.contains(Rematerialize.name()) {
        let mut quiet = PassCx::new(cx.options.clone());
        Rematerialize.run(&mut graph, &mut quiet).ok()?;
    }
    step(&graph, &cx.options).ok().map(|(_, peak)| peak.bytes)
}

/// What buffers take, and how often each is still to be read.
struct Memory {
    views: Views,
    bytes: Vec<u64>,
    reads: Vec<usize>,
}

impl Memory {
    fn of(graph: &Graph) -> Self {
        let views = Views::of(graph);
        let mut bytes = vec![0; graph.value_bound()];
        let mut reads = vec![0; graph.value_bound()];
        for op in graph.ops() {
            for operand in &op.operands {
                reads[root(&views, *operand).index()] += 1;
            }
            for result in &op.results {
                let held = root(&views, *result) == *result && !matches!(op.kind, Op::Param(_));
                let ty = graph.ty(*result);
                bytes[result.index()] = ty.bytes().filter(|_| held).unwrap_or(0);
            }
        }
        for output in graph.outputs() {
            bytes[root(&views, output.value).index()] = 0;
        }
        Memory {
            views,
            bytes,
            reads,
        }
    }

    /// The bytes that are taken more once an op has run.
    fn taken(&self, graph: &Graph, id: OpId) -> i128 {
        let op = graph.op(id);
        let made: u64 = op.results.iter().map(|v| self.bytes[v.index()]).sum();
        let mut freed = 0;
        for (slot, operand) in op.operands.iter().enumerate() {
            let root = root(&self.views, *operand);
            let here = |v: &&ValueId| self::root(&self.views, **v) == root;
            let first = !op.operands[..slot].iter().any(|v| here(&v));
            let last = op.operands.iter().filter(here).count() == self.reads[root.index()];
            if first && last {
                freed += self.bytes[root.index()];
            }
        }
        i128::from(made) - i128::from(freed)
    }
}

fn root(views: &Views, value: ValueId) -> ValueId {
    views.root(value).map_or(value, |(root, _)| root)
}

/// The ops in the order in which they take least memory one by one; `None` if there are too many to choose from.
fn schedule(graph: &Graph, backward: &[OpId]) -> Option<Vec<OpId>> {
    let mut memory = Memory::of(graph);
    let mut missing = vec![usize::MAX; graph.value_bound()];
    let mut place = vec![0; graph.value_bound()];
    let index = |id: OpId| graph.op(id).results[0].index();
    let waited_for = |value: ValueId| {
        let def = graph.def(value);
        def.site.region == Region::Backward && !matches!(def.kind, Op::Param(_) | Op::Constant(_))
    };
    for (at, id) in backward.iter().enumerate() {
        place[index(*id)] = at;
        let operands = graph.op(*id).operands.iter();
        missing[index(*id)] = operands.filter(|v| waited_for(**v)).count();
    }
    let free = |id: &&OpId| missing[index(**id)] == 0;
    let mut ready: Vec<OpId> = backward.iter().filter(free).copied().collect();
    let mut order = Vec::with_capacity(backward.len());
    let mut tries = MAX_TRIES;
    while !ready.is_empty() {
        tries = tries.checked_sub(ready.len())?;
        let costs = ready
            .iter()
            .map(|id| (memory.taken(graph, *id), place[index(*id)]));
        let (next, _) = costs.enumerate().min_by_key(|(_, cost)| *cost)?;
        let id = ready.swap_remove(next);
        order.push(id);
        for operand in &graph.op(id).operands {
            memory.reads[root(&memory.views, *operand).index()] -= 1;
        }
        let results = graph.op(id).results.iter();
        for result in results.filter(|v| waited_for(**v)) {
            for read in graph.uses(*result) {
                let left = &mut missing[index(read.op)];
                *left -= 1;
                if *left == 0 {
                    ready.push(read.op);
                }
            }
        }
    }
    Some(order)
}
