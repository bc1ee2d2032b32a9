//! `relu`, `silu`, `gelu`, `tanh`, `sigmoid` and their gradients.

use super::attrs::AttrReader;
use super::{BinaryKind, Op, Operator, Types, UnaryKind, float, one};
use crate::build::Built;
use crate::dim::Bindings;
use crate::grad::{Gradient, GradientError};
use crate::ids::ValueId;
use crate::interp::{Array, EvalError};
use crate::patch::{Patch, PatchError, Results};
use crate::types::{TensorType, TypeError, may_equal};
use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_PI, PI};

/// Which activation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs)]
pub enum ActivationKind {
    Relu,
    Sigmoid,
    Tanh,
    /// `x·sigmoid(x)`, also called swish.
    Silu,
    /// `x·Φ(x)` with the error function.
    Gelu,
    /// `x·Φ(x)` with Hendrycks and Gimpel's tanh approximation.
    GeluTanh,
}

use ActivationKind::*;

/// Kind, mnemonic, mnemonic of the gradient.
const NAMES: &[(ActivationKind, &str, &str)] = &[
    (Relu, "relu", "relu_grad"),
    (Sigmoid, "sigmoid", "sigmoid_grad"),
    (Tanh, "tanh", "tanh_grad"),
    (Silu, "silu", "silu_grad"),
    (Gelu, "gelu", "gelu_grad"),
    (GeluTanh, "gelu_tanh", "gelu_tanh_grad"),
];

impl ActivationKind {
    /// Whether the gradient is computed from the result; from the operand otherwise.
    pub fn saves_result(self) -> bool {
        matches!(self, Relu | Sigmoid | Tanh)
    }

    /// Whether it serves as the gate of [`Gated`](super::Gated): its slope follows from its operand alone.
    pub fn gates(self) -> bool {
        matches!(self, Relu | Silu | Gelu | GeluTanh)
    }

    /// The activation with this mnemonic.
    pub fn parse(name: &str) -> Option<Self> {
        NAMES.iter().find(|(_, n, _)| *n == name).map(|(k, ..)| *k)
    }
}

/// `gelu v1`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Activation(pub ActivationKind);

impl Operator for Activation {
    fn name(&self) -> &'static str {
        NAMES
            .iter()
            .find(|(k, ..)| *k == self.0)
            .map_or("?", |(_, n, _)| n)
    }

    fn arity(&self) -> (usize, usize) {
        (1, 1)
    }

    fn infer(&self, operands: &[&TensorType]) -> Result<Types, TypeError> {
        float(operands[0])?;
        Ok(one(operands[0].clone()))
    }

    fn bind(&self, _: &Bindings) -> Option<Op> {
        Some((*self).into())
    }

    fn writes_strided(&self) -> bool {
        true
    }

    /// Relu, sigmoid and tanh need their result, silu and gelu their operand.
    fn gradient(&self, g: &mut Gradient<'_, '_>) -> Result<(), GradientError> {
        let dy = g.dy()?;
        let saved = if self.0.saves_result() {
            g.result(0)
        } else {
            g.operand(0)
        };
        let dx = g.add1(ActivationGrad(self.0).into(), &[dy, saved])?;
        Ok(g.give(0, dx)?)
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    fn flops(&self, operands: &[&TensorType], _: &[&TensorType]) -> u64 {
        8 * operands[0].elements().unwrap_or(0)
    }

    fn eval(&self, operands: &[&Array], results: &[&TensorType]) -> Result<Vec<Array>, EvalError> {
        let f: fn(f64) -> f64 = match self.0 {
            Relu => |x| x.max(0.0),
            Sigmoid => |x| 1.0 / (1.0 + (-x).exp()),
            Tanh => f64::tanh,
            Silu => |x| x / (1.0 + (-x).exp()),
            GeluTanh => {
                |x| 0.5 * x * (1.0 + (FRAC_2_PI.sqrt() * (x + 0.044715 * x * x * x)).tanh())
            }
            Gelu => |x| 0.5 * x * (1.0 + super::unary::erf(x * FRAC_1_SQRT_2)),
        };
        Array::new(results[0], operands[0].data.iter().map(|x| f(*x)).collect()).map(|a| vec![a])
    }

    fn decompose(&self, p: &mut Patch<'_>, ins: &[ValueId]) -> Option<Result<Results, PatchError>> {
        (self.0 == Silu).then(|| {
            let sigmoid = p.add1(Activation(Sigmoid).into(), ins)?;
            Ok([p.times(ins[0], sigmoid)?].into_iter().collect())
        })
    }
}

/// `gelu_grad dy, saved`: saved is the activation's operand for silu and gelu, its result otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ActivationGrad(pub ActivationKind);

