//! `slice` and `pad`: part of a tensor, and its opposite.

use super::attrs::{AttrReader, Attrs};
use super::{Op, Operator, Scalar, Types, one};
use crate::dim::{Bindings, Dim};
use crate::grad::{Gradient, GradientError};
use crate::interp::{Array, EvalError};
use crate::layout::Layout;
use crate::types::{Shape, TensorType, TypeError};
use smallvec::SmallVec;
use std::fmt;

/// What `slice` takes of one axis: `axis:start:len:step`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct SliceAxis {
    /// The axis.
    pub axis: usize,
    /// The first index, counted from the front.
    pub start: Dim,
    /// How many.
    pub len: Dim,
    /// Distance between them; negative to go backwards.
    pub step: i64,
}

impl fmt::Display for SliceAxis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}:{}", self.axis, self.start, self.len, self.step)
    }
}

impl std::str::FromStr for SliceAxis {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let [axis, start, len, step] = parts.as_slice() else {
            return Err(format!("expected `axis:start:len:step`, found `{text}`"));
        };
        Ok(SliceAxis {
            axis: axis.parse().map_err(|_| format!("bad axis `{axis}`"))?,
            start: start.parse()?,
            len: len.parse()?,
            step: step.parse().map_err(|_| format!("bad step `{step}`"))?,
        })
    }
}

/// `slice v1 {axes=[1:0:seq:1]}`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Slice {
    /// What to take, for the axes that are not taken whole.
    pub axes: SmallVec<[SliceAxis; 1]>,
}

impl Slice {
    /// So many neighbours along one axis.
    pub fn along(axis: usize, start: impl Into<Dim>, len: impl Into<Dim>) -> Self {
        let part = SliceAxis {
            axis,
            start: start.into(),
            len: len.into(),
            step: 1,
        };
        Slice {
            axes: [part].into_iter().collect(),
        }
    }

    /// Puts a slice back among zeros where a tensor of this shape had it: its gradient. `None` for steps other than 1.
    pub fn opposite(&self, shape: &Shape) -> Option<Pad> {
        let none = Shape::from_elem(Dim::Known(0), shape.len());
        let mut pad = Pad {
            before: none.clone(),
            after: none,
            value: Scalar(0.0),
        };
        for a in &self.axes {
            let dim = shape.get(a.axis).filter(|_| a.step == 1)?;
            pad.before[a.axis] = a.start.clone();
            pad.after[a.axis] = dim.minus(&a.start).minus(&a.len);
        }
        Some(pad)
    }
}

impl Operator for Slice {
    fn name(&self) -> &'static str {
        "slice"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().list("axes", &self.axes)
    }

    fn arity(&self) -> (usize, usize) {
        (1, 1)
    }

    fn infer(&self, operands: &[&TensorType]) -> Result<Types, TypeError> {
        let x = operands[0];
        let mut shape = x.shape.clone();
        for (i, a) in self.axes.iter().enumerate() {
            if self.axes[..i].iter().any(|b| b.axis == a.axis) {
                return Err(TypeError(format!("axis {} is sliced twice", a.axis)));
            }
            let Some(dim) = shape.get_mut(a.axis) else {
                return Err(TypeError(format!(
                    "axis {} is out of range for {x}",
                    a.axis
                )));
            };
            if let (Dim::Known(n), Dim::Known(start), Dim::Known(len)) = (&*dim, &a.start, &a.len) {
                let last = start.saturating_add(len.saturating_sub(1).saturating_mul(a.step));
                let inside = |i: i64| (0..*n).contains(&i);
                if a.step == 0 || *len < 0 || *len > 0 && !(inside(*start) && inside(last)) {
                    return Err(TypeError(format!("slice {a} leaves {x}")));
                }
            }
            *dim = a.len.clone();
        }
        Ok(one(x.with_shape(shape)))
    }

    fn bind(&self, b: &Bindings) -> Option<Op> {
        let axes = self.axes.iter().map(|a| {
            Some(SliceAxis {
                start: a.start.bind(b)?,
                len: a.len.bind(b)?,
                ..*a
            })
        });
        Some(
            Slice {
                axes: axes.collect::<Option<_>>()?,
            }
            .into(),
        )
    }

    /// Needs nothing.
    fn gradient(&self, g: &mut Gradient<'_, '_>) -> Result<(), GradientError> {
        let dy = g.dy()?;
        let shape = g.ty(g.operand(0)).shape.clone();
        let pad = self.opposite(&shape).ok_or_else(|| {
            GradientError::Unsupported("`slice` has a gradient only for step 1".into())
        })?;
        let dx = g.add1(pad.into(), &[dy])?;
        Ok(g.give(0, dx)?)
    }

    fn view(&self, operand: (&TensorType, &Layout), _: &TensorType) -> Option<Layout> {
        let mut layout = operand.1.clone();
        for a in &self.axes {
            let step = u64::try_from(a.step).ok()?;
            let start = u64::try_from(a.start.known()?).ok()?;
            let stride = layout.strides[a.axis];
            layout.offset = start.checked_mul(stride)?.checked_add(layout.offset)?;
            layout.shape[a.axis] = u64::try_from(a.len.known()?).ok()?;
            layout.strides[a.axis] = stride.checked_mul(step)?;
        }
        Some(layout)
    }

    fn flops(&self, _: &[&TensorType], _: &[&TensorType]) -> u64 {
        0
    }

    fn eval(&self, x: &[&Array], results: &[&TensorType]) -> Result<Vec<Array>, EvalError> {
        let array = Array::from_fn(results[0], |i| {
            let mut from = i.to_vec();
            for a in &self.axes {
                let start = a.start.known().unwrap_or(0);
                from[a.axis] = (start + i[a.axis] as i64 * a.step) as usize;
            }
            x[0].at(&from)
        });
        array.map(|a| vec![a])
    }
}

