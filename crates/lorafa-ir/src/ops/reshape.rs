//! `reshape` and `expand`: the same elements in other dimensions, or repeated.

use super::attrs::{AttrReader, Attrs};
use super::{Op, Operator, Types, one};
use crate::dim::{Bindings, Dim};
use crate::grad::{Gradient, GradientError};
use crate::interp::{Array, EvalError};
use crate::layout::{Axes, Layout};
use crate::types::{Shape, ShapeDisplay, TensorType, TypeError, broadcast, product};

/// `reshape v1 {shape=[2,seq,64]}`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Reshape {
    /// The new dimensions, all of them.
    pub shape: Shape,
}

impl Operator for Reshape {
    fn name(&self) -> &'static str {
        "reshape"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().dims("shape", &self.shape)
    }

    fn arity(&self) -> (usize, usize) {
        (1, 1)
    }

    fn infer(&self, operands: &[&TensorType]) -> Result<Types, TypeError> {
        let x = operands[0];
        if let (Dim::Known(from), Dim::Known(to)) = (product(&x.shape), product(&self.shape))
            && from != to
        {
            let shape = ShapeDisplay(&self.shape);
            return Err(TypeError(format!(
                "{from} elements of {x} do not fit {shape}"
            )));
        }
        Ok(one(x.with_shape(self.shape.iter().cloned())))
    }

    fn bind(&self, b: &Bindings) -> Option<Op> {
        let shape: Option<Shape> = self.shape.iter().map(|d| d.bind(b)).collect();
        Some(Reshape { shape: shape? }.into())
    }

    /// Needs nothing.
    fn gradient(&self, g: &mut Gradient<'_, '_>) -> Result<(), GradientError> {
        let dy = g.dy()?;
        let shape = g.ty(g.operand(0)).shape.clone();
        let dx = g.reshape(dy, shape)?;
        Ok(g.give(0, dx)?)
    }

    fn view(&self, operand: (&TensorType, &Layout), result: &TensorType) -> Option<Layout> {
        operand.1.reshape(result.known_shape()?.as_slice().into())
    }

    fn flops(&self, _: &[&TensorType], _: &[&TensorType]) -> u64 {
        0
    }

    fn eval(&self, x: &[&Array], results: &[&TensorType]) -> Result<Vec<Array>, EvalError> {
        Array::new(results[0], x[0].data.clone()).map(|a| vec![a])
    }
}

/// `expand v1 {shape=[2,seq,64]}`: repeated along axes of one and along new leading axes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Expand {
    /// The result's dimensions, all of them.
    pub shape: Shape,
}

impl Operator for Expand {
    fn name(&self) -> &'static str {
        "expand"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().dims("shape", &self.shape)
    }

    fn arity(&self) -> (usize, usize) {
        (1, 1)
    }

    fn infer(&self, operands: &[&TensorType]) -> Result<Types, TypeError> {
        let x = operands[0];
        let shape = broadcast(&x.shape, &self.shape)?;
        let fits = shape.len() == self.shape.len()
            && shape
                .iter()
                .zip(&self.shape)
                .all(|(a, b)| crate::types::may_equal(a, b));
        if !fits {
            return Err(TypeError(format!(
                "{x} does not expand to {}",
                ShapeDisplay(&self.shape)
            )));
        }
        Ok(one(x.with_shape(self.shape.iter().cloned())))
    }

    fn bind(&self, b: &Bindings) -> Option<Op> {
        let shape: Option<Shape> = self.shape.iter().map(|d| d.bind(b)).collect();
        Some(Expand { shape: shape? }.into())
    }

    /// Needs nothing.
    fn gradient(&self, g: &mut Gradient<'_, '_>) -> Result<(), GradientError> {
        let dy = g.dy()?;
        Ok(g.give(0, dy)?)
    }

    fn view(&self, operand: (&TensorType, &Layout), result: &TensorType) -> Option<Layout> {
        let (from, shape) = (operand.1, result.known_shape()?);
        let new = shape.len() - from.shape.len();
        let strides = (0..shape.len()).map(|i| match i.checked_sub(new) {
            Some(j) if from.shape[j] == shape[i] => from.strides[j],
            _ => 0,
        });
        let strides: Axes = strides.collect();
        Some(Layout {
            shape: shape.as_slice().into(),
            strides,
            offset: from.offset,
        })
    }

    fn flops(&self, _: &[&TensorType], _: &[&TensorType]) -> u64 {
        0
    }

    fn eval(&self, x: &[&Array], results: &[&TensorType]) -> Result<Vec<Array>, EvalError> {
        Array::from_fn(results[0], |i| x[0].at_broadcast(i)).map(|a| vec![a])
    }
}

pub(super) fn parse(name: &str, a: &mut AttrReader<'_>) -> Option<Result<Op, String>> {
    match name {
        "reshape" => Some(a.dims("shape").map(|shape| Reshape { shape }.into())),
        "expand" => Some(a.dims("shape").map(|shape| Expand { shape }.into())),
        _ => None,
    }
}
