//! In place within a storage: results that are written over an operand which is only part of what lies there.
//!
//! ```text
//!   v1 = matmul %x, %wa                 : f32[4,8]   s3, its root
//!   v2 = slice v1 {axes=[1:0:6:1]}      : f32[4,6]   s3, strides [8,1], from 0
//!   v3 = slice v1 {axes=[1:6:2:1]}      : f32[4,2]   s3, strides [8,1], from 6
//!   v4 = matmul v3, %b, v2              : f32[4,6]   s3, where v2 was: nothing reads those elements afterwards
//! ```
//!
//! The storage is then needed as long as the result. So what else lies there must be needed as long anyway, or the result
//! is much of it and soon gone.

use lorafa_ir::layout::Layout;
use lorafa_ir::{Graph, OpData, Region, TensorType, ValueId};

use super::{Alias, StorageKind, Storages};
use crate::in_place::is_elementwise;
use crate::schedule::Schedule;

/// What makes up at least one part in so many of its storage is much of it.
const MUCH: u64 = 4;

/// What is last read within so many positions is soon gone: the gradients of a layer's gate and up projections take some
/// twenty.
const SOON: u32 = 64;

/// What is read when, and what was made where.
pub(super) struct Parts {
    /// By op: its position.
    positions: Vec<u32>,
    /// By position: the region of its op.
    regions: Vec<Region>,
    /// By value: whether it is an output.
    outputs: Vec<bool>,
    /// By storage: the values in it that are no views of others.
    made: Vec<Vec<ValueId>>,
}

impl Parts {
    pub(super) fn new(graph: &Graph, schedule: &Schedule) -> Self {
        let last = schedule.ops().iter().map(|op| op.index()).max();
        let mut positions = vec![0; last.map_or(0, |last| last + 1)];
        for (position, id) in schedule.iter() {
            positions[id.index()] = position;
        }
        let regions = schedule.ops().iter().map(|op| graph.op(*op).site.region);
        let mut outputs = vec![false; graph.value_bound()];
        for output in graph.outputs() {
            outputs[output.value.index()] = true;
        }
        Parts {
            positions,
            regions: regions.collect(),
            outputs,
            made: Vec::new(),
        }
    }

    /// Takes note of a value that is no view.
    pub(super) fn made(&mut self, value: ValueId, storages: &Storages) {
        let storage = storages.of(value).index();
        self.made
            .resize(self.made.len().max(storage + 1), Vec::new());
        self.made[storage].push(value);
    }

    /// Where a result of an op may be written in place, over part of a storage; `None` if it has a storage of its own.
    pub(super) fn place(
        &self,
        (graph, storages): (&Graph, &Storages),
        op: &OpData,
        slot: usize,
    ) -> Option<Alias> {
        if !op.kind.writes_strided() {
            return None;
        }
        let result = op.results[slot];
        let mut operands = op.kind.in_place().iter().filter(|(of, _)| *of == slot);
        operands.find_map(|&(_, slot)| {
            let over = storages.at(*op.operands.get(slot)?);
            if !is_part(over, storages) || !fits(graph.ty(result), over) {
                return None;
            }
            let row = row(graph, storages.get(over.storage).root);
            let alone = op.operands.iter().enumerate().all(|(other, value)| {
                let there = storages.at(*value);
                other == slot
                    || there.storage != over.storage
                    || disjoint(&there.layout, &over.layout, row)
                    || is_elementwise(&op.kind) && there.layout == over.layout
            });
            let there: Vec<(ValueId, &Layout)> = self.made[over.storage.index()]
                .iter()
                .map(|value| (*value, &storages.at(*value).layout))
                .collect();
            let place = (&over.layout, row);
            let read = |value: &(ValueId, &Layout)| self.read_after(graph, *value, op, place);
            if !alone || there.iter().any(read) {
                return None;
            }
            let position = self.positions[op.id.index()];
            let read = self.last_read(graph, (result, &over.layout), None);
            let last = read.max(position);
            let rest = there.iter();
            let rest = rest.map(|value| self.last_read(graph, *value, Some(place)));
            let kept = rest.max() >= Some(last);
            let soon =
                last <= position + SOON && self.regions.get(last as usize) == Some(&op.site.region);
            let much = bytes(over) * MUCH >= storages.get(over.storage).bytes;
            (kept || much && soon).then(|| over.clone())
        })
    }

