//! `softmax`, `log_softmax` and their gradients.

use super::attrs::{AttrReader, Attrs};
use super::{Op, Operator, ReduceKind, Types, UnaryKind, float, one};
use crate::build::Built;
use crate::dim::Bindings;
use crate::grad::{Gradient, GradientError};
use crate::ids::ValueId;
use crate::interp::{Array, EvalError};
use crate::layout::{Layout, pieces};
use crate::patch::{Patch, PatchError, Results};
use crate::types::{TensorType, TypeError};

/// `softmax v1 {axis=3}`, or its logarithm.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Softmax {
    /// The axis.
    pub axis: usize,
    /// Give the logarithm.
    pub log: bool,
}

impl Operator for Softmax {
    fn name(&self) -> &'static str {
        if self.log { "log_softmax" } else { "softmax" }
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().with("axis", self.axis)
    }

    fn arity(&self) -> (usize, usize) {
        (1, 1)
    }

    fn infer(&self, operands: &[&TensorType]) -> Result<Types, TypeError> {
        float(operands[0])?;
        super::axis(self.axis as i64, operands[0].rank())?;
        Ok(one(operands[0].clone()))
    }

    fn bind(&self, _: &Bindings) -> Option<Op> {
        Some((*self).into())
    }

    /// Needs the result.
    fn gradient(&self, g: &mut Gradient<'_, '_>) -> Result<(), GradientError> {
        let (dy, y) = (g.dy()?, g.result(0));
        let dx = g.add1(
            SoftmaxGrad {
                axis: self.axis,
                log: self.log,
            }
            .into(),
            &[dy, y],
        )?;
        Ok(g.give(0, dx)?)
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    fn flops(&self, operands: &[&TensorType], _: &[&TensorType]) -> u64 {
        5 * operands[0].elements().unwrap_or(0)
    }

    fn eval(&self, x: &[&Array], results: &[&TensorType]) -> Result<Vec<Array>, EvalError> {
        let n = x[0].shape[self.axis];
        let array = Array::from_fn(results[0], |i| {
            let mut index = i.to_vec();
            let mut at = |j: usize| {
                index[self.axis] = j;
                x[0].at(&index)
            };
            let max = (0..n).map(&mut at).fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = (0..n).map(|j| (at(j) - max).exp()).sum();
            let log = at(i[self.axis]) - max - sum.ln();
            if self.log { log } else { log.exp() }
        });
        array.map(|a| vec![a])
    }
}

/// `softmax_grad dy, y {axis=3}`: `y·(dy - Σ dy·y)`, or for the logarithm `dy - exp(y)·Σ dy`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SoftmaxGrad {
    /// The axis.
    pub axis: usize,
    /// Of log-softmax.
    pub log: bool,
}

impl Operator for SoftmaxGrad {
    fn name(&self) -> &'static str {
        if self.log {
            "log_softmax_grad"
        } else {
            "softmax_grad"
        }
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().with("axis", self.axis)
    }

    fn arity(&self) -> (usize, usize) {
        (2, 2)
    }

    fn infer(&self, operands: &[&TensorType]) -> Result<Types, TypeError> {
        float(operands[0])?;
        super::axis(self.axis as i64, operands[0].rank())?;
        if operands[0] != operands[1] {
            let (dy, y) = (operands[0], operands[1]);
            return Err(TypeError(format!("types differ: {dy} and {y}")));
        }
        Ok(one(operands[0].clone()))
    }

    fn bind(&self, _: &Bindings) -> Option<Op> {
        Some((*self).into())
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        if self.log {
            &[(0, 0), (0, 1)]
        } else {
            &[(0, 0)]
        }
    }

    /// Copies of operands that are not row-major, and the sums of what is not the logarithm.
    fn scratch(&self, operands: &[(&TensorType, &Layout)], _: &[&TensorType]) -> u64 {
        let copies = operands.iter().map(|x| super::row_major(*x));
        let ty = operands[0].0;
        let sums = if self.log {
            0
        } else {
            let others = (0..ty.rank()).filter(|axis| *axis != self.axis);
            let shape = others.map(|axis| ty.shape[axis].clone());
            ty.with_shape(shape).bytes().unwrap_or(0)
        };
        pieces(copies.chain([sums]))
    }

    fn flops(&self, operands: &[&TensorType], _: &[&TensorType]) -> u64 {
        4 * operands[0].elements().unwrap_or(0)
    }

    fn decompose(&self, p: &mut Patch<'_>, ins: &[ValueId]) -> Option<Result<Results, PatchError>> {
        Some(
            self.build(p, ins[0], ins[1])
                .map(|dx| [dx].into_iter().collect()),
        )
    }
}

impl SoftmaxGrad {
    fn build(&self, p: &mut Patch<'_>, dy: ValueId, y: ValueId) -> Built {
        if self.log {
            let sum = p.reduce(ReduceKind::Sum, dy, [self.axis], true)?;
            let probability = p.unary(UnaryKind::Exp, y)?;
            let part = p.times(probability, sum)?;
            return p.minus(dy, part);
        }
        let weighted = p.times(dy, y)?;
        let sum = p.reduce(ReduceKind::Sum, weighted, [self.axis], true)?;
        let part = p.times(y, sum)?;
        p.minus(weighted, part)
    }
}

pub(super) fn parse(name: &str, a: &mut AttrReader<'_>) -> Option<Result<Op, String>> {
    let (log, grad) = match name {
        "softmax" => (false, false),
        "log_softmax" => (true, false),
        "softmax_grad" => (false, true),
        "log_softmax_grad" => (true, true),
        _ => return None,
    };
    Some(a.int("axis").and_then(|axis| {
        let axis = usize::try_from(axis).map_err(|_| format!("bad axis {axis}"))?;
        Ok(if grad {
            SoftmaxGrad { axis, log }.into()
        } else {
            Softmax { axis, log }.into()
        })
    }))
}
