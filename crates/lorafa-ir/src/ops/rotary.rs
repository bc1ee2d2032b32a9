//! `rotary`: rotary position embedding.

use super::attrs::{AttrReader, Attrs};
use super::{Concat, Op, Operator, Slice, SliceAxis, Types, float, one, same_dtype};
use crate::build::Built;
use crate::dim::{Bindings, Dim};
use crate::grad::{Gradient, GradientError};
use crate::ids::ValueId;
use crate::interp::{Array, EvalError};
use crate::patch::{Patch, PatchError, Results};
use crate::types::{Shape, TensorType, TypeError, broadcast, line_up};

/// `rotary x, cos, sin`: turns each pair `(a, b)` of the last axis to `(a·cos - b·sin, b·cos + a·sin)`.
///
/// A pair is an element of the first half of the axis and the one at its place in the second half,
/// or two neighbours if `interleaved`. `cos` and `sin` are half as wide as `x` and broadcast to it;
/// `x: [batch, heads, seq, width]` has `cos: [batch or 1, 1, seq, width/2]`. `inverse` turns back,
/// which is the gradient.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Rotary {
    /// Pairs are neighbours.
    pub interleaved: bool,
    /// Turn the other way round: by `-sin`.
    pub inverse: bool,
}

impl Operator for Rotary {
    fn name(&self) -> &'static str {
        "rotary"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default()
            .flag("interleaved", self.interleaved)
            .flag("inverse", self.inverse)
    }

    fn arity(&self) -> (usize, usize) {
        (3, 3)
    }

    fn infer(&self, operands: &[&TensorType]) -> Result<Types, TypeError> {
        same_dtype(operands)?;
        let x = operands[0];
        float(x)?;
        let pairs = half_shape(&x.shape).ok_or_else(|| TypeError(format!("{x} has no pairs")))?;
        for table in &operands[1..] {
            let fits = table.rank() > 0
                && table.shape[table.rank() - 1] == pairs[pairs.len() - 1]
                && broadcast(&table.shape, &pairs).is_ok_and(|shape| line_up(&shape, &pairs));
            if !fits {
                return Err(TypeError(format!("{table} does not turn the pairs of {x}")));
            }
        }
        Ok(one(x.clone()))
    }

    fn bind(&self, _: &Bindings) -> Option<Op> {
        Some((*self).into())
    }

    fn writes_strided(&self) -> bool {
        true
    }

    /// Needs cos and sin; only where those are trained, the operand, too.
    fn gradient(&self, g: &mut Gradient<'_, '_>) -> Result<(), GradientError> {
        let dy = g.dy()?;
        let (x, cos, sin) = (g.operand(0), g.operand(1), g.operand(2));
        if g.wants(0) {
            let back = Rotary {
                inverse: !self.inverse,
                ..*self
            };
            let dx = g.add1(back.into(), &[dy, cos, sin])?;
            g.give(0, dx)?;
        }
        if g.wants(1) || g.wants(2) {
            let half = width(g, cos);
            let (a, b) = self.split(g, x, &half)?;
            let (da, db) = self.split(g, dy, &half)?;
            let (l, r) = (g.times(da, a)?, g.times(db, b)?);
            let d_cos = g.plus(l, r)?;
            g.give(1, d_cos)?;
            let (l, r) = (g.times(db, a)?, g.times(da, b)?);
            let d_sin = if self.inverse {
                g.minus(r, l)?
            } else {
                g.minus(l, r)?
            };
            g.give(2, d_sin)?;
        }
        Ok(())
    }

    fn flops(&self, operands: &[&TensorType], _: &[&TensorType]) -> u64 {
        3 * operands[0].elements().unwrap_or(0)
    }

    fn eval(&self, ins: &[&Array], results: &[&TensorType]) -> Result<Vec<Array>, EvalError> {
        let (x, cos, sin) = (ins[0], ins[1], ins[2]);
        let width = x.shape.last().copied().unwrap_or(0);
        let array = Array::from_fn(results[0], |i| {
            let (mut pair, mut other) = (i.to_vec(), i.to_vec());
            let last = i.len() - 1;
            let first = if self.interleaved {
                pair[last] = i[last] / 2;
                other[last] = i[last] ^ 1;
                i[last] % 2 == 0
            } else {
                pair[last] = i[last] % (width / 2);
                other[last] = (i[last] + width / 2) % width;
                i[last] < width / 2
            };
            let sign = if first == self.inverse { 1.0 } else { -1.0 };
            let (cos, sin) = (cos.at_broadcast(&pair), sin.at_broadcast(&pair));
            x.at(i) * cos + sign * x.at(&other) * sin
        });
        array.map(|a| vec![a])
    }

    fn decompose(&self, p: &mut Patch<'_>, ins: &[ValueId]) -> Option<Result<Results, PatchError>> {
        let y = self.build(p, ins[0], ins[1], ins[2]);
        Some(y.map(|y| [y].into_iter().collect()))
    }
}

