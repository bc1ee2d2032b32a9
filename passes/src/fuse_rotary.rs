//! `fuse-rotary`: rotary position embeddings as one op each.
//!
//! ```text
//!   v0 = concat %f, %f {axis=2}                : f32[1,8,4]
//! - v1 = cos v0                                : f32[1,8,4]
//! + v9 = cos %f                                : f32[1,8,2]
//!   …
//! - v3 = mul %x, v1                            : f32[2,8,4]
//! - v4 = slice %x {axes=[2:0:2:1]}             : f32[2,8,2]
//! - v5 = slice %x {axes=[2:2:2:1]}             : f32[2,8,2]
//! - v6 = neg v5                                : f32[2,8,2]
//! - v7 = concat v6, v4 {axis=2}                : f32[2,8,4]
//! - v8 = mul v7, v2                            : f32[2,8,4]
//! - v9 = add v3, v8                            : f32[2,8,4]
//! + v11 = rotary %x, v9, v10                   : f32[2,8,4]
//! ```
//!
//! Exporters write cos and sin twice as wide as they need to be, both halves the same: only then is
//! this a rotation, whose gradient is the rotation back. What makes them is built anew for one half;
//! all layers share it.

use crate::matching::{each_op, either, unary};
use crate::pass::{Changed, Pass, PassCx, PassError, PassKind};
use lorafa_ir::ops::{
    BinaryKind, Concat, Data, Expand, Op, Param, Reshape, Rotary, Slice, SliceAxis, UnaryKind,
};
use lorafa_ir::{Dim, Graph, OpId, Patch, PatchError, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// Ops between a table's halves and what reads it: a bound for hostile input.
const MAX_OPS: usize = 64;

/// See the module.
pub struct FuseRotary;

impl Pass for FuseRotary {
    fn name(&self) -> &'static str {
        "fuse-rotary"
    }

    fn kind(&self) -> PassKind {
        PassKind::Equivalence
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<Changed, PassError> {
        let mut halves = Halves::new();
        let (mut fused, mut left) = (0, 0);
        each_op(graph, |graph, id| {
            let Some(found) = find(graph, id) else {
                return Ok(());
            };
            if fuse(graph, id, found, &mut halves)? {
                fused += 1;
            } else {
                left += 1;
            }
            Ok::<(), PatchError>(())
        })?;
        if fused > 0 {
            cx.note(format_args!("{fused} rotary embeddings became one op each"));
        }
        if left > 0 {
            cx.note(format_args!(
                "{left} rotary embeddings stay as they are: the halves of cos and sin are not known to be equal"
            ));
        }
        Ok(Changed::from_count(fused))
    }
}

/// `x·cos + rotated(x)·sin`, with tables as wide as `x`.
#[derive(Clone, Copy)]
struct Found {
    x: ValueId,
    cos: ValueId,
    sin: ValueId,
    width: i64,
}

fn find(graph: &Graph, id: OpId) -> Option<Found> {
    let y = graph.op(id).results[0];
    let width = graph.ty(y).shape.last()?.known()?;
    either(graph, y, BinaryKind::Add).find_map(|(straight, turned)| {
        either(graph, turned, BinaryKind::Mul).find_map(|(rotated, sin)| {
            let x = unrotated(graph, rotated, width)?;
            let mut straight = either(graph, straight, BinaryKind::Mul);
            let cos = straight.find_map(|(own, cos)| (own == x).then_some(cos))?;
            let (x_ty, tables) = (graph.ty(x), [cos, sin]);
            let fits = tables.iter().all(|table| {
                let ty = graph.ty(*table);
                ty.dtype == x_ty.dtype && ty.shape.last() == x_ty.shape.last()
            });
            let found = Found { x, cos, sin, width };
            (fits && graph.ty(y) == x_ty).then_some(found)
        })
    })
}

/// What `value` is with its halves swapped and the second one negated.
fn unrotated(graph: &Graph, value: ValueId, width: i64) -> Option<ValueId> {
    let op = graph.def(value);
    let last = graph.ty(value).rank().checked_sub(1)?;
    let (Op::Concat(Concat { axis, .. }), [minus, first]) = (&op.kind, op.operands.as_slice())
    else {
        return None;
    };
    let (x, half) = (half_of(graph, *first, last, 0)?, width / 2);
    let second = unary(graph, *minus, UnaryKind::Neg)?;
    let halves = half_of(graph, second, last, half)? == x && graph.ty(*first).shape[last].is(half);
    (*axis == last && width % 2 == 0 && halves).then_some(x)
}

/// What `value` is part of, from `start` along the axis `last`.
fn half_of(graph: &Graph, value: ValueId, last: usize, start: i64) -> Option<ValueId> {
    let op = graph.def(value);
    let Op::Slice(Slice { axes }) = &op.kind else {
        return None;
    };
    let [part] = axes.as_slice() else {
        return None;
    };
    let from = part.axis == last && part.start.is(start) && part.step == 1;
    from.then(|| op.operands[0])
}

fn fuse(
    graph: &mut Graph,
    id: OpId,
    found: Found,
    halves: &mut Halves,
) -> Result<bool, PatchError> {
    let Found { x, cos, sin, width } = found;
    if ![cos, sin].iter().all(|t| repeats(graph, *t, width)) {
        return Ok(false);
    }
    let y = graph.op(id).results[0];
    let mut patch = graph.patch("fuse-rotary");
    let (cos, sin) = (
        half(&mut patch, cos, width, halves)?,
        half(&mut patch, sin, width, halves)?,
    );
    let rotary = Rotary {
        interleaved: false,
        inverse: false,
    };
    let fused = patch.at(id).add1(rotary.into(), &[x, cos, sin])?;
    patch.replace(y, fused)?;
    patch.remove(id)?;
    Ok(true)
}

/// Whether both halves of the last axis are the same, for every reason that [`half`] knows.
fn repeats(graph: &Graph, table: ValueId, width: i64) -> bool {
    let mut seen = BTreeSet::new();
    let mut work = vec![table];
    while let Some(value) = work.pop() {
        if !seen.insert(value) {
            continue;
        }
        match tables(graph, value, width) {
            Some(tables) if seen.len() <= MAX_OPS => work.extend(tables),
            _ => return false,
        }
    }
    true
}

/// The operands that must repeat for a value to do so; `None` if it does not anyway.
fn tables(graph: &Graph, value: ValueId, width: i64) -> Option<Vec<ValueId>> {
    let (op, ty) = (graph.def(value), graph.ty(value));
    let last = ty.rank().checked_sub(1)?;
    if !ty.shape[last].is(width) {
        return None;
    }
    let same = |same: bool| same.then(Vec::new);
    let first = |keeps: bool| keeps.then(|| vec![op.operands[0]]);
    match &op.kind {
        Op::Concat(Concat { axis, .. }) => {
            same(*axis == last && matches!(op.operands.as_slice(), [a, b] if a == b))
        }
        Op::Param(param) => same(stored_twice(param, width)),
        Op::Unary(_) | Op::Cast(_) | Op::Reshape(_) | Op::Expand(_) => first(true),
        Op::Binary(_) => {
            let operands = op.operands.iter().copied();
            Some(operands.filter(|v| !is_one(graph, *v)).collect())
        }
        Op::Transpose(t) => first(t.perm.last() == Some(&last)),
        Op::Slice(s) => first(s.axes.iter().all(|a| a.axis != last)),
        Op::Gather(g) => first(g.axis + 1 < graph.ty(op.operands[0]).rank()),
        _ => None,
    }
}

/// Whether a value is a single element, which any table can be multiplied by.
fn is_one(graph: &Graph, value: ValueId) -> bool {
    graph.ty(value).shape.iter().all(|d| d.is(1))
}

/// Whether every row of a constant table repeats itself.
fn stored_twice(param: &Param, width: i64) -> bool {
    let Data::Inline(bytes) = &param.stored.data else {
        return false;
    };
    let row = usize::try_from(width).unwrap_or(0) * param.ty.dtype.size() as usize;
    let as_is = param.stored.dtype == param.ty.dtype && !param.stored.transposed;
    as_is
        && row > 0
        && bytes
            .chunks(row)
            .all(|row| row[..row.len() / 2] == row[row.len() / 2..])
}

/// What was built for one half of each table.
type Halves = BTreeMap<ValueId, ValueId>;

/// The first half of the last axis of a table that [`repeats`].
fn half(
    p: &mut Patch<'_>,
    value: ValueId,
    width: i64,
    halves: &mut Halves,
) -> Result<ValueId, PatchError> {
    if let Some(known) = halves.get(&value) {
        return Ok(*known);
    }
    let op = p.graph().def(value).clone();
    let mut shape = p.ty(value).shape.clone();
    if let Some(last) = shape.last_mut() {
        *last = Dim::Known(width / 2);
    }
    let kind = match &op.kind {
        Op::Concat(_) => {
            halves.insert(value, op.operands[0]);
            return Ok(op.operands[0]);
        }
        Op::Param(_) => {
            let part = SliceAxis {
                axis: shape.len().saturating_sub(1),
                start: Dim::Known(0),
                len: Dim::Known(width / 2),
                step: 1,
            };
            let axes = [part].into_iter().collect();
            let first = p.at(op.id).add1(Slice { axes }.into(), &[value])?;
            halves.insert(value, first);
            return Ok(first);
        }
        Op::Reshape(_) => Reshape { shape }.into(),
        Op::Expand(_) => Expand { shape }.into(),
        kind => kind.clone(),
    };
    let mut operands = op.operands.clone();
    let tables = if matches!(kind, Op::Binary(_)) { 2 } else { 1 };
    for operand in operands.iter_mut().take(tables) {
        if !is_one(p.graph(), *operand) {
            *operand = half(p, *operand, width, halves)?;
        }
    }
    let first = p.at(op.id).add1(kind, &operands)?;
    halves.insert(value, first);
    Ok(first)
}
