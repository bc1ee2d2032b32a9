//! `layer_norm` and its gradient, written out: libtorch's own allocate what they return.
//!
//! Arithmetic is in the statistics' type. Of 16-bit operands, some rows at a time are copied to scratch in that type,
//! and the results copied back.

use lorafa_ir::layout::rows_at_once;
use lorafa_ir::ops::{LayerNorm, LayerNormGrad};

use super::matmul::{self, Factors};
use super::{Cx, Emitted, In};
use crate::error::KernelError;
use crate::view::View;

/// A row-major tensor as rows of what is normalized, whose axes it keeps.
fn rows(x: &View, axis: usize) -> Result<View, KernelError> {
    let mut shape = vec![x.shape()[..axis].iter().product()];
    shape.extend(&x.shape()[axis..]);
    x.reshaped(&shape)
}

/// `Σ x²` along axes; `var` allocates where there is one row.
pub(super) fn squares(x: &View, axes: &[i64], out: &View, cx: &mut Cx<'_>) -> Emitted {
    let args = [
        x.into(),
        In::Double(2.0),
        In::Ints(axes),
        In::Bool(true),
        In::None,
        out.into(),
    ];
    cx.call("linalg_vector_norm", "out", &args)?;
    cx.mul(out, out, out)
}

/// `Σ a·b` along each row.
fn dots(a: &View, b: &View, out: &View, cx: &mut Cx<'_>) -> Emitted {
    let rows = out.elements();
    let row = a.elements() / rows.max(1);
    let (a, b) = (a.reshaped(&[rows, 1, row])?, b.reshaped(&[rows, row, 1])?);
    let out = out.reshaped(&[rows, 1, 1])?;
    matmul::product([&a, &b, &out], Factors::PLAIN, cx)
}

/// The axes of `x` along which `statistics` has one number.
fn reduced(x: &View, axis: usize) -> Vec<i64> {
    (axis..x.rank()).map(|axis| axis as i64).collect()
}

/// Scale and bias, and a number in scratch.
struct Affine<'a> {
    scale: &'a View,
    bias: Option<&'a View>,
    number: View,
}

pub(super) fn forward(op: LayerNorm, cx: &mut Cx<'_>) -> Emitted {
    let (out, mean, rstd) = (&cx.outs[0], &cx.outs[1], &cx.outs[2]);
    let wide = mean.dtype;
    let number = cx.scratch(wide, &[]);
    if cx.ins[0].dtype == wide {
        let affine = Affine {
            scale: &cx.ins[1],
            bias: cx.ins.get(2),
            number,
        };
        return normalize(op, &cx.ins[0], [out, mean, rstd], &affine, cx);
    }
    let scale = cx.copied(&cx.ins[1], wide)?;
    let bias = match cx.ins.get(2) {
        Some(bias) => Some(cx.copied(bias, wide)?),
        None => None,
    };
    let affine = Affine {
        scale: &scale,
        bias: bias.as_ref(),
        number,
    };
    let x = rows(&cx.row_major(&cx.ins[0])?, op.axis)?;
    let (out, mean, rstd) = (
        rows(out, op.axis)?,
        rows(mean, op.axis)?,
        rows(rstd, op.axis)?,
    );
    let (widened, at_once) = widened(&x, wide, cx);
    let op = LayerNorm { axis: 1, ..op };
    for (from, len) in pieces(&x, at_once) {
        let some = widened.narrow(0, 0, len);
        let [x, out, mean, rstd] = [&x, &out, &mean, &rstd].map(|x| x.narrow(0, from, len));
        cx.copy(&some, &x)?;
        normalize(op, &some, [&some, &mean, &rstd], &affine, cx)?;
        cx.copy(&out, &some)?;
    }
    Ok(())
}

/// Room for as many rows of `x` as are worked on at once, and how many those are.
fn widened(x: &View, wide: lorafa_ir::DType, cx: &mut Cx<'_>) -> (View, u64) {
    let row: u64 = x.shape()[1..].iter().product();
    let at_once = rows_at_once(x.shape()[0], row * wide.size());
    let mut shape = vec![at_once];
    shape.extend(&x.shape()[1..]);
    (cx.scratch(wide, &shape), at_once)
}