/// `pad v1 {before=[0,1], after=[0,0], value=0.0}`; a negative amount cuts.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Pad {
    /// How much in front, per axis.
    pub before: Shape,
    /// How much behind, per axis.
    pub after: Shape,
    /// What with.
    pub value: Scalar,
}

impl Operator for Pad {
    fn name(&self) -> &'static str {
        "pad"
    }

    fn attrs(&self) -> Attrs {
        let attrs = Attrs::default()
            .dims("before", &self.before)
            .dims("after", &self.after);
        attrs.with("value", self.value)
    }

    fn arity(&self) -> (usize, usize) {
        (1, 1)
    }

    fn infer(&self, operands: &[&TensorType]) -> Result<Types, TypeError> {
        let x = operands[0];
        if self.before.len() != x.rank() || self.after.len() != x.rank() {
            return Err(TypeError(format!(
                "expected one amount for each axis of {x}"
            )));
        }
        let sides = self.before.iter().zip(&self.after);
        Ok(one(x.with_shape(
            x.shape
                .iter()
                .zip(sides)
                .map(|(d, (b, a))| d.plus(b).plus(a)),
        )))
    }

    fn bind(&self, b: &Bindings) -> Option<Op> {
        let bind = |s: &Shape| s.iter().map(|d| d.bind(b)).collect::<Option<Shape>>();
        let (before, after) = (bind(&self.before)?, bind(&self.after)?);
        Some(
            Pad {
                before,
                after,
                value: self.value,
            }
            .into(),
        )
    }

    /// Needs nothing.
    fn gradient(&self, g: &mut Gradient<'_, '_>) -> Result<(), GradientError> {
        let dy = g.dy()?;
        let ty = g.ty(g.operand(0)).clone();
        if self
            .before
            .iter()
            .chain(&self.after)
            .any(|d| d.known().is_none_or(|n| n < 0))
        {
            return Err(GradientError::Unsupported(
                "`pad` that cuts has no gradient rule".into(),
            ));
        }
        let axes = (0..ty.rank()).map(|axis| SliceAxis {
            axis,
            start: self.before[axis].clone(),
            len: ty.shape[axis].clone(),
            step: 1,
        });
        let dx = g.add1(
            Slice {
                axes: axes.collect(),
            }
            .into(),
            &[dy],
        )?;
        Ok(g.give(0, dx)?)
    }

    fn eval(&self, x: &[&Array], results: &[&TensorType]) -> Result<Vec<Array>, EvalError> {
        let before: Vec<i64> = self.before.iter().map(|d| d.known().unwrap_or(0)).collect();
        let array = Array::from_fn(results[0], |i| {
            let from: Option<Vec<usize>> = i
                .iter()
                .zip(&before)
                .zip(&x[0].shape)
                .map(|((i, b), n)| usize::try_from(*i as i64 - b).ok().filter(|i| i < n))
                .collect();
            from.map_or(results[0].dtype.exact(self.value.0), |from| x[0].at(&from))
        });
        array.map(|a| vec![a])
    }
}

pub(super) fn parse(name: &str, a: &mut AttrReader<'_>) -> Option<Result<Op, String>> {
    match name {
        "slice" => Some(slice(a)),
        "pad" => Some(pad(a)),
        _ => None,
    }
}

fn slice(a: &mut AttrReader<'_>) -> Result<Op, String> {
    let axes = a.items("axes")?.into_iter().map(str::parse);
    Ok(Slice {
        axes: axes.collect::<Result<_, _>>()?,
    }
    .into())
}

fn pad(a: &mut AttrReader<'_>) -> Result<Op, String> {
    let (before, after) = (a.dims("before")?, a.dims("after")?);
    Ok(Pad {
        before,
        after,
        value: a.float("value")?,
    }
    .into())
}
