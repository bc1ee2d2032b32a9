//! `rms_norm` and its gradient.

use super::attrs::{AttrReader, Attrs};
use super::layer_norm::statistics;
use super::{BinaryKind, Op, Operator, ReduceKind, Scalar, Types, UnaryKind, same_dtype};
use crate::dim::Bindings;
use crate::grad::{Gradient, GradientError};
use crate::ids::ValueId;
use crate::interp::{Array, EvalError, for_each_index};
use crate::layout::{Layout, pieces, rows_at_once};
use crate::patch::{Patch, PatchError, Results};
use crate::types::{TensorType, TypeError, line_up};

/// `rms_norm x, weight {axis=2, eps=1e-6}` gives `x·rstd·weight` and `rstd = 1/√(mean x² + eps)`;
/// it normalizes over `axis` and all axes after it, whose shape the weight has.
///
/// For 16-bit operands `x·rstd` is computed in f32 and rounded before the weight multiplies it, as
/// in Hugging Face's `LlamaRMSNorm` and `T5LayerNorm`; `rstd` is f32.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RmsNorm {
    /// The first normalized axis.
    pub axis: usize,
    /// Added to the mean of squares.
    pub eps: Scalar,
}

/// The type of `rstd`.
fn check(axis: usize, x: &TensorType, weight: &TensorType) -> Result<TensorType, TypeError> {
    let statistics = statistics(axis, x)?;
    if line_up(&weight.shape, &x.shape[axis..]) {
        Ok(statistics)
    } else {
        Err(TypeError(format!(
            "{weight} is not as wide as {x} from axis {axis}"
        )))
    }
}

/// Rows, and the numbers of a row that is normalized.
fn sizes(axis: usize, x: &TensorType) -> (u64, u64) {
    let known = x.known_shape().unwrap_or_default();
    let (rows, row) = known.split_at(axis.min(known.len()));
    (rows.iter().product(), row.iter().product())
}

impl Operator for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default()
            .with("axis", self.axis)
            .with("eps", self.eps)
    }

    fn arity(&self) -> (usize, usize) {
        (2, 2)
    }

    fn infer(&self, operands: &[&TensorType]) -> Result<Types, TypeError> {
        same_dtype(operands)?;
        let statistics = check(self.axis, operands[0], operands[1])?;
        Ok([operands[0].clone(), statistics].into_iter().collect())
    }

    fn bind(&self, _: &Bindings) -> Option<Op> {
        Some((*self).into())
    }

    /// Needs the operand, the weight and `rstd`.
    fn gradient(&self, g: &mut Gradient<'_, '_>) -> Result<(), GradientError> {
        let dy = g.dy()?;
        let kind = RmsNormGrad {
            axis: self.axis,
            weight: g.wants(1),
        };
        let ins = [dy, g.operand(0), g.operand(1), g.result(1)];
        let grads = g.add(kind.into(), &ins)?;
        for (slot, grad) in grads.into_iter().enumerate() {
            g.give(slot, grad)?;
        }
        Ok(())
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    /// A number, an operand that is not row-major in that order, and some rows of a 16-bit one in f32.
    fn scratch(&self, operands: &[(&TensorType, &Layout)], results: &[&TensorType]) -> u64 {
        let (x, wide) = (operands[0], results[1].dtype);
        let (rows, row) = sizes(self.axis, x.0);
        let some = rows_at_once(rows, row * wide.size()) * row * wide.size();
        let widened = if x.0.dtype == wide { 0 } else { some };
        pieces([wide.size(), super::row_major(x), widened])
    }

    fn flops(&self, operands: &[&TensorType], _: &[&TensorType]) -> u64 {
        4 * operands[0].elements().unwrap_or(0)
    }

    fn eval(&self, x: &[&Array], results: &[&TensorType]) -> Result<Vec<Array>, EvalError> {
        let n: usize = x[0].shape[self.axis..].iter().product();
        let mut rstd = Array::from_fn(results[1], |_| 0.0)?;
        for (row, r) in x[0].data.chunks(n.max(1)).zip(&mut rstd.data) {
            let mean = row.iter().map(|x| x * x).sum::<f64>() / n as f64;
            *r = 1.0 / (mean + self.eps.0).sqrt();
        }
        let mut data = Vec::new();
        for_each_index(&x[0].shape, |i| {
            let at = data.len();
            data.push(x[0].data[at] * rstd.data[at / n.max(1)] * x[1].at_broadcast(i));
        });
        Ok(vec![Array::new(results[0], data)?, rstd])
    }

    /// As exporters spell it.
    fn decompose(&self, p: &mut Patch<'_>, ins: &[ValueId]) -> Option<Result<Results, PatchError>> {
        Some(self.build(p, ins[0], ins[1]))
    }
}

impl RmsNorm {
    fn build(&self, p: &mut Patch<'_>, x: ValueId, w: ValueId) -> Result<Results, PatchError> {
        let ty = p.ty(x).clone();
        let wide = p.cast(x, ty.dtype.arithmetic())?;
        let two = p.scalar_like(wide, 2.0)?;
        let square = p.binary(BinaryKind::Pow, wide, two)?;
        let mean = p.reduce(ReduceKind::Mean, square, self.axis..ty.rank(), true)?;
        let eps = p.scalar_like(mean, self.eps.0)?;
        let sum = p.plus(mean, eps)?;
        let root = p.unary(UnaryKind::Sqrt, sum)?;
        let rstd = p.unary(UnaryKind::Reciprocal, root)?;
        let normal = p.times(wide, rstd)?;
        let normal = p.cast(normal, ty.dtype)?;
        Ok([p.times(normal, w)?, rstd].into_iter().collect())
    }
}

