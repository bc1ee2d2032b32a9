//! A check by the compiler that no op is forgotten.

use lorafa_ir::Op;
use lorafa_ir::ops::{ActivationKind, BinaryKind, ReduceKind, UnaryKind};

/// How many numbers [`variant`] gives out.
pub const VARIANTS: usize = 86;

/// A number for each op that differs in more than attributes. A new op does not compile here
/// until it has one; then [`VARIANTS`] and the list of mnemonics follow.
pub fn variant(op: &Op) -> usize {
    match op {
        Op::Param(_) => 0,
        Op::Constant(_) => 1,
        Op::Iota(_) => 2,
        Op::Fill(_) => 3,
        Op::DimValue(_) => 4,
        Op::Select(_) => 5,
        Op::Cast(_) => 6,
        Op::MatMul(_) => 7,
        Op::Reshape(_) => 8,
        Op::Expand(_) => 9,
        Op::Transpose(_) => 10,
        Op::Slice(_) => 11,
        Op::Pad(_) => 12,
        Op::Concat(_) => 13,
        Op::CumSum(_) => 14,
        Op::Gather(_) => 15,
        Op::GatherGrad(_) => 16,
        Op::GatherElements(_) => 17,
        Op::GatherNd(_) => 18,
        Op::ScatterElements(_) => 19,
        Op::ScatterNd(_) => 20,
        Op::Softmax(op) => 21 + usize::from(op.log),
        Op::SoftmaxGrad(op) => 23 + usize::from(op.log),
        Op::LayerNorm(_) => 25,
        Op::LayerNormGrad(_) => 26,
        Op::CrossEntropy(_) => 27,
        Op::CrossEntropyGrad(_) => 28,
        Op::Dropout(_) => 29,
        Op::DropoutGrad(_) => 30,
        Op::AdamW(_) => 31,
        Op::Onnx(_) => 32,
        Op::Reduce(op) => 33 + reduce(op.kind),
        Op::Unary(op) => 36 + unary(op.0),
        Op::Activation(op) => 47 + activation(op.0),
        Op::ActivationGrad(op) => 53 + activation(op.0),
        Op::Binary(op) => 59 + binary(op.0),
        Op::RmsNorm(_) => 75,
        Op::RmsNormGrad(_) => 76,
        Op::Gated(_) => 77,
        Op::GatedGrad(_) => 78,
        Op::Rotary(_) => 79,
        Op::Accumulate(_) => 80,
        Op::Attention(_) => 81,
        Op::AttentionGrad(_) => 82,
        Op::LinearCrossEntropy(_) => 83,
        Op::LinearCrossEntropyGrad(_) => 84,
        Op::DropoutMask(_) => 85,
    }
}

fn reduce(kind: ReduceKind) -> usize {
    match kind {
        ReduceKind::Sum => 0,
        ReduceKind::Mean => 1,
        ReduceKind::Max => 2,
    }
}

fn unary(kind: UnaryKind) -> usize {
    match kind {
        UnaryKind::Neg => 0,
        UnaryKind::Abs => 1,
        UnaryKind::Sqrt => 2,
        UnaryKind::Reciprocal => 3,
        UnaryKind::Exp => 4,
        UnaryKind::Log => 5,
        UnaryKind::Sin => 6,
        UnaryKind::Cos => 7,
        UnaryKind::Erf => 8,
        UnaryKind::Not => 9,
        UnaryKind::IsNan => 10,
    }
}

fn activation(kind: ActivationKind) -> usize {
    match kind {
        ActivationKind::Relu => 0,
        ActivationKind::Sigmoid => 1,
        ActivationKind::Tanh => 2,
        ActivationKind::Gelu => 3,
        ActivationKind::GeluTanh => 4,
        ActivationKind::Silu => 5,
    }
}

fn binary(kind: BinaryKind) -> usize {
    match kind {
        BinaryKind::Add => 0,
        BinaryKind::Sub => 1,
        BinaryKind::Mul => 2,
        BinaryKind::Div => 3,
        BinaryKind::Pow => 4,
        BinaryKind::Max => 5,
        BinaryKind::Min => 6,
        BinaryKind::Mod => 7,
        BinaryKind::And => 8,
        BinaryKind::Or => 9,
        BinaryKind::Xor => 10,
        BinaryKind::Eq => 11,
        BinaryKind::Lt => 12,
        BinaryKind::Le => 13,
        BinaryKind::Gt => 14,
        BinaryKind::Ge => 15,
    }
}
