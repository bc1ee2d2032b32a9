//! The edit: ops of the forward pass once more, next to what reads them in the backward pass.

use super::candidates::Candidates;
use lorafa_ir::{
    Graph, OpData, OpId, Patch, PatchError, Region, Site, TensorType, ValueId, ValueMap,
};

/// Most positions of the schedule between readers for which a value is computed once: the gradient of an adapter takes
/// some twenty ops, that of a layer some hundred.
const NEAR: usize = 64;

/// An op of the forward pass once more.
#[derive(Clone, Copy)]
pub(super) struct Copy {
    /// The group that it is for.
    pub group: usize,
    /// Whether a value of the group is its result; it may only be on the way to one.
    pub of_group: bool,
    /// The op in the forward pass.
    pub forward: OpId,
    /// The op in the backward pass.
    pub backward: OpId,
}

/// A graph that computes the chosen groups again, and what it does for that, views left out.
pub(super) fn recompute(
    graph: &Graph,
    found: &Candidates,
    chosen: &[bool],
) -> Result<(Graph, Vec<Copy>), PatchError> {
    let mut edited = graph.clone();
    let mut again = Again {
        graph,
        found,
        chosen,
        patch: edited.patch("rematerialize"),
        made: ValueMap::new(None),
        copies: Vec::new(),
    };
    for (position, id) in graph.order().into_iter().enumerate() {
        let op = graph.op(id);
        if op.site.region != Region::Backward {
            continue;
        }
        for (slot, operand) in op.operands.iter().enumerate() {
            if let Some(group) = found.group_of(*operand).filter(|group| chosen[*group]) {
                let seq = op.site.seq;
                let value = again.value(*operand, Place { position, seq }, group)?;
                again.patch.set_operand(id, slot, value);
            }
        }
    }
    again.remove_unread()?;
    let copies = again.copies;
    Ok((edited, copies))
}

/// Where a value is read in the backward pass.
#[derive(Clone, Copy)]
struct Place {
    position: usize,
    seq: i64,
}

struct Again<'a> {
    /// The graph as it was.
    graph: &'a Graph,
    found: &'a Candidates,
    chosen: &'a [bool],
    patch: Patch<'a>,
    /// The last copy of a value, and the position of its last reader.
    made: ValueMap<Option<(ValueId, usize)>>,
    copies: Vec<Copy>,
}

impl Again<'_> {
    /// A value that the backward pass can read at a place: itself, a copy that is near, or a new one.
    ///
    /// Recursion is as deep as the candidates' chains are long.
    fn value(&mut self, value: ValueId, at: Place, group: usize) -> Result<ValueId, PatchError> {
        if self.found.is_there(value, self.chosen) {
            return Ok(value);
        }
        if let Some((copy, last)) = self.made.get_mut(value)
            && at.position - *last <= NEAR
        {
            *last = at.position;
            return Ok(*copy);
        }
        let op = self.graph.op(self.graph.value(value).op);
        let mut operands = op.operands.clone();
        let own = self.found.group_of(value);
        let group = own.unwrap_or(group);
        for operand in &mut operands {
            *operand = self.value(*operand, at, group)?;
        }
        // Before everything that stands where the reader does.
        self.patch.at_site(Site {
            region: Region::Backward,
            seq: at.seq.saturating_sub(1),
            module: op.site.module.clone(),
            of: None,
        });
        let results = self.patch.add(op.kind.clone(), &operands)?;
        if !self.found.is_view(op) {
            self.copies.push(Copy {
                group,
                of_group: own.is_some(),
                forward: op.id,
                backward: self.patch.graph().value(results[0]).op,
            });
        }
        for (value, copy) in op.results.iter().zip(&results) {
            self.made.set(*value, Some((*copy, at.position)));
        }
        Ok(results[self.graph.value(value).slot])
    }

    /// Removes ops of the forward pass that it had only for the backward pass.
    fn remove_unread(&mut self) -> Result<(), PatchError> {
        for id in self.graph.order().into_iter().rev() {
            let results = &self.graph.op(id).results;
            let copied = results.iter().any(|v| self.made.get(*v).is_some());
            if copied && results.iter().all(|v| !self.patch.graph().is_used(*v)) {
                self.patch.remove(id)?;
            }
        }
        Ok(())
    }
}

/// Floating-point operations of an op; none of a view.
pub(super) fn flops(graph: &Graph, op: &OpData, view: bool) -> u64 {
    let types =
        |values: &[ValueId]| -> Vec<&TensorType> { values.iter().map(|v| graph.ty(*v)).collect() };
    match view {
        true => 0,
        false => op.kind.flops(&types(&op.operands), &types(&op.results)),
    }
}
