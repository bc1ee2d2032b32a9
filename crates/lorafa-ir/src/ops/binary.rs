//! `add`, `mul`, `lt`, …: elementwise ops of two operands, with broadcasting.

use super::attrs::AttrReader;
use super::{Constant, Op, Operator, Types, UnaryKind, one, same_dtype};
use crate::dim::Bindings;
use crate::dtype::DType;
use crate::grad::{Gradient, GradientError};
use crate::interp::{Array, EvalError};
use crate::types::{TensorType, TypeError, broadcast};

/// Which function.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs)]
pub enum BinaryKind {
    Add,
    Sub,
    Mul,
    Div,
    Pow,
    Max,
    Min,
    Mod,
    And,
    Or,
    Xor,
    Eq,
    Lt,
    Le,
    Gt,
    Ge,
}

use BinaryKind::*;

const NAMES: &[(BinaryKind, &str)] = &[
    (Add, "add"),
    (Sub, "sub"),
    (Mul, "mul"),
    (Div, "div"),
    (Pow, "pow"),
    (Max, "max"),
    (Min, "min"),
    (Mod, "mod"),
    (And, "and"),
    (Or, "or"),
    (Xor, "xor"),
    (Eq, "eq"),
    (Lt, "lt"),
    (Le, "le"),
    (Gt, "gt"),
    (Ge, "ge"),
];

impl BinaryKind {
    /// Whether the result is bool whatever the operands are.
    pub fn is_comparison(self) -> bool {
        matches!(self, Eq | Lt | Le | Gt | Ge)
    }

    fn is_logical(self) -> bool {
        matches!(self, And | Or | Xor)
    }

    /// Whether swapping the operands changes nothing.
    pub fn commutes(self) -> bool {
        matches!(self, Add | Mul | Max | Min | And | Or | Xor | Eq)
    }
}

/// `add v1, v2`: elementwise, NumPy broadcasting.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Binary(pub BinaryKind);

impl Operator for Binary {
    fn name(&self) -> &'static str {
        NAMES
            .iter()
            .find(|(k, _)| *k == self.0)
            .map_or("?", |(_, n)| n)
    }

    fn arity(&self) -> (usize, usize) {
        (2, 2)
    }

    fn infer(&self, operands: &[&TensorType]) -> Result<Types, TypeError> {
        same_dtype(operands)?;
        let dtype = operands[0].dtype;
        if self.0.is_logical() && dtype != DType::Bool {
            return Err(TypeError(format!("expected bool, found {}", operands[0])));
        }
        let numeric = !self.0.is_logical() && self.0 != Eq;
        if numeric && dtype == DType::Bool {
            return Err(TypeError(format!(
                "expected numbers, found {}",
                operands[0]
            )));
        }
        let dtype = if self.0.is_comparison() {
            DType::Bool
        } else {
            dtype
        };
        Ok(one(TensorType {
            dtype,
            shape: broadcast(&operands[0].shape, &operands[1].shape)?,
        }))
    }

    fn bind(&self, _: &Bindings) -> Option<Op> {
        Some((*self).into())
    }

    fn writes_strided(&self) -> bool {
        true
    }

    /// Add and sub need nothing; mul the other operand; div the divisor and, for its gradient,
    /// the quotient; pow its base; max and min both operands.
    fn gradient(&self, g: &mut Gradient<'_, '_>) -> Result<(), GradientError> {
        let dy = g.dy()?;
        let (a, b, y) = (g.operand(0), g.operand(1), g.result(0));
        match self.0 {
            Add => {
                g.give(0, dy)?;
                g.give(1, dy)?;
            }
            Sub => {
                g.give(0, dy)?;
                if g.wants(1) {
                    let minus = g.unary(UnaryKind::Neg, dy)?;
                    g.give(1, minus)?;
                }
            }
            Mul => {
                for (slot, other) in [(0, b), (1, a)] {
                    if g.wants(slot) {
                        let d = g.times(dy, other)?;
                        g.give(slot, d)?;
                    }
                }
            }
            Div => {
                let da = g.over(dy, b)?;
                g.give(0, da)?;
                if g.wants(1) {
                    let d = g.times(da, y)?;
                    let minus = g.unary(UnaryKind::Neg, d)?;
                    g.give(1, minus)?;
                }
            }
            Pow => pow_gradient(g)?,
            Max | Min => {
                // Where the operands are equal, each gets half, as in PyTorch.
                let first = g.binary(if self.0 == Max { Gt } else { Lt }, a, b)?;
                let second = g.binary(if self.0 == Max { Lt } else { Gt }, a, b)?;
                let zero = g.scalar_like(dy, 0.0)?;
                let half = g.scaled(dy, 0.5)?;
                for (slot, own, other) in [(0, first, second), (1, second, first)] {
                    if g.wants(slot) {
                        let rest = g.select(other, zero, half)?;
                        let d = g.select(own, dy, rest)?;
                        g.give(slot, d)?;
                    }
                }
            }
            Mod | And | Or | Xor | Eq | Lt | Le | Gt | Ge => {
                return Err(GradientError::NotDifferentiable);
            }
        }
        Ok(())
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0), (0, 1)]
    }

    fn eval(&self, operands: &[&Array], results: &[&TensorType]) -> Result<Vec<Array>, EvalError> {
        let integer = !operands[0].dtype.is_float();
        let bool = |b: bool| f64::from(u8::from(b));
        let f = |a: f64, b: f64| match self.0 {
            Add => a + b,
            Sub => a - b,
            Mul => a * b,
            Div if integer => (a / b).trunc(),
            Div => a / b,
            Pow if integer => a.powf(b).trunc(),
            Pow => a.powf(b),
            Max => a.max(b),
            Min => a.min(b),
            Mod => a - b * (a / b).floor(),
            And => bool(a != 0.0 && b != 0.0),
            Or => bool(a != 0.0 || b != 0.0),
            Xor => bool((a != 0.0) != (b != 0.0)),
            Eq => bool(a == b),
            Lt => bool(a < b),
            Le => bool(a <= b),
            Gt => bool(a > b),
            Ge => bool(a >= b),
        };
        let array = Array::from_fn(results[0], |i| {
            f(operands[0].at_broadcast(i), operands[1].at_broadcast(i))
        })?;
        if integer && array.data.iter().any(|x| !x.is_finite()) {
            return Err(EvalError::new("an integer divided by zero"));
        }
        Ok(vec![array])
    }
}

/// `d(x^n) = n·x^(n-1)·dy`, for a constant exponent.
fn pow_gradient(g: &mut Gradient<'_, '_>) -> Result<(), GradientError> {
    let (dy, x) = (g.dy()?, g.operand(0));
    let exponent = match &g.graph().def(g.operand(1)).kind {
        Op::Constant(c) => Constant::as_f64(c),
        _ => None,
    };
    let Some(n) = exponent.filter(|_| !g.wants(1)) else {
        return Err(GradientError::Unsupported(
            "`pow` has a gradient only for a constant exponent".into(),
        ));
    };
    let slope = if n == 2.0 {
        g.scaled(x, 2.0)?
    } else {
        let less = g.scalar_like(x, n - 1.0)?;
        let power = g.binary(Pow, x, less)?;
        g.scaled(power, n)?
    };
    let dx = g.times(dy, slope)?;
    Ok(g.give(0, dx)?)
}

pub(super) fn parse(name: &str, _: &mut AttrReader<'_>) -> Option<Result<Op, String>> {
    NAMES
        .iter()
        .find(|(_, n)| *n == name)
        .map(|(k, _)| Ok(Binary(*k).into()))
}
