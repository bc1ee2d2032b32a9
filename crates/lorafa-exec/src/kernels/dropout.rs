//! `dropout` and its gradient.
//!
//! Masks are drawn by counting: an element's fate depends on the op's seed, the step's number and the element's place,
//! and on nothing that ran before. A step that is run again drops the same elements. They are drawn on the host and
//! copied to where the step runs, so that a step drops the same elements on every device.
//!
//! Where only the loss is evaluated, dropout gives its operand and a mask of ones.

use lorafa_ir::ops::{Dropout, DropoutGrad};

use super::{Cx, Emitted, When, Work};
use crate::view::View;

/// A mask to draw: one byte an element, 1 for what survives.
#[derive(Debug)]
pub(crate) struct Mask {
    /// Where it goes, row-major.
    pub out: View,
    seed: u64,
    /// Survive with at least this, of 2³².
    least: u64,
}

impl Mask {
    /// The mask of a step.
    pub(crate) fn draw(&self, step: u64, bytes: &mut [u8]) {
        let stream = mix(mix(self.seed) ^ step);
        for (element, byte) in (0u64..).zip(bytes) {
            *byte = u8::from(mix(stream ^ element) >> 32 >= self.least);
        }
    }
}

/// SplitMix64: a step of its counter, then its finalizer.
fn mix(n: u64) -> u64 {
    let z = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

pub(super) fn forward(op: Dropout, cx: &mut Cx<'_>) -> Emitted {
    let mask = cx.outs[1].clone();
    cx.when(When::Evaluation);
    cx.fill(&mask, 1.0)?;
    cx.copy(&cx.outs[0], &cx.ins[0])?;
    cx.when(When::Training);
    draw(op, &mask, cx);
    survivors(&cx.ins[0], &mask, op.ratio.0, cx)
}

pub(super) fn mask(op: Dropout, cx: &mut Cx<'_>) -> Emitted {
    let mask = cx.outs[0].clone();
    cx.when(When::Evaluation);
    cx.fill(&mask, 1.0)?;
    cx.when(When::Training);
    draw(op, &mask, cx);
    Ok(())
}

fn draw(op: Dropout, mask: &View, cx: &mut Cx<'_>) {
    cx.push(Work::Mask(Mask {
        out: mask.clone(),
        seed: op.seed as u64,
        least: (op.ratio.0 * (1u64 << 32) as f64).round() as u64,
    }));
}

pub(super) fn backward(op: DropoutGrad, cx: &mut Cx<'_>) -> Emitted {
    survivors(&cx.ins[0], &cx.ins[1], op.ratio.0, cx)
}

/// `mask ? x/(1-ratio) : 0`.
fn survivors(x: &View, mask: &View, ratio: f64, cx: &mut Cx<'_>) -> Emitted {
    let out = &cx.outs[0];
    let number = cx.literal(out.dtype, 0.0)?;
    cx.call(
        "where",
        "self_out",
        &[mask, x, &number, out].map(Into::into),
    )?;
    cx.fill(&number, 1.0 / (1.0 - ratio))?;
    cx.mul(out, &number, out)
}
