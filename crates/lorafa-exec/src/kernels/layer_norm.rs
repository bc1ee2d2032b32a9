//! `layer_norm` and its gradient, written out: libtorch's own allocate what they return.
//!
//! Arithmetic is in the statistics' type. What is of a 16-bit type is copied to scratch in that type, and the result
//! copied back.

use lorafa_ir::DType;
use lorafa_ir::ops::{LayerNorm, LayerNormGrad};

use super::{Cx, Emitted, In};
use crate::error::KernelError;
use crate::view::View;

fn axes(from: usize, rank: usize) -> Vec<i64> {
    (from..rank).map(|axis| axis as i64).collect()
}

/// The operand, as it is if it has the type already.
fn widened(x: &View, dtype: DType, cx: &mut Cx<'_>) -> Result<View, KernelError> {
    if x.dtype == dtype {
        Ok(x.clone())
    } else {
        cx.copied(x, dtype)
    }
}

pub(super) fn forward(op: LayerNorm, cx: &mut Cx<'_>) -> Emitted {
    let (out, mean, rstd) = (&cx.outs[0], &cx.outs[1], &cx.outs[2]);
    let wide = mean.dtype;
    let x = widened(&cx.ins[0], wide, cx)?;
    let scale = widened(&cx.ins[1], wide, cx)?;
    let bias = match cx.ins.get(2) {
        Some(bias) => Some(widened(bias, wide, cx)?),
        None => None,
    };
    let axes = axes(op.axis, x.rank());
    let count: u64 = x.shape()[op.axis..].iter().product();
    let number = cx.literal(wide, count as f64)?;
    if x.elements() == 0 {
        return Ok(());
    }
    cx.sum(&x, &axes, true, mean)?;
    cx.call("div", "out", &[mean.into(), (&number).into(), mean.into()])?;
    // In the result, or where the widened operand is.
    let y = if out.dtype == wide { out } else { &x };
    cx.sub(&x, mean, 1, y)?;
    // Each row with itself; `var` allocates where there is one row.
    let rows: u64 = x.shape()[..op.axis].iter().product();
    let (line, column) = (
        y.reshaped(&[rows, 1, count])?,
        y.reshaped(&[rows, count, 1])?,
    );
    let squares = rstd.reshaped(&[rows, 1, 1])?;
    cx.call(
        "bmm",
        "out",
        &[(&line).into(), (&column).into(), (&squares).into()],
    )?;
    cx.call("div", "out", &[rstd.into(), (&number).into(), rstd.into()])?;
    cx.fill(&number, op.eps.0)?;
    cx.add(rstd, &number, In::Int(1), rstd)?;
    cx.map("rsqrt", rstd, rstd)?;
    cx.mul(y, rstd, y)?;
    cx.mul(y, &scale, y)?;
    if let Some(bias) = bias {
        cx.add(y, &bias, In::Int(1), y)?;
    }
    cx.copy(out, y)
}

/// With `g = dy·scale` and the normalized `n`: `dx = rstd·(g - mean(g) - n·mean(g·n))`, `dscale = Σ dy·n`, `dbias = Σ dy`.
pub(super) fn backward(op: LayerNormGrad, cx: &mut Cx<'_>) -> Emitted {
    let [dy, x, scale, mean, rstd] = [0, 1, 2, 3, 4].map(|slot| &cx.ins[slot]);
    let (dx, wide) = (&cx.outs[0], mean.dtype);
    let dy = widened(dy, wide, cx)?;
    let scale = widened(scale, wide, cx)?;
    let normal = if x.dtype == wide {
        cx.scratch(wide, x.shape())
    } else {
        cx.copied(x, wide)?
    };
    let rows: u64 = x.shape()[..op.axis].iter().product();
    let count: u64 = x.shape()[op.axis..].iter().product();
    let (g_sum, projection) = (
        cx.scratch(wide, mean.shape()),
        cx.scratch(wide, &[rows, 1, 1]),
    );
    let product = op.weights.then(|| cx.scratch(wide, x.shape()));
    let narrow = op.weights && cx.outs[1].dtype != wide;
    let sum = narrow.then(|| cx.scratch(wide, cx.outs[1].shape()));
    if x.elements() == 0 {
        return cx.outs[1..].iter().try_for_each(|out| cx.fill(out, 0.0));
    }

    let centred = if x.dtype == wide { x } else { &normal };
    cx.sub(centred, mean, 1, &normal)?;
    cx.mul(&normal, rstd, &normal)?;
    if let Some(product) = product {
        cx.mul(&dy, &normal, &product)?;
        for (terms, out) in [&product, &dy].into_iter().zip(&cx.outs[1..]) {
            let to = sum.as_ref().unwrap_or(out);
            sum_to(terms, to, cx)?;
            cx.copy(out, to)?;
        }
    }
    // In the result, or where the widened gradient is.
    let g = if dx.dtype == wide { dx } else { &dy };
    cx.mul(&dy, &scale, g)?;
    cx.sum(g, &axes(op.axis, x.rank()), true, &g_sum)?;
    let (line, column) = (
        g.reshaped(&[rows, 1, count])?,
        normal.reshaped(&[rows, count, 1])?,
    );
    cx.call(
        "bmm",
        "out",
        &[(&line).into(), (&column).into(), (&projection).into()],
    )?;
    let projection = projection.reshaped(mean.shape())?;
    let minus_mean = || In::Double(-1.0 / count as f64);
    cx.add(g, &g_sum, minus_mean(), g)?;
    let args = [
        g.into(),
        (&normal).into(),
        (&projection).into(),
        minus_mean(),
        g.into(),
    ];
    cx.call("addcmul", "out", &args)?;
    cx.mul(g, rstd, g)?;
    cx.copy(dx, g)
}

/// `out = Σ x` over the axes that `out` lacks or has as one.
fn sum_to(x: &View, out: &View, cx: &mut Cx<'_>) -> Emitted {
    let skip = x.rank() - out.rank();
    let mut shape = vec![1; skip];
    shape.extend(out.shape());
    let gone = (0..x.rank()).filter(|axis| shape[*axis] == 1);
    let axes: Vec<i64> = gone.map(|axis| axis as i64).collect();
    cx.sum(x, &axes, true, &out.reshaped(&shape)?)
}
