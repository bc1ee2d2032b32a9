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

/// How a kernel reduces: in steps, of which all but the last leave parts in scratch.
///
/// Where many numbers come to few, libtorch reduces them to parts in memory that it allocates: one part for each thread
/// of a processor, or for each group of threads of a GPU. It does not if a step is as short as these are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Steps {
    /// The order in which the operand's axes are read.
    pub order: SmallVec<[usize; 4]>,
    /// The operand in that order is `[outer, n, inner]`, and the axis in the middle is reduced.
    pub shape: [u64; 3],
    /// Whether the kernel wants a row-major copy of the operand in that order.
    pub copy: bool,
    /// How many numbers come to one in a step that leaves parts.
    pub block: u64,
    /// How many are left of `n` after each step that leaves parts.
    pub parts: SmallVec<[u64; 2]>,
}

impl Steps {
    /// Bytes of scratch.
    fn bytes(&self, dtype: DType) -> impl Iterator<Item = u64> {
        let [outer, n, inner] = self.shape;
        let size = outer * inner * dtype.size();
        let copy = self.copy.then_some(n * size);
        copy.into_iter()
            .chain(self.parts.iter().map(move |n| n * size))
    }
}

/// The most numbers that come to one in one step, and how many do in a step that leaves parts: where neighbours in memory
/// do, and there is one result or several; where they do not.
const ONE_RESULT: (u64, u64) = (1 << 13, 1 << 12);
const ROWS: (u64, u64) = (1 << 16, 1 << 12);
const COLUMNS: (u64, u64) = (255, 128);

impl Reduce {
    /// How a kernel goes about an operand that lies like this.
    pub fn steps(&self, dtype: DType, layout: &Layout) -> Steps {
        let goes = |axis: &usize| self.axes.contains(axis);
        let wide = |axis: &usize| layout.shape[*axis] != 1;
        let axes = 0..layout.shape.len();
        let mut runs: Vec<bool> = axes.clone().filter(wide).map(|axis| goes(&axis)).collect();
        runs.dedup();
        let size = |axes: &[usize]| axes.iter().map(|axis| layout.shape[*axis]).product::<u64>();

        // One run of axes, or those that stay before those that go.
        let one_run = runs.iter().filter(|goes| **goes).count() <= 1;
        let mut order: SmallVec<[usize; 4]> = axes.clone().collect();
        if !one_run {
            order.sort_by_key(goes);
        }
        let gone = |axis: &usize| goes(axis) && wide(axis);
        let first = order.iter().position(gone).unwrap_or(order.len());
        let last = order.iter().rposition(gone).map_or(first, |at| at + 1);
        let shape = [&order[..first], &order[first..last], &order[last..]].map(size);
        let ordered = layout.permuted(&order);
        let folded = ordered.reshape(shape.as_slice().into());
        let half = self.kind != ReduceKind::Max && dtype.is_half();

        // Of 16-bit floats that are not row-major libtorch's sums would make an f32 copy.
        let copy = folded.is_none() || half && !ordered.is_contiguous();
        let neighbours = shape[2] == 1 && folded.is_some_and(|x| copy || x.strides[1] == 1);
        let (most, block) = match shape {
            [1, _, 1] => ONE_RESULT,
            _ if neighbours || shape[2] == 1 && copy => ROWS,
            _ => COLUMNS,
        };
        let mut parts = SmallVec::new();
        let mut n = shape[1];
        while n > most && shape[0] * shape[2] > 0 {
            n = n.div_ceil(block);
            parts.push(n);
        }
        if parts.is_empty() {
            return Steps {
                order: axes.collect(),
                copy: half && !layout.is_contiguous(),
                shape,
                block,
                parts,
            };
        }
        Steps {
            order,
            shape,
            copy,
            block,
            parts,
        }
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

    /// The divisor of a mean, and what its steps take.
    fn scratch(&self, operands: &[(&TensorType, &Layout)], results: &[&TensorType]) -> u64 {
        let (x, layout) = operands[0];
        let divisor = (self.kind == ReduceKind::Mean).then_some(results[0].dtype.size());
        let steps = self.steps(x.dtype, layout);
        pieces(divisor.into_iter().chain(steps.bytes(x.dtype)))
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
