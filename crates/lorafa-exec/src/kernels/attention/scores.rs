//! The scores of a block, masked.

use lorafa_ir::DType;
use lorafa_ir::ops::{Attention, AttentionBlock, AttentionSizes, UNSEEN};

use super::operands::Block;
use super::{Made, by_share, products};
use crate::kernels::{Cx, Emitted, In};
use crate::view::View;

/// What is added to hide a key, in place of minus infinity, so that a row that sees nothing is no NaN. At most [`UNSEEN`]
/// whatever the score; of a bias, a mask and a triangle together still a number.
const HIDE: f64 = 1.1 * UNSEEN;

/// What is added to scores.
pub(super) struct Masks {
    op: Attention,
    s: AttentionSizes,
    bias: Option<View>,
    /// Which keys are seen, and room for the block's part, negated.
    mask: Option<(View, View)>,
    /// `[rows, rows]`, one above the diagonal and zero elsewhere.
    triangle: Option<View>,
}

/// With axes of length one in front, up to four.
pub(super) fn four_axes(x: &View) -> View {
    let mut x = x.clone();
    while x.rank() < 4 {
        x = x.unsqueeze(0);
    }
    x
}

impl Masks {
    /// Takes scratch for what is masked with, and fills it.
    pub(super) fn new(
        cx: &mut Cx<'_>,
        op: Attention,
        s: AttentionSizes,
        block: AttentionBlock,
        extras: &[View],
    ) -> Made<Self> {
        let find = |bool| extras.iter().find(|x| (x.dtype == DType::Bool) == bool);
        let mut triangle = None;
        if op.causal {
            let after = cx.scratch(s.wide, &[block.rows, block.rows]);
            cx.fill(&after, 1.0)?;
            cx.call("triu_", "", &[(&after).into(), In::Int(1)])?;
            triangle = Some(after);
        }
        let mask = find(true).map(|seen| {
            let seen = four_axes(seen);
            let [sequences, heads, rows, keys] = [0, 1, 2, 3].map(|axis| seen.shape()[axis]);
            let (sequences, rows) = (sequences.min(block.sequences), rows.min(block.rows));
            let room = cx.scratch(s.wide, &[sequences, heads, rows, keys]);
            (seen, room)
        });
        Ok(Masks {
            op,
            s,
            bias: find(false).map(four_axes),
            mask,
            triangle,
        })
    }

    /// The scores of a block, from queries `[shares, sequences, groups, rows, width]` and keys
    /// `[1, sequences, groups, keys, width]`.
    pub(super) fn scores(
        &self,
        cx: &mut Cx<'_>,
        [q, k, scores]: [&View; 3],
        block: &Block,
    ) -> Emitted {
        let scale = self.op.scale.0;
        if let Some(bias) = &self.bias {
            let part = by_share(&block.part_of(bias), &self.s);
            cx.copy(scores, &part.broadcast(scores.shape()))?;
            cx.call("clamp_min_", "", &[scores.into(), In::Double(HIDE)])?;
            products(cx, [q, &k.swapped(), scores], 1.0, scale)?;
        } else {
            products(cx, [q, &k.swapped(), scores], 0.0, scale)?;
        }
        if let Some((seen, room)) = &self.mask {
            let seen = block.part_of(seen);
            let hidden = View::contiguous(room.start, room.dtype, seen.shape());
            cx.map("logical_not", &seen, &hidden)?;
            hide(cx, scores, &by_share(&hidden, &self.s))?;
        }
        match &self.triangle {
            Some(triangle) => self.causal(cx, triangle, scores, block),
            None => Ok(()),
        }
    }

    fn causal(&self, cx: &mut Cx<'_>, triangle: &View, scores: &View, block: &Block) -> Emitted {
        // Keys from the first row's own one on.
        let end = block.from + block.keys;
        if block.first < end {
            let count = end - block.first;
            let part = scores.narrow(4, block.first - block.from, count);
            let hidden = triangle.narrow(0, 0, block.rows).narrow(1, 0, count);
            hide(cx, &part, &hidden)?;
        }
        // From the first row on whose window does not reach key zero, each sees one key less at the left.
        if let Some(window) = self.op.window {
            let full = (window - 1).saturating_sub(block.first);
            if full < block.rows {
                let rows = block.rows - full;
                let count = rows.min(block.keys);
                let part = scores.narrow(3, full, rows).narrow(4, 0, count);
                let hidden = triangle.narrow(0, 0, count).narrow(1, 0, rows).swapped();
                hide(cx, &part, &hidden)?;
            }
        }
        Ok(())
    }
}

/// Hides the scores for which `hidden` is one, not those for which it is zero.
fn hide(cx: &mut Cx<'_>, scores: &View, hidden: &View) -> Emitted {
    cx.add(scores, hidden, In::Double(HIDE), scores)
}
