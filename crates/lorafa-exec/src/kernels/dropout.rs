//! `dropout` and its gradient.
//!
//! Masks are drawn on the host and copied to where the step runs, so that a step drops the same elements on every device.
//!
//! Where only the loss is evaluated, dropout gives its operand and a mask of ones.

use lorafa_ir::DType;
use lorafa_ir::ops::{Dropout, DropoutGrad};

use super::{Cx, Emitted, When, Work};
use crate::view::View;

/// A mask to draw: one byte an element, 1 for what survives.
#[derive(Debug)]
pub(crate) struct Mask {
    of: Dropout,
    /// Where it goes, row-major.
    pub out: View,
    /// The place of each of its elements in the whole mask.
    places: View,
}

impl Mask {
    /// The mask of a step.
    pub(crate) fn draw(&self, step: u64, bytes: &mut [u8]) {
        let survivors = self.of.survivors(step);
        let (shape, strides) = (&self.places.layout.shape, &self.places.layout.strides);
        let (len, along) = shape.last().zip(strides.last()).unwrap_or((&1, &1));
        for (row, bytes) in bytes.chunks_exact_mut(*len.max(&1) as usize).enumerate() {
            let (mut row, mut place) = (row as u64, self.places.layout.offset);
            for (n, stride) in shape.iter().zip(strides).rev().skip(1) {
                place += row % n * stride;
                row /= n;
            }
            for (byte, at) in bytes.iter_mut().zip(0..) {
                *byte = u8::from(survivors.has(place + at * along));
            }
        }
    }
}

pub(super) fn forward(op: Dropout, cx: &mut Cx<'_>) -> Emitted {
    let mask = cx.outs[1].clone();
    cx.when(When::Evaluation);
    cx.fill(&mask, 1.0)?;
    cx.copy(&cx.outs[0], &cx.ins[0])?;
    cx.when(When::Training);
    draw(op, &mask, &places(mask.shape()), cx);
    survivors(&cx.ins[0], &mask, op.factor(), cx)
}

pub(super) fn mask(op: Dropout, cx: &mut Cx<'_>) -> Emitted {
    let mask = cx.outs[0].clone();
    cx.when(When::Evaluation);
    cx.fill(&mask, 1.0)?;
    cx.when(When::Training);
    draw(op, &mask, &places(mask.shape()), cx);
    Ok(())
}

/// The places of a whole mask, as a view of no memory: its parts are views of parts.
pub(super) fn places(shape: &[u64]) -> View {
    View::contiguous(std::ptr::null_mut(), DType::Bool, shape)
}

/// Draws the part of an op's mask that has these places in the whole.
pub(super) fn draw(of: Dropout, out: &View, places: &View, cx: &mut Cx<'_>) {
    let (out, places) = (out.clone(), places.clone());
    cx.push(Work::Mask(Box::new(Mask { of, out, places })));
}

pub(super) fn backward(op: DropoutGrad, cx: &mut Cx<'_>) -> Emitted {
    survivors(&cx.ins[0], &cx.ins[1], op.factor(), cx)
}

/// `mask ? factor·x : 0`.
fn survivors(x: &View, mask: &View, factor: f64, cx: &mut Cx<'_>) -> Emitted {
    let out = &cx.outs[0];
    let number = cx.literal(out.dtype, 0.0)?;
    cx.call(
        "where",
        "self_out",
        &[mask, x, &number, out].map(Into::into),
    )?;
    cx.fill(&number, factor)?;
    cx.mul(out, &number, out)
}
