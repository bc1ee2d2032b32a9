//! Edits of a graph.
//!
//! A [`Patch`] is the only way to change a graph. Every op that it adds is type-checked and
//! carries the name of the rule that asked for it; a replacement must have the replaced value's
//! type. [`build`](crate::build) adds a method for each op on top.

use crate::adapter::Adapter;
use crate::graph::{Graph, Region, Site};
use crate::ids::{OpId, ValueId};
use crate::ops::{Op, Param, Role};
use crate::outputs::{Output, OutputKind};
use crate::types::{TensorType, TypeError};
use smallvec::SmallVec;
use std::sync::Arc;
use thiserror::Error;

/// Why an edit was refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PatchError {
    /// The operands of a new op do not fit it.
    #[error("{rule}: {op} does not type-check{place}: {error}")]
    IllTyped {
        /// The rule that built the op.
        rule: &'static str,
        /// The op's mnemonic.
        op: String,
        /// Module of the op, as ` in …`, or nothing.
        place: String,
        /// What is wrong.
        error: TypeError,
    },
    /// A replacement has another type than what it replaces.
    #[error("{rule}: cannot replace {old} : {old_type} by {new} : {new_type}")]
    Replacement {
        /// The rule that asked.
        rule: &'static str,
        /// The value to replace.
        old: ValueId,
        /// Its type.
        old_type: Box<TensorType>,
        /// The replacement.
        new: ValueId,
        /// Its type.
        new_type: Box<TensorType>,
    },
    /// An op has other results than the one whose place it should take.
    #[error("{rule}: {op} does not give {value} : {ty}")]
    Rewrite {
        /// The rule that asked.
        rule: &'static str,
        /// The value that should stay.
        value: ValueId,
        /// Its type.
        ty: Box<TensorType>,
        /// The mnemonic of the op that should give it.
        op: String,
    },
    /// An op to be removed is still read.
    #[error("{rule}: cannot remove {op}: its result is still read")]
    StillUsed {
        /// The rule that asked.
        rule: &'static str,
        /// The op.
        op: OpId,
    },
    /// A rule met a symbolic dimension where it needs a number.
    #[error("{rule}: {value} : {ty} has a symbolic dimension; bind it first")]
    Symbolic {
        /// The rule that asked.
        rule: &'static str,
        /// The value.
        value: ValueId,
        /// Its type.
        ty: Box<TensorType>,
    },
}

/// Types or ids of an op's results.
pub type Results = SmallVec<[ValueId; 2]>;

/// An edit under way.
#[derive(Debug)]
pub struct Patch<'g> {
    graph: &'g mut Graph,
    rule: &'static str,
    site: Site,
    changes: usize,
}

impl<'g> Patch<'g> {
    pub(crate) fn new(graph: &'g mut Graph, rule: &'static str) -> Self {
        let site = Site {
            region: Region::Forward,
            seq: 0,
            module: Arc::from(""),
            of: None,
        };
        Patch {
            graph,
            rule,
            site,
            changes: 0,
        }
    }

    /// The graph as edited so far.
    pub fn graph(&self) -> &Graph {
        self.graph
    }

