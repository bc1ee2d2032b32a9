//! Which products can be one.

use crate::matching::{MAX_STEPS, plain_product, read_once};
use lorafa_ir::ops::{MatMul, Op, Role};
use lorafa_ir::{Graph, OpData, OpId, Region, ValueId};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// A result that is copied out of a packed one, so that the rest of it can go, is at most one part in so many of it.
const COPIED: i64 = 8;

/// Products of one input with frozen matrices.
pub(super) struct Group {
    /// The input.
    pub x: ValueId,
    /// Whether the matrices' rows are the results' columns.
    pub rows: bool,
    /// The products of the forward pass, in the order in which their matrices are packed: first those whose result the
    /// backward pass does not need, adapters last.
    pub members: Vec<Member>,
    /// The members that the forward pass computes at once; empty, or some at the end, or all.
    pub forward: Range<usize>,
    /// The members whose results are copied, so that they alone are kept.
    pub copied: Range<usize>,
    /// The sum of products that the gradient of the input is or begins with; it has one for every member.
    pub backward: Option<Chain>,
    /// The members that are products with adapters.
    pub adapters: Range<usize>,
}

/// A product of a group.
pub(super) struct Member {
    /// The product of the forward pass.
    pub op: OpId,
    /// The frozen matrix.
    pub weight: ValueId,
    /// How it is read.
    pub trans: bool,
    /// Columns of the input.
    inner: i64,
    /// Columns of the result.
    pub columns: i64,
    /// Whether the backward pass reads the result, or what is written over it.
    kept: bool,
    /// Whether it is a product with an adapter's A.
    adapter: bool,
}

/// A sum of products in the gradient of a group's input, each added to the one before it.
pub(super) struct Chain {
    /// The products, each with the member whose matrix it is with, the first to be added first.
    pub links: Vec<(OpId, usize)>,
    /// What they are added to.
    pub to: Option<ValueId>,
}

impl Group {
    /// Whether another group has matrices of the same shapes, packed in the same order, and the same choices.
    pub(super) fn is_like(&self, other: &Group) -> bool {
        let members = |group: &Group| -> Vec<_> {
            let of = |m: &Member| (m.inner, m.columns, m.kept, m.trans, m.adapter);
            group.members.iter().map(of).collect()
        };
        let shape = |group: &Group| (group.rows, group.forward.clone(), group.copied.clone());
        members(self) == members(other)
            && shape(self) == shape(other)
            && self.backward.is_some() == other.backward.is_some()
    }
}

/// All groups of at least two products, in schedule order.
pub(super) fn find(graph: &Graph) -> Vec<Group> {
    let adapters: BTreeSet<ValueId> = graph.adapters().iter().map(|a| a.a).collect();
    let mut by_input: Vec<(ValueId, Vec<Member>)> = Vec::new();
    let mut place: BTreeMap<ValueId, usize> = BTreeMap::new();
    let mut weights: BTreeMap<ValueId, u32> = BTreeMap::new();
    for id in graph.order() {
        let op = graph.op(id);
        if let Some((x, member)) = member(graph, op, &adapters) {
            *weights.entry(member.weight).or_default() += 1;
            let at = *place.entry(x).or_insert_with(|| {
                by_input.push((x, Vec::new()));
                by_input.len() - 1
            });
            by_input[at].1.push(member);
        }
    }
    let own = |member: &Member| weights[&member.weight] == 1;
    let groups = by_input.into_iter().filter_map(|(x, mut members)| {
        members.retain(own);
        (members.len() > 1).then(|| group(graph, x, members))
    });
    groups.collect()
}

/// The input of a product with a frozen matrix, and the product.
fn member(graph: &Graph, op: &OpData, adapters: &BTreeSet<ValueId>) -> Option<(ValueId, Member)> {
    let product = plain_product(op).filter(|product| !product.trans_a)?;
    let (x, weight) = (op.operands[0], op.operands[1]);
    let frozen = graph.role(weight) == Some(Role::Frozen) && graph.ty(weight).rank() == 2;
    let result = op.results[0];
    let width = |value: ValueId| graph.ty(value).shape.last()?.known();
    let (inner, columns) = (width(x)?, width(result)?);
    if !frozen || graph.is_output(result) || op.site.region != Region::Forward {
        return None;
    }
    let member = Member {
        op: op.id,
        weight,
        trans: product.trans_b,
        inner,
        columns,
        kept: is_kept(graph, result, MAX_STEPS),
        adapter: adapters.contains(&weight),
    };
    Some((x, member))
}

