//! The graph: ops and values over a private petgraph.

use crate::adapter::Adapter;
use crate::ids::{OpId, ValueId};
use crate::ops::{Op, Param, Role};
use crate::outputs::{Output, OutputKind, Outputs};
use crate::patch::Patch;
use crate::types::TensorType;
use petgraph::Direction;
use petgraph::stable_graph::{NodeIndex, StableDiGraph};
use petgraph::visit::EdgeRef;
use smallvec::SmallVec;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

/// The part of a training step that an op belongs to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Region {
    /// Computes the loss.
    Forward,
    /// Computes gradients.
    Backward,
    /// Computes new parameters from gradients.
    Update,
}

/// Where an op stands: its part of the step, its place in the schedule, its origin.
#[derive(Clone, Debug)]
pub struct Site {
    /// Part of the training step.
    pub region: Region,
    /// Place in the schedule: smaller goes first wherever operands allow. The backward and the update region
    /// share one count; the forward region is before both.
    pub seq: i64,
    /// The module that the op belongs to, `model.layers.0.mlp.down_proj`; empty if unknown.
    pub module: Arc<str>,
    /// For a backward op, the forward op whose gradient it computes.
    pub of: Option<OpId>,
}

/// An op with its place in the graph.
#[derive(Clone, Debug)]
pub struct OpData {
    /// This op's id.
    pub id: OpId,
    /// What it computes.
    pub kind: Op,
    /// The values it reads, by operand slot.
    pub operands: SmallVec<[ValueId; 4]>,
    /// The values it defines, by result slot.
    pub results: SmallVec<[ValueId; 2]>,
    /// Where it stands.
    pub site: Site,
    /// The rule or importer step that made it.
    pub rule: &'static str,
}

/// A value: the result of exactly one op.
#[derive(Clone, Debug)]
pub struct ValueData {
    /// Its type.
    pub ty: TensorType,
    /// The op that defines it.
    pub op: OpId,
    /// Which of that op's results it is.
    pub slot: usize,
    /// The name it had in the imported model.
    pub name: Option<Arc<str>>,
}

/// One reading of a value: operand `slot` of `op`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Use {
    /// The reading op.
    pub op: OpId,
    /// Its operand slot.
    pub slot: usize,
}

/// Edge weight: which result feeds which operand.
#[derive(Clone, Copy, Debug)]
struct Edge {
    result: u32,
    slot: u32,
}

/// What decides between ops that could both go next.
fn order_key(op: &OpData) -> (bool, i64, Region, OpId) {
    let Site { region, seq, .. } = op.site;
    (region > Region::Forward, seq, region, op.id)
}

/// A training step, or the forward part of one.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// The model's name.
    pub name: String,
    dag: StableDiGraph<OpData, Edge>,
    ops: Vec<Option<NodeIndex>>,
    values: Vec<Option<ValueData>>,
    pub(crate) outputs: Outputs,
    pub(crate) adapters: Vec<Adapter>,
}

impl Graph {
    /// An empty graph.
    pub fn new(name: impl Into<String>) -> Self {
        Graph {
            name: name.into(),
            ..Graph::default()
        }
    }

