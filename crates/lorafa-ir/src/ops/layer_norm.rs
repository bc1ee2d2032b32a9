//! `layer_norm` and its gradient.

use super::attrs::{AttrReader, Attrs};
use super::{Op, Operator, ReduceKind, Scalar, Types, float, same_dtype};
use crate::dim::{Bindings, Dim};
use crate::dtype::DType;
use crate::grad::{Gradient, GradientError};
use crate::ids::ValueId;
use crate::interp::{Array, EvalError, for_each_index};
use crate::layout::{Layout, pieces, rows_at_once};
use crate::patch::{Patch, PatchError, Results};
use crate::types::{Shape, TensorType, TypeError, line_up, may_equal};

/// `layer_norm x, scale, bias {axis=2, eps=1e-5}` gives the result, the mean and `1/σ`; it
/// normalizes over `axis` and all axes after it. The bias may be left out.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct LayerNorm {
    /// The first normalized axis.
    pub axis: usize,
    /// Added to the variance.
    pub eps: Scalar,
}

/// The type of statistics over `axis` and all axes after it.
pub(super) fn statistics(axis: usize, x: &TensorType) -> Result<TensorType, TypeError> {
    float(x)?;
    super::axis(axis as i64, x.rank())?;
    let shape: Shape = (0..x.rank())
        .map(|i| {
            if i < axis {
                x.shape[i].clone()
            } else {
                Dim::Known(1)
            }
        })
        .collect();
    let dtype = x.dtype.arithmetic();
    Ok(TensorType { dtype, shape })
}

/// How many rows of 16-bit operands a kernel widens at once, and the bytes of one.
fn rows_of(axis: usize, x: &TensorType, wide: DType) -> (u64, u64) {
    let known = x.known_shape().unwrap_or_default();
    let (rows, row) = known.split_at(axis.min(known.len()));
    let row = row.iter().product::<u64>() * wide.size();
    (rows_at_once(rows.iter().product(), row), row)
}

/// The type of the statistics.
fn check(axis: usize, x: &TensorType, scale: &TensorType) -> Result<TensorType, TypeError> {
    let statistics = statistics(axis, x)?;
    let normalized = x.shape[axis..].iter().rev();
    let fits = |(s, n): (&Dim, &Dim)| s.is(1) || may_equal(s, n);
    if scale.rank() > x.rank() - axis || !scale.shape.iter().rev().zip(normalized).all(fits) {
        return Err(TypeError(format!(
            "{scale} does not scale {x} from axis {axis}"
        )));
    }
    Ok(statistics)
}

