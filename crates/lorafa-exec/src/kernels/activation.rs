//! `relu`, `silu`, `gelu`, `tanh`, `sigmoid` and their gradients.

use lorafa_ir::ops::ActivationKind;

use super::{Cx, Emitted, In};
use crate::view::View;

pub(super) fn forward(kind: ActivationKind, cx: &mut Cx<'_>) -> Emitted {
    call(kind, &cx.ins[0], &cx.outs[0], cx)
}

/// `out = act(x)`.
pub(super) fn call(kind: ActivationKind, x: &View, out: &View, cx: &mut Cx<'_>) -> Emitted {
    match kind {
        ActivationKind::Relu => cx.call("clamp_min", "out", &[x.into(), In::Int(0), out.into()]),
        ActivationKind::Sigmoid => cx.map("sigmoid", x, out),
        ActivationKind::Tanh => cx.map("tanh", x, out),
        ActivationKind::Silu => cx.map("silu", x, out),
        ActivationKind::Gelu | ActivationKind::GeluTanh => {
            cx.call("gelu", "out", &[x.into(), approximate(kind), out.into()])
        }
    }
}

/// Of the result's gradient and what was saved: the operand for silu and gelu, the result otherwise.
pub(super) fn backward(kind: ActivationKind, cx: &mut Cx<'_>) -> Emitted {
    call_backward(kind, &cx.ins[0], &cx.ins[1], &cx.outs[0], cx)
}

/// `out = dy·act'`; for relu `saved` may be its operand as well as its result.
pub(super) fn call_backward(
    kind: ActivationKind,
    dy: &View,
    saved: &View,
    out: &View,
    cx: &mut Cx<'_>,
) -> Emitted {
    let (name, option) = match kind {
        ActivationKind::Relu => ("threshold_backward", Some(In::Int(0))),
        ActivationKind::Sigmoid => ("sigmoid_backward", None),
        ActivationKind::Tanh => ("tanh_backward", None),
        ActivationKind::Silu => ("silu_backward", None),
        ActivationKind::Gelu | ActivationKind::GeluTanh => {
            ("gelu_backward", Some(approximate(kind)))
        }
    };
    let mut args = vec![dy.into(), saved.into()];
    args.extend(option);
    args.push(out.into());
    cx.call(name, "grad_input", &args)
}

fn approximate(kind: ActivationKind) -> In<'static> {
    In::Str(if kind == ActivationKind::GeluTanh {
        "tanh"
    } else {
        "none"
    })
}
