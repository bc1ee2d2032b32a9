//! Elementwise ops.

use super::proto::{int, string};
use super::{ExportError, Writer};
use crate::dtype::to_onnx;
use lorafa_ir::ops::{
    Activation, ActivationKind, Binary, BinaryKind, Cast, Dropout, Unary, UnaryKind,
};
use lorafa_ir::{DType, OpData};

/// The operator of a kind.
fn spelling<K: PartialEq>(names: &[(K, &'static str)], kind: &K) -> &'static str {
    let row = names.iter().find(|(k, _)| k == kind);
    row.map_or("", |(_, name)| name)
}

const UNARY: &[(UnaryKind, &str)] = &[
    (UnaryKind::Neg, "Neg"),
    (UnaryKind::Abs, "Abs"),
    (UnaryKind::Sqrt, "Sqrt"),
    (UnaryKind::Reciprocal, "Reciprocal"),
    (UnaryKind::Exp, "Exp"),
    (UnaryKind::Log, "Log"),
    (UnaryKind::Sin, "Sin"),
    (UnaryKind::Cos, "Cos"),
    (UnaryKind::Erf, "Erf"),
    (UnaryKind::Not, "Not"),
    (UnaryKind::IsNan, "IsNaN"),
];

const ACTIVATIONS: &[(ActivationKind, &str)] = &[
    (ActivationKind::Relu, "Relu"),
    (ActivationKind::Sigmoid, "Sigmoid"),
    (ActivationKind::Tanh, "Tanh"),
    (ActivationKind::Gelu, "Gelu"),
    (ActivationKind::GeluTanh, "Gelu"),
];

const BINARY: &[(BinaryKind, &str)] = &[
    (BinaryKind::Add, "Add"),
    (BinaryKind::Sub, "Sub"),
    (BinaryKind::Mul, "Mul"),
    (BinaryKind::Div, "Div"),
    (BinaryKind::Pow, "Pow"),
    (BinaryKind::Max, "Max"),
    (BinaryKind::Min, "Min"),
    (BinaryKind::Mod, "Mod"),
    (BinaryKind::And, "And"),
    (BinaryKind::Or, "Or"),
    (BinaryKind::Xor, "Xor"),
    (BinaryKind::Eq, "Equal"),
    (BinaryKind::Lt, "Less"),
    (BinaryKind::Le, "LessOrEqual"),
    (BinaryKind::Gt, "Greater"),
    (BinaryKind::Ge, "GreaterOrEqual"),
];

pub(super) fn unary(w: &mut Writer<'_>, op: &OpData, unary: Unary) -> Result<(), ExportError> {
    use DType::{U8, U16, U32, U64};
    let mut inputs = w.operands(op)?;
    let dtype = w.graph.ty(op.operands[0]).dtype;
    // `Neg` is not defined on unsigned integers; the difference wraps as it would.
    if unary.0 == UnaryKind::Neg && matches!(dtype, U8 | U16 | U32 | U64) {
        inputs.insert(0, w.scalar(dtype, 0.0)?);
        w.node(op, "Sub", inputs, vec![]);
    } else {
        w.node(op, spelling(UNARY, &unary.0), inputs, vec![]);
    }
    Ok(())
}

pub(super) fn activation(
    w: &mut Writer<'_>,
    op: &OpData,
    activation: Activation,
) -> Result<(), ExportError> {
    if activation.0 == ActivationKind::Silu {
        return w.call(op);
    }
    let inputs = w.operands(op)?;
    let attributes = match activation.0 {
        ActivationKind::GeluTanh => vec![string("approximate", "tanh")],
        _ => vec![],
    };
    w.node(op, spelling(ACTIVATIONS, &activation.0), inputs, attributes);
    Ok(())
}

pub(super) fn binary(w: &mut Writer<'_>, op: &OpData, binary: Binary) -> Result<(), ExportError> {
    let inputs = w.operands(op)?;
    if binary.0 == BinaryKind::Mod && w.graph.ty(op.operands[0]).dtype.is_float() {
        return float_mod(w, op, inputs);
    }
    w.node(op, spelling(BINARY, &binary.0), inputs, vec![]);
    Ok(())
}

/// On floats `Mod` takes the sign of the dividend, and the IR's that of the divisor: the remainder
/// is brought to the divisor's side by adding it once.
fn float_mod(w: &mut Writer<'_>, op: &OpData, inputs: Vec<String>) -> Result<(), ExportError> {
    let ty = w.graph.ty(op.results[0]).clone();
    let divisor = inputs.last().cloned().unwrap_or_default();
    let remainder = w.helper("Mod", inputs, vec![int("fmod", 1)], &ty);
    let above = w.helper("Add", vec![remainder, divisor.clone()], vec![], &ty);
    w.node(op, "Mod", vec![above, divisor], vec![int("fmod", 1)]);
    Ok(())
}

pub(super) fn select(w: &mut Writer<'_>, op: &OpData) -> Result<(), ExportError> {
    let inputs = w.operands(op)?;
    w.node(op, "Where", inputs, vec![]);
    Ok(())
}

pub(super) fn cast(w: &mut Writer<'_>, op: &OpData, cast: Cast) -> Result<(), ExportError> {
    let inputs = w.operands(op)?;
    let to = int("to", i64::from(to_onnx(cast.to)));
    w.node(op, "Cast", inputs, vec![to]);
    Ok(())
}

/// In training mode, with the op's own seed.
pub(super) fn dropout(
    w: &mut Writer<'_>,
    op: &OpData,
    dropout: &Dropout,
) -> Result<(), ExportError> {
    let mut inputs = w.operands(op)?;
    inputs.push(w.scalar(DType::F32, dropout.ratio.0)?);
    inputs.push(w.scalar(DType::Bool, 1.0)?);
    w.node(op, "Dropout", inputs, vec![int("seed", dropout.seed)]);
    Ok(())
}