impl Operator for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default()
            .with("axis", self.axis)
            .with("eps", self.eps)
    }

    fn arity(&self) -> (usize, usize) {
        (2, 3)
    }

    fn infer(&self, operands: &[&TensorType]) -> Result<Types, TypeError> {
        same_dtype(operands)?;
        let statistics = check(self.axis, operands[0], operands[1])?;
        if let Some(bias) = operands.get(2)
            && !line_up(&bias.shape, &operands[1].shape)
        {
            let scale = operands[1];
            return Err(TypeError(format!("{scale} and {bias} do not line up")));
        }
        Ok([operands[0].clone(), statistics.clone(), statistics]
            .into_iter()
            .collect())
    }

    fn bind(&self, _: &Bindings) -> Option<Op> {
        Some((*self).into())
    }

    /// Needs the operand, the scale and both statistics.
    fn gradient(&self, g: &mut Gradient<'_, '_>) -> Result<(), GradientError> {
        let dy = g.dy()?;
        let bias = g.graph().def(g.result(0)).operands.len() == 3;
        let weights = g.wants(1) || (bias && g.wants(2));
        let ins = [dy, g.operand(0), g.operand(1), g.result(1), g.result(2)];
        let grads = g.add(
            LayerNormGrad {
                axis: self.axis,
                weights,
            }
            .into(),
            &ins,
        )?;
        g.give(0, grads[0])?;
        if weights {
            g.give(1, grads[1])?;
            if bias {
                g.give(2, grads[2])?;
            }
        }
        Ok(())
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    /// A number. Of 16-bit operands, also scale, bias and some rows at a time in the type of the statistics, and a copy
    /// of an operand that is not row-major.
    fn scratch(&self, operands: &[(&TensorType, &Layout)], results: &[&TensorType]) -> u64 {
        let (x, wide) = (operands[0], results[1].dtype);
        if x.0.dtype == wide {
            return pieces([wide.size()]);
        }
        let weights = operands[1..].iter();
        let weights = weights.map(|(ty, _)| super::bytes_as(wide, ty));
        let (at_once, row) = rows_of(self.axis, x.0, wide);
        pieces(weights.chain([wide.size(), super::row_major(x), at_once * row]))
    }

    fn flops(&self, operands: &[&TensorType], _: &[&TensorType]) -> u64 {
        8 * operands[0].elements().unwrap_or(0)
    }

    fn eval(&self, x: &[&Array], results: &[&TensorType]) -> Result<Vec<Array>, EvalError> {
        let n: usize = x[0].shape[self.axis..].iter().product();
        let mut mean = Array::from_fn(results[1], |_| 0.0)?;
        let mut rstd = mean.clone();
        for (k, row) in x[0].data.chunks(n.max(1)).enumerate() {
            let m = row.iter().sum::<f64>() / n as f64;
            let variance = row.iter().map(|x| (x - m) * (x - m)).sum::<f64>() / n as f64;
            (mean.data[k], rstd.data[k]) = (m, 1.0 / (variance + self.eps.0).sqrt());
        }
        let mut data = Vec::new();
        for_each_index(&x[0].shape, |i| {
            let row = data.len() / n.max(1);
            let normal = (x[0].data[data.len()] - mean.data[row]) * rstd.data[row];
            let bias = x.get(2).map_or(0.0, |b| b.at_broadcast(i));
            data.push(normal * x[1].at_broadcast(i) + bias);
        });
        Ok(vec![Array::new(results[0], data)?, mean, rstd])
    }
}

/// `layer_norm_grad dy, x, scale, mean, rstd {axis=2, weights}` gives `dx` and, if asked,
/// the gradients of scale and bias.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct LayerNormGrad {
    /// The first normalized axis.
    pub axis: usize,
    /// Whether scale or bias are trained.
    pub weights: bool,
}

impl Operator for LayerNormGrad {
    fn name(&self) -> &'static str {
        "layer_norm_grad"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default()
            .with("axis", self.axis)
            .flag("weights", self.weights)
    }

    fn arity(&self) -> (usize, usize) {
        (5, 5)
    }

    fn infer(&self, operands: &[&TensorType]) -> Result<Types, TypeError> {
        same_dtype(&operands[..3])?;
        let statistics = check(self.axis, operands[1], operands[2])?;
        if operands[0] != operands[1] || *operands[3] != statistics || *operands[4] != statistics {
            let (dy, x, s) = (operands[0], operands[1], operands[3]);
            return Err(TypeError(format!("{dy}, {x} and {s} do not line up")));
        }
        let mut types: Types = [operands[1].clone()].into_iter().collect();
        if self.weights {
            types.extend([operands[2].clone(), operands[2].clone()]);
        }
        Ok(types)
    }

    fn bind(&self, _: &Bindings) -> Option<Op> {
        Some((*self).into())
    }

    /// Kernels read `dy` and `x` again for the gradients of scale and bias, after `dx` is written.
    fn in_place(&self) -> &'static [(usize, usize)] {
        if self.weights { &[] } else { &[(0, 0), (0, 1)] }
    }

    /// The normalized operand, two numbers a row, and for the scale's gradient a product. Of 16-bit operands that is
    /// for some rows at a time; also as many rows of `dy`, the scale, three sums for the gradients of scale and bias,
    /// all in the type of the statistics, and copies of what is not row-major.
    fn scratch(&self, operands: &[(&TensorType, &Layout)], _: &[&TensorType]) -> u64 {
        let [dy, x, scale, mean] = [operands[0], operands[1], operands[2], operands[3]];
        let wide = mean.0.dtype;
        if x.0.dtype == wide {
            let full = super::bytes_as(wide, x.0);
            let sums = super::bytes_as(wide, mean.0);
            let product = self.weights.then_some(full);
            return pieces([full, sums, sums].into_iter().chain(product));
        }
        let (at_once, row) = rows_of(self.axis, x.0, wide);
        let (full, sums) = (at_once * row, at_once * wide.size());
        let vector = super::bytes_as(wide, scale.0);
        let copies = [super::row_major(dy), super::row_major(x)];
        let always = [full, sums, sums, full, vector].into_iter().chain(copies);
        let weights = [full, vector, vector, vector];
        pieces(always.chain(weights.into_iter().filter(|_| self.weights)))
    }

    fn flops(&self, operands: &[&TensorType], _: &[&TensorType]) -> u64 {
        14 * operands[0].elements().unwrap_or(0)
    }

    fn decompose(&self, p: &mut Patch<'_>, ins: &[ValueId]) -> Option<Result<Results, PatchError>> {
        Some(self.build(p, ins))
    }
}

