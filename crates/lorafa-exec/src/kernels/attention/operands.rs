//! What both kernels read, a block at a time.

use lorafa_ir::DType;
use lorafa_ir::ops::{Attention, AttentionBlock, AttentionSizes};

use super::{Made, by_share};
use crate::kernels::Cx;
use crate::view::View;

/// Consecutive sequences.
#[derive(Clone, Copy)]
pub(super) struct Together {
    pub first: u64,
    pub count: u64,
}

/// Consecutive rows of some sequences, and the keys that any of them sees.
#[derive(Clone, Copy)]
pub(super) struct Block {
    pub of: Together,
    pub first: u64,
    pub rows: u64,
    pub from: u64,
    pub keys: u64,
}

impl Block {
    /// Of something `[batch, heads, rows, n]`.
    pub(super) fn rows_of(&self, x: &View) -> View {
        self.of.part(x).narrow(2, self.first, self.rows)
    }

    /// The keys that it sees, of something `[…, keys, n]` of its sequences.
    pub(super) fn keys_of(&self, x: &View) -> View {
        x.narrow(x.rank() - 2, self.from, self.keys)
    }

    /// Its part of something `[1 or batch, 1 or heads, 1 or rows, 1 or keys]`.
    pub(super) fn part_of(&self, x: &View) -> View {
        let take = |x: View, axis: usize, from: u64, len: u64| {
            if x.shape()[axis] == 1 {
                x
            } else {
                x.narrow(axis, from, len)
            }
        };
        let x = take(x.clone(), 0, self.of.first, self.of.count);
        let x = take(x, 2, self.first, self.rows);
        take(x, 3, self.from, self.keys)
    }
}

impl Together {
    pub(super) fn part(&self, x: &View) -> View {
        x.narrow(0, self.first, self.count)
    }
}

/// The sequences, as many at once as a block has.
pub(super) fn together(
    s: &AttentionSizes,
    block: AttentionBlock,
) -> impl Iterator<Item = Together> {
    let batch = s.batch;
    let most = block.sequences;
    let firsts = (0..batch).step_by(most.max(1) as usize);
    firsts.map(move |first| Together {
        first,
        count: most.min(batch - first),
    })
}

/// The blocks of some sequences.
pub(super) fn blocks(
    op: Attention,
    s: &AttentionSizes,
    rows: u64,
    of: Together,
) -> impl Iterator<Item = Block> + use<> {
    let s = *s;
    (0..s.rows).step_by(rows.max(1) as usize).map(move |first| {
        let rows = rows.min(s.rows - first);
        let end = if op.causal {
            s.keys.min(first + rows)
        } else {
            s.keys
        };
        let from = op
            .window
            .map_or(0, |window| (first + 1).saturating_sub(window));
        let from = from.min(end);
        Block {
            of,
            first,
            rows,
            from,
            keys: end - from,
        }
    })
}

/// `[batch, heads, rows, n]`, and the room for a copy in the type of scores, if it needs one.
pub(super) struct Operand {
    view: View,
    room: Option<View>,
}

impl Operand {
    /// Takes scratch for so many numbers if there has to be a copy.
    pub(super) fn new(cx: &mut Cx<'_>, view: &View, copy: bool, wide: DType, numbers: u64) -> Self {
        Operand {
            view: view.clone(),
            room: copy.then(|| cx.scratch(wide, &[numbers])),
        }
    }

    /// The part that `part` takes, copied if need be.
    pub(super) fn part(&self, cx: &mut Cx<'_>, part: impl Fn(&View) -> View) -> Made<View> {
        let part = part(&self.view);
        let room = self.place(&part);
        cx.copy(&room, &part)?;
        Ok(room)
    }

    /// Where the copy of a part is; the part itself if there is none.
    pub(super) fn place(&self, part: &View) -> View {
        match &self.room {
            Some(room) => View::contiguous(room.start, room.dtype, part.shape()),
            None => part.clone(),
        }
    }
}

/// Queries, keys and values.
pub(super) struct Operands {
    s: AttentionSizes,
    q: Operand,
    k: Operand,
    v: Operand,
}

impl Operands {
    /// Takes scratch for copies.
    pub(super) fn new(
        cx: &mut Cx<'_>,
        s: AttentionSizes,
        block: AttentionBlock,
        [q, k, v]: [&View; 3],
    ) -> Self {
        let keys = block.sequences * s.groups * s.keys;
        let queries = block.sequences * s.heads * block.rows * s.width;
        let mut operand = |x: &View, numbers: u64| {
            Operand::new(cx, x, s.copies(block, &x.layout), s.wide, numbers)
        };
        Operands {
            s,
            q: operand(q, queries),
            k: operand(k, keys * s.width),
            v: operand(v, keys * s.value_width),
        }
    }

    /// The keys and values of some sequences, `[1, sequences, groups, keys, n]`.
    pub(super) fn keys_and_values(&self, cx: &mut Cx<'_>, of: Together) -> Made<[View; 2]> {
        let k = self.k.part(cx, |x| of.part(x))?;
        let v = self.v.part(cx, |x| of.part(x))?;
        Ok([k, v].map(|x| by_share(&x, &self.s)))
    }

    /// The queries of a block, `[shares, sequences, groups, rows, width]`.
    pub(super) fn queries(&self, cx: &mut Cx<'_>, block: &Block) -> Made<View> {
        let q = self.q.part(cx, |x| block.rows_of(x))?;
        Ok(by_share(&q, &self.s))
    }
}
