//! `cumsum`: running sum.

use super::attrs::{AttrReader, Attrs};
use super::{Op, Operator, Types, one};
use crate::dim::Bindings;
use crate::grad::{Gradient, GradientError};
use crate::interp::{Array, EvalError};
use crate::types::{TensorType, TypeError};

/// `cumsum v1 {axis=1}`: along one axis.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct CumSum {
    /// The axis.
    pub axis: usize,
    /// Whether an element is left out of its own sum.
    pub exclusive: bool,
    /// Whether sums run from the end.
    pub reverse: bool,
}

impl Operator for CumSum {
    fn name(&self) -> &'static str {
        "cumsum"
    }

    fn attrs(&self) -> Attrs {
        let attrs = Attrs::default().with("axis", self.axis);
        attrs
            .flag("exclusive", self.exclusive)
            .flag("reverse", self.reverse)
    }

    fn arity(&self) -> (usize, usize) {
        (1, 1)
    }

    fn infer(&self, operands: &[&TensorType]) -> Result<Types, TypeError> {
        super::axis(self.axis as i64, operands[0].rank())?;
        super::number(operands[0])?;
        Ok(one(operands[0].clone()))
    }

    fn bind(&self, _: &Bindings) -> Option<Op> {
        Some((*self).into())
    }

    /// Needs nothing.
    fn gradient(&self, g: &mut Gradient<'_, '_>) -> Result<(), GradientError> {
        let dy = g.dy()?;
        let dx = g.add1(
            CumSum {
                reverse: !self.reverse,
                ..*self
            }
            .into(),
            &[dy],
        )?;
        Ok(g.give(0, dx)?)
    }

    fn eval(&self, x: &[&Array], results: &[&TensorType]) -> Result<Vec<Array>, EvalError> {
        let n = x[0].shape[self.axis];
        let array = Array::from_fn(results[0], |i| {
            let at = i[self.axis];
            let mut index = i.to_vec();
            let range = match (self.reverse, self.exclusive) {
                (false, false) => 0..at + 1,
                (false, true) => 0..at,
                (true, false) => at..n,
                (true, true) => at + 1..n,
            };
            range.fold(0.0, |sum, j| {
                index[self.axis] = j;
                sum + x[0].at(&index)
            })
        });
        array.map(|a| vec![a])
    }
}

pub(super) fn parse(name: &str, a: &mut AttrReader<'_>) -> Option<Result<Op, String>> {
    (name == "cumsum").then(|| {
        let axis = a.int("axis")?;
        let axis = usize::try_from(axis).map_err(|_| format!("bad axis {axis}"))?;
        Ok(CumSum {
            axis,
            exclusive: a.flag("exclusive"),
            reverse: a.flag("reverse"),
        }
        .into())
    })
}