impl Operator for ActivationGrad {
    fn name(&self) -> &'static str {
        NAMES
            .iter()
            .find(|(k, ..)| *k == self.0)
            .map_or("?", |(.., n)| n)
    }

    fn arity(&self) -> (usize, usize) {
        (2, 2)
    }

    fn infer(&self, operands: &[&TensorType]) -> Result<Types, TypeError> {
        super::same_dtype(operands)?;
        float(operands[0])?;
        let (dy, saved) = (operands[0], operands[1]);
        let same = dy.rank() == saved.rank()
            && dy
                .shape
                .iter()
                .zip(&saved.shape)
                .all(|(a, b)| may_equal(a, b));
        if !same {
            return Err(TypeError(format!("shapes differ: {dy} and {saved}")));
        }
        Ok(one(dy.clone()))
    }

    fn bind(&self, _: &Bindings) -> Option<Op> {
        Some((*self).into())
    }

    fn writes_strided(&self) -> bool {
        true
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0), (0, 1)]
    }

    fn flops(&self, operands: &[&TensorType], _: &[&TensorType]) -> u64 {
        8 * operands[0].elements().unwrap_or(0)
    }

    fn decompose(&self, p: &mut Patch<'_>, ins: &[ValueId]) -> Option<Result<Results, PatchError>> {
        Some(
            self.build(p, ins[0], ins[1])
                .map(|dx| [dx].into_iter().collect()),
        )
    }
}

impl ActivationGrad {
    pub(super) fn build(&self, p: &mut Patch<'_>, dy: ValueId, saved: ValueId) -> Built {
        match self.0 {
            Relu => {
                let zero = p.scalar_like(saved, 0.0)?;
                let on = p.binary(BinaryKind::Gt, saved, zero)?;
                p.select(on, dy, zero)
            }
            Sigmoid => {
                let one = p.scalar_like(saved, 1.0)?;
                let rest = p.minus(one, saved)?;
                let slope = p.times(saved, rest)?;
                p.times(dy, slope)
            }
            Tanh => {
                let one = p.scalar_like(saved, 1.0)?;
                let square = p.times(saved, saved)?;
                let slope = p.minus(one, square)?;
                p.times(dy, slope)
            }
            Silu => {
                let one = p.scalar_like(saved, 1.0)?;
                let sigmoid = p.add1(Activation(Sigmoid).into(), &[saved])?;
                let rest = p.minus(one, sigmoid)?;
                let bend = p.times(saved, rest)?;
                let bend = p.plus(bend, one)?;
                let slope = p.times(sigmoid, bend)?;
                p.times(dy, slope)
            }
            Gelu => {
                let phi = normal_cdf(p, saved)?;
                let xx = p.times(saved, saved)?;
                let power = p.scaled(xx, -0.5)?;
                let e = p.unary(UnaryKind::Exp, power)?;
                let pdf = p.scaled(e, 1.0 / (2.0 * PI).sqrt())?;
                let x_pdf = p.times(saved, pdf)?;
                let slope = p.plus(phi, x_pdf)?;
                p.times(dy, slope)
            }
            GeluTanh => {
                let one = p.scalar_like(saved, 1.0)?;
                let xx = p.times(saved, saved)?;
                let cubic = p.scaled(xx, 0.044715)?;
                let near = p.plus(cubic, one)?;
                let u = p.times(near, saved)?;
                let u = p.scaled(u, FRAC_2_PI.sqrt())?;
                let t = p.add1(Activation(Tanh).into(), &[u])?;
                let tt = p.times(t, t)?;
                let sech = p.minus(one, tt)?;
                let du = p.scaled(xx, 3.0 * 0.044715)?;
                let du = p.plus(du, one)?;
                let du = p.scaled(du, FRAC_2_PI.sqrt())?;
                let du = p.times(du, sech)?;
                let du = p.times(du, saved)?;
                let sum = p.plus(t, one)?;
                let sum = p.plus(sum, du)?;
                let slope = p.scaled(sum, 0.5)?;
                p.times(dy, slope)
            }
        }
    }
}

/// `Φ(x)`, the standard normal distribution function.
fn normal_cdf(p: &mut Patch<'_>, x: ValueId) -> Built {
    let z = p.scaled(x, FRAC_1_SQRT_2)?;
    let erf = p.unary(UnaryKind::Erf, z)?;
    let one = p.scalar_like(x, 1.0)?;
    let sum = p.plus(erf, one)?;
    p.scaled(sum, 0.5)
}

pub(super) fn parse(name: &str, _: &mut AttrReader<'_>) -> Option<Result<Op, String>> {
    NAMES
        .iter()
        .find_map(|(kind, forward, backward)| match name {
            n if n == *forward => Some(Ok(Activation(*kind).into())),
            n if n == *backward => Some(Ok(ActivationGrad(*kind).into())),
            _ => None,
        })
}
