//! Elementwise operators.

use super::{Fail, Handler, Importer, Node};
use crate::dtype;
use crate::import::known::wrapped;
use lorafa_ir::ops::{
    Activation, ActivationKind, Binary, BinaryKind, Dropout, Op, Scalar, Unary, UnaryKind,
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

/// Only in training mode; nothing otherwise.
fn dropout<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let ratio = match node.input(1) {
        Some(name) => im.number(name)?.ok_or("its ratio is not a constant")?,
        None => 0.5,
    };
    let training = match node.input(2) {
        Some(name) => {
            im.number(name)?
                .ok_or("its training mode is not a constant")?
                != 0.0
        }
        None => false,
    };
    if !training || ratio == 0.0 {
        if node.output(1).is_some() {
            return Err("its mask is read, but it is not in training mode".into());
        }
        return identity(im, node);
    }
    let x = im.input(node, 0)?;
    let dropout = Dropout {
        ratio: Scalar(ratio),
        seed: node.int("seed", node.seq),
    };
    let results = im.patch.add(dropout.into(), &[x])?;
    for (slot, value) in results.into_iter().enumerate() {
        if let Some(name) = node.output(slot) {
            im.define(name, value);
        }
    }
    Ok(())
}
