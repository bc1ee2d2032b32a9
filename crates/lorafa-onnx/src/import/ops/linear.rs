//! Matrix products.

use super::{Fail, Handler, Importer, Node};

use lorafa_ir::ValueId;

pub(super) const OPS: &[(&str, Handler)] = &[
    ("Gemm", gemm),
    ("MatMul", matmul),
    ("com.microsoft::FusedMatMul", fused_matmul),
];

fn matmul<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let (a, b) = (im.input(node, 0)?, im.input(node, 1)?);
    let y = product(im, [a, b], [false; 2])?;
    im.result(node, y)
}

/// A scaled product, either matrix of which may be transposed, and before that have its first axis where its rows are
/// and its rows where batches are: `transBatchA` makes `[a, b, c, d]` of `A` into `[b, c, a, d]`.
fn fused_matmul<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let mut factors = [im.input(node, 0)?, im.input(node, 1)?];
    for (factor, flag) in factors.iter_mut().zip(["transBatchA", "transBatchB"]) {
        let rank = im.patch.ty(*factor).rank();
        if rank > 2 && node.int(flag, 0) != 0 {
            let perm = (1..rank - 1).chain([0, rank - 1]);
            *factor = im.patch.transpose(*factor, perm)?;
        }
    }
    let flags = ["transA", "transB"].map(|flag| node.int(flag, 0) != 0);
    let y = product(im, factors, flags)?;
    let y = im.patch.scaled(y, f64::from(node.float("alpha", 1.0)))?;
    im.result(node, y)
}

/// Vectors become matrices of one row or column, which nothing transposes, and the axis goes again afterwards.
fn product(
    im: &mut Importer<'_, '_>,
    [mut a, mut b]: [ValueId; 2],
    [trans_a, trans_b]: [bool; 2],
) -> Result<ValueId, Fail> {
    let ranks = (im.patch.ty(a).rank(), im.patch.ty(b).rank());
    if ranks.0 == 1 {
        a = im.patch.unsqueeze(a, 0)?;
    }
    if ranks.1 == 1 {
        b = im.patch.unsqueeze(b, 1)?;
    }
    let (trans_a, trans_b) = (trans_a && ranks.0 != 1, trans_b && ranks.1 != 1);
    let y = im.patch.matmul(a, b, trans_a, trans_b)?;
    let mut shape = im.patch.ty(y).shape.clone();
    if ranks.1 == 1 {
        shape.pop();
    }
    if ranks.0 == 1 {
        shape.remove(shape.len() - 1 - usize::from(ranks.1 != 1));
    }
    Ok(im.patch.reshape(y, shape)?)
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
