//! `rms_norm` and its gradient, written out: libtorch's own allocate what they return.
//!
//! Arithmetic is in the type of `rstd`. Of 16-bit operands, some rows at a time are copied to scratch in that type.

use lorafa_ir::layout::rows_at_once;
use lorafa_ir::ops::{RmsNorm, RmsNormGrad};

use super::layer_norm::squares;
use super::matmul::{self, Factors};
use super::{Cx, Emitted, In};
use crate::error::KernelError;
use crate::view::View;

/// A row-major tensor as rows of what is normalized.
fn rows(x: &View, axis: usize) -> Result<View, KernelError> {
    let (rows, row) = x.shape().split_at(axis);
    x.reshaped(&[rows.iter().product(), row.iter().product()])
}

pub(super) fn forward(op: RmsNorm, cx: &mut Cx<'_>) -> Emitted {
    let (weight, out, rstd) = (&cx.ins[1], &cx.outs[0], &cx.outs[1]);
    let wide = rstd.dtype;
    let eps = cx.literal(wide, op.eps.0)?;
    let x = cx.row_major(&cx.ins[0])?;
    let (x, y, rstd) = (
        rows(&x, op.axis)?,
        rows(out, op.axis)?,
        rows(rstd, op.axis)?,
    );
    let (count, row) = (x.shape()[0], x.shape()[1]);
    let at_once = rows_at_once(count, row * wide.size());
    let widened = (x.dtype != wide).then(|| cx.scratch(wide, &[at_once, row]));
    if x.elements() == 0 {
        // The mean of nothing.
        return cx.fill(&rstd, f64::NAN);
    }
    // 1/√(Σx²/n + eps), then x·rstd.
    let normalize = |x: &View, rstd: &View, y: &View, cx: &mut Cx<'_>| {
        squares(x, &[1], rstd, cx)?;
        cx.add(&eps, rstd, In::Double(1.0 / row as f64), rstd)?;
        cx.map("rsqrt", rstd, rstd)?;
        cx.mul(x, rstd, y)
    };
    match widened {
        None => normalize(&x, &rstd, &y, cx)?,
        Some(widened) => {
            for from in (0..count).step_by(at_once as usize) {
                let len = at_once.min(count - from);
                let some = widened.narrow(0, 0, len);
                cx.copy(&some, &x.narrow(0, from, len))?;
                normalize(&some, &rstd.narrow(0, from, len), &some, cx)?;
                cx.copy(&y.narrow(0, from, len), &some)?;
            }
        }
    }
    cx.mul(out, weight, out)
}

/// See [`RmsNormGrad`] for the formulas. With `p = Σ g·x`, the term along `x` is `x·p·rstd²/n`.
pub(super) fn backward(op: RmsNormGrad, cx: &mut Cx<'_>) -> Emitted {
    let wide = cx.ins[3].dtype;
    let half = cx.ins[1].dtype != wide;
    let (dx, rstd) = (rows(&cx.outs[0], op.axis)?, rows(&cx.ins[3], op.axis)?);
    let (count, row) = (dx.shape()[0], dx.shape()[1]);
    let at_once = rows_at_once(count, row * wide.size());

    let numbers = cx.scratch(wide, &[at_once, 1]);
    let (dy, x) = (cx.row_major(&cx.ins[0])?, cx.row_major(&cx.ins[1])?);
    let (dy, x) = (rows(&dy, op.axis)?, rows(&x, op.axis)?);
    let widened = half.then(|| {
        [
            cx.scratch(wide, &[at_once, row]),
            cx.scratch(wide, &[at_once, row]),
        ]
    });
    let weight = if half {
        cx.copied(&cx.ins[2], wide)?
    } else {
        cx.row_major(&cx.ins[2])?
    };
    let column = weight.reshaped(&[row, 1])?;
    let weight = weight.reshaped(&[1, row])?;
    let products = cx.scratch(wide, &[at_once, row]);
    let sum = match cx.outs.get(1) {
        Some(_) if half => Some(cx.scratch(wide, &[1, row])),
        Some(out) => Some(out.reshaped(&[1, row])?),
        None => None,
    };
    if dx.elements() == 0 {
        return cx.outs[1..].iter().try_for_each(|out| cx.fill(out, 0.0));
    }

    for from in (0..count).step_by(at_once as usize) {
        let len = at_once.min(count - from);
        let some = |x: &View| x.narrow(0, from, len);
        let (mut dy, mut x, dx, rstd) = (some(&dy), some(&x), some(&dx), some(&rstd));
        let mut g = dx.clone();
        if let Some([wide_dy, wide_x]) = &widened {
            let [wide_dy, wide_x] = [wide_dy, wide_x].map(|x| x.narrow(0, 0, len));
            cx.copy(&wide_dy, &dy)?;
            cx.copy(&wide_x, &x)?;
            (dy, x, g) = (wide_dy.clone(), wide_x, wide_dy);
        }
        let products = products.narrow(0, 0, len);
        cx.mul(&dy, &x, &products)?;
        let p = numbers.narrow(0, 0, len);
        matmul::product([&products, &column, &p], Factors::PLAIN, cx)?;
        if let Some(sum) = &sum {
            let line = rstd.reshaped(&[1, len])?;
            let factors = if from == 0 {
                Factors::PLAIN
            } else {
                Factors::ADDED
            };
            matmul::product([&line, &products, sum], factors, cx)?;
        }
        cx.mul(&dy, &weight, &g)?;
        cx.mul(&p, &rstd, &p)?;
        cx.mul(&p, &rstd, &p)?;
        let minus_mean = In::Double(-1.0 / row as f64);
        let args = [
            (&g).into(),
            (&x).into(),
            (&p).into(),
            minus_mean,
            (&g).into(),
        ];
        cx.call("addcmul", "out", &args)?;
        cx.mul(&g, &rstd, &g)?;
        cx.copy(&dx, &g)?;
    }
    match (cx.outs.get(1), sum) {
        (Some(out), Some(sum)) if half => cx.copy(&out.reshaped(&[1, row])?, &sum),
        _ => Ok(()),
    }
}
