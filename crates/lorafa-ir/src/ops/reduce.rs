//! `reduce_sum`, `reduce_mean`, `reduce_max`: over axes.

use super::attrs::{AttrReader, Attrs};
use super::{BinaryKind, Op, Operator, Types, one};
use crate::dim::{Bindings, Dim};
use crate::dtype::DType;
use crate::grad::{Gradient, GradientError};
use crate::interp::{Array, EvalError, for_each_index};
use crate::layout::{Layout, pieces};
use crate::types::{Shape, TensorType, TypeError};
use smallvec::SmallVec;

/// Which reduction.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs)]
pub enum ReduceKind {
    Sum,
    Mean,
    Max,
}

const NAMES: &[(ReduceKind, &str)] = &[
    (ReduceKind::Sum, "reduce_sum"),
    (ReduceKind::Mean, "reduce_mean"),
    (ReduceKind::Max, "reduce_max"),
];

/// `reduce_sum v1 {axes=[1], keep_dims}`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Reduce {
    /// Which reduction.
    pub kind: ReduceKind,
    /// The axes, ascending.
    pub axes: SmallVec<[usize; 4]>,
    /// Whether they stay, as dimensions of one.
    pub keep_dims: bool,
}

impl Reduce {
    fn kept(&self, shape: &Shape) -> Shape {
        let keep = |i: usize, d: &Dim| {
            if self.axes.contains(&i) {
                Dim::Known(1)
            } else {
                d.clone()
            }
        };
        shape.iter().enumerate().map(|(i, d)| keep(i, d)).collect()
    }
}

impl Reduce {
    /// Elements that a kernel reduces at a time where one number comes of many.
    pub const BLOCK: u64 = 1 << 12;

    /// How many parts a kernel first reduces to where one number comes of many: libtorch would allocate one for each of
    /// its threads.
    pub fn parts(&self, operand: u64, result: u64) -> Option<u64> {
        (result == 1 && operand > 2 * Self::BLOCK).then(|| operand.div_ceil(Self::BLOCK))
    }

    /// Whether a kernel wants its operand row-major: where there are parts, and for sums of 16-bit floats, of which
    /// libtorch would make an f32 copy.
    pub fn copies(&self, dtype: DType, parts: Option<u64>) -> bool {
        parts.is_some() || self.kind != ReduceKind::Max && dtype.is_half()
    }
}

impl Operator for Reduce {
    fn name(&self) -> &'static str {
        NAMES
            .iter()
            .find(|(k, _)| *k == self.kind)
            .map_or("?", |(_, n)| n)
    }

    fn attrs(&self) -> Attrs {
        Attrs::default()
            .list("axes", &self.axes)
            .flag("keep_dims", self.keep_dims)
    }

    fn arity(&self) -> (usize, usize) {
        (1, 1)
    }

    fn infer(&self, operands: &[&TensorType]) -> Result<Types, TypeError> {
        let x = operands[0];
        let ascending = self.axes.windows(2).all(|w| w[0] < w[1]);
        if !ascending || self.axes.iter().any(|a| *a >= x.rank()) {
            return Err(TypeError(format!("{:?} are no axes of {x}", self.axes)));
        }
        if x.dtype == DType::Bool {
            return Err(TypeError(format!("expected numbers, found {x}")));
        }
        let kept = self.kept(&x.shape);
        let gone = |i: &usize| self.keep_dims || !self.axes.contains(i);
        Ok(one(x.with_shape(
            (0..x.rank()).filter(gone).map(|i| kept[i].clone()),
        )))
    }

    fn bind(&self, _: &Bindings) -> Option<Op> {
        Some(self.clone().into())
    }

    /// Sum and mean need nothing; max needs its operand and its result.
    fn gradient(&self, g: &mut Gradient<'_, '_>) -> Result<(), GradientError> {
        let (dy, x) = (g.dy()?, g.operand(0));
        let shape = g.ty(x).shape.clone();
        let kept = self.kept(&shape);
        let dy = g.reshape(dy, kept.clone())?;
        let dx = match self.kind {
            ReduceKind::Sum => g.expand(dy, &shape)?,
            ReduceKind::Mean => {
                let sizes = g.numbers(x)?;
                let n: u64 = self.axes.iter().map(|a| sizes[*a]).product();
                let part = g.scaled(dy, 1.0 / n as f64)?;
                g.expand(part, &shape)?
            }
            ReduceKind::Max => {
                // Equal maxima share the gradient, as in PyTorch's amax.
                let y = g.result(0);
                let y = g.reshape(y, kept)?;
                let hit = g.binary(BinaryKind::Eq, x, y)?;
                let dtype = g.ty(x).dtype;
                let hit = g.cast(hit, dtype)?;
                let hits = g.reduce(ReduceKind::Sum, hit, self.axes.iter().copied(), true)?;
                let part = g.over(dy, hits)?;
                g.times(hit, part)?
            }
        };
        Ok(g.give(0, dx)?)
    }

    /// The divisor of a mean, and what [`Reduce::copies`] and [`Reduce::parts`] say.
    fn scratch(&self, operands: &[(&TensorType, &Layout)], results: &[&TensorType]) -> u64 {
        let (x, result) = (operands[0], results[0]);
        let size = result.dtype.size();
        let divisor = (self.kind == ReduceKind::Mean).then_some(size);
        let elements = x.0.elements().unwrap_or(0);
        let parts = self.parts(elements, result.elements().unwrap_or(0));
        let copy = self.copies(x.0.dtype, parts).then(|| super::row_major(x));
        let parts = parts.map(|n| n * size);
        pieces(divisor.into_iter().chain(copy).chain(parts))
    }

    fn flops(&self, operands: &[&TensorType], _: &[&TensorType]) -> u64 {
        operands[0].elements().unwrap_or(0)
    }

    fn eval(&self, x: &[&Array], results: &[&TensorType]) -> Result<Vec<Array>, EvalError> {
        let start = if self.kind == ReduceKind::Max {
            f64::NEG_INFINITY
        } else {
            0.0
        };
        let mut y = Array::from_fn(results[0], |_| start)?;
        for_each_index(&x[0].shape, |i| {
            let to: Vec<usize> = (0..i.len())
                .filter(|a| self.keep_dims || !self.axes.contains(a))
                .map(|a| if self.axes.contains(&a) { 0 } else { i[a] })
                .collect();
            let (to, x) = (y.flat(&to), x[0].at(i));
            y.data[to] = match self.kind {
                ReduceKind::Sum | ReduceKind::Mean => y.data[to] + x,
                ReduceKind::Max => y.data[to].max(x),
            };
        });
        let count = match self.kind {
            ReduceKind::Mean => self.axes.iter().map(|a| x[0].shape[*a]).product(),
            ReduceKind::Sum | ReduceKind::Max => 1,
        };
        let dtype = y.dtype;
        y.data
            .iter_mut()
            .for_each(|y| *y = dtype.exact(*y / count as f64));
        Ok(vec![y])
    }
}

pub(super) fn parse(name: &str, a: &mut AttrReader<'_>) -> Option<Result<Op, String>> {
    let (kind, _) = NAMES.iter().find(|(_, n)| *n == name)?;
    Some(a.list("axes").map(|axes: Vec<usize>| {
        Reduce {
            kind: *kind,
            axes: axes.into_iter().collect(),
            keep_dims: a.flag("keep_dims"),
        }
        .into()
    }))
}