impl Rotary {
    fn build(&self, p: &mut Patch<'_>, x: ValueId, cos: ValueId, sin: ValueId) -> Built {
        let half = width(p, cos);
        let (a, b) = self.split(p, x, &half)?;
        let (a_cos, b_cos) = (p.times(a, cos)?, p.times(b, cos)?);
        let (a_sin, b_sin) = (p.times(a, sin)?, p.times(b, sin)?);
        let (a, b) = if self.inverse {
            (p.plus(a_cos, b_sin)?, p.minus(b_cos, a_sin)?)
        } else {
            (p.minus(a_cos, b_sin)?, p.plus(b_cos, a_sin)?)
        };
        self.join(p, a, b)
    }

    /// The first and the second elements of all pairs, of which there are `half` along the last axis.
    fn split(
        &self,
        p: &mut Patch<'_>,
        x: ValueId,
        half: &Dim,
    ) -> Result<(ValueId, ValueId), PatchError> {
        let mut pairs = p.ty(x).shape.clone();
        let last = pairs.len() - 1;
        if !self.interleaved {
            let first = part(p, x, last, Dim::Known(0), half.clone())?;
            return Ok((first, part(p, x, last, half.clone(), half.clone())?));
        }
        pairs[last] = half.clone();
        let x = p.reshape(x, pairs.iter().cloned().chain([Dim::Known(2)]))?;
        let mut take = |at: i64| {
            let column = part(p, x, last + 1, Dim::Known(at), Dim::Known(1))?;
            p.reshape(column, pairs.iter().cloned())
        };
        Ok((take(0)?, take(1)?))
    }

    /// What [`Rotary::split`] parted.
    fn join(&self, p: &mut Patch<'_>, a: ValueId, b: ValueId) -> Built {
        let rank = p.ty(a).rank();
        if !self.interleaved {
            return p.add1(Concat::new(rank - 1).into(), &[a, b]);
        }
        let mut shape = p.ty(a).shape.clone();
        let (a, b) = (p.unsqueeze(a, rank)?, p.unsqueeze(b, rank)?);
        let pairs = p.add1(Concat::new(rank).into(), &[a, b])?;
        shape[rank - 1] = shape[rank - 1].times(&Dim::Known(2));
        p.reshape(pairs, shape)
    }
}

/// The last dimension of a table of angles. Type rules have seen to it that there is one.
fn width(p: &Patch<'_>, table: ValueId) -> Dim {
    p.ty(table).shape.last().cloned().unwrap_or(Dim::Known(1))
}

/// The shape with its last axis halved, if that is even.
fn half_shape(shape: &Shape) -> Option<Shape> {
    let mut half = shape.clone();
    let last = half.last_mut()?;
    *last = last.exact_div(&Dim::Known(2))?;
    Some(half)
}

fn part(p: &mut Patch<'_>, x: ValueId, axis: usize, start: Dim, len: Dim) -> Built {
    let axes = [SliceAxis {
        axis,
        start,
        len,
        step: 1,
    }];
    let axes = axes.into_iter().collect();
    p.add1(Slice { axes }.into(), &[x])
}

pub(super) fn parse(name: &str, a: &mut AttrReader<'_>) -> Option<Result<Op, String>> {
    (name == "rotary").then(|| {
        Ok(Rotary {
            interleaved: a.flag("interleaved"),
            inverse: a.flag("inverse"),
        }
        .into())
    })
}
