//! Losses.

use super::{Fail, Handler, Importer, Node};
use lorafa_ir::ops::{CrossEntropy, CrossEntropyGrad, Op, Softmax};
use lorafa_ir::types::product;
use lorafa_ir::{Dim, ValueId};

pub(super) const OPS: &[(&str, Handler)] = &[
    ("SoftmaxCrossEntropyLoss", cross_entropy),
    (
        "com.microsoft::SoftmaxCrossEntropyLossGrad",
        cross_entropy_grad,
    ),
];

fn cross_entropy<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let ignore_index = attributes(node, 2)?;
    let (logits, labels) = (im.input(node, 0)?, im.input(node, 1)?);
    if let Some(name) = node.output(1) {
        let (axis, log) = (1, true);
        let log = im.patch.add1(Softmax { axis, log }.into(), &[logits])?;
        im.define(name, log);
    }
    let (logits, labels) = rows(im, logits, labels)?;
    let y = im
        .patch
        .add1(CrossEntropy { ignore_index }.into(), &[logits, labels])?;
    im.result(node, y)
}

/// Given log-probabilities; probabilities are those of the logits that they are made of, as our own gradient has it.
fn cross_entropy_grad<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let ignore_index = attributes(node, 3)?;
    let ins = [im.input(node, 0)?, im.input(node, 1)?, im.input(node, 2)?];
    let [d_loss, log, labels] = ins;
    let made = im.patch.graph().def(log);
    let logits = match &made.kind {
        Op::Softmax(softmax) if softmax.log && softmax.axis == 1 => made.operands[0],
        _ => log,
    };
    let shape = im.patch.ty(logits).shape.clone();
    let (logits, labels) = rows(im, logits, labels)?;
    let kind = CrossEntropyGrad { ignore_index };
    let mut dx = im.patch.add1(kind.into(), &[d_loss, logits, labels])?;
    if shape.len() > 2 {
        let last = shape[2..].iter().chain([&shape[1]]);
        dx = im
            .patch
            .reshape(dx, shape[..1].iter().chain(last).cloned())?;
        let rank = shape.len();
        dx = im
            .patch
            .transpose(dx, [0, rank - 1].into_iter().chain(1..rank - 1))?;
    }
    im.result(node, dx)
}

/// The label that does not count. Class weights are at `weights`, if there are any.
fn attributes(node: &Node<'_>, weights: usize) -> Result<i64, Fail> {
    let reduction = node.string("reduction", "mean");
    if reduction != "mean" {
        return Err(format!("reduction `{reduction}` is not supported; `mean` is").into());
    }
    if node.input(weights).is_some() {
        return Err("class weights are not supported".into());
    }
    // Without the attribute every label counts; this one cannot occur.
    Ok(node.int("ignore_index", i64::MIN))
}

/// Logits of more than two axes hold their classes on axis 1, which moves to the end.
fn rows(
    im: &mut Importer<'_, '_>,
    mut logits: ValueId,
    mut labels: ValueId,
) -> Result<(ValueId, ValueId), Fail> {
    let rank = im.patch.ty(logits).rank();
    if rank > 2 {
        let perm = std::iter::once(0).chain(2..rank).chain(std::iter::once(1));
        logits = im.patch.transpose(logits, perm)?;
        let shape = im.patch.ty(logits).shape.clone();
        let rows: Dim = product(&shape[..rank - 1]);
        logits = im
            .patch
            .reshape(logits, [rows.clone(), shape[rank - 1].clone()])?;
        labels = im.patch.reshape(labels, [rows])?;
    }
    Ok((logits, labels))
}
