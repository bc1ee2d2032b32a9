//! `dropout` in training mode, and its gradient.

use super::attrs::{AttrReader, Attrs};
use super::{Op, Operator, Scalar, Types, float, one};
use crate::dim::Bindings;
use crate::dtype::DType;
use crate::grad::{Gradient, GradientError};
use crate::ids::ValueId;
use crate::layout::{Layout, pieces};
use crate::patch::{Patch, PatchError, Results};
use crate::types::{Shape, TensorType, TypeError};

/// `dropout v1 {ratio=0.05, seed=3}` gives the scaled survivors and the mask of who survived.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Dropout {
    /// The share of elements set to zero.
    pub ratio: Scalar,
    /// Tells dropouts apart: two with equal seeds drop the same elements.
    pub seed: i64,
}

impl Dropout {
    fn check(&self) -> Result<(), TypeError> {
        if (0.0..1.0).contains(&self.ratio.0) {
            return Ok(());
        }
        Err(TypeError(format!("ratio {} is not in [0, 1)", self.ratio)))
    }
}

impl Operator for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default()
            .with("ratio", self.ratio)
            .with("seed", self.seed)
    }

    fn arity(&self) -> (usize, usize) {
        (1, 1)
    }

    fn infer(&self, operands: &[&TensorType]) -> Result<Types, TypeError> {
        float(operands[0])?;
        self.check()?;
        Ok([operands[0].clone(), operands[0].with_dtype(DType::Bool)]
            .into_iter()
            .collect())
    }

    fn bind(&self, _: &Bindings) -> Option<Op> {
        Some((*self).into())
    }

    /// Needs the mask.
    fn gradient(&self, g: &mut Gradient<'_, '_>) -> Result<(), GradientError> {
        let ins = [g.dy()?, g.result(1)];
        let dx = g.add1(DropoutGrad { ratio: self.ratio }.into(), &ins)?;
        Ok(g.give(0, dx)?)
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    /// A number.
    fn scratch(&self, operands: &[(&TensorType, &Layout)], _: &[&TensorType]) -> u64 {
        pieces([operands[0].0.dtype.size()])
    }
}

/// `dropout_mask {ratio=0.05, seed=3, shape=[2,seq]}`: the mask of [`Dropout`] with this ratio and seed on an operand of this
/// shape, drawn again.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct DropoutMask {
    /// Whose mask it is.
    pub of: Dropout,
    /// Its shape.
    pub shape: Shape,
}

impl Operator for DropoutMask {
    fn name(&self) -> &'static str {
        "dropout_mask"
    }

    fn attrs(&self) -> Attrs {
        self.of.attrs().dims("shape", &self.shape)
    }

    fn arity(&self) -> (usize, usize) {
        (0, 0)
    }

    fn infer(&self, _: &[&TensorType]) -> Result<Types, TypeError> {
        self.of.check()?;
        Ok(one(TensorType::new(
            DType::Bool,
            self.shape.iter().cloned(),
        )))
    }

    fn bind(&self, bindings: &Bindings) -> Option<Op> {
        let shape = self.shape.iter().map(|dim| dim.bind(bindings));
        let shape = shape.collect::<Option<Shape>>()?;
        Some(DropoutMask { of: self.of, shape }.into())
    }
}

/// `dropout_grad dy, mask {ratio=0.05}`: `dy·mask/(1-ratio)`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DropoutGrad {
    /// The share of elements that were set to zero.
    pub ratio: Scalar,
}

impl Operator for DropoutGrad {
    fn name(&self) -> &'static str {
        "dropout_grad"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().with("ratio", self.ratio)
    }

    fn arity(&self) -> (usize, usize) {
        (2, 2)
    }

    fn infer(&self, operands: &[&TensorType]) -> Result<Types, TypeError> {
        float(operands[0])?;
        if *operands[1] != operands[0].with_dtype(DType::Bool) {
            let (dy, mask) = (operands[0], operands[1]);
            return Err(TypeError(format!("{mask} is no mask of {dy}")));
        }
        Ok(one(operands[0].clone()))
    }

    fn bind(&self, _: &Bindings) -> Option<Op> {
        Some((*self).into())
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    fn decompose(&self, p: &mut Patch<'_>, ins: &[ValueId]) -> Option<Result<Results, PatchError>> {
        Some((|| {
            let dtype = p.ty(ins[0]).dtype;
            let mask = p.cast(ins[1], dtype)?;
            let mask = p.scaled(mask, 1.0 / (1.0 - self.ratio.0))?;
            Ok([p.times(ins[0], mask)?].into_iter().collect())
        })())
    }

    /// A number.
    fn scratch(&self, operands: &[(&TensorType, &Layout)], _: &[&TensorType]) -> u64 {
        pieces([operands[0].0.dtype.size()])
    }
}

pub(super) fn parse(name: &str, a: &mut AttrReader<'_>) -> Option<Result<Op, String>> {
    let dropout = |a: &mut AttrReader<'_>| -> Result<Dropout, String> {
        let (ratio, seed) = (a.float("ratio")?, a.int("seed")?);
        Ok(Dropout { ratio, seed })
    };
    match name {
        "dropout" => Some(dropout(a).map(Into::into)),
        "dropout_mask" => Some(dropout(a).and_then(|of| {
            let shape = a.dims("shape")?;
            Ok(DropoutMask { of, shape }.into())
        })),
        "dropout_grad" => Some(a.float("ratio").map(|ratio| DropoutGrad { ratio }.into())),
        _ => None,
    }
}
