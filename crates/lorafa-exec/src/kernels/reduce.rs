//! `reduce_sum`, `reduce_mean`, `reduce_max`.

use lorafa_ir::ops::{Reduce, ReduceKind};

use super::{Cx, Emitted, In};

pub(super) fn reduce(op: &Reduce, cx: &mut Cx<'_>) -> Emitted {
    let (x, out) = (&cx.ins[0], &cx.outs[0]);
    // Of 16-bit floats in another order libtorch sums an f32 copy.
    let copied = x.dtype.is_half() && op.kind != ReduceKind::Max;
    let x = &if copied { cx.row_major(x)? } else { x.clone() };
    let axes: Vec<i64> = op.axes.iter().map(|axis| *axis as i64).collect();
    match op.kind {
        ReduceKind::Sum => cx.sum(x, &axes, op.keep_dims, out),
        ReduceKind::Mean => {
            let count: u64 = op.axes.iter().map(|axis| x.shape()[*axis]).product();
            let count = cx.literal(out.dtype, count as f64)?;
            cx.sum(x, &axes, op.keep_dims, out)?;
            let args = [out.into(), (&count).into(), out.into()];
            if out.dtype.is_float() {
                return cx.call("div", "out", &args);
            }
            let [a, b, out] = args;
            cx.call("div", "out_mode", &[a, b, In::Str("trunc"), out])
        }
        ReduceKind::Max if op.axes.is_empty() => cx.copy(out, x),
        ReduceKind::Max if x.elements() == 0 => cx.fill(out, f64::NEG_INFINITY),
        ReduceKind::Max => {
            let args = [
                x.into(),
                In::Ints(&axes),
                In::Bool(op.keep_dims),
                out.into(),
            ];
            cx.call("amax", "out", &args)
        }
    }
}
