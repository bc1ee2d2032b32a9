//! Storage: which values lie in the same bytes, and how.
//!
//! ```text
//!   v1 = matmul %x, %w            : f32[4,6]     s3, its root
//!   v2 = reshape v1 {shape=[8,3]} : f32[8,3]     s3, strides [3,1]          a view
//!   v3 = slice v1 {axes=[1:2:2:1]}: f32[4,2]     s3, strides [6,1], from 2  a view
//!   v4 = relu v3                  : f32[4,2]     s4                         a storage of its own
//!   v7, … = adamw %w, …           : f32[6,6]     s1, as %w                  an update
//! ```
//!
//! A value is a view where [`Operator::view`](lorafa_ir::Operator::view) says so. An update writes where its operand
//! lies: what reads the operand afterwards would read the new value, so that is an error. What a `concat {joined}` puts
//! together lies in its result from the start (`join`). A result may be written over part of a storage that dies there
//! (`part`); whether it may take over a whole one is another question, which [`in_place`](crate::in_place) answers: that
//! does not change how a value lies in its storage.

mod join;
mod part;

use std::fmt;

use lorafa_ir::layout::Layout;
use lorafa_ir::text::{OpDisplay, ValueDisplay};
use lorafa_ir::{DType, Graph, Op, OpData, OpId, ValueId};

use crate::error::PlanError;
use crate::schedule::Schedule;
use join::{Joined, Joins, parts};
use part::Parts;

/// Index of a storage. Displayed as `s3`.
///
/// Parameters come first, then constants, then what the step makes, in schedule order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorageId(u32);

impl StorageId {
    /// The place of this storage in [`Storages::as_slice`].
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for StorageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}", self.0)
    }
}

/// How long a storage's bytes are needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StorageKind {
    /// A parameter: kept from step to step.
    Parameter,
    /// A constant: kept from step to step.
    Constant,
    /// Made by an op of the step and gone after it.
    Transient,
}

/// Bytes that one value was made in and that others may alias.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage {
    /// The value that the storage was made for; it fills it contiguously.
    pub root: ValueId,
    /// How long it is needed.
    pub kind: StorageKind,
    /// Size in bytes, not rounded.
    pub bytes: u64,
    /// The values that a `concat` joins in it, as they come; none if the root is made as a whole.
    pub joined: Vec<ValueId>,
}

/// Where a value lies in its storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alias {
    /// The storage.
    pub storage: StorageId,
    /// Its elements' places in the storage, counted in elements.
    pub layout: Layout,
    /// Its element type.
    pub dtype: DType,
}

/// The storages of a graph and the alias that each value is.
#[derive(Debug, Clone)]
pub struct Storages {
    storages: Vec<Storage>,
    aliases: Vec<Option<Alias>>,
    /// By value: whether there is nothing to do for it, because it is a view or its parts are there.
    free: Vec<bool>,
}

impl Storages {
    /// Finds the storage of every value.
    ///
    /// # Errors
    /// [`PlanError::Symbolic`] for a size that is no number, and the three errors about updates in place.
    pub fn new(graph: &Graph, schedule: &Schedule) -> Result<Self, PlanError> {
        let mut walk = Walk::new(graph, schedule);
        for (value, _) in graph.params() {
            walk.own(value, StorageKind::Parameter)?;
        }
        for op in graph.ops() {
            if matches!(op.kind, Op::Constant(_)) {
                walk.own(op.results[0], StorageKind::Constant)?;
            }
        }
        for id in schedule.ops() {
            walk.op(graph.op(*id))?;
        }
        for output in graph.outputs() {
            walk.read(output.value, || format!("out {:?}", output.name))?;
        }
        Ok(walk.found)
    }

    /// All storages, in [`StorageId`] order.
    #[must_use]
    pub fn as_slice(&self) -> &[Storage] {
        &self.storages
    }

