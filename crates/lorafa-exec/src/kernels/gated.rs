//! `gated` and its gradient: an activation, times another operand.

use lorafa_ir::ops::ActivationKind;

use super::{Cx, Emitted, activation};

pub(super) fn forward(kind: ActivationKind, cx: &mut Cx<'_>) -> Emitted {
    let (gate, up, out) = (&cx.ins[0], &cx.ins[1], &cx.outs[0]);
    activation::call(kind, gate, out, cx)?;
    cx.mul(out, up, out)
}

/// The gate's gradient may be where `up` is, and `up`'s where the gate is.
pub(super) fn backward(kind: ActivationKind, cx: &mut Cx<'_>) -> Emitted {
    let [dy, gate, up] = [0, 1, 2].map(|slot| &cx.ins[slot]);
    let (d_gate, d_up) = (&cx.outs[0], &cx.outs[1]);
    cx.mul(dy, up, d_gate)?;
    activation::call_backward(kind, d_gate, gate, d_gate, cx)?;
    activation::call(kind, gate, d_up, cx)?;
    cx.mul(dy, d_up, d_up)
}
