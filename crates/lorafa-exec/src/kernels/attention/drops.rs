//! Dropout of the weights of a block.

use lorafa_ir::DType;
use lorafa_ir::ops::{Attention, AttentionBlock, AttentionSizes, Dropout};

use super::operands::Block;
use super::{Made, by_share};
use crate::kernels::mask::{Room, places};
use crate::kernels::{Cx, Emitted, When};
use crate::view::View;

/// Who survives of a block's weights, drawn for that block alone.
pub(super) struct Drops {
    of: Dropout,
    s: AttentionSizes,
    /// `[batch, heads, rows, keys]`.
    places: View,
    mask: View,
    room: Room,
    zero: View,
}

impl Drops {
    /// Takes scratch for the mask of a block, if anything is dropped. It is drawn in the memory of the block's scores.
    pub(super) fn new(
        cx: &mut Cx<'_>,
        op: Attention,
        s: AttentionSizes,
        at_once: AttentionBlock,
        scores: &View,
    ) -> Made<Option<Self>> {
        let Some(of) = op.dropout else {
            return Ok(None);
        };
        let mask = cx.scratch(DType::Bool, scores.shape());
        cx.when(When::Training);
        let room = Room::new(cx, s.longest(at_once), scores)?;
        cx.when(When::Always);
        let zero = cx.literal(s.wide, 0.0)?;
        let places = places(&[s.batch, s.heads, s.rows, s.keys]);
        Ok(Some(Drops {
            of,
            s,
            places,
            mask,
            room,
            zero,
        }))
    }

    /// The mask of a block's weights `[shares, sequences, groups, rows, keys]`, before there are scores.
    pub(super) fn mask(&self, cx: &mut Cx<'_>, block: &Block) -> View {
        let places = by_share(&block.part_of(&self.places), &self.s);
        let mask = View::contiguous(self.mask.start, DType::Bool, places.shape());
        cx.when(When::Training);
        self.room.draw(self.of, mask.clone(), places, cx);
        cx.when(When::Always);
        mask
    }

    /// `out = mask ? x : 0`; what survives is multiplied by [`factor`](Self::factor) in the product that follows.
    pub(super) fn keep(&self, cx: &mut Cx<'_>, mask: &View, x: &View, out: &View) -> Emitted {
        let args = [mask, x, &self.zero, out].map(Into::into);
        cx.call("where", "self_out", &args)
    }

    /// What survivors are multiplied by.
    pub(super) fn factor(&self) -> f64 {
        self.of.factor()
    }
}
