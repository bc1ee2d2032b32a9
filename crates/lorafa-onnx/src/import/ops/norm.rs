//! Normalizations.

use super::{Fail, Handler, Importer, Node};
use lorafa_ir::ops::{LayerNorm, LayerNormGrad, RmsNorm, RmsNormGrad, Scalar, axis};
use lorafa_ir::{DType, Shape, ValueId};

pub(super) const OPS: &[(&str, Handler)] = &[
    ("LayerNormalization", layer_norm),
    ("RMSNormalization", rms_norm),
    ("SimplifiedLayerNormalization", rms_norm),
    ("com.microsoft::LayerNormalizationGrad", layer_norm_grad),
    (
        "com.microsoft::SimplifiedLayerNormalizationGrad",
        rms_norm_grad,
    ),
];

fn axis_and_eps(
    im: &Importer<'_, '_>,
    node: &Node<'_>,
    x: ValueId,
) -> Result<(usize, Scalar), Fail> {
    let axis = axis(node.int("axis", -1), im.patch.ty(x).rank())?;
    Ok((axis, Scalar(f64::from(node.float("epsilon", 1e-5)))))
}

fn layer_norm<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let mut ins = vec![im.input(node, 0)?, im.input(node, 1)?];
    if node.input(2).is_some() {
        ins.push(im.input(node, 2)?);
    }
    let (axis, eps) = axis_and_eps(im, node, ins[0])?;
    let results = im.patch.add(LayerNorm { axis, eps }.into(), &ins)?;
    im.results(node, results)
}

/// Given `dy`, `x`, the scale, the mean and `1/σ`. Gradients of scale and bias are always outputs, and computed if
/// something reads them.
fn layer_norm_grad<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let ins = [0, 1, 2, 3, 4].map(|slot| im.input(node, slot));
    let ins: Vec<ValueId> = ins.into_iter().collect::<Result<_, _>>()?;
    let (axis, _) = axis_and_eps(im, node, ins[1])?;
    let weights = im.is_output_read(node, 1) || im.is_output_read(node, 2);
    let results = im.patch.add(LayerNormGrad { axis, weights }.into(), &ins)?;
    im.results(node, results)
}

/// What RMS norms compute in, of these element types of `x` and of the scale: in f32 at least.
fn wide(from: DType, to: DType) -> DType {
    match (from, to) {
        _ if from == to => to,
        (DType::F64, _) | (_, DType::F64) => DType::F64,
        _ => DType::F32,
    }
}

/// The operator normalizes in f32 and multiplies by the scale in the scale's type.
fn rms_norm<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let (x, scale) = (im.input(node, 0)?, im.input(node, 1)?);
    let (axis, eps) = axis_and_eps(im, node, x)?;
    let (x, scale, to) = rms_operands(im, x, scale, axis)?;
    let mut results = im.patch.add(RmsNorm { axis, eps }.into(), &[x, scale])?;
    results[0] = im.patch.cast(results[0], to)?;
    im.results(node, results)
}

/// `x` and a scale of the shape that is normalized, in the type that they meet in; and the scale's own type.
fn rms_operands(
    im: &mut Importer<'_, '_>,
    x: ValueId,
    scale: ValueId,
    axis: usize,
) -> Result<(ValueId, ValueId, DType), Fail> {
    let p = &mut im.patch;
    let (from, to) = (p.ty(x).dtype, p.ty(scale).dtype);
    let x = p.cast(x, wide(from, to))?;
    let scale = p.cast(scale, wide(from, to))?;
    let normalized: Shape = p.ty(x).shape[axis..].iter().cloned().collect();
    Ok((x, p.expand(scale, &normalized)?, to))
}

/// Given `dy`, `x`, the scale and `1/rms`. The gradient of the scale is always an output, and computed if something
/// reads it.
fn rms_norm_grad<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let ins = [0, 1, 2, 3].map(|slot| im.input(node, slot));
    let ins: Vec<ValueId> = ins.into_iter().collect::<Result<_, _>>()?;
    let (axis, _) = axis_and_eps(im, node, ins[1])?;
    let (own, given) = (im.patch.ty(ins[1]).dtype, im.patch.ty(ins[2]).clone());
    let (x, scale, _) = rms_operands(im, ins[1], ins[2], axis)?;
    let dtype = im.patch.ty(x).dtype;
    let dy = im.patch.cast(ins[0], dtype)?;
    let weight = im.is_output_read(node, 1);
    let kind = RmsNormGrad { axis, weight };
    let mut results = im.patch.add(kind.into(), &[dy, x, scale, ins[3]])?;
    results[0] = im.patch.cast(results[0], own)?;
    if weight {
        let d_scale = im.patch.unbroadcast(results[1], &given.shape)?;
        results[1] = im.patch.cast(d_scale, given.dtype)?;
    }
    im.results(node, results)
}
