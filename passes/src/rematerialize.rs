//! `rematerialize`: computes saved activations that are cheap again in the backward pass, where that lowers the peak.
//!
//! ```text
//!   v1 = gated v0, %up {act=silu}          : bf16[4,8]
//!   v2 = matmul v1, %w {trans_b}           : bf16[4,8]
//!   …
//! + v6 = gated v0, %up {act=silu}          : bf16[4,8]
//! - v5 = matmul v4, v1 {trans_a}           : bf16[8,8]
//! + v5 = matmul v4, v6 {trans_a}           : bf16[8,8]
//! ```
//!
//! LoRA and full fine-tuning keep the input of every product whose weight they train. Mostly a norm, a gated activation or
//! a dropout made it, of what is kept anyway. `candidates` says what can be computed again, `again` edits the graph.
//!
//! What is alike in every layer is one group. All groups are tried at once, because one alone may leave a peak as high
//! somewhere else; then each is left out again whose values may as well stay. The peak is the planner's own
//! lower bound, of the step that `attach-optimizer` makes of the graph. That comes afterwards: it updates parameters when
//! all that reads them has run.

mod again;
mod candidates;

use crate::attach_optimizer::AttachOptimizer;
use crate::pass::{Changed, Options, Pass, PassCx, PassError, PassKind, in_module};
use again::{Copy, flops, recompute};
use candidates::{Candidates, Group};
use lorafa_ir::{Graph, ValueId};
use lorafa_plan::{Peak, peak};
use std::cmp::Reverse;

/// See the module.
pub struct Rematerialize;

/// What the backward pass of a step computes again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rematerialized {
    /// The saved activations that are no longer kept.
    pub values: Vec<ValueId>,
    /// Their bytes, each rounded as the plan does.
    pub bytes: u64,
    /// Floating-point operations for it.
    pub flops: u64,
    /// Floating-point operations of the step without it.
    pub step_flops: u64,
}

impl Pass for Rematerialize {
    fn name(&self) -> &'static str {
        "rematerialize"
    }

    fn kind(&self) -> PassKind {
        PassKind::Equivalence
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<Changed, PassError> {
        let (step, before) = match step(graph, &cx.options) {
            Ok(step) => step,
            Err(why) => {
                cx.note(format_args!("there is no peak to lower: {why}"));
                return Ok(Changed::No);
            }
        };
        let found = Candidates::of(&step, &before);
        if found.too_small > 0 {
            cx.note(format_args!(
                "{} values are too few bytes to matter and were not tried",
                found.too_small
            ));
        }
        let best = match found.are_at(&step, &before) {
            true => choose(graph, &found, &before, &cx.options)?,
            false => None,
        };
        for (index, group) in found.groups.iter().enumerate() {
            note(cx, graph, group, best.iter().flat_map(|b| b.of(index)));
        }
        let Some(best) = best else {
            return Ok(Changed::No);
        };
        let done = rematerialized(&step, &found, &best);
        cx.note(format_args!(
            "the peak falls from {} to {} bytes, for {} FLOPs beside {} of the step",
            before.bytes, best.peak.bytes, done.flops, done.step_flops
        ));
        cx.rematerialized = Some(done);
        *graph = best.graph;
        Ok(Changed::Yes)
    }
}

/// The whole step of a graph that has gradients, and its peak; or why there is none.
pub(crate) fn step(gradients: &Graph, options: &Options) -> Result<(Graph, Peak), String> {
    let mut step = gradients.clone();
    let attached = AttachOptimizer.run(&mut step, &mut PassCx::new(options.clone()));
    attached.map_err(|error| error.to_string())?;
    let peak = peak(&step).map_err(|error| error.to_string())?;
    Ok((step, peak))
}

/// A graph that computes some groups again, and the peak of its step.
struct Trial {
    graph: Graph,
    peak: Peak,
    copies: Vec<Copy>,
}

