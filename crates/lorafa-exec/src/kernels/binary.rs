//! `add`, `mul`, `lt`, …; libtorch broadcasts as the IR does.

use lorafa_ir::ops::BinaryKind;

use super::{Cx, Emitted, In};

pub(super) fn binary(kind: BinaryKind, cx: &mut Cx<'_>) -> Emitted {
    let (a, b, out) = (&cx.ins[0], &cx.ins[1], &cx.outs[0]);
    let float = a.dtype.is_float();
    let (name, overload) = match kind {
        BinaryKind::Add => return cx.add(a, b, In::Int(1), out),
        BinaryKind::Sub => return cx.sub(a, b, 1, out),
        BinaryKind::Mul => return cx.mul(a, b, out),
        BinaryKind::Div if !float => {
            let args = [a.into(), b.into(), In::Str("trunc"), out.into()];
            return cx.call("div", "out_mode", &args);
        }
        // PyTorch squares and takes roots where the exponent is known to ask for it.
        BinaryKind::Pow if float && a.shape() == out.shape() => {
            if let Some(exponent) = cx.constants[1] {
                let args = [a.into(), In::Double(exponent), out.into()];
                return cx.call("pow", "Tensor_Scalar_out", &args);
            }
            ("pow", "Tensor_Tensor_out")
        }
        BinaryKind::Pow => ("pow", "Tensor_Tensor_out"),
        BinaryKind::Div => ("div", "out"),
        BinaryKind::Max => ("maximum", "out"),
        BinaryKind::Min => ("minimum", "out"),
        BinaryKind::Mod => ("remainder", "Tensor_out"),
        BinaryKind::And => ("logical_and", "out"),
        BinaryKind::Or => ("logical_or", "out"),
        BinaryKind::Xor => ("logical_xor", "out"),
        BinaryKind::Eq => ("eq", "Tensor_out"),
        BinaryKind::Lt => ("lt", "Tensor_out"),
        BinaryKind::Le => ("le", "Tensor_out"),
        BinaryKind::Gt => ("gt", "Tensor_out"),
        BinaryKind::Ge => ("ge", "Tensor_out"),
    };
    cx.call(name, overload, &[a.into(), b.into(), out.into()])
}