impl LayerNormGrad {
    /// In the statistics' type, so that 16-bit models sum in f32.
    fn build(&self, p: &mut Patch<'_>, ins: &[ValueId]) -> Result<Results, PatchError> {
        let (x_type, wide) = (p.ty(ins[1]).clone(), p.ty(ins[3]).dtype);
        let scale_shape = p.ty(ins[2]).shape.clone();
        let axes: Vec<usize> = (self.axis..x_type.rank()).collect();
        let (mean, rstd) = (ins[3], ins[4]);
        let dy = p.cast(ins[0], wide)?;
        let x = p.cast(ins[1], wide)?;
        let scale = p.cast(ins[2], wide)?;
        let centred = p.minus(x, mean)?;
        let normal = p.times(centred, rstd)?;
        let g = p.times(dy, scale)?;
        let g_mean = p.reduce(ReduceKind::Mean, g, axes.iter().copied(), true)?;
        let g_normal = p.times(g, normal)?;
        let projection = p.reduce(ReduceKind::Mean, g_normal, axes, true)?;
        let along = p.times(normal, projection)?;
        let d = p.minus(g, g_mean)?;
        let d = p.minus(d, along)?;
        let d = p.times(d, rstd)?;
        let mut results: Results = [p.cast(d, x_type.dtype)?].into_iter().collect();
        if self.weights {
            let weighted = p.times(dy, normal)?;
            for grad in [weighted, dy] {
                let sum = p.unbroadcast_to_rank(grad, &scale_shape)?;
                results.push(p.cast(sum, x_type.dtype)?);
            }
        }
        Ok(results)
    }
}

impl Patch<'_> {
    /// Sums over the leading axes that `shape` lacks.
    fn unbroadcast_to_rank(&mut self, x: ValueId, shape: &Shape) -> Result<ValueId, PatchError> {
        let extra = self.ty(x).rank() - shape.len();
        let sum = if extra == 0 {
            x
        } else {
            self.reduce(ReduceKind::Sum, x, 0..extra, false)?
        };
        self.unbroadcast(sum, shape)
    }
}

pub(super) fn parse(name: &str, a: &mut AttrReader<'_>) -> Option<Result<Op, String>> {
    let axis = |a: &mut AttrReader<'_>| {
        let axis = a.int("axis")?;
        usize::try_from(axis).map_err(|_| format!("bad axis {axis}"))
    };
    match name {
        "layer_norm" => Some(axis(a).and_then(|axis| {
            Ok(LayerNorm {
                axis,
                eps: a.float("eps")?,
            }
            .into())
        })),
        "layer_norm_grad" => Some(axis(a).map(|axis| {
            LayerNormGrad {
                axis,
                weights: a.flag("weights"),
            }
            .into()
        })),
        _ => None,
    }
}
