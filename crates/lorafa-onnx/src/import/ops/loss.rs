//! Losses.

use super::{Fail, Handler, Importer, Node};
use lorafa_ir::ops::CrossEntropy;
use lorafa_ir::types::product;

pub(super) const OPS: &[(&str, Handler)] = &[("SoftmaxCrossEntropyLoss", cross_entropy)];

/// Logits of more than two axes hold their classes on axis 1, which moves to the end.
fn cross_entropy<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let reduction = node.string("reduction", "mean");
    if reduction != "mean" {
        return Err(format!("reduction `{reduction}` is not supported; `mean` is").into());
    }
    if node.input(2).is_some() {
        return Err("class weights are not supported".into());
    }
    if node.output(1).is_some() {
        return Err("its log-probabilities are read, which is not supported".into());
    }
    let (mut logits, mut labels) = (im.input(node, 0)?, im.input(node, 1)?);
    let rank = im.patch.ty(logits).rank();
    if rank > 2 {
        let perm = std::iter::once(0).chain(2..rank).chain(std::iter::once(1));
        logits = im.patch.transpose(logits, perm)?;
        let shape = im.patch.ty(logits).shape.clone();
        let rows = product(&shape[..rank - 1]);
        logits = im
            .patch
            .reshape(logits, [rows.clone(), shape[rank - 1].clone()])?;
        labels = im.patch.reshape(labels, [rows])?;
    }
    // Without the attribute every label counts; this one cannot occur.
    let ignore_index = node.int("ignore_index", i64::MIN);
    let y = im
        .patch
        .add1(CrossEntropy { ignore_index }.into(), &[logits, labels])?;
    im.result(node, y)
}