impl Trial {
    /// `None` if such a step cannot be planned.
    fn new(
        graph: &Graph,
        found: &Candidates,
        chosen: &[bool],
        options: &Options,
    ) -> Result<Option<Self>, PassError> {
        let (graph, copies) = recompute(graph, found, chosen)?;
        Ok(step(&graph, options).ok().map(|(_, peak)| Trial {
            graph,
            peak,
            copies,
        }))
    }

    fn of(&self, group: usize) -> impl Iterator<Item = &Copy> {
        self.copies.iter().filter(move |copy| copy.group == group)
    }

    /// By group: whether the peak would be higher if the group were kept, because a value was made before and is computed
    /// again after it.
    fn needed(&self, groups: usize) -> Vec<bool> {
        let ops = self.peak.schedule.ops().iter();
        let mut positions = vec![0; ops.map(|id| id.index() + 1).max().unwrap_or(0)];
        for (position, id) in self.peak.schedule.iter() {
            positions[id.index()] = position;
        }
        let mut needed = vec![false; groups];
        for copy in self.copies.iter().filter(|copy| copy.of_group) {
            let forward = positions.get(copy.forward.index());
            let made = forward.is_some_and(|made| *made < self.peak.position);
            needed[copy.group] |= made && positions[copy.backward.index()] > self.peak.position;
        }
        needed
    }
}

/// The lowest peak that computing all groups again gives, with as few of them as that takes: those that cost most for a
/// byte are left out first. `None` if no peak is lower than the one before.
fn choose(
    graph: &Graph,
    found: &Candidates,
    before: &Peak,
    options: &Options,
) -> Result<Option<Trial>, PassError> {
    let mut chosen = vec![true; found.groups.len()];
    let Some(mut best) = Trial::new(graph, found, &chosen, options)? else {
        return Ok(None);
    };
    let needed = best.needed(chosen.len());
    let flops_a_byte = |group: &usize| {
        let flops: u64 = best.of(*group).map(|copy| of(graph, copy)).sum();
        Reverse(u128::from(flops) * 1024 / u128::from(found.groups[*group].bytes.max(1)))
    };
    let mut costliest: Vec<usize> = (0..chosen.len()).filter(|group| !needed[*group]).collect();
    costliest.sort_by_key(flops_a_byte);
    for group in costliest {
        chosen[group] = false;
        match Trial::new(graph, found, &chosen, options)? {
            Some(without) if without.peak.bytes <= best.peak.bytes => best = without,
            _ => chosen[group] = true,
        }
    }
    Ok(Some(best).filter(|best| best.peak.bytes < before.bytes))
}

/// The floating-point operations of a copy.
fn of(graph: &Graph, copy: &Copy) -> u64 {
    flops(graph, graph.op(copy.forward), false)
}

fn note<'a>(cx: &mut PassCx, graph: &Graph, group: &Group, copies: impl Iterator<Item = &'a Copy>) {
    let Group { op, bytes, .. } = group;
    let (place, values) = (in_module(&group.module), group.values.len());
    let costs: Vec<u64> = copies.map(|copy| of(graph, copy)).collect();
    match costs.len() {
        0 => cx.note(format_args!(
            "{op}{place}: {values} values stay, {bytes} bytes: the peak is no lower without them"
        )),
        ops => cx.note(format_args!(
            "{op}{place}: {values} values are not kept, {bytes} bytes; {ops} ops compute them again, {} FLOPs",
            costs.iter().sum::<u64>()
        )),
    }
}

fn rematerialized(step: &Graph, found: &Candidates, best: &Trial) -> Rematerialized {
    let ops = step.ops();
    let mut done = Rematerialized {
        step_flops: ops.map(|op| flops(step, op, found.is_view(op))).sum(),
        flops: best.copies.iter().map(|copy| of(step, copy)).sum(),
        ..Rematerialized::default()
    };
    for (index, group) in found.groups.iter().enumerate() {
        if best.of(index).next().is_some() {
            done.values.extend(&group.values);
            done.bytes += group.bytes;
        }
    }
    done
}
