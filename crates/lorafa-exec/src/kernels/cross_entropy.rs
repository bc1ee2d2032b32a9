//! `cross_entropy` and its gradient.

use lorafa_ir::DType;
use lorafa_ir::ops::Softmax;

use super::matmul::{self, Factors};
use super::softmax;
use super::{Cx, Emitted, In};
use crate::error::KernelError;
use crate::view::View;

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

/// What labels say to a loss: for each row, as `[rows, 1]`, whether it counts, its weight in the mean and its class, which is
/// the first one if it does not count.
pub(super) struct Targets {
    pub counts: View,
    pub share: View,
    pub class: View,
}

impl Targets {
    /// `dtype` is the type of the loss.
    pub(super) fn new(
        labels: &View,
        ignore_index: i64,
        dtype: DType,
        cx: &mut Cx<'_>,
    ) -> Result<Self, KernelError> {
        let rows = labels.elements();
        let ignored = cx.literal(labels.dtype, ignore_index as f64)?;
        let flags = cx.scratch(DType::Bool, &[rows]);
        let share = cx.scratch(dtype, &[rows, 1]);
        let total = cx.scratch(dtype, &[1, 1]);
        let class = cx.scratch(DType::I64, &[rows, 1]);
        let numbers = if labels.dtype == DType::I64 {
            labels.clone()
        } else {
            cx.copied(labels, DType::I64)?
        };
        let counts = flags.reshaped(&[rows, 1])?;
        let targets = Targets {
            counts,
            share,
            class,
        };
        if rows == 0 {
            return Ok(targets);
        }
        let Targets {
            counts,
            share,
            class,
        } = &targets;
        let args = [labels.into(), (&ignored).into(), (&flags).into()];
        cx.call("ne", "Tensor_out", &args)?;
        cx.copy(share, counts)?;
        // Ones and zeros are their own squares; a sum over many would allocate partial sums.
        let line = share.reshaped(&[1, rows])?;
        matmul::product([&line, share, &total], Factors::PLAIN, cx)?;
        cx.call("div", "out", &[share.into(), (&total).into(), share.into()])?;
        cx.copy(class, counts)?;
        cx.mul(class, &numbers.reshaped(&[rows, 1])?, class)?;
        Ok(targets)
    }

    /// Those of some rows.
    pub(super) fn narrow(&self, from: u64, len: u64) -> Targets {
        let some = |x: &View| x.narrow(0, from, len);
        Targets {
            counts: some(&self.counts),
            share: some(&self.share),
            class: some(&self.class),
        }
    }

    /// `probabilities = (probabilities - onehot)·share`; `picked` has room for a number a row.
    pub(super) fn gradient(&self, probabilities: &View, picked: &View, cx: &mut Cx<'_>) -> Emitted {
        cx.mul(probabilities, &self.share, probabilities)?;
        cx.pick(probabilities, 1, &self.class, picked)?;
        cx.sub(picked, &self.share, 1, picked)?;
        cx.put(probabilities, 1, &self.class, picked)
    }
}

/// `(softmax - onehot)·share`, where each row's share is also multiplied by `dloss`.
pub(super) fn backward(ignore_index: i64, cx: &mut Cx<'_>) -> Emitted {
    let (d_loss, logits, labels, out) = (&cx.ins[0], &cx.ins[1], &cx.ins[2], &cx.outs[0]);
    let targets = Targets::new(labels, ignore_index, out.dtype, cx)?;
    let picked = cx.scratch(out.dtype, &[labels.elements(), 1]);
    if out.elements() == 0 {
        return Ok(());
    }
    cx.mul(&targets.share, d_loss, &targets.share)?;
    let (axis, log) = (1, false);
    softmax::into(logits, Softmax { axis, log }, out, cx)?;
    targets.gradient(out, &picked, cx)
}
