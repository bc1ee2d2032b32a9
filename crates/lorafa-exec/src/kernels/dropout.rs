//! `dropout` and its gradient.
//!
//! Where only the loss is evaluated, dropout gives its operand and a mask of ones.

use lorafa_ir::ops::{Dropout, DropoutGrad};

use super::{Cx, Emitted, When, mask};
use crate::view::View;

pub(super) fn forward(op: Dropout, cx: &mut Cx<'_>) -> Emitted {
    let mask = cx.outs[1].clone();
    cx.when(When::Evaluation);
    cx.fill(&mask, 1.0)?;
    cx.copy(&cx.outs[0], &cx.ins[0])?;
    cx.when(When::Training);
    mask::whole(op, &mask, cx)?;
    survivors(&cx.ins[0], &mask, op.factor(), cx)
}

pub(super) fn mask(op: Dropout, cx: &mut Cx<'_>) -> Emitted {
    let mask = cx.outs[0].clone();
    cx.when(When::Evaluation);
    cx.fill(&mask, 1.0)?;
    cx.when(When::Training);
    mask::whole(op, &mask, cx)
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