    /// Every id with its storage, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (StorageId, &Storage)> {
        self.storages
            .iter()
            .enumerate()
            .map(|(index, storage)| (StorageId(index as u32), storage))
    }

    /// A storage of this graph.
    #[must_use]
    pub fn get(&self, storage: StorageId) -> &Storage {
        &self.storages[storage.index()]
    }

    /// Where a value lies; `None` if the graph that was planned has no such value.
    #[must_use]
    pub fn alias(&self, value: ValueId) -> Option<&Alias> {
        self.aliases.get(value.index()).and_then(Option::as_ref)
    }

    /// Where a value of the planned graph lies.
    pub(crate) fn at(&self, value: ValueId) -> &Alias {
        self.alias(value)
            .unwrap_or_else(|| unreachable!("{value} is not of the planned graph"))
    }

    /// The storage of a value of the planned graph.
    pub(crate) fn of(&self, value: ValueId) -> StorageId {
        self.at(value).storage
    }

    /// Whether an op has nothing to do: its result is a view, or made where it is by those who make its parts.
    #[must_use]
    pub fn is_view(&self, op: &OpData) -> bool {
        let result = op.results.first();
        result.is_some_and(|result| self.free[result.index()])
    }
}

/// A walk over the ops in schedule order.
struct Walk<'g> {
    graph: &'g Graph,
    found: Storages,
    joins: Joins,
    parts: Parts,
    /// By value: how many updates its storage had seen when it was made.
    versions: Vec<u32>,
    /// By storage: how many updates it has seen, and the last of them.
    updates: Vec<(u32, Option<OpId>)>,
}

impl<'g> Walk<'g> {
    fn new(graph: &'g Graph, schedule: &Schedule) -> Self {
        Walk {
            graph,
            found: Storages {
                storages: Vec::new(),
                aliases: vec![None; graph.value_bound()],
                free: vec![false; graph.value_bound()],
            },
            joins: Joins::of(graph),
            parts: Parts::new(graph, schedule),
            versions: vec![0; graph.value_bound()],
            updates: Vec::new(),
        }
    }

    fn op(&mut self, op: &OpData) -> Result<(), PlanError> {
        for operand in &op.operands {
            self.read(*operand, || OpDisplay(self.graph, op.id).to_string())?;
        }
        if let Some(parts) = parts(self.graph, op) {
            return self.join(op, &parts);
        }
        for (slot, &result) in op.results.iter().enumerate() {
            let update = op.kind.updates().iter().find(|(r, _)| *r == slot);
            if let Some(&(_, operand)) = update {
                self.update(op, operand, result)?;
            } else if slot == 0 && self.view(op, result) {
                self.found.free[result.index()] = true;
            } else if let Some(over) = self.over(op, slot) {
                self.alias(result, over.storage, over.layout);
                self.parts.made(result, &self.found);
            } else {
                self.own(result, StorageKind::Transient)?;
            }
        }
        Ok(())
    }

    /// A storage of its own for a value, or the place that a `concat` joins it in.
    fn own(&mut self, value: ValueId, kind: StorageKind) -> Result<(), PlanError> {
        if let Some(Joined { whole, layout }) = self.joins.get(value).cloned() {
            if self.found.alias(whole).is_none() {
                self.make(whole, kind)?;
            }
            let storage = self.found.of(whole);
            let made = &mut self.found.storages[storage.index()];
            if made.kind == kind {
                made.joined.push(value);
                self.alias(value, storage, layout);
                self.parts.made(value, &self.found);
                return Ok(());
            }
        }
        self.make(value, kind)?;
        self.parts.made(value, &self.found);
        Ok(())
    }

    /// A storage that a value fills.
    fn make(&mut self, value: ValueId, kind: StorageKind) -> Result<(), PlanError> {
        let ty = self.graph.ty(value);
        let (Some(bytes), Some(layout)) = (ty.bytes(), Layout::contiguous(ty)) else {
            return Err(PlanError::Symbolic {
                value: self.spell(value),
                ty: ty.to_string(),
                line: self.line(self.graph.value(value).op),
            });
        };
        let storage = StorageId(self.found.storages.len() as u32);
        self.found.storages.push(Storage {
            root: value,
            kind,
            bytes,
            joined: Vec::new(),
        });
        self.updates.push((0, None));
        self.alias(value, storage, layout);
        Ok(())
    }

