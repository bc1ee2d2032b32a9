//! Which saved activations follow, by cheap ops alone, from parameters and from what is kept anyway.

use super::again::flops;
use crate::matching::MAX_STEPS;
use crate::pass::layer_pattern;
use lorafa_ir::layout::Views;
use lorafa_ir::{Graph, Op, OpData, Region, ValueId, ValueMap};
use lorafa_plan::{ALIGN, Peak, Schedule};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Most FLOPs for a byte that is not kept. Below it, GPUs wait for operands: an H100 does 20 FLOPs of f32 in the time that
/// it reads a byte.
const MOST_FLOPS_A_BYTE: u64 = 16;

/// The share of the peak, one in so many bytes, that a group must have to be tried. Each trial plans the step again.
const LEAST_SHARE: u64 = 1000;

/// Most groups to try, the largest: a bound for models whose layers have nothing in common.
const MOST_GROUPS: usize = 16;

/// Values that the same op makes in the same place of every layer.
pub(super) struct Group {
    /// The op's mnemonic.
    pub op: &'static str,
    /// Its module, with `*` for numbers.
    pub module: String,
    /// The values, in schedule order.
    pub values: Vec<ValueId>,
    /// Their bytes in the plan.
    pub bytes: u64,
}

/// The values that may be computed again.
pub(super) struct Candidates {
    /// What is worth trying, largest first.
    pub groups: Vec<Group>,
    /// How many values are in no group because those like them are too few bytes.
    pub too_small: usize,
    views: Views,
    /// The group of what may be computed again.
    group: ValueMap<Option<usize>>,
    /// The last position after the forward pass that reads what lies in a value's memory, if there is one.
    read_until: ValueMap<Option<u32>>,
}

/// What it takes to have a value in the backward pass.
#[derive(Clone, Copy, Default)]
struct Chain {
    flops: u64,
    /// Ops one after the other; none for what is there.
    steps: usize,
}

impl Candidates {
    /// Looks at a step whose sizes are known.
    pub fn of(graph: &Graph, peak: &Peak) -> Self {
        let mut found = Candidates {
            groups: Vec::new(),
            too_small: 0,
            views: Views::of(graph),
            group: ValueMap::new(None),
            read_until: ValueMap::new(None),
        };
        let fixed = found.read(graph, &peak.schedule);
        let cheap = found.cheap(graph, &peak.schedule, &fixed);
        found.group(graph, cheap, peak);
        found
    }

    /// The group of the memory that a value lies in, if that may be computed again.
    pub fn group_of(&self, value: ValueId) -> Option<usize> {
        *self.group.get(self.root(value))
    }

    /// Whether the backward pass has a value as it is, if groups are computed again as `chosen` says.
    pub fn is_there(&self, value: ValueId, chosen: &[bool]) -> bool {
        self.is_read(value) && !self.group_of(value).is_some_and(|group| chosen[group])
    }

    /// Whether a value that may be computed again is in use at the peak: otherwise nothing lowers it.
    pub fn are_at(&self, graph: &Graph, peak: &Peak) -> bool {
        let mut made = ValueMap::new(false);
        let before = peak.schedule.ops().iter().take(peak.position as usize);
        for op in before {
            let results = graph.op(*op).results.iter();
            results.for_each(|value| made.set(*value, true));
        }
        let mut values = self.groups.iter().flat_map(|group| &group.values);
        values.any(|value| {
            let until = *self.read_until.get(*value);
            *made.get(*value) && until.is_some_and(|until| until > peak.position)
        })
    }

    fn is_read(&self, value: ValueId) -> bool {
        self.read_until.get(self.root(value)).is_some()
    }

    /// Whether an op only gives its operand another shape.
    pub fn is_view(&self, op: &OpData) -> bool {
        self.root(op.results[0]) != op.results[0]
    }

    fn root(&self, value: ValueId) -> ValueId {
        self.views.root(value).map_or(value, |(root, _)| root)
    }

    /// Finds what is there in the backward pass; returns what must stay: outputs, what the update reads, and what lies
    /// behind more views than are walked through.
    fn read(&mut self, graph: &Graph, schedule: &Schedule) -> ValueMap<bool> {
        let mut fixed = ValueMap::new(false);
        let mut views: ValueMap<usize> = ValueMap::new(0);
        for op in graph.ops() {
            if matches!(op.kind, Op::Param(_) | Op::Constant(_)) {
                self.read_until.set(op.results[0], Some(schedule.end()));
            }
        }
        for (position, id) in schedule.iter() {
            let op = graph.op(id);
            if self.is_view(op) {
                let deep = views.get(op.operands[0]) + 1;
                views.set(op.results[0], deep);
                if deep > MAX_STEPS {
                    fixed.set(self.root(op.results[0]), true);
                }
            }
            if op.site.region == Region::Forward {
                continue;
            }
            for operand in &op.operands {
                let operand = self.root(*operand);
                let until = self.read_until.get_mut(operand);
                *until = (*until).max(Some(position));
                if op.site.region == Region::Update {
                    fixed.set(operand, true);
                }
            }
        }
        for output in graph.outputs() {
            fixed.set(self.root(output.value), true);
        }
        fixed
    }

