//! `transpose`: permutation of axes.

use super::attrs::{AttrReader, Attrs};
use super::{Op, Operator, Types, one};
use crate::dim::Bindings;
use crate::grad::{Gradient, GradientError};
use crate::interp::{Array, EvalError};
use crate::layout::Layout;
use crate::types::{TensorType, TypeError};
use smallvec::SmallVec;

/// `transpose v1 {perm=[0,2,1]}`: result axis `i` is operand axis `perm[i]`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Transpose {
    /// A permutation of the axes.
    pub perm: SmallVec<[usize; 4]>,
}

impl Transpose {
    /// The permutation that undoes this one.
    pub fn inverse(&self) -> SmallVec<[usize; 4]> {
        let mut inverse = SmallVec::from_elem(0, self.perm.len());
        for (i, axis) in self.perm.iter().enumerate() {
            inverse[*axis] = i;
        }
        inverse
    }

    /// Whether only the last two axes are swapped.
    pub fn swaps_last_two(&self) -> bool {
        let n = self.perm.len();
        n >= 2
            && self.perm[n - 1] == n - 2
            && self.perm[n - 2] == n - 1
            && self.perm[..n - 2]
                .iter()
                .enumerate()
                .all(|(i, axis)| i == *axis)
    }
}

impl Operator for Transpose {
    fn name(&self) -> &'static str {
        "transpose"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().list("perm", &self.perm)
    }

    fn arity(&self) -> (usize, usize) {
        (1, 1)
    }

    fn infer(&self, operands: &[&TensorType]) -> Result<Types, TypeError> {
        let x = operands[0];
        let mut sorted = self.perm.clone();
        sorted.sort_unstable();
        if sorted.len() != x.rank() || sorted.iter().enumerate().any(|(i, axis)| i != *axis) {
            return Err(TypeError(format!(
                "{:?} is no permutation of the axes of {x}",
                self.perm
            )));
        }
        Ok(one(x.with_shape(
            self.perm.iter().map(|axis| x.shape[*axis].clone()),
        )))
    }

    fn bind(&self, _: &Bindings) -> Option<Op> {
        Some(self.clone().into())
    }

    /// Needs nothing.
    fn gradient(&self, g: &mut Gradient<'_, '_>) -> Result<(), GradientError> {
        let dy = g.dy()?;
        let dx = g.transpose(dy, self.inverse())?;
        Ok(g.give(0, dx)?)
    }

    fn view(&self, operand: (&TensorType, &Layout), _: &TensorType) -> Option<Layout> {
        let from = operand.1;
        Some(Layout {
            shape: self.perm.iter().map(|axis| from.shape[*axis]).collect(),
            strides: self.perm.iter().map(|axis| from.strides[*axis]).collect(),
            offset: from.offset,
        })
    }

    fn flops(&self, _: &[&TensorType], _: &[&TensorType]) -> u64 {
        0
    }

    fn eval(&self, x: &[&Array], results: &[&TensorType]) -> Result<Vec<Array>, EvalError> {
        let mut from = vec![0; self.perm.len()];
        let array = Array::from_fn(results[0], |i| {
            self.perm
                .iter()
                .zip(i)
                .for_each(|(axis, i)| from[*axis] = *i);
            x[0].at(&from)
        });
        array.map(|a| vec![a])
    }
}

pub(super) fn parse(name: &str, a: &mut AttrReader<'_>) -> Option<Result<Op, String>> {
    (name == "transpose").then(|| {
        Ok(Transpose {
            perm: a.list("perm")?.into_iter().collect(),
        }
        .into())
    })
}
