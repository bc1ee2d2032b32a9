//! Elementwise operators.

use super::{Fail, Handler, Importer, Node};
use crate::dtype;
use crate::import::known::wrapped;
use lorafa_ir::ops::{
    Activation, ActivationGrad, ActivationKind, Binary, BinaryKind, Dropout, DropoutGrad, Fill, Op,
    Scalar, Unary, UnaryKind,
};
use lorafa_ir::{DType, ValueId};

pub(super) const OPS: &[(&str, Handler)] = &[
    ("Abs", unary),
    ("Add", binary),
    ("And", binary),
    ("Cast", cast),
    ("CastLike", cast),
    ("Clip", clip),
    ("Cos", unary),
    ("Div", binary),
    ("Dropout", dropout),
    ("Equal", binary),
    ("Erf", unary),
    ("Exp", unary),
    ("Gelu", gelu),
    ("Greater", binary),
    ("GreaterOrEqual", binary),
    ("Identity", identity),
    ("IsNaN", unary),
    ("Less", binary),
    ("LessOrEqual", binary),
    ("Log", unary),
    ("Max", variadic),
    ("Min", variadic),
    ("Mod", binary),
    ("Mul", binary),
    ("Neg", unary),
    ("Not", unary),
    ("Or", binary),
    ("Pow", binary),
    ("Reciprocal", unary),
    ("Relu", activation),
    ("Sigmoid", activation),
    ("Sin", unary),
    ("Sqrt", unary),
    ("Sub", binary),
    ("Sum", variadic),
    ("Tanh", activation),
    ("Where", select),
    ("Xor", binary),
    ("com.microsoft::DropoutGrad", dropout_grad),
    ("com.microsoft::FastGelu", fast_gelu),
    ("com.microsoft::FastGeluGrad", activation_grad),
    ("com.microsoft::Gelu", gelu),
    ("com.microsoft::GeluGrad", activation_grad),
    ("com.microsoft::QuickGelu", quick_gelu),
    ("com.microsoft::QuickGeluGrad", activation_grad),
    ("com.microsoft::ReluGrad", activation_grad),
    ("com.microsoft::SigmoidGrad", activation_grad),
    ("com.microsoft::TanhGrad", activation_grad),
];

fn unary<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let kind = match node.op() {
        "Abs" => UnaryKind::Abs,
        "Cos" => UnaryKind::Cos,
        "Erf" => UnaryKind::Erf,
        "Exp" => UnaryKind::Exp,
        "IsNaN" => UnaryKind::IsNan,
        "Log" => UnaryKind::Log,
        "Neg" => UnaryKind::Neg,
        "Not" => UnaryKind::Not,
        "Reciprocal" => UnaryKind::Reciprocal,
        "Sin" => UnaryKind::Sin,
        _ => UnaryKind::Sqrt,
    };
    let x = im.input(node, 0)?;
    let y = im.patch.add1(Unary(kind).into(), &[x])?;
    im.result(node, y)
}

fn activation<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let kind = match node.op() {
        "Relu" => ActivationKind::Relu,
        "Sigmoid" => ActivationKind::Sigmoid,
        _ => ActivationKind::Tanh,
    };
    let x = im.input(node, 0)?;
    let y = im.patch.add1(Activation(kind).into(), &[x])?;
    im.result(node, y)
}

fn gelu<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let kind = match &*node.string("approximate", "none") {
        "none" => ActivationKind::Gelu,
        "tanh" => ActivationKind::GeluTanh,
        other => return Err(format!("approximate=`{other}` is not supported").into()),
    };
    let x = im.input(node, 0)?;
    let y = im.patch.add1(Activation(kind).into(), &[x])?;
    im.result(node, y)
}

/// The tanh approximation of gelu; a bias may be added first.
fn fast_gelu<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let x = im.input(node, 0)?;
    let x = biased(im, node, x, 1)?;
    let y = im
        .patch
        .add1(Activation(ActivationKind::GeluTanh).into(), &[x])?;
    im.result(node, y)
}

fn biased<'m>(
    im: &mut Importer<'m, '_>,
    node: &Node<'m>,
    x: ValueId,
    slot: usize,
) -> Result<ValueId, Fail> {
    if node.input(slot).is_none() {
        return Ok(x);
    }
    let bias = im.input(node, slot)?;
    Ok(im.patch.plus(x, bias)?)
}

