//! `gather`, its gradient, and `gather_elements`.

use super::attrs::{AttrReader, Attrs};
use super::{Fill, Op, Operator, Scalar, ScatterElements, ScatterNd, Types, index, one};
use crate::build::Built;
use crate::dim::{Bindings, Dim};
use crate::grad::{Gradient, GradientError};
use crate::ids::ValueId;
use crate::interp::{Array, EvalError, position};
use crate::layout::{Layout, pieces};
use crate::patch::{Patch, PatchError, Results};
use crate::types::{Shape, TensorType, TypeError, line_up};

/// `gather data, indices {axis=0}`: `data[…, indices, …]` along one axis.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Gather {
    /// The axis.
    pub axis: usize,
}

impl Gather {
    /// The gradient by data of this shape.
    pub fn build_gradient(
        &self,
        p: &mut Patch<'_>,
        indices: ValueId,
        mut dy: ValueId,
        shape: &Shape,
    ) -> Built {
        let (rank, width) = (p.ty(dy).rank(), p.ty(indices).rank());
        // Bring the indexed axes to the front, add rows, and bring the axis back.
        let mut to_front: Vec<usize> = (self.axis..self.axis + width).collect();
        to_front.extend((0..self.axis).chain(self.axis + width..rank));
        let mut front: Vec<usize> = vec![self.axis];
        front.extend((0..shape.len()).filter(|a| *a != self.axis));
        if self.axis != 0 {
            dy = p.transpose(dy, to_front)?;
        }
        let shape: Shape = front.iter().map(|a| shape[*a].clone()).collect();
        let mut dx = p.add1(GatherGrad { shape }.into(), &[indices, dy])?;
        if self.axis != 0 {
            let mut back = vec![0; front.len()];
            front.iter().enumerate().for_each(|(i, a)| back[*a] = i);
            dx = p.transpose(dx, back)?;
        }
        Ok(dx)
    }
}

impl Operator for Gather {
    fn name(&self) -> &'static str {
        "gather"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().with("axis", self.axis)
    }

    fn arity(&self) -> (usize, usize) {
        (2, 2)
    }

    fn infer(&self, operands: &[&TensorType]) -> Result<Types, TypeError> {
        let (data, indices) = (operands[0], operands[1]);
        super::axis(self.axis as i64, data.rank())?;
        index(indices)?;
        let mut shape: Shape = data.shape[..self.axis].iter().cloned().collect();
        shape.extend(indices.shape.iter().cloned());
        shape.extend(data.shape[self.axis + 1..].iter().cloned());
        Ok(one(data.with_shape(shape)))
    }

    fn bind(&self, _: &Bindings) -> Option<Op> {
        Some((*self).into())
    }

    /// Needs the indices.
    fn gradient(&self, g: &mut Gradient<'_, '_>) -> Result<(), GradientError> {
        let (dy, indices) = (g.dy()?, g.operand(1));
        let shape = g.ty(g.operand(0)).shape.clone();
        let dx = self.build_gradient(g, indices, dy, &shape)?;
        Ok(g.give(0, dx)?)
    }

    /// The positions, and a copy of `data` if it is not row-major and not gathered along its first axis.
    fn scratch(&self, operands: &[(&TensorType, &Layout)], _: &[&TensorType]) -> u64 {
        let copy = (self.axis != 0).then(|| super::row_major(operands[0]));
        pieces(
            super::positions_pieces(operands[1].0)
                .into_iter()
                .chain(copy),
        )
    }

    fn flops(&self, _: &[&TensorType], _: &[&TensorType]) -> u64 {
        0
    }

    fn eval(&self, x: &[&Array], results: &[&TensorType]) -> Result<Vec<Array>, EvalError> {
        let width = x[1].shape.len();
        let rows = positions(x[1], x[0].shape[self.axis])?;
        let array = Array::from_fn(results[0], |i| {
            let at = rows[x[1].flat(&i[self.axis..self.axis + width])];
            x[0].at(&[&i[..self.axis], &[at], &i[self.axis + width..]].concat())
        });
        array.map(|a| vec![a])
    }
}

/// Indices as positions in an axis of length `n`.
pub(super) fn positions(indices: &Array, n: usize) -> Result<Vec<usize>, EvalError> {
    indices.data.iter().map(|i| position(*i, n)).collect()
}

/// Whether `indices` is no larger than `data` but along `axis`.
pub(super) fn within(indices: &TensorType, data: &TensorType, axis: usize) -> bool {
    let fits = |(i, (n, m)): (usize, (&Dim, &Dim))| match (n, m) {
        (Dim::Known(n), Dim::Known(m)) => i == axis || n <= m,
        _ => true,
    };
    let dims = indices.shape.iter().zip(&data.shape);
    indices.rank() == data.rank() && dims.enumerate().all(fits)
}

/// `gather_grad indices, dy {shape=[256,64]}`: zeros of `shape` with each row of `dy` added at its
/// index.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct GatherGrad {
    /// The result's dimensions.
    pub shape: Shape,
}