/// `rms_norm_grad dy, x, weight, rstd {axis=2, weight}` gives `dx` and, if asked, the weight's
/// gradient.
///
/// With `g = dy·weight`: `dx = rstd·(g - x·rstd²·mean(g·x))`, and `Σ dy·x·rstd` for the weight, in
/// the type of `rstd` up to the last rounding.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RmsNormGrad {
    /// The first normalized axis.
    pub axis: usize,
    /// Whether the weight is trained.
    pub weight: bool,
}

impl Operator for RmsNormGrad {
    fn name(&self) -> &'static str {
        "rms_norm_grad"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default()
            .with("axis", self.axis)
            .flag("weight", self.weight)
    }

    fn arity(&self) -> (usize, usize) {
        (4, 4)
    }

    fn infer(&self, operands: &[&TensorType]) -> Result<Types, TypeError> {
        same_dtype(&operands[..3])?;
        let [dy, x, weight, rstd] = [operands[0], operands[1], operands[2], operands[3]];
        if dy != x || *rstd != check(self.axis, x, weight)? {
            return Err(TypeError(format!("{dy}, {x} and {rstd} do not line up")));
        }
        let mut types: Types = [x.clone()].into_iter().collect();
        types.extend(self.weight.then(|| weight.clone()));
        Ok(types)
    }

    fn bind(&self, _: &Bindings) -> Option<Op> {
        Some((*self).into())
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    /// Of some rows at a time a product and a number each; operands that are not row-major in that order. Of 16-bit
    /// operands also as many rows of `dy` and `x`, the weight and its gradient, in f32.
    fn scratch(&self, operands: &[(&TensorType, &Layout)], _: &[&TensorType]) -> u64 {
        let [dy, x, weight, rstd] = [operands[0], operands[1], operands[2], operands[3]];
        let wide = rstd.0.dtype;
        let (rows, row) = sizes(self.axis, x.0);
        let half = x.0.dtype != wide;
        let at_once = rows_at_once(rows, row * wide.size());
        let (numbers, some) = (at_once * wide.size(), at_once * row * wide.size());
        let vector = super::bytes_as(wide, weight.0);
        let given = [
            (true, numbers),
            (true, super::row_major(dy)),
            (true, super::row_major(x)),
            (half, some),
            (half, some),
            (half, vector),
            (!half, super::row_major(weight)),
            (true, some),
            (half && self.weight, vector),
        ];
        pieces(
            given
                .into_iter()
                .filter_map(|(is, bytes)| is.then_some(bytes)),
        )
    }

    fn flops(&self, operands: &[&TensorType], _: &[&TensorType]) -> u64 {
        let each = if self.weight { 9 } else { 6 };
        each * operands[0].elements().unwrap_or(0)
    }

    fn decompose(&self, p: &mut Patch<'_>, ins: &[ValueId]) -> Option<Result<Results, PatchError>> {
        Some(self.build(p, ins))
    }
}

impl RmsNormGrad {
    fn build(&self, p: &mut Patch<'_>, ins: &[ValueId]) -> Result<Results, PatchError> {
        let (ty, rstd) = (p.ty(ins[1]).clone(), ins[3]);
        let wide = p.ty(rstd).dtype;
        let dy = p.cast(ins[0], wide)?;
        let x = p.cast(ins[1], wide)?;
        let weight = p.cast(ins[2], wide)?;
        let normal = p.times(x, rstd)?;
        let g = p.times(dy, weight)?;
        let product = p.times(g, normal)?;
        let projection = p.reduce(ReduceKind::Mean, product, self.axis..ty.rank(), true)?;
        let along = p.times(normal, projection)?;
        let d = p.minus(g, along)?;
        let d = p.times(d, rstd)?;
        let mut results: Results = [p.cast(d, ty.dtype)?].into_iter().collect();
        if self.weight {
            let weighted = p.times(dy, normal)?;
            let sum = if self.axis == 0 {
                weighted
            } else {
                p.reduce(ReduceKind::Sum, weighted, 0..self.axis, false)?
            };
            results.push(p.cast(sum, ty.dtype)?);
        }
        Ok(results)
    }
}

pub(super) fn parse(name: &str, a: &mut AttrReader<'_>) -> Option<Result<Op, String>> {
    let axis = |a: &mut AttrReader<'_>| {
        let axis = a.int("axis")?;
        usize::try_from(axis).map_err(|_| format!("bad axis {axis}"))
    };
    match name {
        "rms_norm" => Some(axis(a).and_then(|axis| {
            let eps = a.float("eps")?;
            Ok(RmsNorm { axis, eps }.into())
        })),
        "rms_norm_grad" => Some(axis(a).map(|axis| {
            let weight = a.flag("weight");
            RmsNormGrad { axis, weight }.into()
        })),
        _ => None,
    }
}
