//! `gather_nd`: slices by index vectors.

use super::attrs::{AttrReader, Attrs};
use super::{Fill, Op, Operator, Scalar, ScatterNd, Types, index, one};
use crate::dim::{Bindings, Dim};
use crate::dtype::DType;
use crate::grad::{Gradient, GradientError};
use crate::interp::{Array, EvalError, position};
use crate::layout::{Layout, pieces};
use crate::types::{Shape, TensorType, TypeError, line_up};

/// `gather_nd data, indices {batch_dims=0}`: the last axis of `indices` holds index vectors into
/// the axes of `data` after the batch axes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct GatherNd {
    /// Leading axes that both operands share.
    pub batch_dims: usize,
}

/// The length of the index vectors.
pub(super) fn depth(indices: &TensorType) -> Result<usize, TypeError> {
    index(indices)?;
    match indices.shape.last() {
        Some(Dim::Known(n)) => Ok(*n as usize),
        _ => Err(TypeError(format!(
            "the last axis of {indices} must be a number"
        ))),
    }
}

/// Index vectors as positions in axes of these lengths, one vector after the other.
pub(super) fn slices(indices: &Array, axes: &[usize]) -> Result<Vec<usize>, EvalError> {
    let depth = indices.shape.last().copied().unwrap_or(0);
    let lengths = axes[..depth].iter().cycle();
    let indices = indices.data.iter().zip(lengths);
    indices.map(|(i, n)| position(*i, *n)).collect()
}

/// Pieces for index vectors as positions: those, one component of each, and whether that counts from the end.
pub(super) fn flat_pieces(indices: &TensorType) -> [u64; 3] {
    let rows = indices.shape[..indices.rank() - 1].iter().cloned();
    [TensorType::new(DType::I64, rows).bytes().unwrap_or(0); 3]
}

impl Operator for GatherNd {
    fn name(&self) -> &'static str {
        "gather_nd"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().unless("batch_dims", self.batch_dims, 0)
    }

    fn arity(&self) -> (usize, usize) {
        (2, 2)
    }

    fn infer(&self, operands: &[&TensorType]) -> Result<Types, TypeError> {
        let (data, indices) = (operands[0], operands[1]);
        let used = self.batch_dims.saturating_add(depth(indices)?);
        if used > data.rank()
            || self.batch_dims >= indices.rank()
            || !line_up(
                &data.shape[..self.batch_dims],
                &indices.shape[..self.batch_dims],
            )
        {
            return Err(TypeError(format!("{indices} does not index {data}")));
        }
        let mut shape: Shape = indices.shape[..indices.rank() - 1]
            .iter()
            .cloned()
            .collect();
        shape.extend(data.shape[used..].iter().cloned());
        Ok(one(data.with_shape(shape)))
    }

    fn bind(&self, _: &Bindings) -> Option<Op> {
        Some((*self).into())
    }

    /// Needs the indices.
    fn gradient(&self, g: &mut Gradient<'_, '_>) -> Result<(), GradientError> {
        if self.batch_dims != 0 {
            let why = "`gather_nd` has a gradient only without batch axes";
            return Err(GradientError::Unsupported(why.into()));
        }
        let (dy, indices) = (g.dy()?, g.operand(1));
        let ty = g.ty(g.operand(0)).clone();
        let zeros = g.add1(
            Fill {
                ty,
                value: Scalar(0.0),
            }
            .into(),
            &[],
        )?;
        let dx = g.add1(ScatterNd { add: true }.into(), &[zeros, indices, dy])?;
        Ok(g.give(0, dx)?)
    }

    /// What `flat_pieces` says, and a copy of `data` if its indexed axes do not merge.
    fn scratch(&self, operands: &[(&TensorType, &Layout)], _: &[&TensorType]) -> u64 {
        let (data, indices) = (operands[0], operands[1].0);
        let shape = data.0.known_shape().unwrap_or_default();
        let depth = indices.known_shape().and_then(|s| s.last().copied());
        let end = self.batch_dims + depth.unwrap_or(0) as usize;
        let merged = shape[self.batch_dims..end].iter().product();
        let merged = [&shape[..self.batch_dims], &[merged], &shape[end..]].concat();
        let copy = data.1.reshape(merged.as_slice().into()).is_none();
        let copy = copy.then(|| super::row_major(data));
        pieces(flat_pieces(indices).into_iter().chain(copy))
    }

    fn flops(&self, _: &[&TensorType], _: &[&TensorType]) -> u64 {
        0
    }

    fn eval(&self, x: &[&Array], results: &[&TensorType]) -> Result<Vec<Array>, EvalError> {
        let outer = x[1].shape.len() - 1;
        let depth = x[1].shape[outer];
        let slices = slices(x[1], &x[0].shape[self.batch_dims..])?;
        let array = Array::from_fn(results[0], |i| {
            let row = i[..outer].iter().zip(&x[1].shape);
            let row = row.fold(0, |n, (i, d)| n * d + i);
            let at = &slices[row * depth..(row + 1) * depth];
            x[0].at(&[&i[..self.batch_dims], at, &i[outer..]].concat())
        });
        array.map(|a| vec![a])
    }
}

pub(super) fn parse(name: &str, a: &mut AttrReader<'_>) -> Option<Result<Op, String>> {
    (name == "gather_nd").then(|| {
        let n = a.int_or("batch_dims", 0)?;
        let batch_dims = usize::try_from(n).map_err(|_| format!("bad batch_dims {n}"))?;
        Ok(GatherNd { batch_dims }.into())
    })
}