impl Operator for GatherGrad {
    fn name(&self) -> &'static str {
        "gather_grad"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().dims("shape", &self.shape)
    }

    fn arity(&self) -> (usize, usize) {
        (2, 2)
    }

    fn infer(&self, operands: &[&TensorType]) -> Result<Types, TypeError> {
        let (indices, dy) = (operands[0], operands[1]);
        index(indices)?;
        super::number(dy)?;
        let rows = indices.shape.iter().chain(self.shape.iter().skip(1));
        if self.shape.is_empty() || !line_up(&dy.shape, rows) {
            return Err(TypeError(format!("{indices} and {dy} do not line up")));
        }
        Ok(one(dy.with_shape(self.shape.iter().cloned())))
    }

    fn bind(&self, b: &Bindings) -> Option<Op> {
        let shape: Option<Shape> = self.shape.iter().map(|d| d.bind(b)).collect();
        Some(GatherGrad { shape: shape? }.into())
    }

    /// The positions, and a copy of `dy` if its rows do not follow each other.
    fn scratch(&self, operands: &[(&TensorType, &Layout)], _: &[&TensorType]) -> u64 {
        let [(indices, _), dy] = [operands[0], operands[1]];
        let rows = dy.0.known_shape().unwrap_or_default();
        let (rows, rest) = rows.split_at(indices.rank());
        let rows = [&[rows.iter().product()], rest].concat();
        let copy = dy.1.reshape(rows.as_slice().into()).is_none();
        let copy = copy.then(|| super::row_major(dy));
        pieces(super::positions_pieces(indices).into_iter().chain(copy))
    }

    fn flops(&self, operands: &[&TensorType], _: &[&TensorType]) -> u64 {
        operands[1].elements().unwrap_or(0)
    }

    fn decompose(&self, p: &mut Patch<'_>, ins: &[ValueId]) -> Option<Result<Results, PatchError>> {
        Some((|| {
            let ty = p.ty(ins[1]).with_shape(self.shape.iter().cloned());
            let zeros = p.add1(
                Fill {
                    ty,
                    value: Scalar(0.0),
                }
                .into(),
                &[],
            )?;
            let axis = p.ty(ins[0]).rank();
            let indices = p.unsqueeze(ins[0], axis)?;
            p.add(ScatterNd { add: true }.into(), &[zeros, indices, ins[1]])
        })())
    }
}

/// `gather_elements data, indices {axis=1}`: one element per index, along one axis.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct GatherElements {
    /// The axis.
    pub axis: usize,
}

impl Operator for GatherElements {
    fn name(&self) -> &'static str {
        "gather_elements"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().with("axis", self.axis)
    }

    fn arity(&self) -> (usize, usize) {
        (2, 2)
    }

    fn infer(&self, operands: &[&TensorType]) -> Result<Types, TypeError> {
        let (data, indices) = (operands[0], operands[1]);
        super::axis(self.axis as i64, data.rank())?;
        index(indices)?;
        if !within(indices, data, self.axis) {
            return Err(TypeError(format!("{data} and {indices} do not line up")));
        }
        Ok(one(data.with_shape(indices.shape.iter().cloned())))
    }

    fn bind(&self, _: &Bindings) -> Option<Op> {
        Some((*self).into())
    }

    /// Needs the indices.
    fn gradient(&self, g: &mut Gradient<'_, '_>) -> Result<(), GradientError> {
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
        let scatter = ScatterElements {
            axis: self.axis,
            add: true,
        };
        let dx = g.add1(scatter.into(), &[zeros, indices, dy])?;
        Ok(g.give(0, dx)?)
    }

    /// The positions.
    fn scratch(&self, operands: &[(&TensorType, &Layout)], _: &[&TensorType]) -> u64 {
        pieces(super::positions_pieces(operands[1].0))
    }

    fn flops(&self, _: &[&TensorType], _: &[&TensorType]) -> u64 {
        0
    }

    fn eval(&self, x: &[&Array], results: &[&TensorType]) -> Result<Vec<Array>, EvalError> {
        let elements = positions(x[1], x[0].shape[self.axis])?;
        let array = Array::from_fn(results[0], |i| {
            let mut from = i.to_vec();
            from[self.axis] = elements[x[1].flat(i)];
            x[0].at(&from)
        });
        array.map(|a| vec![a])
    }
}

pub(super) fn parse(name: &str, a: &mut AttrReader<'_>) -> Option<Result<Op, String>> {
    let axis = |a: &mut AttrReader<'_>| {
        let axis = a.int("axis")?;
        usize::try_from(axis).map_err(|_| format!("bad axis {axis}"))
    };
    match name {
        "gather" => Some(axis(a).map(|axis| Gather { axis }.into())),
        "gather_elements" => Some(axis(a).map(|axis| GatherElements { axis }.into())),
        "gather_grad" => Some(a.dims("shape").map(|shape| GatherGrad { shape }.into())),
        _ => None,
    }
}
