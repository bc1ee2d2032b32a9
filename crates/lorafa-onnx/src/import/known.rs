//! Integers that are known while importing: shapes, axes, indices.
//!
//! Exporters compute shapes with ops (`Shape`, `Gather`, `Concat`, …). The IR has no such ops, so
//! the importer evaluates them, over dimensions that may be symbolic.

mod elementwise;
mod movement;

use super::error::Fail;
use super::node::Node;
pub(super) use elementwise::wrapped;
use elementwise::{binary, select};
use lorafa_ir::ops::axis;
use lorafa_ir::{DType, Dim};
use movement::{
    concat, constant_of_shape, expand, gather, range, reshape, slice, squeeze, transpose, unsqueeze,
};

/// The most integers that are tracked: shapes and permutations are short, masks are data.
pub(super) const MAX_KNOWN: usize = 256;

/// An integer tensor whose elements are known.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Known {
    pub(super) dtype: DType,
    pub(super) shape: Vec<usize>,
    pub(super) values: Vec<Dim>,
}

impl Known {
    pub(super) fn list(values: impl IntoIterator<Item = Dim>) -> Known {
        let values: Vec<Dim> = values.into_iter().collect();
        Known {
            dtype: DType::I64,
            shape: vec![values.len()],
            values,
        }
    }

    pub(super) fn scalar(value: Dim) -> Known {
        Known {
            dtype: DType::I64,
            shape: Vec::new(),
            values: vec![value],
        }
    }

    /// The one element.
    pub(super) fn as_scalar(&self) -> Option<&Dim> {
        match self.values.as_slice() {
            [only] => Some(only),
            _ => None,
        }
    }

    /// The elements, if all are numbers.
    pub(super) fn numbers(&self) -> Option<Vec<i64>> {
        self.values.iter().map(Dim::known).collect()
    }

    /// The elements repeated to a shape that this one broadcasts to, row-major.
    fn spread(&self, shape: &[usize]) -> impl Iterator<Item = &Dim> {
        let new = shape.len() - self.shape.len();
        let position = move |flat: usize| {
            let (mut rest, mut at, mut stride) = (flat, 0, 1);
            for (axis, size) in shape.iter().enumerate().rev() {
                let index = rest % size;
                rest /= size;
                if axis >= new {
                    let own = self.shape[axis - new];
                    at += if own == 1 { 0 } else { index * stride };
                    stride *= own;
                }
            }
            at
        };
        let count = shape.iter().product();
        (0..count).map(move |flat| &self.values[position(flat)])
    }

    fn count(shape: &[usize]) -> Option<usize> {
        shape
            .iter()
            .try_fold(1usize, |n, d| n.checked_mul(*d))
            .filter(|n| *n <= MAX_KNOWN)
    }
}

/// Evaluates a node on known inputs; `None` if it is not integer arithmetic, or cannot be
/// decided.
pub(super) fn evaluate(node: &Node<'_>, ins: &[Option<Known>]) -> Result<Option<Known>, Fail> {
    let Some(Some(x)) = ins.first() else {
        return Ok(None);
    };
    let second = ins.get(1).and_then(Option::as_ref);
    Ok(match node.op() {
        "Identity" => Some(x.clone()),
        "Neg" => Some(map(x, |d| Dim::Known(0).minus(d))),
        "Abs" => numeric(x, i64::saturating_abs),
        "Not" => numeric(x, |n| i64::from(n == 0)),
        "Add" | "Sub" | "Mul" | "Div" | "Max" | "Min" | "Equal" | "Less" | "Greater"
        | "LessOrEqual" | "GreaterOrEqual" | "And" | "Or" | "Mod"
            if node.proto.input.len() == 2 =>
        {
            second.and_then(|y| binary(node, x, y))
        }
        "Where" => match (second, ins.get(2).and_then(Option::as_ref)) {
            (Some(a), Some(b)) => select(x, a, b),
            _ => None,
        },
        "Gather" => match second {
            Some(indices) if node.int("axis", 0) == 0 => gather(x, indices),
            _ => None,
        },
        "Concat" | "ConcatTraining" => concat(node, ins)?,
        "Slice" => slice(x, ins),
        "Reshape" => second.and_then(|to| reshape(x, to)),
        "Unsqueeze" => unsqueeze(node, x, second)?,
        "Squeeze" => squeeze(node, x, ins)?,
        "Transpose" => transpose(node, x),
        "ReduceProd" if x.shape.len() == 1 => {
            let product = x.values.iter().fold(Dim::Known(1), |p, d| p.times(d));
            let keep = node.int("keepdims", 1) != 0;
            Some(Known {
                dtype: x.dtype,
                shape: if keep { vec![1] } else { Vec::new() },
                values: vec![product],
            })
        }
        "ConstantOfShape" => constant_of_shape(node, x)?,
        "Expand" => second.and_then(|shape| expand(x, shape)),
        "Range" => match (second, ins.get(2).and_then(Option::as_ref)) {
            (Some(limit), Some(step)) => range(x, limit, step),
            _ => None,
        },
        _ => None,
    })
}

/// Axes as an input (since opset 13) or as an attribute.
pub(super) fn axes(node: &Node<'_>, input: Option<&Known>) -> Result<Vec<i64>, Fail> {
    if let Some(axes) = node.ints("axes") {
        return Ok(axes.to_vec());
    }
    let axes = input.ok_or("its axes are not known before the step runs")?;
    axes.numbers()
        .ok_or_else(|| "its axes depend on symbolic dimensions".into())
}

/// Axes resolved against a rank, ascending and distinct.
pub(super) fn sorted(axes: &[i64], rank: usize) -> Result<Vec<usize>, Fail> {
    let mut sorted: Vec<usize> = axes
        .iter()
        .map(|a| axis(*a, rank))
        .collect::<Result<_, _>>()?;
    sorted.sort_unstable();
    if sorted.windows(2).any(|w| w[0] == w[1]) {
        return Err("an axis is given twice".into());
    }
    Ok(sorted)
}

fn map(x: &Known, f: impl Fn(&Dim) -> Dim) -> Known {
    Known {
        dtype: x.dtype,
        shape: x.shape.clone(),
        values: x.values.iter().map(f).collect(),
    }
}

fn numeric(x: &Known, f: impl Fn(i64) -> i64) -> Option<Known> {
    let values = x.numbers()?.into_iter().map(|n| Dim::Known(f(n))).collect();
    Some(Known {
        dtype: x.dtype,
        shape: x.shape.clone(),
        values,
    })
}
