//! Matrix products.

use super::{Fail, Handler, Importer, Node};

pub(super) const OPS: &[(&str, Handler)] = &[("Gemm", gemm), ("MatMul", matmul)];

/// Vectors become matrices of one row or column, and the axis goes again afterwards.
fn matmul<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let (mut a, mut b) = (im.input(node, 0)?, im.input(node, 1)?);
    let ranks = (im.patch.ty(a).rank(), im.patch.ty(b).rank());
    if ranks.0 == 1 {
        a = im.patch.unsqueeze(a, 0)?;
    }
    if ranks.1 == 1 {
        b = im.patch.unsqueeze(b, 1)?;
    }
    let mut y = im.patch.matmul(a, b, false, false)?;
    let mut shape = im.patch.ty(y).shape.clone();
    if ranks.1 == 1 {
        shape.pop();
    }
    if ranks.0 == 1 {
        shape.remove(shape.len() - 1 - usize::from(ranks.1 != 1));
    }
    y = im.patch.reshape(y, shape)?;
    im.result(node, y)
}

fn gemm<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let (a, b) = (im.input(node, 0)?, im.input(node, 1)?);
    let (trans_a, trans_b) = (node.int("transA", 0) != 0, node.int("transB", 0) != 0);
    let y = im.patch.matmul(a, b, trans_a, trans_b)?;
    let mut y = im.patch.scaled(y, f64::from(node.float("alpha", 1.0)))?;
    if node.input(2).is_some() {
        let c = im.input(node, 2)?;
        let c = im.patch.scaled(c, f64::from(node.float("beta", 1.0)))?;
        y = im.patch.plus(y, c)?;
    }
    if im.patch.ty(y).rank() != 2 {
        return Err(format!("expected matrices, found {}", im.patch.ty(a)).into());
    }
    im.result(node, y)
}
