//! `matmul`: matrix product.

use super::attrs::{AttrReader, Attrs};
use super::{Op, Operator, Types, one, same_dtype};
use crate::dim::{Bindings, Dim};
use crate::grad::{Gradient, GradientError};
use crate::interp::{Array, EvalError};
use crate::layout::{Layout, pieces};
use crate::types::{Shape, TensorType, TypeError, broadcast, may_equal, product};

/// `matmul a, b {trans_a, trans_b}`: the product over the last two axes, either swapped first if
/// its flag is set; leading axes broadcast. Operands have at least two axes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MatMul {
    /// Swap the last two axes of operand 0.
    pub trans_a: bool,
    /// Swap the last two axes of operand 1.
    pub trans_b: bool,
}

impl MatMul {
    /// Rows of the result, length of the sums, columns of the result.
    fn sizes(&self, a: &TensorType, b: &TensorType) -> (Dim, Dim, Dim, Dim) {
        let last = |t: &TensorType, swap: bool| {
            let n = t.rank();
            let (rows, cols) = (t.shape[n - 2].clone(), t.shape[n - 1].clone());
            if swap { (cols, rows) } else { (rows, cols) }
        };
        let ((m, k), (k2, n)) = (last(a, self.trans_a), last(b, self.trans_b));
        (m, k, k2, n)
    }
}

impl Operator for MatMul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default()
            .flag("trans_a", self.trans_a)
            .flag("trans_b", self.trans_b)
    }

    fn arity(&self) -> (usize, usize) {
        (2, 2)
    }

    fn infer(&self, operands: &[&TensorType]) -> Result<Types, TypeError> {
        same_dtype(operands)?;
        let (a, b) = (operands[0], operands[1]);
        super::float(a)?;
        if a.rank() < 2 || b.rank() < 2 {
            return Err(TypeError(format!(
                "expected at least two axes, found {a} and {b}"
            )));
        }
        let (m, k, k2, n) = self.sizes(a, b);
        if !may_equal(&k, &k2) {
            return Err(TypeError(format!(
                "inner dimensions differ: {k} of {a} and {k2} of {b}"
            )));
        }
        let mut shape = broadcast(&a.shape[..a.rank() - 2], &b.shape[..b.rank() - 2])?;
        shape.extend([m, n]);
        Ok(one(TensorType {
            dtype: a.dtype,
            shape,
        }))
    }

    fn bind(&self, _: &Bindings) -> Option<Op> {
        Some((*self).into())
    }

    /// The gradient of either operand needs the other.
    fn gradient(&self, g: &mut Gradient<'_, '_>) -> Result<(), GradientError> {
        let (dy, a, b) = (g.dy()?, g.operand(0), g.operand(1));
        let MatMul {
            trans_a: ta,
            trans_b: tb,
        } = *self;
        if g.wants(0) {
            let da = if ta {
                g.matmul(b, dy, tb, true)?
            } else {
                g.matmul(dy, b, false, !tb)?
            };
            g.give(0, da)?;
        }
        if g.wants(1) {
            let weight = g.ty(b).rank() == 2 && g.ty(a).rank() > 2 && !ta;
            let (a, dy) = if weight {
                (flatten(g, a)?, flatten(g, dy)?)
            } else {
                (a, dy)
            };
            let db = if tb {
                g.matmul(dy, a, true, ta)?
            } else {
                g.matmul(a, dy, !ta, false)?
            };
            g.give(1, db)?;
        }
        Ok(())
    }

    /// Copies of operands whose matrices BLAS cannot read.
    fn scratch(&self, operands: &[(&TensorType, &Layout)], _: &[&TensorType]) -> u64 {
        let copied = operands.iter().filter(|(_, layout)| !layout.matrix_fits());
        pieces(copied.map(|(ty, _)| ty.bytes().unwrap_or(0)))
    }

    fn flops(&self, operands: &[&TensorType], results: &[&TensorType]) -> u64 {
        let (_, k, ..) = self.sizes(operands[0], operands[1]);
        let k = k.known().and_then(|k| u64::try_from(k).ok()).unwrap_or(0);
        results[0].elements().unwrap_or(0).saturating_mul(2 * k)
    }

    fn eval(&self, x: &[&Array], results: &[&TensorType]) -> Result<Vec<Array>, EvalError> {
        let (a, b) = (x[0], x[1]);
        let rank = a.shape.len();
        let k = a.shape[if self.trans_a { rank - 2 } else { rank - 1 }];
        let array = Array::from_fn(results[0], |i| {
            let (batch, last) = i.split_at(i.len() - 2);
            (0..k).fold(0.0, |sum, k| {
                let (l, r) = ([last[0], k], [k, last[1]]);
                let index = |pair: [usize; 2], swap: bool| {
                    let pair = if swap { [pair[1], pair[0]] } else { pair };
                    [batch, &pair].concat()
                };
                sum + a.at_broadcast(&index(l, self.trans_a))
                    * b.at_broadcast(&index(r, self.trans_b))
            })
        });
        array.map(|a| vec![a])
    }
}

/// All leading axes as one, so that a weight's gradient is one product and not a batch and a sum.
fn flatten(
    g: &mut Gradient<'_, '_>,
    x: crate::ids::ValueId,
) -> Result<crate::ids::ValueId, GradientError> {
    let shape: Shape = g.ty(x).shape.clone();
    let (rows, last) = shape.split_at(shape.len() - 1);
    Ok(g.reshape(x, [product(rows), last[0].clone()])?)
}

pub(super) fn parse(name: &str, a: &mut AttrReader<'_>) -> Option<Result<Op, String>> {
    (name == "matmul").then(|| {
        Ok(MatMul {
            trans_a: a.flag("trans_a"),
            trans_b: a.flag("trans_b"),
        }
        .into())
    })
}
