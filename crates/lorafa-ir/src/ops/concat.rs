//! `concat`: tensors one after the other.

use super::attrs::{AttrReader, Attrs};
use super::{Op, Operator, Slice, Types, one, same_dtype};
use crate::dim::{Bindings, Dim};
use crate::grad::{Gradient, GradientError};
use crate::interp::{Array, EvalError};
use crate::types::{TensorType, TypeError, may_equal};

/// `concat v1, v2 {axis=1, joined}`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Concat {
    /// The axis along which they follow each other.
    pub axis: usize,
    /// Nothing is copied: the operands are made where the result has them. Either all are parameters, through transposes
    /// and reshapes or not, or none is.
    pub joined: bool,
}

impl Concat {
    /// One that copies its operands.
    pub const fn new(axis: usize) -> Self {
        Concat {
            axis,
            joined: false,
        }
    }
}

impl Operator for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default()
            .with("axis", self.axis)
            .flag("joined", self.joined)
    }

    fn arity(&self) -> (usize, usize) {
        (1, usize::MAX)
    }

    fn infer(&self, operands: &[&TensorType]) -> Result<Types, TypeError> {
        same_dtype(operands)?;
        let first = operands[0];
        let mut shape = first.shape.clone();
        if self.axis >= first.rank() {
            return Err(TypeError(format!(
                "axis {} is out of range for {first}",
                self.axis
            )));
        }
        for x in &operands[1..] {
            let fits = x.rank() == first.rank()
                && (0..x.rank()).all(|i| i == self.axis || may_equal(&x.shape[i], &shape[i]));
            if !fits {
                return Err(TypeError(format!("{first} and {x} do not line up")));
            }
            shape[self.axis] = shape[self.axis].plus(&x.shape[self.axis]);
        }
        Ok(one(first.with_shape(shape)))
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
        let operands = g.graph().def(g.result(0)).operands.clone();
        let mut start = Dim::Known(0);
        for (slot, x) in operands.iter().enumerate() {
            let len = g.ty(*x).shape[self.axis].clone();
            if g.wants(slot) {
                let part = Slice::along(self.axis, start.clone(), len.clone());
                let dx = g.add1(part.into(), &[dy])?;
                g.give(slot, dx)?;
            }
            start = start.plus(&len);
        }
        Ok(())
    }

    fn flops(&self, _: &[&TensorType], _: &[&TensorType]) -> u64 {
        0
    }

    fn eval(&self, x: &[&Array], results: &[&TensorType]) -> Result<Vec<Array>, EvalError> {
        let array = Array::from_fn(results[0], |i| {
            let mut from = i.to_vec();
            for part in x {
                if from[self.axis] < part.shape[self.axis] {
                    return part.at(&from);
                }
                from[self.axis] -= part.shape[self.axis];
            }
            f64::NAN
        });
        array.map(|a| vec![a])
    }
}

pub(super) fn parse(name: &str, a: &mut AttrReader<'_>) -> Option<Result<Op, String>> {
    (name == "concat").then(|| {
        let axis = a.int("axis")?;
        Ok(Concat {
            axis: usize::try_from(axis).map_err(|_| format!("bad axis {axis}"))?,
            joined: a.flag("joined"),
        }
        .into())
    })
}
