//! `select`: one of two tensors, elementwise.

use super::attrs::AttrReader;
use super::{Op, Operator, Types, one, same_dtype};
use crate::dim::Bindings;
use crate::dtype::DType;
use crate::grad::{Gradient, GradientError};
use crate::interp::{Array, EvalError};
use crate::types::{TensorType, TypeError, broadcast};

/// `select condition, a, b`: `a` where the condition holds, `b` elsewhere; all three broadcast.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Select;

impl Operator for Select {
    fn name(&self) -> &'static str {
        "select"
    }

    fn arity(&self) -> (usize, usize) {
        (3, 3)
    }

    fn infer(&self, operands: &[&TensorType]) -> Result<Types, TypeError> {
        if operands[0].dtype != DType::Bool {
            return Err(TypeError(format!(
                "expected a bool condition, found {}",
                operands[0]
            )));
        }
        same_dtype(&operands[1..])?;
        let branches = broadcast(&operands[1].shape, &operands[2].shape)?;
        let shape = broadcast(&operands[0].shape, &branches)?;
        Ok(one(TensorType {
            dtype: operands[1].dtype,
            shape,
        }))
    }

    fn bind(&self, _: &Bindings) -> Option<Op> {
        Some((*self).into())
    }

    /// Needs the condition.
    fn gradient(&self, g: &mut Gradient<'_, '_>) -> Result<(), GradientError> {
        let (dy, condition) = (g.dy()?, g.operand(0));
        let zero = g.scalar_like(dy, 0.0)?;
        if g.wants(1) {
            let da = g.select(condition, dy, zero)?;
            g.give(1, da)?;
        }
        if g.wants(2) {
            let db = g.select(condition, zero, dy)?;
            g.give(2, db)?;
        }
        Ok(())
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 1), (0, 2)]
    }

    fn eval(&self, x: &[&Array], results: &[&TensorType]) -> Result<Vec<Array>, EvalError> {
        let array = Array::from_fn(results[0], |i| {
            x[if x[0].at_broadcast(i) != 0.0 { 1 } else { 2 }].at_broadcast(i)
        });
        array.map(|a| vec![a])
    }
}

pub(super) fn parse(name: &str, _: &mut AttrReader<'_>) -> Option<Result<Op, String>> {
    (name == "select").then(|| Ok(Select.into()))
}