    /// What the backward pass reads and cheap ops make of what is there, in schedule order.
    fn cheap(&self, graph: &Graph, schedule: &Schedule, fixed: &ValueMap<bool>) -> Vec<ValueId> {
        let mut chains: ValueMap<Option<Chain>> = ValueMap::new(None);
        let mut cheap = Vec::new();
        let forward = schedule.ops().iter().map(|id| graph.op(*id));
        for op in forward.filter(|op| op.site.region == Region::Forward) {
            let Some(chain) = self.chain(graph, op, &chains) else {
                continue;
            };
            for result in &op.results {
                let bytes = graph.ty(*result).bytes().unwrap_or(0);
                let few = chain.flops <= MOST_FLOPS_A_BYTE.saturating_mul(bytes);
                let saved = self.read_until.get(*result).is_some();
                if !saved {
                    chains.set(*result, Some(chain));
                } else if few && chain.steps > 0 && !fixed.get(*result) {
                    chains.set(*result, Some(chain));
                    cheap.push(*result);
                }
            }
        }
        cheap
    }

    /// What it takes to run an op in the backward pass, all it reads included.
    fn chain(&self, graph: &Graph, op: &OpData, chains: &ValueMap<Option<Chain>>) -> Option<Chain> {
        let view = self.is_view(op);
        if !view && !is_cheap(&op.kind) {
            return None;
        }
        let mut chain = Chain::default();
        for operand in &op.operands {
            let there = || self.is_read(*operand).then(Chain::default);
            let of = chains.get(*operand).or_else(there)?;
            chain.flops = chain.flops.saturating_add(of.flops);
            chain.steps = chain.steps.max(of.steps);
        }
        if view && chain.steps == 0 {
            return Some(chain);
        }
        chain.flops = chain.flops.saturating_add(flops(graph, op, view));
        chain.steps += 1;
        (chain.steps <= MAX_STEPS).then_some(chain)
    }

    /// Groups values, and leaves out the groups that are not worth a trial.
    fn group(&mut self, graph: &Graph, values: Vec<ValueId>, peak: &Peak) {
        let mut groups: BTreeMap<(String, &'static str), Group> = BTreeMap::new();
        for value in values {
            let def = graph.def(value);
            let (op, module) = (def.kind.name(), layer_pattern(&def.site.module));
            let group = groups.entry((module.clone(), op)).or_insert(Group {
                op,
                module,
                values: Vec::new(),
                bytes: 0,
            });
            let bytes = graph.ty(value).bytes().unwrap_or(0);
            group.bytes += bytes.next_multiple_of(ALIGN);
            group.values.push(value);
        }
        let (mut tried, mut small): (Vec<Group>, Vec<Group>) = groups
            .into_values()
            .partition(|group| group.bytes.saturating_mul(LEAST_SHARE) >= peak.bytes);
        tried.sort_by_key(|group| Reverse(group.bytes));
        small.extend(tried.drain(MOST_GROUPS.min(tried.len())..));
        self.too_small = small.iter().map(|group| group.values.len()).sum();
        for (index, group) in tried.iter().enumerate() {
            let values = group.values.iter();
            values.for_each(|value| self.group.set(*value, Some(index)));
        }
        self.groups = tried;
    }
}

/// Whether an op takes no longer than reading and writing memory does, and gives the same whenever it runs.
fn is_cheap(kind: &Op) -> bool {
    matches!(
        kind,
        Op::Iota(_)
            | Op::Fill(_)
            | Op::Unary(_)
            | Op::Activation(_)
            | Op::Binary(_)
            | Op::Select(_)
            | Op::Cast(_)
            | Op::Reshape(_)
            | Op::Expand(_)
            | Op::Transpose(_)
            | Op::Slice(_)
            | Op::Pad(_)
            | Op::Concat(_)
            | Op::Gather(_)
            | Op::Softmax(_)
            | Op::LayerNorm(_)
            | Op::RmsNorm(_)
            | Op::Gated(_)
            | Op::Rotary(_)
            | Op::Dropout(_)
            | Op::DropoutMask(_)
    )
}
