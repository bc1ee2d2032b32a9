//! `softmax`, `log_softmax` and their gradients.

use lorafa_ir::ops::{Softmax, SoftmaxGrad};

use super::{Cx, Emitted, In};
use crate::device::OpenDevice;
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
    if op.log {
        let args = [
            (&dy).into(),
            (&y).into(),
            In::Int(op.axis as i64),
            In::Int(code(out.dtype)?),
            out.into(),
        ];
        return cx.call("_log_softmax_backward_data", "out", &args);
    }
    let mut sums = dy.shape().to_vec();
    sums[op.axis] = 1;
    let sums = cx.scratch(out.dtype, &sums);
    gradient(cx, [&dy, &y, &sums, out], op.axis)
}

/// `out = y·(dy − sums)`, `sums = Σ dy·y` over an axis; `out` may be `dy`, but not `y`.
pub(super) fn gradient(cx: &mut Cx<'_>, [dy, y, sums, out]: [&View; 4], axis: usize) -> Emitted {
    let (keys, dtype) = (axis as i64, In::Int(code(out.dtype)?));
    if cx.device == OpenDevice::CPU {
        let args = [dy.into(), y.into(), In::Int(keys), dtype, out.into()];
        return cx.call("_softmax_backward_data", "out", &args);
    }
    // That one allocates `dy·y` on a GPU.
    cx.mul(dy, y, out)?;
    cx.sum(out, &[keys], true, sums)?;
    let args = [out.into(), y.into(), sums.into(), In::Double(-1.0)];
    cx.call("addcmul_", "", &args)
}
