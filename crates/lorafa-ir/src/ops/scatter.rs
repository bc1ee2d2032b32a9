//! `scatter_elements` and `scatter_nd`: elements or slices replaced, or added to, by index.

use super::attrs::{AttrReader, Attrs};
use super::gather::{positions, within};
use super::gather_nd::{depth, flat_pieces, slices};
use super::{Fill, GatherElements, GatherNd, Op, Operator, Scalar, Types, index, one};
use crate::dim::Bindings;
use crate::dtype::DType;
use crate::grad::{Gradient, GradientError};
use crate::interp::{Array, EvalError, for_each_index};
use crate::layout::{Layout, pieces};
use crate::types::{TensorType, TypeError, line_up};

/// `scatter_elements data, indices, updates {axis=1, add}`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ScatterElements {
    /// The axis.
    pub axis: usize,
    /// Add to what is there; replace it otherwise.
    pub add: bool,
}

/// `scatter_nd data, indices, updates {add}`: the last axis of `indices` holds index vectors into
/// the leading axes of `data`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ScatterNd {
    /// Add to what is there; replace it otherwise.
    pub add: bool,
}

/// The gradient of `data` is `dy`, without what was replaced; that of `updates` is read from `dy`.
fn gradient(
    g: &mut Gradient<'_, '_>,
    add: bool,
    scatter: Op,
    gather: Op,
) -> Result<(), GradientError> {
    let (dy, indices) = (g.dy()?, g.operand(1));
    if g.wants(0) {
        let kept = if add {
            dy
        } else {
            let ty = g.ty(g.operand(2)).clone();
            let zeros = g.add1(
                Fill {
                    ty,
                    value: Scalar(0.0),
                }
                .into(),
                &[],
            )?;
            g.add1(scatter, &[dy, indices, zeros])?
        };
        g.give(0, kept)?;
    }
    if g.wants(2) {
        let du = g.add1(gather, &[dy, indices])?;
        g.give(2, du)?;
    }
    Ok(())
}

impl Operator for ScatterElements {
    fn name(&self) -> &'static str {
        "scatter_elements"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default()
            .with("axis", self.axis)
            .flag("add", self.add)
    }

    fn arity(&self) -> (usize, usize) {
        (3, 3)
    }

    fn infer(&self, operands: &[&TensorType]) -> Result<Types, TypeError> {
        let (data, indices, updates) = (operands[0], operands[1], operands[2]);
        super::axis(self.axis as i64, data.rank())?;
        index(indices)?;
        super::same_dtype(&[data, updates])?;
        if self.add {
            super::number(data)?;
        }
        if !within(indices, data, self.axis) || !line_up(&indices.shape, &updates.shape) {
            return Err(TypeError(format!(
                "{data}, {indices} and {updates} do not line up"
            )));
        }
        Ok(one(data.clone()))
    }

    fn bind(&self, _: &Bindings) -> Option<Op> {
        Some((*self).into())
    }

    /// Needs the indices.
    fn gradient(&self, g: &mut Gradient<'_, '_>) -> Result<(), GradientError> {
        let gather = GatherElements { axis: self.axis };
        gradient(
            g,
            self.add,
            ScatterElements {
                add: false,
                ..*self
            }
            .into(),
            gather.into(),
        )
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    /// The positions; to add 16-bit floats also `data` and `updates` as f32.
    fn scratch(&self, operands: &[(&TensorType, &Layout)], _: &[&TensorType]) -> u64 {
        let wide = self.add && operands[0].0.dtype.is_half();
        let terms = [operands[0].0, operands[2].0].map(|ty| super::bytes_as(DType::F32, ty));
        let terms = terms.into_iter().filter(|_| wide);
        pieces(
            super::positions_pieces(operands[1].0)
                .into_iter()
                .chain(terms),
        )
    }

    fn eval(&self, x: &[&Array], _: &[&TensorType]) -> Result<Vec<Array>, EvalError> {
        let mut y = x[0].clone();
        let elements = positions(x[1], y.shape[self.axis])?;
        for_each_index(&x[1].shape, |i| {
            let mut to = i.to_vec();
            to[self.axis] = elements[x[1].flat(i)];
            let (to, update) = (y.flat(&to), x[2].at(i));
            y.data[to] = if self.add {
                y.data[to] + update
            } else {
                update
            };
        });
        Ok(vec![y])
    }
}

impl Operator for ScatterNd {
    fn name(&self) -> &'static str {
        "scatter_nd"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().flag("add", self.add)
    }

    fn arity(&self) -> (usize, usize) {
        (3, 3)
    }

    fn infer(&self, operands: &[&TensorType]) -> Result<Types, TypeError> {
        let (data, indices, updates) = (operands[0], operands[1], operands[2]);
        super::same_dtype(&[data, updates])?;
        if self.add {
            super::number(data)?;
        }
        let depth = depth(indices)?;
        let outer = &indices.shape[..indices.rank() - 1];
        let slices = outer.iter().chain(data.shape.iter().skip(depth));
        if depth > data.rank() || !line_up(&updates.shape, slices) {
            return Err(TypeError(format!(
                "{data}, {indices} and {updates} do not line up"
            )));
        }
        Ok(one(data.clone()))
    }

    fn bind(&self, _: &Bindings) -> Option<Op> {
        Some((*self).into())
    }

    /// Needs the indices.
    fn gradient(&self, g: &mut Gradient<'_, '_>) -> Result<(), GradientError> {
        let gather = GatherNd { batch_dims: 0 };
        gradient(g, self.add, ScatterNd { add: false }.into(), gather.into())
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    /// As [`GatherNd`], and a copy of `updates` if its slices do not follow each other.
    fn scratch(&self, operands: &[(&TensorType, &Layout)], _: &[&TensorType]) -> u64 {
        let (indices, updates) = (operands[1].0, operands[2]);
        let slices = updates.0.known_shape().unwrap_or_default();
        let (outer, rest) = slices.split_at(indices.rank() - 1);
        let slices = [&[outer.iter().product()], rest].concat();
        let copy = updates.1.reshape(slices.as_slice().into()).is_none();
        let copy = copy.then(|| super::row_major(updates));
        pieces(flat_pieces(indices).into_iter().chain(copy))
    }

    fn eval(&self, x: &[&Array], _: &[&TensorType]) -> Result<Vec<Array>, EvalError> {
        let mut y = x[0].clone();
        let outer = x[1].shape.len() - 1;
        let depth = x[1].shape[outer];
        let slices = slices(x[1], &y.shape)?;
        for_each_index(&x[2].shape, |i| {
            let row = i[..outer].iter().zip(&x[1].shape);
            let row = row.fold(0, |n, (i, d)| n * d + i);
            let at = &slices[row * depth..(row + 1) * depth];
            let (to, update) = (y.flat(&[at, &i[outer..]].concat()), x[2].at(i));
            y.data[to] = if self.add {
                y.data[to] + update
            } else {
                update
            };
        });
        Ok(vec![y])
    }
}

pub(super) fn parse(name: &str, a: &mut AttrReader<'_>) -> Option<Result<Op, String>> {
    match name {
        "scatter_elements" => Some(a.int("axis").and_then(|axis| {
            let axis = usize::try_from(axis).map_err(|_| format!("bad axis {axis}"))?;
            Ok(ScatterElements {
                axis,
                add: a.flag("add"),
            }
            .into())
        })),
        "scatter_nd" => Some(Ok(ScatterNd { add: a.flag("add") }.into())),
        _ => None,
    }
}
