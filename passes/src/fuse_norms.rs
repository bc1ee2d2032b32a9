//! `fuse-norms`: RMS normalization as one op, and layer normalization without casts around it.
//!
//! ```text
//! - v0 = cast %x {to=f32}                    : f32[2,8]
//! - v2 = pow v0, 2.0                         : f32[2,8]
//! - v3 = reduce_mean v2 {axes=[1], keep_dims}: f32[2,1]
//! - v5 = add v3, 1e-6                        : f32[2,1]
//! - v6 = sqrt v5                             : f32[2,1]
//! - v7 = reciprocal v6                       : f32[2,1]
//! - v8 = mul v0, v7                          : f32[2,8]
//! - v9 = cast v8 {to=bf16}                   : bf16[2,8]
//! - v10 = mul v9, %weight                    : bf16[2,8]
//! + v10, v11 = rms_norm %x, %weight {axis=1} : bf16[2,8], f32[2,1]
//! ```
//!
//! The op keeps `x` in its own type and one number a row; the primitive ops keep an f32 copy. The
//! square may be a power or a product, and the division a reciprocal, a quotient or a power. For
//! 16-bit operands the fused op rounds where these ops round, so casts must stand where Hugging
//! Face has them: `x` is widened first, and `x·rstd` rounded before the weight multiplies it.

use crate::matching::{as_narrow, binary, each_op, either, is_number, number, unary, uncast};
use crate::pass::{Changed, Pass, PassCx, PassError, PassKind};
use lorafa_ir::ops::{
    BinaryKind, Cast, LayerNorm, Op, Reduce, ReduceKind, RmsNorm, Scalar, UnaryKind,
};
use lorafa_ir::{Graph, OpId, PatchError, ValueId};

/// See the module.
pub struct FuseNorms;

impl Pass for FuseNorms {
    fn name(&self) -> &'static str {
        "fuse-norms"
    }

    fn kind(&self) -> PassKind {
        PassKind::Equivalence
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<Changed, PassError> {
        let (mut rms, mut layer) = (0, 0);
        each_op(graph, |graph, id| {
            if fuse_rms(graph, id)? {
                rms += 1;
            } else if fold_casts(graph, id)? {
                layer += 1;
            }
            Ok::<(), PatchError>(())
        })?;
        if rms > 0 {
            cx.note(format_args!("{rms} rms norms became one op each"));
        }
        if layer > 0 {
            cx.note(format_args!(
                "{layer} layer norms lost the casts around them"
            ));
        }
        Ok(Changed::from_count(rms + layer))
    }
}

/// `x·rstd` before the weight multiplies it.
struct Normal {
    x: ValueId,
    axis: usize,
    eps: f64,
}

fn fuse_rms(graph: &mut Graph, id: OpId) -> Result<bool, PatchError> {
    let y = graph.op(id).results[0];
    let found = either(graph, y, BinaryKind::Mul).find_map(|(normal, weight)| {
        let found = rounded(graph, normal)?;
        let (x, weight_ty) = (graph.ty(found.x), graph.ty(weight));
        let fits = weight_ty.dtype == x.dtype && weight_ty.shape[..] == x.shape[found.axis..];
        (fits && graph.ty(y) == x).then_some((found, weight))
    });
    let Some((Normal { x, axis, eps }, weight)) = found else {
        return Ok(false);
    };
    let eps = Scalar(eps);
    let mut patch = graph.patch("fuse-rms-norm");
    let fused = patch
        .at(id)
        .add1(RmsNorm { axis, eps }.into(), &[x, weight])?;
    patch.replace(y, fused)?;
    patch.remove(id)?;
    Ok(true)
}

/// The normalized value in the type of what is normalized, with the casts that a 16-bit type has.
fn rounded(graph: &Graph, value: ValueId) -> Option<Normal> {
    let dtype = graph.ty(value).dtype;
    if !dtype.is_half() {
        return normal(graph, value);
    }
    let wide = normal(graph, uncast(graph, value)?)?;
    let x = as_narrow(graph, wide.x, dtype).filter(|x| *x != wide.x)?;
    Some(Normal { x, ..wide })
}

/// `x / √(mean x² + eps)`.
fn normal(graph: &Graph, value: ValueId) -> Option<Normal> {
    let by_root = || {
        let [x, root] = binary(graph, value, BinaryKind::Div)?;
        mean_of_squares(graph, unary(graph, root, UnaryKind::Sqrt)?, x)
    };
    let by_rstd = |(x, rstd)| mean_of_squares(graph, reciprocal_root(graph, rstd)?, x);
    either(graph, value, BinaryKind::Mul)
        .find_map(by_rstd)
        .or_else(by_root)
}

/// What `value` is one over the root of.
fn reciprocal_root(graph: &Graph, value: ValueId) -> Option<ValueId> {
    if let Some([base, exponent]) = binary(graph, value, BinaryKind::Pow) {
        return is_number(graph, exponent, -0.5).then_some(base);
    }
    let root = match binary(graph, value, BinaryKind::Div) {
        Some([one, root]) => is_number(graph, one, 1.0).then_some(root)?,
        None => unary(graph, value, UnaryKind::Reciprocal)?,
    };
    unary(graph, root, UnaryKind::Sqrt)
}

/// `value` as `mean x² + eps` over the last axes.
fn mean_of_squares(graph: &Graph, value: ValueId, x: ValueId) -> Option<Normal> {
    either(graph, value, BinaryKind::Add).find_map(|(mean, eps)| {
        let eps = number(graph, eps)?;
        let def = graph.def(mean);
        let Op::Reduce(Reduce {
            kind: ReduceKind::Mean,
            axes,
            keep_dims: true,
        }) = &def.kind
        else {
            return None;
        };
        let axis = graph.ty(x).rank().checked_sub(axes.len())?;
        let last = (axis..graph.ty(x).rank()).all(|axis| axes.contains(&axis));
        let squares = def.operands[0];
        let squared = match binary(graph, squares, BinaryKind::Pow) {
            Some([base, two]) => base == x && is_number(graph, two, 2.0),
            None => binary(graph, squares, BinaryKind::Mul) == Some([x, x]),
        };
        (last && squared && !axes.is_empty()).then_some(Normal { x, axis, eps })
    })
}

/// A layer norm in f32 of 16-bit operands, rounded at once, is one of 16-bit operands: that, too,
/// computes in f32.
fn fold_casts(graph: &mut Graph, id: OpId) -> Result<bool, PatchError> {
    let op = graph.op(id);
    let (Op::Cast(Cast { to }), y) = (&op.kind, op.results[0]) else {
        return Ok(false);
    };
    let (to, wide) = (*to, op.operands[0]);
    let norm = graph.def(wide);
    let Op::LayerNorm(LayerNorm { axis, eps }) = norm.kind else {
        return Ok(false);
    };
    let narrow = norm.operands.iter().map(|v| as_narrow(graph, *v, to));
    let Some(operands) = narrow.collect::<Option<Vec<ValueId>>>() else {
        return Ok(false);
    };
    if norm.results[0] != wide || !to.is_half() {
        return Ok(false);
    }
    let norm = norm.id;
    let mut patch = graph.patch("fold-casts");
    let folded = patch
        .at(norm)
        .add1(LayerNorm { axis, eps }.into(), &operands)?;
    patch.replace(y, folded)?;
    patch.remove(id)?;
    Ok(true)
}