    /// The last position at which a value is read, itself or through its views; of those views alone, if `besides` is
    /// given, that have no element in that place.
    fn last_read(
        &self,
        graph: &Graph,
        (value, layout): (ValueId, &Layout),
        besides: Option<(&Layout, u64)>,
    ) -> u32 {
        let mut last = 0;
        let mut work = vec![(value, layout.clone(), besides)];
        while let Some((value, layout, besides)) = work.pop() {
            let besides = besides.filter(|(over, row)| !disjoint(&layout, over, *row));
            if self.outputs[value.index()] && besides.is_none() {
                return u32::MAX;
            }
            for read in graph.reads(value) {
                let reader = graph.op(read.op);
                match view(graph, (value, &layout), reader, read.slot) {
                    Some((result, layout)) => work.push((result, layout, besides)),
                    None if besides.is_none() => last = last.max(self.positions[read.op.index()]),
                    None => {}
                }
            }
        }
        last
    }

    /// Whether what lies in a place is read, through a value or its views, after an op has run.
    fn read_after(
        &self,
        graph: &Graph,
        (value, layout): (ValueId, &Layout),
        op: &OpData,
        (over, row): (&Layout, u64),
    ) -> bool {
        let mut work = vec![(value, layout.clone())];
        while let Some((value, layout)) = work.pop() {
            if disjoint(&layout, over, row) {
                continue;
            }
            if self.outputs[value.index()] {
                return true;
            }
            for read in graph.reads(value) {
                let reader = graph.op(read.op);
                let after = self.positions[read.op.index()] > self.positions[op.id.index()];
                match view(graph, (value, &layout), reader, read.slot) {
                    // Its elements count from where the view is made, whether anything reads them or not.
                    Some((_, layout)) if after && !disjoint(&layout, over, row) => return true,
                    Some(_) if after => {}
                    Some(view) => work.push(view),
                    None if after => return true,
                    None => {}
                }
            }
        }
        false
    }
}

fn bytes(alias: &Alias) -> u64 {
    alias.layout.shape.iter().product::<u64>() * alias.dtype.size()
}

/// Whether a value is some of what lies in a storage of the step, and each element of it there once.
fn is_part(alias: &Alias, storages: &Storages) -> bool {
    let storage = storages.get(alias.storage);
    let size = bytes(alias);
    let mut axes = alias.layout.shape.iter().zip(&alias.layout.strides);
    storage.kind == StorageKind::Transient
        && 0 < size
        && size < storage.bytes
        && axes.all(|(dim, stride)| *dim == 1 || *stride != 0)
}

/// Whether a result of this type has a value's elements, one for one.
fn fits(ty: &TensorType, alias: &Alias) -> bool {
    ty.known_shape().as_ref() == Some(&alias.layout.shape) && ty.dtype.size() == alias.dtype.size()
}

/// The view of a value that a reader of it is, if it is one.
fn view(
    graph: &Graph,
    (value, layout): (ValueId, &Layout),
    reader: &OpData,
    slot: usize,
) -> Option<(ValueId, Layout)> {
    let result = *reader.results.first().filter(|_| slot == 0)?;
    let layout = reader
        .kind
        .view((graph.ty(value), layout), graph.ty(result))?;
    Some((result, layout))
}

/// Elements of the innermost axis of what fills a storage.
fn row(graph: &Graph, root: ValueId) -> u64 {
    let shape = graph.ty(root).known_shape();
    shape.and_then(|shape| shape.last().copied()).unwrap_or(1)
}

/// Whether two places surely have no element in common: one ends before the other begins, in the storage or in every row
/// of it.
fn disjoint(a: &Layout, b: &Layout, row: u64) -> bool {
    let apart = |(a, b): ((u64, u64), (u64, u64))| a.1 <= b.0 || b.1 <= a.0;
    let columns = columns(a, row).zip(columns(b, row));
    apart((span(a, 0), span(b, 0))) || columns.is_some_and(apart)
}

/// From where to where elements lie, over the axes whose strides are no multiple of `row`; all, if that is zero.
fn span(layout: &Layout, row: u64) -> (u64, u64) {
    let axes = layout.shape.iter().zip(&layout.strides);
    let within = axes.filter(|(_, stride)| row == 0 || *stride % row != 0);
    let reach: u64 = within
        .map(|(dim, stride)| dim.saturating_sub(1) * stride)
        .sum();
    let from = if row == 0 {
        layout.offset
    } else {
        layout.offset % row
    };
    let empty = layout.shape.contains(&0);
    (from, from + if empty { 0 } else { reach + 1 })
}

/// The columns of a storage of rows that a place takes; `None` if it goes on from one row to the next.
fn columns(layout: &Layout, row: u64) -> Option<(u64, u64)> {
    let columns = span(layout, row.max(1));
    (columns.1 <= row).then_some(columns)
}
