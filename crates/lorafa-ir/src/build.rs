//! One method for each op that rules build often.

use crate::dim::Dim;
use crate::dtype::DType;
use crate::ids::ValueId;
use crate::ops::{
    Binary, BinaryKind, Cast, Constant, Expand, MatMul, Reduce, ReduceKind, Reshape, Select,
    Transpose, Unary, UnaryKind,
};
use crate::patch::{Patch, PatchError};
use crate::types::Shape;

/// What building one op gives.
pub type Built = Result<ValueId, PatchError>;

impl Patch<'_> {
    /// A scalar constant.
    pub fn scalar(&mut self, dtype: DType, value: f64) -> Built {
        self.add1(Constant::scalar(dtype, value).into(), &[])
    }

    /// A scalar constant of the element type of `like`.
    pub fn scalar_like(&mut self, like: ValueId, value: f64) -> Built {
        let dtype = self.ty(like).dtype;
        self.scalar(dtype, value)
    }

    /// An elementwise op.
    pub fn unary(&mut self, kind: UnaryKind, x: ValueId) -> Built {
        self.add1(Unary(kind).into(), &[x])
    }

    /// An elementwise op with broadcasting.
    pub fn binary(&mut self, kind: BinaryKind, a: ValueId, b: ValueId) -> Built {
        self.add1(Binary(kind).into(), &[a, b])
    }

    /// `a + b`.
    pub fn plus(&mut self, a: ValueId, b: ValueId) -> Built {
        self.binary(BinaryKind::Add, a, b)
    }

    /// `a - b`.
    pub fn minus(&mut self, a: ValueId, b: ValueId) -> Built {
        self.binary(BinaryKind::Sub, a, b)
    }

    /// `a * b`.
    pub fn times(&mut self, a: ValueId, b: ValueId) -> Built {
        self.binary(BinaryKind::Mul, a, b)
    }

    /// `a / b`.
    pub fn over(&mut self, a: ValueId, b: ValueId) -> Built {
        self.binary(BinaryKind::Div, a, b)
    }

    /// `a * number`, or `a` itself if the number is one.
    pub fn scaled(&mut self, a: ValueId, number: f64) -> Built {
        if number == 1.0 {
            return Ok(a);
        }
        let number = self.scalar_like(a, number)?;
        self.times(a, number)
    }

    /// `condition ? a : b`.
    pub fn select(&mut self, condition: ValueId, a: ValueId, b: ValueId) -> Built {
        self.add1(Select.into(), &[condition, a, b])
    }

    /// `x` in another element type, or `x` itself if it has it.
    pub fn cast(&mut self, x: ValueId, to: DType) -> Built {
        if self.ty(x).dtype == to {
            Ok(x)
        } else {
            self.add1(Cast { to }.into(), &[x])
        }
    }

    /// `x` in other dimensions, or `x` itself if it has them.
    pub fn reshape(&mut self, x: ValueId, shape: impl IntoIterator<Item = Dim>) -> Built {
        let shape: Shape = shape.into_iter().collect();
        if self.ty(x).shape == shape {
            Ok(x)
        } else {
            self.add1(Reshape { shape }.into(), &[x])
        }
    }

    /// `x` broadcast to a shape, or `x` itself if it has it.
    pub fn expand(&mut self, x: ValueId, shape: &Shape) -> Built {
        if self.ty(x).shape == *shape {
            return Ok(x);
        }
        self.add1(
            Expand {
                shape: shape.clone(),
            }
            .into(),
            &[x],
        )
    }

    /// `x` with its axes permuted.
    pub fn transpose(&mut self, x: ValueId, perm: impl IntoIterator<Item = usize>) -> Built {
        self.add1(
            Transpose {
                perm: perm.into_iter().collect(),
            }
            .into(),
            &[x],
        )
    }

    /// `a · b`, with the last two axes of either swapped if its flag is set.
    pub fn matmul(&mut self, a: ValueId, b: ValueId, trans_a: bool, trans_b: bool) -> Built {
        self.add1(MatMul::new(trans_a, trans_b).into(), &[a, b])
    }

    /// A reduction over `axes`, which stay as dimensions of one if `keep_dims`.
    pub fn reduce(
        &mut self,
        kind: ReduceKind,
        x: ValueId,
        axes: impl IntoIterator<Item = usize>,
        keep_dims: bool,
    ) -> Built {
        let axes = axes.into_iter().collect();
        self.add1(
            Reduce {
                kind,
                axes,
                keep_dims,
            }
            .into(),
            &[x],
        )
    }

    /// `x` with an axis of one inserted at `axis`.
    pub fn unsqueeze(&mut self, x: ValueId, axis: usize) -> Built {
        let mut shape = self.ty(x).shape.clone();
        shape.insert(axis, Dim::Known(1));
        self.reshape(x, shape)
    }

    /// Sums a gradient over the axes along which `shape` was broadcast.
    pub fn unbroadcast(&mut self, x: ValueId, shape: &Shape) -> Built {
        let from = self.ty(x).shape.clone();
        if from == *shape {
            return Ok(x);
        }
        let extra = from.len() - shape.len().min(from.len());
        let axes: Vec<usize> = (0..from.len())
            .filter(|i| *i < extra || (shape[i - extra].is(1) && !from[*i].is(1)))
            .collect();
        let sum = if axes.is_empty() {
            x
        } else {
            self.reduce(ReduceKind::Sum, x, axes, true)?
        };
        self.reshape(sum, shape.iter().cloned())
    }

    /// The shape of a value in numbers.
    pub fn numbers(&self, value: ValueId) -> Result<Vec<u64>, PatchError> {
        let ty = self.ty(value);
        ty.known_shape()
            .map(|s| s.to_vec())
            .ok_or_else(|| PatchError::Symbolic {
                rule: self.rule(),
                value,
                ty: Box::new(ty.clone()),
            })
    }
}
