//! Normalizations.

use super::{Fail, Handler, Importer, Node};
use lorafa_ir::DType;
use lorafa_ir::ops::{BinaryKind, LayerNorm, ReduceKind, Scalar, UnaryKind, axis};

pub(super) const OPS: &[(&str, Handler)] = &[
    ("LayerNormalization", layer_norm),
    ("RMSNormalization", rms_norm),
    ("SimplifiedLayerNormalization", rms_norm),
];

fn layer_norm<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let mut ins = vec![im.input(node, 0)?, im.input(node, 1)?];
    if node.input(2).is_some() {
        ins.push(im.input(node, 2)?);
    }
    let axis = axis(node.int("axis", -1), im.patch.ty(ins[0]).rank())?;
    let eps = Scalar(f64::from(node.float("epsilon", 1e-5)));
    let results = im.patch.add(LayerNorm { axis, eps }.into(), &ins)?;
    for (slot, value) in results.into_iter().enumerate() {
        if let Some(name) = node.output(slot) {
            im.define(name, value);
        }
    }
    Ok(())
}

/// As the exporters spell it in opsets that lack the operator.
fn rms_norm<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let (x, scale) = (im.input(node, 0)?, im.input(node, 1)?);
    let ty = im.patch.ty(x).clone();
    let first = axis(node.int("axis", -1), ty.rank())?;
    let p = &mut im.patch;
    let wide = p.cast(
        x,
        if ty.dtype.is_half() {
            DType::F32
        } else {
            ty.dtype
        },
    )?;
    let two = p.scalar_like(wide, 2.0)?;
    let square = p.binary(BinaryKind::Pow, wide, two)?;
    let mean = p.reduce(ReduceKind::Mean, square, first..ty.rank(), true)?;
    let eps = p.scalar_like(mean, f64::from(node.float("epsilon", 1e-5)))?;
    let sum = p.plus(mean, eps)?;
    let root = p.unary(UnaryKind::Sqrt, sum)?;
    let rstd = p.unary(UnaryKind::Reciprocal, root)?;
    let normal = p.times(wide, rstd)?;
    let dtype = p.ty(scale).dtype;
    let normal = p.cast(normal, dtype)?;
    let y = p.times(normal, scale)?;
    im.result(node, y)
}