/// `x·sigmoid(alpha·x)`; its slope is that of silu at `alpha·x`.
fn quick_gelu<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let x = im.input(node, 0)?;
    let alpha = f64::from(node.float("alpha", QUICK));
    let y = if alpha == 1.0 {
        im.patch
            .add1(Activation(ActivationKind::Silu).into(), &[x])?
    } else {
        let scaled = im.patch.scaled(x, alpha)?;
        let gate = Activation(ActivationKind::Sigmoid);
        let gate = im.patch.add1(gate.into(), &[scaled])?;
        im.patch.times(x, gate)?
    };
    im.result(node, y)
}

/// What `QuickGelu` takes `alpha` to be unless it is given.
const QUICK: f32 = 1.702;

/// Given `dy` and the result for relu, sigmoid and tanh, the operand for the others.
fn activation_grad<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let (dy, mut saved) = (im.input(node, 0)?, im.input(node, 1)?);
    let kind = match node.op() {
        "FastGeluGrad" => {
            saved = biased(im, node, saved, 2)?;
            ActivationKind::GeluTanh
        }
        "GeluGrad" => ActivationKind::Gelu,
        "QuickGeluGrad" => {
            let alpha = f64::from(node.float("alpha", QUICK));
            saved = im.patch.scaled(saved, alpha)?;
            ActivationKind::Silu
        }
        "ReluGrad" => ActivationKind::Relu,
        "SigmoidGrad" => ActivationKind::Sigmoid,
        _ => ActivationKind::Tanh,
    };
    let dx = im.patch.add1(ActivationGrad(kind).into(), &[dy, saved])?;
    im.result(node, dx)
}

fn kind(op: &str) -> BinaryKind {
    match op {
        "Add" | "Sum" => BinaryKind::Add,
        "And" => BinaryKind::And,
        "Div" => BinaryKind::Div,
        "Equal" => BinaryKind::Eq,
        "Greater" => BinaryKind::Gt,
        "GreaterOrEqual" => BinaryKind::Ge,
        "Less" => BinaryKind::Lt,
        "LessOrEqual" => BinaryKind::Le,
        "Max" => BinaryKind::Max,
        "Min" => BinaryKind::Min,
        "Mod" => BinaryKind::Mod,
        "Mul" => BinaryKind::Mul,
        "Or" => BinaryKind::Or,
        "Pow" => BinaryKind::Pow,
        "Sub" => BinaryKind::Sub,
        _ => BinaryKind::Xor,
    }
}

fn binary<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let (a, mut b) = (im.input(node, 0)?, im.input(node, 1)?);
    if node.op() == "Mod" && node.int("fmod", 0) != 0 {
        let y = fmod(im, a, b)?;
        return im.result(node, y);
    }
    if node.op() == "Pow" {
        let dtype = im.patch.ty(a).dtype;
        b = constant_in(im, b, dtype)?;
    }
    let y = im.patch.add1(Binary(kind(node.op())).into(), &[a, b])?;
    im.result(node, y)
}

/// The remainder with the sign of `a`; `mod` gives that of `b`.
fn fmod(im: &mut Importer<'_, '_>, a: ValueId, b: ValueId) -> Result<ValueId, Fail> {
    let p = &mut im.patch;
    let (size, by) = (p.unary(UnaryKind::Abs, a)?, p.unary(UnaryKind::Abs, b)?);
    let rest = p.binary(BinaryKind::Mod, size, by)?;
    let minus = p.unary(UnaryKind::Neg, rest)?;
    let zero = p.scalar_like(a, 0.0)?;
    let negative = p.binary(BinaryKind::Lt, a, zero)?;
    Ok(p.select(negative, minus, rest)?)
}

/// A value in another element type; a constant is made anew in it.
fn constant_in(im: &mut Importer<'_, '_>, x: ValueId, dtype: DType) -> Result<ValueId, Fail> {
    let number = match &im.patch.graph().def(x).kind {
        Op::Constant(c) if im.patch.ty(x).rank() == 0 => c.as_f64(),
        _ => None,
    };
    Ok(match number {
        Some(n) if im.patch.ty(x).dtype != dtype => im.patch.scalar(dtype, n)?,
        _ => im.patch.cast(x, dtype)?,
    })
}

fn variadic<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let mut y = im.input(node, 0)?;
    for slot in 1..node.proto.input.len() {
        let next = im.input(node, slot)?;
        y = im.patch.add1(Binary(kind(node.op())).into(), &[y, next])?;
    }
    im.result(node, y)
}

