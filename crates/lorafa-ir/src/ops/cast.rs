//! `cast`: change of element type.

use super::attrs::{AttrReader, Attrs};
use super::{Op, Operator, Types, one};
use crate::dim::Bindings;
use crate::dtype::DType;
use crate::grad::{Gradient, GradientError};
use crate::interp::{Array, EvalError};
use crate::types::{TensorType, TypeError};

/// `cast v1 {to=bf16}`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Cast {
    /// The new element type.
    pub to: DType,
}

impl Operator for Cast {
    fn name(&self) -> &'static str {
        "cast"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().with("to", self.to)
    }

    fn arity(&self) -> (usize, usize) {
        (1, 1)
    }

    fn infer(&self, operands: &[&TensorType]) -> Result<Types, TypeError> {
        Ok(one(operands[0].with_dtype(self.to)))
    }

    fn bind(&self, _: &Bindings) -> Option<Op> {
        Some((*self).into())
    }

    fn writes_strided(&self) -> bool {
        true
    }

    /// Needs nothing.
    fn gradient(&self, g: &mut Gradient<'_, '_>) -> Result<(), GradientError> {
        let dy = g.dy()?;
        let to = g.ty(g.operand(0)).dtype;
        let dx = g.cast(dy, to)?;
        Ok(g.give(0, dx)?)
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    fn eval(&self, operands: &[&Array], results: &[&TensorType]) -> Result<Vec<Array>, EvalError> {
        let convert = |x: &f64| self.to.exact(*x);
        Array::new(results[0], operands[0].data.iter().map(convert).collect()).map(|a| vec![a])
    }
}

pub(super) fn parse(name: &str, a: &mut AttrReader<'_>) -> Option<Result<Op, String>> {
    (name == "cast").then(|| Ok(Cast { to: a.dtype("to")? }.into()))
}
