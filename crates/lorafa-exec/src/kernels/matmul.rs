//! `matmul`: one `mm` where the rows of a batch lie evenly, `bmm` over batches otherwise.

use lorafa_ir::interp::for_each_index;
use lorafa_ir::ops::MatMul;

use super::{Cx, Emitted, In};
use crate::error::KernelError;
use crate::view::View;

pub(super) fn matmul(op: MatMul, cx: &mut Cx<'_>) -> Emitted {
    let (a, b) = (matrices(&cx.ins[0], cx)?, matrices(&cx.ins[1], cx)?);
    let out = cx.outs[0].clone();
    if out.elements() == 0 {
        return Ok(());
    }
    let sum = cx.ins.get(2);
    if let Some(c) = sum {
        cx.copy(&out, c)?;
    }
    let factors = Factors {
        alpha: op.alpha.0,
        beta: f64::from(u8::from(sum.is_some())),
    };
    if a.elements() == 0 {
        return if sum.is_some() {
            Ok(())
        } else {
            cx.fill(&out, 0.0)
        };
    }
    let a = if op.trans_a { a.swapped() } else { a };
    let b = if op.trans_b { b.swapped() } else { b };
    let (m, k) = (a.shape()[a.rank() - 2], a.shape()[a.rank() - 1]);
    let n = out.shape()[out.rank() - 1];

    // A weight: all rows of the batch at once.
    let batch: u64 = out.shape()[..out.rank() - 2].iter().product();
    if b.shape()[..b.rank() - 2].iter().all(|dim| *dim == 1) {
        let rows = a.reshape(&[batch * m, k]);
        if let Some(rows) = rows.filter(|rows| rows.layout.matrix_fits()) {
            let b = b.reshaped(&[k, n])?;
            let out = out.reshaped(&[batch * m, n])?;
            return product([&rows, &b, &out], factors, cx);
        }
    }
    batched([&a, &b, &out], factors, cx)
}

/// The operand, copied to scratch if BLAS cannot read its matrices.
pub(super) fn matrices(x: &View, cx: &mut Cx<'_>) -> Result<View, KernelError> {
    if x.layout.matrix_fits() {
        Ok(x.clone())
    } else {
        cx.copied(x, x.dtype)
    }
}

/// One `bmm` over the innermost batch axes that have one stride in both operands, for each place on those outside.
fn batched([a, b, out]: [&View; 3], factors: Factors, cx: &mut Cx<'_>) -> Emitted {
    let depth = out.rank() - 2;
    let whole = |x: &View| {
        let mut shape = out.shape()[..depth].to_vec();
        shape.extend(&x.shape()[x.rank() - 2..]);
        x.broadcast(&shape)
    };
    let (a, b) = (whole(a), whole(b));
    let merge = |x: &View, axis: usize| {
        let count: u64 = x.shape()[axis..depth].iter().product();
        let matrix = &x.shape()[depth..];
        let mut inner = x.clone();
        for _ in 0..axis {
            inner = inner.select(0, 0);
        }
        // Of the batch axes alone, so that they never merge with the matrix's.
        let mut batch = inner.clone();
        batch.layout.shape.truncate(depth - axis);
        batch.layout.strides.truncate(depth - axis);
        let stride = match batch.reshape(&[count]) {
            Some(merged) => merged.layout.strides[0],
            None if batch.layout.strides.iter().all(|stride| *stride == 0) => 0,
            None => return None,
        };
        inner.layout.shape = [count, matrix[0], matrix[1]].as_slice().into();
        let strides = &x.layout.strides[depth..];
        inner.layout.strides = [stride, strides[0], strides[1]].as_slice().into();
        Some(inner)
    };
    let axis = (0..=depth).find(|axis| merge(&a, *axis).is_some() && merge(&b, *axis).is_some());
    let axis = axis.unwrap_or(depth);
    let (Some(a1), Some(b1), Some(out1)) = (merge(&a, axis), merge(&b, axis), merge(out, axis))
    else {
        return Err(KernelError::Unsupported(
            "batch axes that do not merge".into(),
        ));
    };
    let outer: Vec<usize> = out.shape()[..axis].iter().map(|n| *n as usize).collect();
    let at = |x: &View, of: &View, index: &[usize]| {
        let steps = index.iter().zip(&of.layout.strides);
        let mut x = x.clone();
        x.layout.offset += steps.map(|(i, stride)| *i as u64 * stride).sum::<u64>();
        x
    };
    let mut done = Ok(());
    for_each_index(&outer, |index| {
        if done.is_ok() {
            let (a1, b1) = (at(&a1, &a, index), at(&b1, &b, index));
            done = product([&a1, &b1, &at(&out1, out, index)], factors, cx);
        }
    });
    done
}

/// What a product and what it is added to are multiplied by.
#[derive(Clone, Copy)]
pub(super) struct Factors {
    pub alpha: f64,
    pub beta: f64,
}

impl Factors {
    /// The product alone.
    pub(super) const PLAIN: Self = Factors {
        alpha: 1.0,
        beta: 0.0,
    };
    /// Added to what is there.
    pub(super) const ADDED: Self = Factors {
        alpha: 1.0,
        beta: 1.0,
    };
}

/// `out = beta·out + alpha·a·b` for matrices, or for batches of them; with a `beta` of zero nothing is read there.
pub(super) fn product(
    [a, b, out]: [&View; 3],
    Factors { alpha, beta }: Factors,
    cx: &mut Cx<'_>,
) -> Emitted {
    let (a, b) = (tidy(a), tidy(b));
    let (plain, sum) = match out.rank() {
        2 => ("mm", "addmm_"),
        _ => ("bmm", "baddbmm_"),
    };
    if alpha == 1.0 && beta == 0.0 {
        return cx.call(plain, "out", &[(&a).into(), (&b).into(), out.into()]);
    }
    let factors = [In::Double(beta), In::Double(alpha)];
    let views = [out.into(), (&a).into(), (&b).into()];
    let args: Vec<In<'_>> = views.into_iter().chain(factors).collect();
    cx.call(sum, "", &args)
}

/// Strides of axes of length one made such that BLAS takes the matrix as it is.
pub(super) fn tidy(x: &View) -> View {
    let mut x = x.clone();
    let n = x.rank();
    let (rows, cols) = (x.shape()[n - 2], x.shape()[n - 1]);
    let strides = &mut x.layout.strides;
    if cols == 1 && rows == 1 {
        (strides[n - 2], strides[n - 1]) = (1, 1);
    } else if cols == 1 {
        // A column: row-major with wide rows.
        strides[n - 1] = 1;
    } else if rows == 1 {
        // A row: row-major if its elements are neighbours, the transpose of a column otherwise.
        strides[n - 2] = if strides[n - 1] == 1 { cols } else { 1 };
    }
    x
}
