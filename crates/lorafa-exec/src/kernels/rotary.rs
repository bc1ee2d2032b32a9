//! `rotary`: the halves of the result, each of both halves of the operand.

use lorafa_ir::ops::Rotary;

use super::{Cx, Emitted, In};
use crate::view::View;

/// The first and the second elements of all pairs of the last axis.
fn pairs(x: &View, interleaved: bool) -> [View; 2] {
    let last = x.rank() - 1;
    let half = x.shape()[last] / 2;
    if !interleaved {
        return [x.narrow(last, 0, half), x.narrow(last, half, half)];
    }
    [0, 1].map(|at| {
        let mut every = x.narrow(last, at, half);
        every.layout.strides[last] *= 2;
        every
    })
}

pub(super) fn rotary(op: Rotary, cx: &mut Cx<'_>) -> Emitted {
    let (cos, sin) = (&cx.ins[1], &cx.ins[2]);
    if cx.outs[0].elements() == 0 {
        return Ok(());
    }
    let [a, b] = pairs(&cx.ins[0], op.interleaved);
    let [first, second] = pairs(&cx.outs[0], op.interleaved);
    let sign = if op.inverse { -1 } else { 1 };
    for (own, other, sign, out) in [(&a, &b, -sign, &first), (&b, &a, sign, &second)] {
        cx.mul(own, cos, out)?;
        let args = [
            out.into(),
            other.into(),
            sin.into(),
            In::Int(sign),
            out.into(),
        ];
        cx.call("addcmul", "out", &args)?;
    }
    Ok(())
}
