//! `cross_entropy` and its gradient.

use lorafa_ir::DType;
use lorafa_ir::ops::Softmax;

use super::softmax;
use super::{Cx, Emitted, In};

/// PyTorch's code for the mean over all labels that count.
const MEAN: i64 = 1;

pub(super) fn forward(ignore_index: i64, cx: &mut Cx<'_>) -> Emitted {
    let (logits, labels, out) = (&cx.ins[0], &cx.ins[1], &cx.outs[0]);
    let log = cx.scratch(logits.dtype, logits.shape());
    let total = cx.scratch(logits.dtype, &[]);
    let labels = if labels.dtype == DType::I64 {
        cx.row_major(labels)?
    } else {
        cx.copied(labels, DType::I64)?
    };
    softmax::into(logits, Softmax { axis: 1, log: true }, &log, cx)?;
    let args = [
        (&log).into(),
        (&labels).into(),
        In::None,
        In::Int(MEAN),
        In::Int(ignore_index),
        out.into(),
        (&total).into(),
    ];
    cx.call("nll_loss_forward", "output", &args)
}

/// `(softmax - onehot)·share`, each row's share being `dloss/counted`, or zero if its label does not count.
pub(super) fn backward(ignore_index: i64, cx: &mut Cx<'_>) -> Emitted {
    let (d_loss, logits, labels, out) = (&cx.ins[0], &cx.ins[1], &cx.ins[2], &cx.outs[0]);
    let rows = labels.elements();
    let ignored = cx.literal(labels.dtype, ignore_index as f64)?;
    let counts = cx.scratch(DType::Bool, &[rows]);
    let share = cx.scratch(out.dtype, &[rows, 1]);
    let total = cx.scratch(out.dtype, &[1, 1]);
    let column = cx.scratch(DType::I64, &[rows, 1]);
    let picked = cx.scratch(out.dtype, &[rows, 1]);
    let labels = if labels.dtype == DType::I64 {
        labels.clone()
    } else {
        cx.copied(labels, DType::I64)?
    };
    if out.elements() == 0 {
        return Ok(());
    }

    let args = [(&cx.ins[2]).into(), (&ignored).into(), (&counts).into()];
    cx.call("ne", "Tensor_out", &args)?;
    let flags = counts.reshaped(&[rows, 1])?;
    cx.copy(&share, &flags)?;
    // Ones and zeros are their own squares; a sum over many would allocate partial sums.
    let line = share.reshaped(&[1, rows])?;
    cx.call(
        "mm",
        "out",
        &[(&line).into(), (&share).into(), (&total).into()],
    )?;
    cx.call(
        "div",
        "out",
        &[(&share).into(), (&total).into(), (&share).into()],
    )?;
    cx.mul(&share, d_loss, &share)?;
    // What does not count points at the first class, with nothing to add there.
    cx.copy(&column, &flags)?;
    cx.mul(&column, &labels.reshaped(&[rows, 1])?, &column)?;

    softmax::into(
        logits,
        Softmax {
            axis: 1,
            log: false,
        },
        out,
        cx,
    )?;
    cx.mul(out, &share, out)?;
    cx.pick(out, 1, &column, &picked)?;
    cx.sub(&picked, &share, 1, &picked)?;
    cx.put(out, 1, &column, &picked)
}
