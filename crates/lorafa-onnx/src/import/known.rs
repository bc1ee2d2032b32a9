//! Integers that are known while importing: shapes, axes, indices.
//!
//! Exporters compute shapes with ops (`Shape`, `Gather`, `Concat`, …). The IR has no such ops, so
//! the importer evaluates them, over dimensions that may be symbolic.

mod elementwise;

use super::error::Fail;
use super::node::Node;
pub(super) use elementwise::wrapped;
use elementwise::{binary, select};
use lorafa_ir::ops::axis;
use lorafa_ir::{DType, Dim};

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
        "Concat" => concat(node, ins)?,
        "Slice" => slice(x, ins),
        "Reshape" => second.and_then(|to| reshape(x, to)),
        "Unsqueeze" => {
            let axes = axes(node, second)?;
            let rank = x.shape.len() + axes.len();
            let mut shape = x.shape.clone();
            for a in sorted(&axes, rank)? {
                shape.insert(a.min(shape.len()), 1);
            }
            Some(Known {
                dtype: x.dtype,
                shape,
                values: x.values.clone(),
            })
        }
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
        "Expand" => match (x.as_scalar(), second.and_then(Known::numbers)) {
            (Some(value), Some(shape)) => {
                let shape: Option<Vec<usize>> =
                    shape.iter().map(|d| usize::try_from(*d).ok()).collect();
                shape.and_then(|shape| {
                    let n = Known::count(&shape)?;
                    Some(Known {
                        dtype: x.dtype,
                        shape,
                        values: vec![value.clone(); n],
                    })
                })
            }
            _ => None,
        },
        "Range" => match (x.as_scalar(), second, ins.get(2).and_then(Option::as_ref)) {
            (Some(Dim::Known(a)), Some(b), Some(step)) => match (b.as_scalar(), step.as_scalar()) {
                (Some(Dim::Known(b)), Some(Dim::Known(1)))
                    if b.saturating_sub(*a) <= MAX_KNOWN as i64 =>
                {
                    Some(Known::list((*a..*b).map(Dim::Known)))
                }
                _ => None,
            },
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

/// The axes given, or else every axis of one.
fn squeeze(node: &Node<'_>, x: &Known, ins: &[Option<Known>]) -> Result<Option<Known>, Fail> {
    let rank = x.shape.len();
    let given = node.ints("axes").is_some() || ins.len() > 1;
    let gone = if given {
        sorted(&axes(node, ins.get(1).and_then(Option::as_ref))?, rank)?
    } else {
        (0..rank).filter(|axis| x.shape[*axis] == 1).collect()
    };
    if gone.iter().any(|axis| x.shape[*axis] != 1) {
        return Err("it squeezes an axis that is not one".into());
    }
    let kept = (0..rank).filter(|axis| !gone.contains(axis));
    Ok(Some(Known {
        dtype: x.dtype,
        shape: kept.map(|axis| x.shape[axis]).collect(),
        values: x.values.clone(),
    }))
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

fn gather(x: &Known, indices: &Known) -> Option<Known> {
    if x.shape.len() != 1 {
        return None;
    }
    let n = x.values.len() as i64;
    let pick = |i: i64| {
        x.values
            .get(usize::try_from(if i < 0 { i + n } else { i }).ok()?)
            .cloned()
    };
    let values = indices
        .numbers()?
        .into_iter()
        .map(pick)
        .collect::<Option<_>>()?;
    Some(Known {
        dtype: x.dtype,
        shape: indices.shape.clone(),
        values,
    })
}

fn concat(node: &Node<'_>, ins: &[Option<Known>]) -> Result<Option<Known>, Fail> {
    let Some(parts) = ins.iter().cloned().collect::<Option<Vec<Known>>>() else {
        return Ok(None);
    };
    if parts.iter().any(|p| p.shape.len() != 1) {
        return Ok(None);
    }
    axis(node.int("axis", 0), 1)?;
    let dtype = parts.first().map_or(DType::I64, |p| p.dtype);
    Ok(Some(Known {
        dtype,
        ..Known::list(parts.into_iter().flat_map(|p| p.values))
    }))
}

fn slice(x: &Known, ins: &[Option<Known>]) -> Option<Known> {
    let number = |i: usize, default: i64| match ins.get(i) {
        Some(Some(k)) => k.as_scalar()?.known(),
        Some(None) => None,
        None => Some(default),
    };
    let row = x.shape.len() == 2;
    if x.shape.len() > 2 || number(3, 0)? != 0 {
        return None;
    }
    let n = x.shape.first().copied().unwrap_or(0) as i64;
    let width = if row { x.shape[1] } else { 1 };
    let (start, end, step) = (number(1, 0)?, number(2, n)?, number(4, 1)?);
    let clamp = |i: i64, low: i64, high: i64| {
        (if i < 0 { i.saturating_add(n) } else { i }).clamp(low, high)
    };
    let mut picked = Vec::new();
    if step > 0 {
        let (mut i, end) = (clamp(start, 0, n), clamp(end, 0, n));
        while i < end {
            picked.push(i);
            i = i.saturating_add(step);
        }
    } else if step < 0 {
        let (mut i, end) = (clamp(start, -1, n - 1), clamp(end, -1, n - 1));
        let end = if ins[2].as_ref()?.as_scalar()?.known()? < -n {
            -1
        } else {
            end
        };
        while i > end {
            picked.push(i);
            i = i.saturating_add(step);
        }
    } else {
        return None;
    }
    let values: Vec<Dim> = picked
        .iter()
        .flat_map(|i| {
            x.values[*i as usize * width..(*i as usize + 1) * width]
                .iter()
                .cloned()
        })
        .collect();
    let shape = if row {
        vec![picked.len(), width]
    } else {
        vec![picked.len()]
    };
    Some(Known {
        dtype: x.dtype,
        shape,
        values,
    })
}

fn reshape(x: &Known, to: &Known) -> Option<Known> {
    let n = x.values.len();
    let mut shape = Vec::new();
    let to = to.numbers()?;
    let sizes: Vec<usize> = to.iter().filter_map(|d| usize::try_from(*d).ok()).collect();
    let rest = Known::count(&sizes)?;
    for d in &to {
        shape.push(match d {
            -1 if rest > 0 => n / rest,
            d => usize::try_from(*d).ok()?,
        });
    }
    (Known::count(&shape)? == n).then_some(Known {
        dtype: x.dtype,
        shape,
        values: x.values.clone(),
    })
}

fn transpose(node: &Node<'_>, x: &Known) -> Option<Known> {
    match (x.shape.as_slice(), node.ints("perm")) {
        ([rows, cols], None | Some([1, 0])) => {
            let values = (0..*cols).flat_map(|c| (0..*rows).map(move |r| (r, c)));
            let values = values
                .map(|(r, c)| x.values[r * cols + c].clone())
                .collect();
            Some(Known {
                dtype: x.dtype,
                shape: vec![*cols, *rows],
                values,
            })
        }
        ([] | [_], _) => Some(x.clone()),
        _ => None,
    }
}

fn constant_of_shape(node: &Node<'_>, x: &Known) -> Result<Option<Known>, Fail> {
    let Some(shape) = x.numbers() else {
        return Ok(None);
    };
    let shape: Option<Vec<usize>> = shape.iter().map(|d| usize::try_from(*d).ok()).collect();
    let Some((shape, n)) = shape.and_then(|s| Known::count(&s).map(|n| (s, n))) else {
        return Ok(None);
    };
    let Some(value) = node.tensor("value") else {
        return Ok(None);
    };
    let Some(dtype) = crate::dtype::from_onnx(value.data_type()).filter(|d| !d.is_float()) else {
        return Ok(None);
    };
    let crate::tensor::TensorPayload::Inline(bytes) = crate::tensor::payload(value)? else {
        return Ok(None);
    };
    let fill = crate::dtype::decode_ints(dtype, &bytes);
    let Some(fill) = fill.first() else {
        return Ok(None);
    };
    Ok(Some(Known {
        dtype,
        shape,
        values: vec![Dim::Known(*fill); n],
    }))
}
