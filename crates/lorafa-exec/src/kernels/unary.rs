//! `neg`, `sqrt`, `exp`, ….

use lorafa_ir::ops::{Unary, UnaryKind};

use super::{Cx, Emitted};

pub(super) fn unary(op: Unary, cx: &mut Cx<'_>) -> Emitted {
    let (x, out) = (&cx.ins[0], &cx.outs[0]);
    let name = match op.0 {
        UnaryKind::Neg => "neg",
        UnaryKind::Abs => "abs",
        UnaryKind::Sqrt => "sqrt",
        UnaryKind::Reciprocal => "reciprocal",
        UnaryKind::Exp => "exp",
        UnaryKind::Log => "log",
        UnaryKind::Sin => "sin",
        UnaryKind::Cos => "cos",
        UnaryKind::Erf => "erf",
        UnaryKind::Not => "logical_not",
        // Only what is no number differs from itself.
        UnaryKind::IsNan => return cx.call("ne", "Tensor_out", &[x.into(), x.into(), out.into()]),
    };
    cx.map(name, x, out)
}