/// Where the pieces of the rows begin, and how many rows they have.
fn pieces(x: &View, at_once: u64) -> impl Iterator<Item = (u64, u64)> + use<> {
    let rows = if x.elements() == 0 { 0 } else { x.shape()[0] };
    let starts = (0..rows).step_by(at_once as usize);
    starts.map(move |from| (from, at_once.min(rows - from)))
}

/// All in one type; the result may be where the operand is.
fn normalize(
    op: LayerNorm,
    x: &View,
    [y, mean, rstd]: [&View; 3],
    affine: &Affine<'_>,
    cx: &mut Cx<'_>,
) -> Emitted {
    if x.elements() == 0 {
        return Ok(());
    }
    let number = &affine.number;
    let count: u64 = x.shape()[op.axis..].iter().product();
    cx.fill(number, count as f64)?;
    cx.sum(x, &reduced(x, op.axis), true, mean)?;
    cx.call("div", "out", &[mean.into(), number.into(), mean.into()])?;
    cx.sub(x, mean, 1, y)?;
    squares(y, &reduced(y, op.axis), rstd, cx)?;
    cx.call("div", "out", &[rstd.into(), number.into(), rstd.into()])?;
    cx.fill(number, op.eps.0)?;
    cx.add(rstd, number, In::Int(1), rstd)?;
    cx.map("rsqrt", rstd, rstd)?;
    cx.mul(y, rstd, y)?;
    cx.mul(y, affine.scale, y)?;
    match affine.bias {
        Some(bias) => cx.add(y, bias, In::Int(1), y),
        None => Ok(()),
    }
}

/// What the gradient computes in, row-major and of as many rows as are worked on at once.
struct Room {
    normal: View,
    g_sum: View,
    projection: View,
    product: Option<View>,
}

impl Room {
    fn narrow(&self, len: u64) -> Room {
        let some = |x: &View| x.narrow(0, 0, len);
        Room {
            normal: some(&self.normal),
            g_sum: some(&self.g_sum),
            projection: some(&self.projection),
            product: self.product.as_ref().map(some),
        }
    }
}

/// With `g = dy·scale` and the normalized `n`: `dx = rstd·(g - mean(g) - n·mean(g·n))`, `dscale = Σ dy·n`, `dbias = Σ dy`.
pub(super) fn backward(op: LayerNormGrad, cx: &mut Cx<'_>) -> Emitted {
    let [dy, x, scale, mean, rstd] = [0, 1, 2, 3, 4].map(|slot| &cx.ins[slot]);
    let (dx, sums, wide) = (&cx.outs[0], &cx.outs[1..], mean.dtype);
    if x.dtype == wide {
        let room = Room {
            normal: cx.scratch(wide, x.shape()),
            g_sum: cx.scratch(wide, mean.shape()),
            projection: cx.scratch(wide, mean.shape()),
            product: op.weights.then(|| cx.scratch(wide, x.shape())),
        };
        if x.elements() == 0 {
            return sums.iter().try_for_each(|out| cx.fill(out, 0.0));
        }
        let given = Given {
            dy,
            x,
            scale,
            mean,
            rstd,
        };
        return gradient(op.axis, &given, &room, dx, sums, cx);
    }
    let (dy, x) = (cx.row_major(dy)?, cx.row_major(x)?);
    let (dy, x, dx) = (rows(&dy, op.axis)?, rows(&x, op.axis)?, rows(dx, op.axis)?);
    let (mean, rstd) = (rows(mean, op.axis)?, rows(rstd, op.axis)?);
    let scale = cx.copied(scale, wide)?;
    let (wide_dy, at_once) = widened(&x, wide, cx);
    let mut one = vec![at_once];
    one.extend(&mean.shape()[1..]);
    let room = Room {
        normal: widened(&x, wide, cx).0,
        g_sum: cx.scratch(wide, &one),
        projection: cx.scratch(wide, &one),
        product: op.weights.then(|| widened(&x, wide, cx).0),
    };
    let totals: Vec<View> = sums
        .iter()
        .map(|out| cx.scratch(wide, out.shape()))
        .collect();
    let part = op.weights.then(|| cx.scratch(wide, cx.outs[1].shape()));
    totals.iter().try_for_each(|total| cx.fill(total, 0.0))?;
    for (from, len) in pieces(&x, at_once) {
        let [dy, x, mean, rstd, dx] = [&dy, &x, &mean, &rstd, &dx].map(|x| x.narrow(0, from, len));
        let (room, wide_dy) = (room.narrow(len), wide_dy.narrow(0, 0, len));
        cx.copy(&wide_dy, &dy)?;
        cx.copy(&room.normal, &x)?;
        let given = Given {
            dy: &wide_dy,
            x: &room.normal.clone(),
            scale: &scale,
            mean: &mean,
            rstd: &rstd,
        };
        normal(&given, &room, cx)?;
        if let (Some(product), Some(part)) = (&room.product, &part) {
            cx.mul(&wide_dy, &room.normal, product)?;
            for (terms, total) in [product, &wide_dy].into_iter().zip(&totals) {
                sum_to(terms, 1, &room.g_sum, part, cx)?;
                cx.add(total, part, In::Int(1), total)?;
            }
        }
        project(1, &given, &room, &wide_dy, cx)?;
        cx.copy(&dx, &wide_dy)?;
    }
    let mut totals = sums.iter().zip(&totals);
    totals.try_for_each(|(out, total)| cx.copy(out, total))
}

