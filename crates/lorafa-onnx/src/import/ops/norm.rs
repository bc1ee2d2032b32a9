//! Normalizations.

use super::{Fail, Handler, Importer, Node};
use lorafa_ir::ops::{LayerNorm, RmsNorm, Scalar, axis};
use lorafa_ir::{DType, Shape};

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

/// The operator normalizes in f32 and multiplies by the scale in the scale's type.
fn rms_norm<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let (x, mut scale) = (im.input(node, 0)?, im.input(node, 1)?);
    let axis = axis(node.int("axis", -1), im.patch.ty(x).rank())?;
    let eps = Scalar(f64::from(node.float("epsilon", 1e-5)));
    let p = &mut im.patch;
    let (from, to) = (p.ty(x).dtype, p.ty(scale).dtype);
    let wide = match (from, to) {
        _ if from == to => to,
        (DType::F64, _) | (_, DType::F64) => DType::F64,
        _ => DType::F32,
    };
    let x = p.cast(x, wide)?;
    scale = p.cast(scale, wide)?;
    let normalized: Shape = p.ty(x).shape[axis..].iter().cloned().collect();
    scale = p.expand(scale, &normalized)?;
    let y = p.add1(RmsNorm { axis, eps }.into(), &[x, scale])?;
    let y = p.cast(y, to)?;
    im.result(node, y)
}
