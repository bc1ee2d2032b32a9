//! The edit: packed matrices, and products with them.

use super::groups::{Chain, Group, Member};
use super::{Backward, Choice};
use lorafa_ir::ops::{Concat, MatMul, Op, Slice};
use lorafa_ir::{Graph, Patch, PatchError, ValueId};
use std::ops::Range;

/// A graph with some products of its groups packed.
pub(super) fn pack(
    graph: &Graph,
    groups: &[Group],
    chosen: &[Choice],
) -> Result<Graph, PatchError> {
    let mut edited = graph.clone();
    let mut patch = edited.patch("pack-frozen");
    for (group, choice) in groups.iter().zip(chosen) {
        if *choice == Choice::default() {
            continue;
        }
        let weights = weights(&mut patch, group)?;
        if choice.forward {
            forward(&mut patch, group, weights)?;
        }
        let packed = match choice.backward {
            Backward::Apart => continue,
            Backward::Adapters => group.adapters.clone(),
            Backward::All => 0..group.members.len(),
        };
        if let Some(chain) = &group.backward {
            backward(&mut patch, group, weights, (packed, chain))?;
        }
    }
    Ok(edited)
}

/// The matrices of a group side by side, where its first product stands.
fn weights(patch: &mut Patch<'_>, group: &Group) -> Result<ValueId, PatchError> {
    patch.at(first(patch, group));
    let mut parts = Vec::with_capacity(group.members.len());
    for member in &group.members {
        parts.push(match member.trans == group.rows {
            true => member.weight,
            false => patch.transpose(member.weight, [1, 0])?,
        });
    }
    let axis = axis(group);
    patch.add1(Concat { axis, joined: true }.into(), &parts)
}

/// The product of a group that comes first.
fn first(patch: &Patch<'_>, group: &Group) -> lorafa_ir::OpId {
    let key = |member: &&Member| (patch.graph().op(member.op).site.seq, member.op);
    group
        .members
        .iter()
        .min_by_key(key)
        .map_or(group.members[0].op, |member| member.op)
}

/// The axis of a packed matrix along which the members follow each other.
fn axis(group: &Group) -> usize {
    usize::from(!group.rows)
}

/// The columns of some members, counted from the first of `from`.
fn columns(group: &Group, from: usize, of: Range<usize>) -> (i64, i64) {
    let sum = |range: Range<usize>| group.members[range].iter().map(|m| m.columns).sum::<i64>();
    (sum(from..of.start), sum(of))
}

/// The packed matrices of some members.
fn part(
    patch: &mut Patch<'_>,
    group: &Group,
    weights: ValueId,
    of: Range<usize>,
) -> Result<ValueId, PatchError> {
    if of == (0..group.members.len()) {
        return Ok(weights);
    }
    let slice = slice(axis(group), columns(group, 0, of));
    patch.add1(slice, &[weights])
}

fn slice(axis: usize, (start, len): (i64, i64)) -> Op {
    Slice::along(axis, start, len).into()
}

/// One product; what the group's products gave are parts of its result.
fn forward(patch: &mut Patch<'_>, group: &Group, weights: ValueId) -> Result<(), PatchError> {
    patch.at(first(patch, group));
    let of = group.forward.clone();
    let weights = part(patch, group, weights, of.clone())?;
    let product = patch.matmul(group.x, weights, false, group.rows)?;
    let last = patch.ty(product).rank() - 1;
    for index in of.clone() {
        let op = group.members[index].op;
        let slice = slice(last, columns(group, of.start, index..index + 1));
        patch.at(op);
        if group.copied.contains(&index) {
            let part = patch.add1(slice, &[product])?;
            patch.rewrite(op, Concat::new(last).into(), &[part])?;
        } else {
            patch.rewrite(op, slice, &[product])?;
        }
    }
    Ok(())
}

/// One product of the gradients of some members' results, side by side, where the last product was added; it is added to
/// those that stay.
fn backward(
    patch: &mut Patch<'_>,
    group: &Group,
    weights: ValueId,
    (packed, chain): (Range<usize>, &Chain),
) -> Result<(), PatchError> {
    let Some(&(last, _)) = chain.links.last() else {
        return Ok(());
    };
    let mut gradients = vec![None; packed.len()];
    let mut sum = chain.to;
    for (op, member) in &chain.links {
        let (kind, factors) = {
            let op = patch.graph().op(*op);
            (op.kind.clone(), [op.operands[0], op.operands[1]])
        };
        if packed.contains(member) {
            gradients[member - packed.start] = Some(factors[0]);
            continue;
        }
        let operands: Vec<ValueId> = factors.into_iter().chain(sum).collect();
        sum = Some(if *op == last {
            patch.at(*op).add1(kind, &operands)?
        } else {
            patch.at(*op).rewrite(*op, kind, &operands)?;
            patch.graph().op(*op).results[0]
        });
    }
    let gradients: Vec<ValueId> = gradients.into_iter().flatten().collect();
    patch.at(last);
    let axis = patch.ty(gradients[0]).rank() - 1;
    let joined = Concat { axis, joined: true };
    let gradients = patch.add1(joined.into(), &gradients)?;
    let weights = part(patch, group, weights, packed.clone())?;
    let product = MatMul::new(false, !group.rows);
    let operands: Vec<ValueId> = [gradients, weights].into_iter().chain(sum).collect();
    patch.rewrite(last, product.into(), &operands)?;
    let gone = chain
        .links
        .iter()
        .filter(|(op, member)| packed.contains(member) && *op != last);
    gone.rev().try_for_each(|(op, _)| patch.remove(*op))
}
