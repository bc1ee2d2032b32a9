//! `redraw-masks`: draws a dropout's mask again in the backward pass instead of keeping it.
//!
//! ```text
//!   v1, v2 = dropout v0 {ratio=0.1, seed=3}              : bf16[4,8], bool[4,8]
//!   …
//! + v4 = dropout_mask {ratio=0.1, seed=3, shape=[4,8]}   : bool[4,8] of v1
//! - v5 = dropout_grad v3, v2 {ratio=0.1}                 : bf16[4,8] of v1
//! + v5 = dropout_grad v3, v4 {ratio=0.1}                 : bf16[4,8] of v1
//! ```
//!
//! Masks follow from the seed and the number of the step by counting, so that the second is the first. A byte an element of
//! every adapter's input is more than LoRA-FA keeps of anything else there.

use crate::pass::{Changed, Pass, PassCx, PassError, PassKind};
use lorafa_ir::ops::{DropoutMask, Op};
use lorafa_ir::{Graph, OpId, PatchError, Region};

/// See the module.
pub struct RedrawMasks;

impl Pass for RedrawMasks {
    fn name(&self) -> &'static str {
        "redraw-masks"
    }

    fn kind(&self) -> PassKind {
        PassKind::Equivalence
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<Changed, PassError> {
        let dropouts = graph.ops().filter(|op| matches!(op.kind, Op::Dropout(_)));
        let dropouts: Vec<OpId> = dropouts.map(|op| op.id).collect();
        let (mut redrawn, mut saved) = (0, 0);
        for id in dropouts {
            let bytes = graph.ty(graph.op(id).results[1]).bytes();
            if redraw(graph, id)? {
                redrawn += 1;
                saved += bytes.unwrap_or(0);
            }
        }
        if redrawn > 0 {
            cx.note(format_args!(
                "{redrawn} masks of dropouts are drawn again: {saved} bytes less are kept"
            ));
        }
        Ok(Changed::from_count(redrawn))
    }
}

/// A mask for each reader that is not part of the forward pass; none if an output is the mask.
fn redraw(graph: &mut Graph, id: OpId) -> Result<bool, PatchError> {
    let op = graph.op(id);
    let (Op::Dropout(of), mask) = (&op.kind, op.results[1]) else {
        return Ok(false);
    };
    let of = *of;
    let shape = graph.ty(mask).shape.clone();
    let mut readers = graph.uses(mask).to_vec();
    readers.retain(|read| graph.op(read.op).site.region != Region::Forward);
    if readers.is_empty() || graph.is_output(mask) {
        return Ok(false);
    }
    let mut patch = graph.patch("redraw-mask");
    for read in readers {
        let kind = DropoutMask {
            of,
            shape: shape.clone(),
        };
        let again = patch.at(read.op).add1(kind.into(), &[])?;
        patch.set_operand(read.op, read.slot, again);
    }
    Ok(true)
}
