//! Reductions and softmax.

use super::{Fail, Handler, Importer, Node};
use crate::import::known::{axes, sorted};
use lorafa_ir::ops::{ReduceKind, Softmax, SoftmaxGrad, axis};

pub(super) const OPS: &[(&str, Handler)] = &[
    ("LogSoftmax", softmax),
    ("ReduceMax", reduce),
    ("ReduceMean", reduce),
    ("ReduceProd", not_data),
    ("ReduceSum", reduce),
    ("Softmax", softmax),
    ("com.microsoft::LogSoftmaxGrad_13", softmax_grad),
    ("com.microsoft::SoftmaxGrad_13", softmax_grad),
];

fn reduce<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let kind = match node.op() {
        "ReduceMax" => ReduceKind::Max,
        "ReduceMean" => ReduceKind::Mean,
        _ => ReduceKind::Sum,
    };
    let x = im.input(node, 0)?;
    let rank = im.patch.ty(x).rank();
    let given = match node.input(1) {
        Some(name) => im.known(name)?,
        None => None,
    };
    let over: Vec<usize> = if node.has("axes") || node.input(1).is_some() {
        sorted(&axes(node, given.as_ref())?, rank)?
    } else {
        Vec::new()
    };
    if over.is_empty() && node.int("noop_with_empty_axes", 0) != 0 {
        return im.result(node, x);
    }
    let over = if over.is_empty() {
        (0..rank).collect()
    } else {
        over
    };
    let y = im
        .patch
        .reduce(kind, x, over, node.int("keepdims", 1) != 0)?;
    im.result(node, y)
}

/// Exporters take products of shapes only, which are evaluated while importing.
fn not_data<'m>(_: &mut Importer<'m, '_>, _: &Node<'m>) -> Result<(), Fail> {
    Err("it is supported only on shapes".into())
}

fn softmax<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let x = im.input(node, 0)?;
    let axis = axis(node.int("axis", -1), im.patch.ty(x).rank())?;
    let y = im.patch.add1(
        Softmax {
            axis,
            log: node.op() == "LogSoftmax",
        }
        .into(),
        &[x],
    )?;
    im.result(node, y)
}

/// Given `dy` and the result.
fn softmax_grad<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let (dy, y) = (im.input(node, 0)?, im.input(node, 1)?);
    let axis = axis(node.int("axis", -1), im.patch.ty(y).rank())?;
    let log = node.op() == "LogSoftmaxGrad_13";
    let dx = im.patch.add1(SoftmaxGrad { axis, log }.into(), &[dy, y])?;
    im.result(node, dx)
}