/// Whether the backward pass reads a value, or what may be written over it.
fn is_kept(graph: &Graph, value: ValueId, steps: usize) -> bool {
    let mut readers = Vec::new();
    readers_of(graph, value, MAX_STEPS, &mut readers);
    let later = |(op, _): &(OpId, usize)| graph.op(*op).site.region > Region::Forward;
    if readers.iter().any(later) {
        return true;
    }
    let [(only, slot)] = readers.as_slice() else {
        return false;
    };
    let only = graph.op(*only);
    let strided = only.kind.writes_strided();
    let mut over = only.kind.in_place().iter();
    let over = over.find(|(_, operand)| strided && operand == slot);
    let result = over.map(|(result, _)| only.results[*result]);
    result.is_some_and(|result| steps > 0 && is_kept(graph, result, steps - 1))
}

/// The ops that read a value, itself, reshaped or transposed, with the operand that it is.
fn readers_of(graph: &Graph, value: ValueId, steps: usize, found: &mut Vec<(OpId, usize)>) {
    for read in graph.uses(value) {
        let reader = graph.op(read.op);
        match reader.kind {
            Op::Reshape(_) | Op::Transpose(_) if steps > 0 => {
                readers_of(graph, reader.results[0], steps - 1, found);
            }
            _ => found.push((read.op, read.slot)),
        }
    }
}

fn group(graph: &Graph, x: ValueId, mut members: Vec<Member>) -> Group {
    let rows = members[0].trans;
    members.sort_by_key(|member| (member.adapter, member.kept));
    let adapters = members.iter().filter(|member| member.adapter).count();
    let all = 0..members.len();
    let none = members.len()..members.len();
    let kept = members.iter().rposition(|member| !member.kept);
    let kept = kept.map_or(0, |last| last + 1)..members.len();
    let columns = |of: &Range<usize>| members[of.clone()].iter().map(|m| m.columns).sum::<i64>();
    let (forward, copied) = if kept.len() > 1 {
        (kept, none)
    } else if columns(&kept) * COPIED <= columns(&all) {
        (all.clone(), kept)
    } else {
        (none.clone(), none)
    };
    Group {
        x,
        rows,
        backward: chain(graph, &members),
        adapters: all.end - adapters..all.end,
        members,
        forward,
        copied,
    }
}

/// The sum of the products with all members' matrices; `None` if they are not one sum.
fn chain(graph: &Graph, members: &[Member]) -> Option<Chain> {
    let back = members.iter().map(|member| gradient(graph, member));
    let back: Vec<&OpData> = back.collect::<Option<_>>()?;
    let added = |value: ValueId| back.iter().any(|op| op.operands.get(2) == Some(&value));
    let mut member = back.iter().position(|op| !added(op.results[0]))?;
    let mut links = vec![(back[member].id, member)];
    let mut to = back[member].operands.get(2).copied();
    while let Some(next) = to.and_then(|to| back.iter().position(|op| op.results[0] == to)) {
        if !read_once(graph, back[next]) {
            return None;
        }
        member = next;
        links.push((back[member].id, member));
        to = back[member].operands.get(2).copied();
    }
    let gradients: BTreeSet<ValueId> = back.iter().map(|op| op.operands[0]).collect();
    let apart = gradients.len() == members.len();
    let strided = gradients.iter().all(|value| is_strided(graph, *value));
    links.reverse();
    (links.len() == members.len() && apart && strided).then_some(Chain { links, to })
}

/// Whether a value is made by a kernel that can write it side by side with others.
fn is_strided(graph: &Graph, mut value: ValueId) -> bool {
    while let Op::Reshape(_) | Op::Transpose(_) = graph.def(value).kind {
        value = graph.def(value).operands[0];
    }
    let def = graph.def(value);
    def.kind.writes_strided() && graph.param(value).is_none()
}

/// The product with a member's matrix in the gradient of the input.
fn gradient<'g>(graph: &'g Graph, member: &Member) -> Option<&'g OpData> {
    let back = MatMul::new(false, !member.trans);
    let mut readers = graph.uses(member.weight).into_iter().filter_map(|read| {
        let op = graph.op(read.op);
        (read.slot == 1 && op.site.region == Region::Backward && op.kind == Op::MatMul(back))
            .then_some(op)
    });
    readers.next().filter(|_| readers.next().is_none())
}
