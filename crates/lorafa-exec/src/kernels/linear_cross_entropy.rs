//! `linear_cross_entropy` and its gradient, some rows at a time.
//!
//! ```text
//!   logits = x·w                         [chunk, classes], in the operands' type
//!   log p  = log_softmax(logits)         in the type of the loss
//!   loss   -= Σ share·log p[label]
//!   d      = (p - onehot)·share          where log p was, then where the logits were
//!   dx     = d·wᵀ,  dw += xᵀ·d
//! ```
//!
//! The last two lines run only in a step that trains.

use lorafa_ir::ops::{
    LinearCrossEntropy, LinearCrossEntropyGrad, LinearCrossEntropySizes, Softmax,
};

use super::cross_entropy::Targets;
use super::matmul::{Factors, matrices, product};
use super::{Cx, Emitted, When, softmax};
use crate::error::KernelError;
use crate::view::View;

/// Where gradients go.
struct Gradients {
    x: View,
    w: Option<WeightGradient>,
}

/// The gradient of the weight, as `[width, classes]`.
struct WeightGradient {
    /// What chunks are added to.
    sum: View,
    /// Room for a chunk of `x` in the type of the sum, if that is another.
    widened: Option<View>,
}

pub(super) fn forward(op: LinearCrossEntropy, cx: &mut Cx<'_>) -> Emitted {
    let loss = cx.outs[0].clone();
    let rooms = Rooms::new(op, cx)?;
    chunks(&rooms, &loss, None, cx)
}

pub(super) fn backward(op: LinearCrossEntropyGrad, cx: &mut Cx<'_>) -> Emitted {
    let (x, loss) = (cx.outs[0].clone(), cx.outs[1].clone());
    let rooms = Rooms::new(op.of, cx)?;
    let s = rooms.sizes;
    let weight = |view: &View| {
        if op.of.trans_b {
            view.swapped()
        } else {
            view.clone()
        }
    };
    let w = cx.outs.get(2).cloned().map(|out| {
        if !s.sums_apart() {
            let (sum, widened) = (weight(&out), None);
            return WeightGradient { sum, widened };
        }
        WeightGradient {
            sum: weight(&cx.scratch(s.wide, out.shape())),
            widened: Some(cx.scratch(s.wide, &[s.chunk, s.width])),
        }
    });
    let gradients = Gradients { x, w };
    chunks(&rooms, &loss, Some(&gradients), cx)?;
    if let (Some(out), Some(w)) = (cx.outs.get(2), &gradients.w) {
        cx.when(When::Training);
        if s.rows == 0 {
            cx.fill(&w.sum, 0.0)?;
        }
        cx.copy(&weight(out), &w.sum)?;
        cx.when(When::Always);
    }
    Ok(())
}

/// Operands as BLAS reads them, and scratch.
struct Rooms {
    sizes: LinearCrossEntropySizes,
    x: View,
    /// `[width, classes]`.
    w: View,
    targets: Targets,
    wide: View,
    /// Of 16-bit operands.
    narrow: Option<View>,
    picked: View,
    zero: View,
}

impl Rooms {
    fn new(op: LinearCrossEntropy, cx: &mut Cx<'_>) -> Result<Self, KernelError> {
        let [x, w, labels] = [0, 1, 2].map(|slot| &cx.ins[slot]);
        let shapes = [x.shape(), w.shape()];
        let sizes = LinearCrossEntropySizes::new(x.dtype, shapes, op.trans_b);
        let s = sizes.ok_or_else(|| KernelError::Unsupported("operands of other ranks".into()))?;
        let wide = cx.scratch(s.wide, &[s.chunk, s.classes]);
        let half = s.dtype != s.wide;
        let narrow = half.then(|| cx.scratch(s.dtype, &[s.chunk, s.classes]));
        let picked = cx.scratch(s.wide, &[s.chunk, 1]);
        let zero = cx.literal(s.wide, 0.0)?;
        let targets = Targets::new(labels, op.ignore_index, s.wide, cx)?;
        let (x, w) = (matrices(x, cx)?, matrices(w, cx)?);
        let w = if op.trans_b { w.swapped() } else { w };
        Ok(Rooms {
            sizes: s,
            x,
            w,
            targets,
            wide,
            narrow,
            picked,
            zero,
        })
    }
}

fn chunks(rooms: &Rooms, loss: &View, gradients: Option<&Gradients>, cx: &mut Cx<'_>) -> Emitted {
    let s = rooms.sizes;
    if s.rows == 0 {
        return cx.fill(loss, 0.0);
    }
    let loss = loss.reshaped(&[1, 1])?;
    cx.fill(&loss, 0.0)?;
    for from in (0..s.rows).step_by(s.chunk.max(1) as usize) {
        let len = s.chunk.min(s.rows - from);
        let some = |x: &View| x.narrow(0, 0, len);
        let (x, targets) = (
            rooms.x.narrow(0, from, len),
            rooms.targets.narrow(from, len),
        );
        let (wide, picked) = (some(&rooms.wide), some(&rooms.picked));
        let logits = rooms.narrow.as_ref().map_or_else(|| wide.clone(), some);
        multiply([&x, &rooms.w, &logits], false, cx)?;
        cx.copy(&wide, &logits)?;
        softmax::into(&wide, Softmax { axis: 1, log: true }, &wide, cx)?;
        cx.pick(&wide, 1, &targets.class, &picked)?;
        let args = [&targets.counts, &picked, &rooms.zero, &picked].map(Into::into);
        cx.call("where", "self_out", &args)?;
        let share = targets.share.reshaped(&[1, len])?;
        let minus = Factors {
            alpha: -1.0,
            ..Factors::ADDED
        };
        product([&share, &picked, &loss], minus, cx)?;

        let Some(gradients) = gradients else {
            continue;
        };
        cx.when(When::Training);
        cx.map("exp", &wide, &wide)?;
        targets.gradient(&wide, &picked, cx)?;
        cx.copy(&logits, &wide)?;
        if let Some(w) = &gradients.w {
            let add = from > 0;
            match &w.widened {
                Some(room) => {
                    let widened = some(room);
                    cx.copy(&widened, &x)?;
                    multiply([&widened.swapped(), &wide, &w.sum], add, cx)?;
                }
                None => multiply([&x.swapped(), &logits, &w.sum], add, cx)?,
            }
        }
        let dx = gradients.x.narrow(0, from, len);
        multiply([&logits, &rooms.w.swapped(), &dx], false, cx)?;
        cx.when(When::Always);
    }
    Ok(())
}

/// `out = a·b`, or `out += a·b`; the result may be the transpose of a row-major matrix.
fn multiply([a, b, out]: [&View; 3], add: bool, cx: &mut Cx<'_>) -> Emitted {
    if out.layout.strides[1] != 1 {
        return multiply([&b.swapped(), &a.swapped(), &out.swapped()], add, cx);
    }
    let factors = if add { Factors::ADDED } else { Factors::PLAIN };
    product([a, b, out], factors, cx)
}
