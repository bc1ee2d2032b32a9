//! Liveness: from where to where each storage's bytes must stay as they are.
//!
//! ```text
//!   0  v0 = matmul %x, %w   v0 [0,3)
//!   1  v1 = relu v0            |      v1 [1,2)   nobody reads v1
//!   2  v2 = exp v0             |                    v2 [2,4)   an output: to the end
//!   3  v3 = neg %x                                     |
//! ```
//!
//! A range is half-open, from the position that makes the first value in the storage to the last read of any value that
//! lies there, plus one. Shapes are types and attributes in this IR: no op reads a value to learn its shape, so what
//! is live is what is read for its elements.

use std::ops::Range;

use lorafa_ir::{Graph, Region};

use crate::schedule::Schedule;
use crate::storage::{StorageKind, Storages};

/// When a storage is needed, and by which part of the step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveRange {
    /// Schedule positions, half-open; the whole schedule for a parameter or constant.
    pub positions: Range<u32>,
    /// Whether a graph output lies in the storage, which then lives to the end.
    pub output: bool,
    /// Whether an op of the backward region reads it.
    pub read_in_backward: bool,
    /// Whether an op of the update region reads it.
    pub read_in_update: bool,
}

/// The live range of every storage, by [`StorageId::index`](crate::StorageId::index).
#[must_use]
pub fn live_ranges(graph: &Graph, schedule: &Schedule, storages: &Storages) -> Vec<LiveRange> {
    let end = schedule.end();
    let range = |kind| LiveRange {
        positions: if kind == StorageKind::Transient {
            end..0
        } else {
            0..end
        },
        output: false,
        read_in_backward: false,
        read_in_update: false,
    };
    let mut ranges: Vec<LiveRange> = storages
        .as_slice()
        .iter()
        .map(|storage| range(storage.kind))
        .collect();
    for (position, id) in schedule.iter() {
        let op = graph.op(id);
        for operand in &op.operands {
            let range = &mut ranges[storages.of(*operand).index()];
            range.positions.end = range.positions.end.max(position + 1);
            match op.site.region {
                Region::Forward => {}
                Region::Backward => range.read_in_backward = true,
                Region::Update => range.read_in_update = true,
            }
        }
        for result in &op.results {
            let positions = &mut ranges[storages.of(*result).index()].positions;
            positions.start = positions.start.min(position);
            positions.end = positions.end.max(position + 1);
        }
    }
    for output in graph.outputs() {
        let range = &mut ranges[storages.of(output.value).index()];
        range.positions.end = end;
        range.output = true;
    }
    ranges
}
