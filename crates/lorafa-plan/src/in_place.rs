//! In place: which storages take turns in one buffer.
//!
//! ```text
//!   0  v0 = matmul %x, %w   v0 ----+
//!   1  v1 = add v0, %bias   v1     | one buffer, [0,4): v1 takes over v0, v2 takes over v1
//!   2  v2 = relu v1         v2 ----+
//!   3  v3 = matmul v2, %u   v3 ----- reads v2 whole to write any of v3: another buffer
//! ```
//!
//! A result of an op takes over the buffer of an operand that [`Operator::in_place`](lorafa_ir::Operator::in_place)
//! names for it if
//!
//! - nothing needs the operand's storage afterwards: it is transient, holds no output, and is last read here;
//! - both fill their storages in order, and the result has as many elements of the same size: a row of `f32[6]`
//!   has the bytes of a `bool[4,6]` that it broadcasts to, but is read again after they are written;
//! - nothing else that the op reads lies there, or the op is elementwise and the other operand has the same layout, so
//!   that each element is read before it is written.
//!
//! Otherwise it has a buffer of its own, as an op's scratch has.

use lorafa_ir::{Graph, Op, OpData};

use crate::liveness::LiveRange;
use crate::problem::BufferId;
use crate::schedule::Schedule;
use crate::storage::{Alias, StorageId, StorageKind, Storages};

/// What a buffer of the reusable part holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Storages one after the other, each written over the one before it; never empty.
    Storages(Vec<StorageId>),
    /// The scratch of the op at a position.
    Scratch {
        /// The position.
        position: u32,
        /// Size in bytes, not rounded.
        bytes: u64,
    },
}

/// Which buffer each storage is in.
#[derive(Debug, Clone)]
pub(crate) struct Buffers {
    /// Contents, by buffer.
    pub contents: Vec<Content>,
    /// By storage; `None` for what is persistent.
    pub of_storage: Vec<Option<BufferId>>,
}

/// Gives every transient storage and every op's scratch a buffer, in schedule order.
pub(crate) fn buffers(
    graph: &Graph,
    schedule: &Schedule,
    storages: &Storages,
    ranges: &[LiveRange],
) -> Buffers {
    let mut contents = Vec::new();
    let mut of_storage = vec![None; storages.as_slice().len()];
    let mut types = Vec::new();
    let mut results = Vec::new();
    for (position, id) in schedule.iter() {
        let op = graph.op(id);
        for (slot, result) in op.results.iter().enumerate() {
            let storage = storages.of(*result);
            let transient = storages.get(storage).kind == StorageKind::Transient;
            if !transient || of_storage[storage.index()].is_some() {
                continue;
            }
            let taken = takes_over(op, (position, slot), storages, ranges, &of_storage);
            let buffer = taken.unwrap_or(BufferId(contents.len() as u32));
            match contents.get_mut(buffer.index()) {
                Some(Content::Storages(turns)) => turns.push(storage),
                _ => contents.push(Content::Storages(vec![storage])),
            }
            of_storage[storage.index()] = Some(buffer);
        }
        types.clear();
        types.extend(
            op.operands
                .iter()
                .map(|value| (graph.ty(*value), &storages.at(*value).layout)),
        );
        results.clear();
        results.extend(op.results.iter().map(|value| graph.ty(*value)));
        let bytes = op.kind.scratch(&types, &results);
        if bytes > 0 {
            contents.push(Content::Scratch { position, bytes });
        }
    }
    Buffers {
        contents,
        of_storage,
    }
}

/// The buffer that a result of the op at a position, which has a storage of its own, may be written to in place.
fn takes_over(
    op: &OpData,
    (position, slot): (u32, usize),
    storages: &Storages,
    ranges: &[LiveRange],
    of_storage: &[Option<BufferId>],
) -> Option<BufferId> {
    let result = storages.at(op.results[slot]);
    let operands = op.kind.in_place().iter();
    let mut operands = operands.filter(|(result, _)| *result == slot);
    operands.find_map(|&(_, slot)| {
        let alias = storages.at(*op.operands.get(slot)?);
        let storage = storages.get(alias.storage);
        let range = &ranges[alias.storage.index()];
        let dies = !range.output && range.positions.end == position + 1;
        let fills = fills(alias, storages)
            && fills(result, storages)
            && storage.bytes == storages.get(result.storage).bytes
            && alias.dtype.size() == result.dtype.size();
        let alone = op.operands.iter().enumerate().all(|(other, value)| {
            let there = storages.at(*value);
            other == slot
                || there.storage != alias.storage
                || is_elementwise(&op.kind) && there.layout == alias.layout
        });
        if dies && fills && alone {
            // None if the storage is persistent.
            of_storage[alias.storage.index()]
        } else {
            None
        }
    })
}

/// Whether a value is all that lies in its storage, in order.
fn fills(alias: &Alias, storages: &Storages) -> bool {
    let elements: u64 = alias.layout.shape.iter().product();
    let bytes = elements * alias.dtype.size();
    alias.layout.is_contiguous() && bytes == storages.get(alias.storage).bytes
}

/// Whether element `i` of the result depends on element `i` of the operands alone.
pub(crate) fn is_elementwise(kind: &Op) -> bool {
    matches!(
        kind,
        Op::Unary(_)
            | Op::Activation(_)
            | Op::ActivationGrad(_)
            | Op::Binary(_)
            | Op::Select(_)
            | Op::Cast(_)
            | Op::DropoutGrad(_)
    )
}
