//! `softmax`, `log_softmax` and their gradients.

use lorafa_ir::ops::{Softmax, SoftmaxGrad};

use super::{Cx, Emitted, In};
use crate::view::{View, code};

pub(super) fn forward(op: Softmax, cx: &mut Cx<'_>) -> Emitted {
    into(&cx.ins[0], op, &cx.outs[0], cx)
}

/// Of a row-major operand; another one is copied to the result first, and overwritten there.
pub(super) fn into(x: &View, op: Softmax, out: &View, cx: &mut Cx<'_>) -> Emitted {
    let x = if x.is_contiguous() {
        x
    } else {
        cx.copy(out, x)?;
        out
    };
    let name = if op.log { "_log_softmax" } else { "_softmax" };
    let axis = In::Int(op.axis as i64);
    cx.call(name, "out", &[x.into(), axis, In::Bool(false), out.into()])
}

pub(super) fn backward(op: SoftmaxGrad, cx: &mut Cx<'_>) -> Emitted {
    let (dy, y) = (cx.row_major(&cx.ins[0])?, cx.row_major(&cx.ins[1])?);
    let out = &cx.outs[0];
    let name = if op.log {
        "_log_softmax_backward_data"
    } else {
        "_softmax_backward_data"
    };
    let dtype = In::Int(code(out.dtype)?);
    let axis = In::Int(op.axis as i64);
    let args = [(&dy).into(), (&y).into(), axis, dtype, out.into()];
    cx.call(name, "out", &args)
}
