//! `matmul`: matrix product.

use super::attrs::{AttrReader, Attrs};
use super::{Op, Operator, Scalar, Types, one, same_dtype};
use crate::build::Built;
use crate::dim::{Bindings, Dim};
use crate::grad::{Gradient, GradientError};
use crate::ids::ValueId;
use crate::interp::{Array, EvalError};
use crate::layout::{Layout, pieces};
use crate::patch::{Patch, PatchError, Results};
use crate::types::{Shape, TensorType, TypeError, broadcast, line_up, may_equal, product};

/// `matmul a, b, c {trans_a, trans_b, alpha=2.0}`: `alpha` times the product over the last two axes, either swapped first
/// if its flag is set; leading axes broadcast. The operands `a` and `b` have at least two axes. `c`, which may be left
/// out, has the type of the product and is added to it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MatMul {
    /// Swap the last two axes of operand 0.
    pub trans_a: bool,
    /// Swap the last two axes of operand 1.
    pub trans_b: bool,
    /// Multiplies the product.
    pub alpha: Scalar,
}

impl MatMul {
    /// The product alone.
    pub const fn new(trans_a: bool, trans_b: bool) -> Self {
        MatMul {
            trans_a,
            trans_b,
            alpha: Scalar(1.0),
        }
    }

    /// Whether an op of so many operands is the product alone.
    pub fn is_plain(&self, operands: usize) -> bool {
        operands == 2 && self.alpha == Scalar(1.0)
    }

    fn build(&self, p: &mut Patch<'_>, ins: &[ValueId]) -> Built {
        let product = p.matmul(ins[0], ins[1], self.trans_a, self.trans_b)?;
        let product = p.scaled(product, self.alpha.0)?;
        match ins.get(2) {
            Some(c) => p.plus(product, *c),
            None => Ok(product),
        }
    }

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
            .unless("alpha", self.alpha, Scalar(1.0))
    }

    fn arity(&self) -> (usize, usize) {
        (2, 3)
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
        let (dtype, c) = (a.dtype, operands.get(2));
        let ty = TensorType { dtype, shape };
        match c {
            Some(c) if !line_up(&c.shape, &ty.shape) => {
                Err(TypeError(format!("{c} cannot be added to a product {ty}")))
            }
            _ => Ok(one(ty)),
        }
    }

    fn bind(&self, _: &Bindings) -> Option<Op> {
        Some((*self).into())
    }

    fn writes_strided(&self) -> bool {
        true
    }

    /// The gradient of either factor needs the other.
    fn gradient(&self, g: &mut Gradient<'_, '_>) -> Result<(), GradientError> {
        let (dy, a, b) = (g.dy()?, g.operand(0), g.operand(1));
        if g.graph().def(g.result(0)).operands.len() > 2 {
            g.give(2, dy)?;
        }
        let dy = g.scaled(dy, self.alpha.0)?;
        let (ta, tb) = (self.trans_a, self.trans_b);
        // First that of the factor which may be a weight: its input may go then.
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
        if g.wants(0) {
            let da = if ta {
                g.matmul(b, dy, tb, true)?
            } else {
                g.matmul(dy, b, false, !tb)?
            };
            g.give(0, da)?;
        }
        Ok(())
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 2)]
    }

    /// Copies of factors whose matrices BLAS cannot read.
    fn scratch(&self, operands: &[(&TensorType, &Layout)], _: &[&TensorType]) -> u64 {
        let factors = operands.iter().take(2);
        let copied = factors.filter(|(_, layout)| !layout.matrix_fits());
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
            let product = (0..k).fold(0.0, |sum, k| {
                let (l, r) = ([last[0], k], [k, last[1]]);
                let index = |pair: [usize; 2], swap: bool| {
                    let pair = if swap { [pair[1], pair[0]] } else { pair };
                    [batch, &pair].concat()
                };
                sum + a.at_broadcast(&index(l, self.trans_a))
                    * b.at_broadcast(&index(r, self.trans_b))
            });
            self.alpha.0 * product + x.get(2).map_or(0.0, |c| c.at(i))
        });
        array.map(|a| vec![a])
    }

    fn decompose(&self, p: &mut Patch<'_>, ins: &[ValueId]) -> Option<Result<Results, PatchError>> {
        let sum = (!self.is_plain(ins.len())).then(|| self.build(p, ins));
        sum.map(|sum| sum.map(|sum| [sum].into_iter().collect()))
    }
}

/// All leading axes as one, so that a weight's gradient is one product and not a batch and a sum.
fn flatten(g: &mut Gradient<'_, '_>, x: ValueId) -> Result<ValueId, GradientError> {
    let shape: Shape = g.ty(x).shape.clone();
    let (rows, last) = shape.split_at(shape.len() - 1);
    Ok(g.reshape(x, [product(rows), last[0].clone()])?)
}

pub(super) fn parse(name: &str, a: &mut AttrReader<'_>) -> Option<Result<Op, String>> {
    (name == "matmul").then(|| {
        Ok(MatMul {
            trans_a: a.flag("trans_a"),
            trans_b: a.flag("trans_b"),
            alpha: a.float_or("alpha", 1.0)?,
        }
        .into())
    })
}