/// The operands, in the statistics' type.
struct Given<'a> {
    dy: &'a View,
    x: &'a View,
    scale: &'a View,
    mean: &'a View,
    rstd: &'a View,
}

fn gradient(
    axis: usize,
    given: &Given<'_>,
    room: &Room,
    dx: &View,
    sums: &[View],
    cx: &mut Cx<'_>,
) -> Emitted {
    normal(given, room, cx)?;
    if let Some(product) = &room.product {
        cx.mul(given.dy, &room.normal, product)?;
        for (slot, out) in sums.iter().enumerate() {
            if slot == 1 {
                cx.copy(product, given.dy)?;
            }
            sum_to(product, axis, &room.g_sum, out, cx)?;
        }
    }
    project(axis, given, room, dx, cx)
}

/// The normalized operand.
fn normal(given: &Given<'_>, room: &Room, cx: &mut Cx<'_>) -> Emitted {
    cx.sub(given.x, given.mean, 1, &room.normal)?;
    cx.mul(&room.normal, given.rstd, &room.normal)
}

/// `dx`, which may be where `dy` is.
fn project(axis: usize, given: &Given<'_>, room: &Room, g: &View, cx: &mut Cx<'_>) -> Emitted {
    let Room {
        normal,
        g_sum,
        projection,
        ..
    } = room;
    let count: u64 = g.shape()[axis..].iter().product();
    cx.mul(given.dy, given.scale, g)?;
    cx.sum(g, &reduced(g, axis), true, g_sum)?;
    dots(g, normal, projection, cx)?;
    let minus_mean = || In::Double(-1.0 / count as f64);
    cx.add(g, g_sum, minus_mean(), g)?;
    let args = [
        g.into(),
        normal.into(),
        projection.into(),
        minus_mean(),
        g.into(),
    ];
    cx.call("addcmul", "out", &args)?;
    cx.mul(g, given.rstd, g)
}

/// `out = Σ x` over the axes that `out` lacks or has as one, for a row-major `x`.
fn sum_to(x: &View, axis: usize, ones: &View, out: &View, cx: &mut Cx<'_>) -> Emitted {
    let rows = x.shape()[..axis].iter().product();
    let row = x.shape()[axis..].iter().product();
    if out.elements() == row {
        // A product with ones, as a sum of many rows takes memory on a GPU.
        let (x, out) = (x.reshaped(&[rows, row])?, out.reshaped(&[1, row])?);
        let ones = ones.reshaped(&[1, rows])?;
        cx.fill(&ones, 1.0)?;
        return matmul::product([&ones, &x, &out], Factors::PLAIN, cx);
    }
    let skip = x.rank() - out.rank();
    let mut shape = vec![1; skip];
    shape.extend(out.shape());
    let gone = (0..x.rank()).filter(|axis| shape[*axis] == 1);
    let axes: Vec<i64> = gone.map(|axis| axis as i64).collect();
    cx.sum(x, &axes, true, &out.reshaped(&shape)?)
}
