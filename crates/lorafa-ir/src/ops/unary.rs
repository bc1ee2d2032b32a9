//! `neg`, `sqrt`, `exp`, …: elementwise ops of one operand.

use super::attrs::AttrReader;
use super::{Op, Operator, Types, float, one};
use crate::dim::Bindings;
use crate::dtype::DType;
use crate::grad::{Gradient, GradientError};
use crate::interp::{Array, EvalError};
use crate::types::{TensorType, TypeError};

/// Which function.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs)]
pub enum UnaryKind {
    Neg,
    Abs,
    Sqrt,
    Reciprocal,
    Exp,
    Log,
    Sin,
    Cos,
    Erf,
    Not,
    IsNan,
}

/// `neg v1`: elementwise.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Unary(pub UnaryKind);

use UnaryKind::*;

const NAMES: &[(UnaryKind, &str)] = &[
    (Neg, "neg"),
    (Abs, "abs"),
    (Sqrt, "sqrt"),
    (Reciprocal, "reciprocal"),
    (Exp, "exp"),
    (Log, "log"),
    (Sin, "sin"),
    (Cos, "cos"),
    (Erf, "erf"),
    (Not, "not"),
    (IsNan, "is_nan"),
];

impl Operator for Unary {
    fn name(&self) -> &'static str {
        NAMES
            .iter()
            .find(|(k, _)| *k == self.0)
            .map_or("?", |(_, n)| n)
    }

    fn arity(&self) -> (usize, usize) {
        (1, 1)
    }

    fn infer(&self, operands: &[&TensorType]) -> Result<Types, TypeError> {
        let x = operands[0];
        match self.0 {
            Not if x.dtype != DType::Bool => {
                return Err(TypeError(format!("expected bool, found {x}")));
            }
            Neg | Abs if x.dtype == DType::Bool => {
                return Err(TypeError(format!("expected numbers, found {x}")));
            }
            Not | Neg | Abs => {}
            _ => float(x)?,
        }
        Ok(one(if self.0 == IsNan {
            x.with_dtype(DType::Bool)
        } else {
            x.clone()
        }))
    }

    fn bind(&self, _: &Bindings) -> Option<Op> {
        Some((*self).into())
    }

    fn writes_strided(&self) -> bool {
        true
    }

    /// Sqrt, reciprocal and exp need their result; log, abs, sin, cos and erf their operand.
    fn gradient(&self, g: &mut Gradient<'_, '_>) -> Result<(), GradientError> {
        let dy = g.dy()?;
        let (x, y) = (g.operand(0), g.result(0));
        let dx = match self.0 {
            Neg => g.unary(Neg, dy)?,
            Sqrt => {
                let half = g.scaled(dy, 0.5)?;
                g.over(half, y)?
            }
            Reciprocal => {
                let yy = g.times(y, y)?;
                let d = g.times(dy, yy)?;
                g.unary(Neg, d)?
            }
            Exp => g.times(dy, y)?,
            Log => g.over(dy, x)?,
            Sin => {
                let cos = g.unary(Cos, x)?;
                g.times(dy, cos)?
            }
            Cos => {
                let sin = g.unary(Sin, x)?;
                let d = g.times(dy, sin)?;
                g.unary(Neg, d)?
            }
            Abs => {
                let zero = g.scalar_like(x, 0.0)?;
                // Nothing at zero, as in PyTorch.
                let positive = g.binary(super::BinaryKind::Gt, x, zero)?;
                let negative = g.binary(super::BinaryKind::Lt, x, zero)?;
                let minus = g.unary(Neg, dy)?;
                let none = g.scalar_like(dy, 0.0)?;
                let rest = g.select(negative, minus, none)?;
                g.select(positive, dy, rest)?
            }
            Erf => {
                let xx = g.times(x, x)?;
                let minus = g.unary(Neg, xx)?;
                let e = g.unary(Exp, minus)?;
                let slope = g.scaled(e, std::f64::consts::FRAC_2_SQRT_PI)?;
                g.times(dy, slope)?
            }
            Not | IsNan => return Err(GradientError::NotDifferentiable),
        };
        Ok(g.give(0, dx)?)
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    fn eval(&self, operands: &[&Array], results: &[&TensorType]) -> Result<Vec<Array>, EvalError> {
        let f: fn(f64) -> f64 = match self.0 {
            Neg => |x| -x,
            Abs => f64::abs,
            Sqrt => f64::sqrt,
            Reciprocal => f64::recip,
            Exp => f64::exp,
            Log => f64::ln,
            Sin => f64::sin,
            Cos => f64::cos,
            Erf => erf,
            Not => |x| f64::from(u8::from(x == 0.0)),
            IsNan => |x| f64::from(u8::from(x.is_nan())),
        };
        Array::new(results[0], operands[0].data.iter().map(|x| f(*x)).collect()).map(|a| vec![a])
    }
}

/// The error function, by its series near zero and its continued fraction elsewhere.
pub(super) fn erf(x: f64) -> f64 {
    let z = x.abs();
    if z > 6.0 {
        return x.signum();
    }
    if z < 2.5 {
        let (mut term, mut sum) = (x, x);
        for n in 1..100 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        return sum * std::f64::consts::FRAC_2_SQRT_PI;
    }
    let fraction = (1..60).rev().fold(z, |f, k| z + f64::from(k) / 2.0 / f);
    let erfc = (-z * z).exp() / (fraction * std::f64::consts::PI.sqrt());
    x.signum() * (1.0 - erfc)
}

pub(super) fn parse(name: &str, _: &mut AttrReader<'_>) -> Option<Result<Op, String>> {
    NAMES
        .iter()
        .find(|(_, n)| *n == name)
        .map(|(k, _)| Ok(Unary(*k).into()))
}

#[cfg(test)]
mod tests {
    #[test]
    fn erf_agrees_with_tables() {
        for (x, y) in [
            (0.5, 0.520_499_877_813_046_5),
            (2.0, 0.995_322_265_018_952_7),
            (3.0, 0.999_977_909_503_001_4),
        ] {
            assert!((super::erf(x) - y).abs() < 1e-12 && (super::erf(-x) + y).abs() < 1e-12);
        }
    }
}