    /// Starts an edit in the name of `rule`.
    pub fn patch(&mut self, rule: &'static str) -> Patch<'_> {
        Patch::new(self, rule)
    }

    /// Every op, in the order of their ids.
    pub fn ops(&self) -> impl Iterator<Item = &OpData> {
        self.ops.iter().flatten().map(|node| &self.dag[*node])
    }

    /// How many ops there are.
    pub fn op_count(&self) -> usize {
        self.dag.node_count()
    }

    /// The op, if it was not removed.
    pub fn get_op(&self, op: OpId) -> Option<&OpData> {
        self.ops
            .get(op.index())
            .copied()
            .flatten()
            .map(|node| &self.dag[node])
    }

    /// The op. Ids taken from this graph stay valid until the op is removed.
    pub fn op(&self, op: OpId) -> &OpData {
        &self.dag[self.node(op)]
    }

    pub(crate) fn op_mut(&mut self, op: OpId) -> &mut OpData {
        let node = self.node(op);
        &mut self.dag[node]
    }

    fn node(&self, op: OpId) -> NodeIndex {
        self.ops[op.index()].unwrap_or_else(|| unreachable!("{op} was removed"))
    }

    /// The value, if its op was not removed.
    pub fn get_value(&self, value: ValueId) -> Option<&ValueData> {
        self.values.get(value.index()).and_then(Option::as_ref)
    }

    /// The value. Ids taken from this graph stay valid until the defining op is removed.
    pub fn value(&self, value: ValueId) -> &ValueData {
        match &self.values[value.index()] {
            Some(data) => data,
            None => unreachable!("{value} was removed"),
        }
    }

    pub(crate) fn value_mut(&mut self, value: ValueId) -> Option<&mut ValueData> {
        self.values.get_mut(value.index()).and_then(Option::as_mut)
    }

    /// The type of a value.
    pub fn ty(&self, value: ValueId) -> &TensorType {
        &self.value(value).ty
    }

    /// The op that defines a value.
    pub fn def(&self, value: ValueId) -> &OpData {
        self.op(self.value(value).op)
    }

    /// The parameter that a value is, if it is one.
    pub fn param(&self, value: ValueId) -> Option<&Param> {
        match &self.def(value).kind {
            Op::Param(param) => Some(param),
            _ => None,
        }
    }

    /// The role of the parameter that a value is.
    pub fn role(&self, value: ValueId) -> Option<Role> {
        self.param(value).map(|p| p.role)
    }

    /// Every parameter, in the order they were added.
    pub fn params(&self) -> impl Iterator<Item = (ValueId, &Param)> {
        self.ops().filter_map(|op| match &op.kind {
            Op::Param(param) => Some((op.results[0], &**param)),
            _ => None,
        })
    }

    /// The outputs, in order.
    pub fn outputs(&self) -> &[Output] {
        self.outputs.as_slice()
    }

    /// Whether an output is `value`.
    pub fn is_output(&self, value: ValueId) -> bool {
        self.outputs.contains(value)
    }

    /// The loss output, once there is one.
    pub fn loss(&self) -> Option<&Output> {
        self.outputs().iter().find(|o| o.kind == OutputKind::Loss)
    }

    /// Whether there are gradients of parameters among the outputs: the backward pass is there.
    pub fn has_gradients(&self) -> bool {
        let mut kinds = self.outputs().iter().map(|o| o.kind);
        kinds.any(|kind| matches!(kind, OutputKind::Gradient(_)))
    }

    /// The LoRA adapters that were found or injected.
    pub fn adapters(&self) -> &[Adapter] {
        &self.adapters
    }

    /// Every reading of `value` by an op, in no order: for whoever needs to see only a few, or does the same to all.
    pub fn reads(&self, value: ValueId) -> impl Iterator<Item = Use> {
        let data = self.value(value);
        self.dag
            .edges_directed(self.node(data.op), Direction::Outgoing)
            .filter(|e| e.weight().result as usize == data.slot)
            .map(|e| Use {
                op: self.dag[e.target()].id,
                slot: e.weight().slot as usize,
            })
    }

    /// Every reading of `value` by an op, ordered by op and slot.
    pub fn uses(&self, value: ValueId) -> SmallVec<[Use; 4]> {
        let mut uses: SmallVec<[Use; 4]> = self.reads(value).collect();
        uses.sort_unstable();
        uses
    }

    /// Whether an op or an output reads `value`.
    pub fn is_used(&self, value: ValueId) -> bool {
        self.reads(value).next().is_some() || self.is_output(value)
    }

    /// Ops in schedule order: operands first, then the forward region, then by place, region and id: what makes
    /// gradients and what makes new parameters of them take turns, as their places say.
    ///
    /// Ops on a cycle are left out; the verifier reports them.
    pub fn order(&self) -> Vec<OpId> {
        let mut ops: Vec<&OpData> = self.ops().collect();
        ops.sort_by_key(|op| order_key(op));
        if self.defines_before_use(&ops) {
            return ops.into_iter().map(|op| op.id).collect();
        }
        self.order_by_heap()
    }

    /// Whether every op comes after what it reads.
    fn defines_before_use(&self, ops: &[&OpData]) -> bool {
        let mut there = vec![false; self.ops.len()];
        ops.iter().all(|op| {
            let defined = |v: &ValueId| self.get_value(*v).is_some_and(|v| there[v.op.index()]);
            let ready = op.operands.iter().all(defined);
            there[op.id.index()] = true;
            ready
        })
    }

    fn order_by_heap(&self) -> Vec<OpId> {
        let mut missing = vec![0usize; self.ops.len()];
        let mut ready = BinaryHeap::new();
        for op in self.ops() {
            missing[op.id.index()] = op.operands.len();
            if op.operands.is_empty() {
                ready.push(Reverse(order_key(op)));
            }
        }
        let mut order = Vec::with_capacity(self.op_count());
        while let Some(Reverse((.., id))) = ready.pop() {
            order.push(id);
            for edge in self.dag.edges_directed(self.node(id), Direction::Outgoing) {
                let reader = &self.dag[edge.target()];
                let left = &mut missing[reader.id.index()];
                *left -= 1;
                if *left == 0 {
                    ready.push(Reverse(order_key(reader)));
                }
            }
        }
        order
    }

    /// The largest number in a value's spelling, plus one.
    pub fn value_bound(&self) -> usize {
        self.values.len()
    }

    /// Adds an op whose results get the given types, without checking them.
    pub(crate) fn push_op(
        &mut self,
        kind: Op,
        operands: &[ValueId],
        types: impl IntoIterator<Item = TensorType>,
        site: Site,
        rule: &'static str,
    ) -> OpId {
        let first = self.values.len() as u32;
        let types = types
            .into_iter()
            .enumerate()
            .map(|(i, ty)| (ValueId(first + i as u32), ty));
        self.push_numbered(kind, operands, types, site, rule)
    }

    /// Adds an op whose results get the given ids and types, without checking either.
    pub(crate) fn push_numbered(
        &mut self,
        kind: Op,
        operands: &[ValueId],
        numbered: impl IntoIterator<Item = (ValueId, TensorType)>,
        site: Site,
        rule: &'static str,
    ) -> OpId {
        let id = OpId(self.ops.len() as u32);
        let mut results = SmallVec::new();
        for (slot, (value, ty)) in numbered.into_iter().enumerate() {
            self.reserve_values(value.index() + 1);
            self.values[value.index()] = Some(ValueData {
                ty,
                op: id,
                slot,
                name: None,
            });
            results.push(value);
        }
        let data = OpData {
            id,
            kind,
            operands: operands.into(),
            results,
            site,
            rule,
        };
        self.ops.push(Some(self.dag.add_node(data)));
        for (slot, operand) in operands.iter().enumerate() {
            self.connect(*operand, id, slot);
        }
        id
    }

    /// Keeps the ids below `bound` from being given out.
    pub(crate) fn reserve_values(&mut self, bound: usize) {
        if self.values.len() < bound {
            self.values.resize(bound, None);
        }
    }

    fn connect(&mut self, value: ValueId, op: OpId, slot: usize) {
        let (def, result) = (self.value(value).op, self.value(value).slot);
        let edge = Edge {
            result: result as u32,
            slot: slot as u32,
        };
        self.dag.add_edge(self.node(def), self.node(op), edge);
    }

    pub(crate) fn set_operand(&mut self, op: OpId, slot: usize, to: ValueId) {
        let edge = self
            .dag
            .edges_directed(self.node(op), Direction::Incoming)
            .find(|e| e.weight().slot as usize == slot)
            .map(|e| e.id());
        if let Some(edge) = edge {
            self.dag.remove_edge(edge);
        }
        self.op_mut(op).operands[slot] = to;
        self.connect(to, op, slot);
    }

    pub(crate) fn set_operands(&mut self, op: OpId, to: &[ValueId]) {
        let edges = self.dag.edges_directed(self.node(op), Direction::Incoming);
        let edges: Vec<_> = edges.map(|e| e.id()).collect();
        for edge in edges {
            self.dag.remove_edge(edge);
        }
        self.op_mut(op).operands = to.into();
        for (slot, value) in to.iter().enumerate() {
            self.connect(*value, op, slot);
        }
    }

    pub(crate) fn remove_op(&mut self, op: OpId) {
        if let Some(node) = self.ops[op.index()].take()
            && let Some(data) = self.dag.remove_node(node)
        {
            for result in data.results {
                self.values[result.index()] = None;
            }
        }
    }

    /// Whether petgraph's edges say the same as the operand lists; the verifier's concern.
    pub(crate) fn edges_agree(&self, op: OpId) -> bool {
        let mut slots: Vec<(usize, OpId, usize)> = self
            .dag
            .edges_directed(self.node(op), Direction::Incoming)
            .map(|e| {
                (
                    e.weight().slot as usize,
                    self.dag[e.source()].id,
                    e.weight().result as usize,
                )
            })
            .collect();
        slots.sort_unstable();
        let operands = &self.op(op).operands;
        slots.len() == operands.len()
            && slots
                .iter()
                .zip(operands)
                .enumerate()
                .all(|(i, ((slot, def, result), value))| {
                    let Some(v) = self.get_value(*value) else {
                        return false;
                    };
                    *slot == i && *def == v.op && *result == v.slot
                })
    }
}