    /// The rule in whose name this edits.
    pub fn rule(&self) -> &'static str {
        self.rule
    }

    /// How many edits were made.
    pub fn changes(&self) -> usize {
        self.changes
    }

    /// New ops stand where `op` stands.
    pub fn at(&mut self, op: OpId) -> &mut Self {
        self.site = self.graph.op(op).site.clone();
        self
    }

    /// New ops stand at `site`.
    pub fn at_site(&mut self, site: Site) -> &mut Self {
        self.site = site;
        self
    }

    /// The place of new ops.
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// The type of a value.
    pub fn ty(&self, value: ValueId) -> &TensorType {
        self.graph.ty(value)
    }

    /// Adds an op; its results' types follow from its operands.
    pub fn add(&mut self, kind: Op, operands: &[ValueId]) -> Result<Results, PatchError> {
        let types = self.infer(&kind, operands)?;
        self.changes += 1;
        let id = self
            .graph
            .push_op(kind, operands, types, self.site.clone(), self.rule);
        Ok(self.graph.op(id).results.clone())
    }

    /// Adds an op with one result.
    pub fn add1(&mut self, kind: Op, operands: &[ValueId]) -> Result<ValueId, PatchError> {
        Ok(self.add(kind, operands)?[0])
    }

    fn infer(&self, kind: &Op, operands: &[ValueId]) -> Result<crate::ops::Types, PatchError> {
        let types: SmallVec<[&TensorType; 4]> =
            operands.iter().map(|v| self.graph.ty(*v)).collect();
        kind.infer_checked(&types)
            .map_err(|error| PatchError::IllTyped {
                rule: self.rule,
                op: kind.name().to_string(),
                place: match &*self.site.module {
                    "" => String::new(),
                    module => format!(" in {module}"),
                },
                error,
            })
    }

    /// Makes every reader of `old` read `new`, which must have the same type.
    pub fn replace(&mut self, old: ValueId, new: ValueId) -> Result<(), PatchError> {
        if self.ty(old) != self.ty(new) {
            return Err(PatchError::Replacement {
                rule: self.rule,
                old,
                old_type: Box::new(self.ty(old).clone()),
                new,
                new_type: Box::new(self.ty(new).clone()),
            });
        }
        if old != new {
            self.retarget(old, new);
        }
        Ok(())
    }

    /// Makes every reader of `old` read `new` whatever its type; the caller then re-infers the
    /// readers' types with [`Patch::reinfer`].
    pub fn retarget(&mut self, old: ValueId, new: ValueId) {
        // In the order that the graph has them in, in which each is found at once.
        let readers: Vec<_> = self.graph.reads(old).collect();
        for reader in readers {
            self.graph.set_operand(reader.op, reader.slot, new);
        }
        self.graph.outputs.retarget(old, new);
        for adapter in &mut self.graph.adapters {
            adapter
                .values_mut()
                .into_iter()
                .filter(|v| **v == old)
                .for_each(|v| *v = new);
        }
        if self.graph.value(new).name.is_none() {
            let name = self.graph.value(old).name.clone();
            self.name(new, name);
        }
        self.changes += 1;
    }

    /// Makes one operand of `op` read `new`, without checking types; follow with
    /// [`Patch::reinfer`].
    pub fn set_operand(&mut self, op: OpId, slot: usize, new: ValueId) {
        self.graph.set_operand(op, slot, new);
        self.changes += 1;
    }

    /// Makes `op` compute its results, which must keep their types, as another op does, at the place of new ops. Unlike
    /// [`Patch::replace`] this leaves the values what they are to whoever knows them.
    pub fn rewrite(&mut self, op: OpId, kind: Op, operands: &[ValueId]) -> Result<(), PatchError> {
        let types = self.infer(&kind, operands)?;
        let results = self.graph.op(op).results.clone();
        for (slot, old) in results.iter().enumerate() {
            let (old_type, new_type) = (self.ty(*old), types.get(slot));
            if new_type != Some(old_type) || types.len() != results.len() {
                return Err(PatchError::Rewrite {
                    rule: self.rule,
                    value: *old,
                    ty: Box::new(old_type.clone()),
                    op: kind.name().to_string(),
                });
            }
        }
        self.graph.set_operands(op, operands);
        let data = self.graph.op_mut(op);
        (data.kind, data.site, data.rule) = (kind, self.site.clone(), self.rule);
        self.changes += 1;
        Ok(())
    }

    /// Replaces what `op` computes from the same operands; follow with [`Patch::reinfer`].
    pub fn set_kind(&mut self, op: OpId, kind: Op) {
        self.graph.op_mut(op).kind = kind;
        self.changes += 1;
    }

    /// Infers the types of `op`'s results again and stores them.
    pub fn reinfer(&mut self, op: OpId) -> Result<(), PatchError> {
        let data = self.graph.op(op);
        let (operands, results) = (data.operands.clone(), data.results.clone());
        let types = self.infer(&self.graph.op(op).kind, &operands)?;
        for (result, ty) in results.iter().zip(types) {
            if let Some(value) = self.graph.value_mut(*result) {
                value.ty = ty;
            }
        }
        Ok(())
    }

    /// Removes an op that nothing reads.
    pub fn remove(&mut self, op: OpId) -> Result<(), PatchError> {
        if self
            .graph
            .op(op)
            .results
            .iter()
            .any(|v| self.graph.is_used(*v))
        {
            return Err(PatchError::StillUsed {
                rule: self.rule,
                op,
            });
        }
        self.graph.remove_op(op);
        self.changes += 1;
        Ok(())
    }

    /// Gives a parameter another role.
    pub fn set_role(&mut self, param: ValueId, role: Role) {
        let op = self.graph.value(param).op;
        if let Op::Param(p) = &mut self.graph.op_mut(op).kind
            && p.role != role
        {
            p.role = role;
            self.changes += 1;
        }
    }

    /// Changes a parameter. If its type changes, its value's follows; the caller then re-infers
    /// the readers' types with [`Patch::reinfer`].
    pub fn update_param(&mut self, param: ValueId, change: impl FnOnce(&mut Param)) {
        let op = self.graph.value(param).op;
        let Op::Param(p) = &mut self.graph.op_mut(op).kind else {
            return;
        };
        change(p);
        let ty = p.ty.clone();
        if let Some(value) = self.graph.value_mut(param) {
            value.ty = ty;
        }
        self.changes += 1;
    }

    /// Names a value.
    pub fn name(&mut self, value: ValueId, name: Option<Arc<str>>) {
        if let Some(v) = self.graph.value_mut(value) {
            v.name = name;
        }
    }

    /// Adds an output.
    pub fn output(&mut self, name: impl Into<Arc<str>>, value: ValueId, kind: OutputKind) {
        self.graph.outputs.push(Output {
            name: name.into(),
            value,
            kind,
        });
        self.changes += 1;
    }

    /// Keeps the outputs for which `keep` answers yes.
    pub fn retain_outputs(&mut self, keep: impl FnMut(&Output) -> bool) {
        let before = self.graph.outputs().len();
        self.graph.outputs.retain(keep);
        self.changes += before - self.graph.outputs().len();
    }

    /// Says what the outputs are, in order.
    pub fn classify_outputs(&mut self, mut kind: impl FnMut(&Output) -> OutputKind) {
        let mut changes = 0;
        self.graph.outputs.classify(|output| {
            let kind = kind(output);
            changes += usize::from(kind != output.kind);
            kind
        });
        self.changes += changes;
    }

    /// Makes an op part of another region of the step.
    pub fn set_region(&mut self, op: OpId, region: Region) {
        self.graph.op_mut(op).site.region = region;
        self.changes += 1;
    }

    /// Says where an op stands among those of its region.
    pub fn set_place(&mut self, op: OpId, seq: i64) {
        self.graph.op_mut(op).site.seq = seq;
        self.changes += 1;
    }

    /// Says which module an op belongs to.
    pub fn set_module(&mut self, op: OpId, module: Arc<str>) {
        self.graph.op_mut(op).site.module = module;
        self.changes += 1;
    }

    /// Records an adapter.
    pub fn adapter(&mut self, adapter: Adapter) {
        self.graph.adapters.push(adapter);
        self.changes += 1;
    }

    /// Forgets the adapters for which `keep` answers no.
    pub fn retain_adapters(&mut self, keep: impl FnMut(&Adapter) -> bool) {
        self.graph.adapters.retain(keep);
    }
}