    /// Checks that what a `concat` joins is where it has it.
    fn join(&mut self, op: &OpData, parts: &[(ValueId, Layout)]) -> Result<(), PlanError> {
        let whole = op.results[0];
        let storage = self.found.alias(whole).map(|alias| alias.storage);
        for (part, layout) in parts {
            let there = self.found.at(*part);
            if Some(there.storage) != storage || there.layout != *layout {
                return Err(PlanError::NotJoined {
                    value: self.spell(*part),
                    concat: self.line(op.id),
                });
            }
        }
        self.found.free[whole.index()] = true;
        self.parts.made(whole, &self.found);
        Ok(())
    }

    /// The place of an operand that the result may be written over, if that is part of a storage.
    fn over(&self, op: &OpData, slot: usize) -> Option<Alias> {
        if self.joins.get(op.results[slot]).is_some() {
            return None;
        }
        self.parts.place((self.graph, &self.found), op, slot)
    }

    /// Makes the op's result a view of its operand, if it is one.
    fn view(&mut self, op: &OpData, result: ValueId) -> bool {
        let Some(&operand) = op.operands.first() else {
            return false;
        };
        let from = self.found.at(operand);
        let ty = self.graph.ty(result);
        let Some(layout) = op.kind.view((self.graph.ty(operand), &from.layout), ty) else {
            return false;
        };
        let (storage, version) = (from.storage, self.versions[operand.index()]);
        self.alias(result, storage, layout);
        self.versions[result.index()] = version;
        true
    }

    /// Makes `result` the next version of operand `slot`.
    fn update(&mut self, op: &OpData, slot: usize, result: ValueId) -> Result<(), PlanError> {
        let operand = op.operands[slot];
        let Alias {
            storage, layout, ..
        } = self.found.at(operand).clone();
        let mut others = op.operands.iter().enumerate();
        if let Some((slot, _)) =
            others.find(|(other, value)| *other != slot && self.found.of(**value) == storage)
        {
            return Err(PlanError::UpdateShares {
                value: self.spell(operand),
                slot,
                update: self.line(op.id),
            });
        }
        let mut axes = layout.shape.iter().zip(&layout.strides);
        if axes.any(|(dim, stride)| *dim > 1 && *stride == 0) {
            return Err(PlanError::UpdateRepeats {
                value: self.spell(operand),
                update: self.line(op.id),
            });
        }
        let (seen, last) = &mut self.updates[storage.index()];
        *seen += 1;
        *last = Some(op.id);
        self.alias(result, storage, layout);
        Ok(())
    }

    /// Records an alias in the current version of its storage.
    fn alias(&mut self, value: ValueId, storage: StorageId, layout: Layout) {
        self.versions[value.index()] = self.updates[storage.index()].0;
        self.found.aliases[value.index()] = Some(Alias {
            storage,
            layout,
            dtype: self.graph.ty(value).dtype,
        });
    }

    /// Refuses to read what was overwritten.
    fn read(&self, value: ValueId, reader: impl Fn() -> String) -> Result<(), PlanError> {
        match self.updates[self.found.of(value).index()] {
            (seen, Some(update)) if seen != self.versions[value.index()] => {
                Err(PlanError::ReadAfterUpdate {
                    value: self.spell(value),
                    update: self.line(update),
                    reader: reader(),
                })
            }
            _ => Ok(()),
        }
    }

    fn spell(&self, value: ValueId) -> String {
        ValueDisplay(self.graph, value).to_string()
    }

    fn line(&self, op: OpId) -> String {
        OpDisplay(self.graph, op).to_string()
    }
}