fn clip<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let mut y = im.input(node, 0)?;
    for (slot, kind) in [(1, BinaryKind::Max), (2, BinaryKind::Min)] {
        if node.input(slot).is_some() {
            let bound = im.input(node, slot)?;
            y = im.patch.binary(kind, y, bound)?;
        }
    }
    im.result(node, y)
}

fn identity<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let (from, Some(to)) = (node.required(0)?, node.output(0)) else {
        return Ok(());
    };
    im.alias(to, from)
}

fn select<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let ins = [im.input(node, 0)?, im.input(node, 1)?, im.input(node, 2)?];
    let y = im.patch.select(ins[0], ins[1], ins[2])?;
    im.result(node, y)
}

fn cast<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let to = if node.op() == "CastLike" {
        let like = node.required(1)?;
        match im.known(like)? {
            Some(known) => known.dtype,
            None => {
                let like = im.value(like)?;
                im.patch.ty(like).dtype
            }
        }
    } else {
        let code = node.int("to", 0) as i32;
        dtype::from_onnx(code).ok_or_else(|| {
            format!(
                "casts to {}, which is not supported",
                crate::tensor::data_type_name(code)
            )
        })?
    };
    let name = node.required(0)?;
    let integer = !to.is_float();
    if integer && let Some(mut known) = im.known(name)? {
        if to == DType::Bool {
            let truth = |d: &lorafa_ir::Dim| d.known().map(|n| i64::from(n != 0).into());
            let Some(values) = known.values.iter().map(truth).collect() else {
                return Err("casts a symbolic dimension to bool".into());
            };
            known.values = values;
        }
        known.dtype = to;
        let values = known.values.into_iter().map(|d| wrapped(d, to)).collect();
        let Some(values) = values else {
            return Err(format!("casts a dimension that may be negative to {to}").into());
        };
        known.values = values;
        if let Some(output) = node.output(0) {
            im.define_known(output, known, None);
        }
        return Ok(());
    }
    // A float constant cast to an integer is what `arange` makes of its bounds.
    if integer
        && to != DType::Bool
        && let Some(x) = im.number(name)?
        && let Some(output) = node.output(0)
    {
        let n = lorafa_ir::Dim::Known(x as i64);
        im.define_known(
            output,
            super::Known {
                dtype: to,
                ..super::Known::scalar(n)
            },
            None,
        );
        return Ok(());
    }
    let x = im.value(name)?;
    if im.patch.ty(x).dtype == to {
        return identity(im, node);
    }
    let y = constant_in(im, x, to)?;
    im.result(node, y)
}

/// The share of elements that a dropout sets to zero: none outside of training mode.
fn ratio<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>, first: usize) -> Result<f64, Fail> {
    let ratio = match node.input(first) {
        Some(name) => im.number(name)?.ok_or("its ratio is not a constant")?,
        None => 0.5,
    };
    let training = match node.input(first + 1) {
        Some(name) => {
            im.number(name)?
                .ok_or("its training mode is not a constant")?
                != 0.0
        }
        None => false,
    };
    Ok(if training { ratio } else { 0.0 })
}

/// Where nothing is dropped, the mask is true everywhere.
fn dropout<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let ratio = ratio(im, node, 1)?;
    if ratio == 0.0 {
        if let Some(mask) = node.output(1) {
            let x = im.input(node, 0)?;
            let ty = im.patch.ty(x).with_dtype(DType::Bool);
            let value = Scalar(1.0);
            let all = im.patch.add1(Fill { ty, value }.into(), &[])?;
            im.define(mask, all);
        }
        return identity(im, node);
    }
    let x = im.input(node, 0)?;
    let dropout = Dropout {
        ratio: Scalar(ratio),
        seed: node.int("seed", node.seq),
    };
    let results = im.patch.add(dropout.into(), &[x])?;
    im.results(node, results)
}

/// Given `dy` and the mask, then what `Dropout` is given.
fn dropout_grad<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let ratio = ratio(im, node, 2)?;
    if ratio == 0.0 {
        return identity(im, node);
    }
    let (dy, mask) = (im.input(node, 0)?, im.input(node, 1)?);
    let ratio = Scalar(ratio);
    let dx = im.patch.add1(DropoutGrad { ratio }.into(), &[dy, mask])?;
    im.result(node, dx)
}
