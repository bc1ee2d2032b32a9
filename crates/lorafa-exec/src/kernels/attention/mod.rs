//! `attention` and its gradient: on a GPU by flash kernels, where they take the op and its scratch suffices them ([`flash`]),
//! in steps whose mask hides nothing; otherwise a block at a time, some query rows of every head, or all of some sequences.
//!
//! The scores of one block are all that there is of them at once:
//!
//! ```text
//!   scores = scale·q·kᵀ + bias     [shares, sequences, groups, rows, keys up to the block's last row if causal]
//!   out    = softmax(scores)·v       and lse = the row's largest score − log of its largest weight
//! ```
//!
//! Query heads that read one group of keys are a batch axis of their own, so that keys and values are read where they
//! lie. The heads of several sequences are one batch to BLAS if they are evenly apart; those that are not are copied, as
//! are 16-bit operands, which are widened, and what BLAS cannot read: keys and values once for the sequences of a block,
//! the rest a block at a time. Scores and sums are never narrower than f32.
//!
//! Who survives dropout is drawn for a block, again in the backward pass, by the places of its scores in the whole matrix;
//! where only the loss is evaluated, all do.

mod backward;
mod drops;
mod flash;
mod forward;
mod operands;
mod scores;

use lorafa_ir::ops::{Attention, AttentionGrad, AttentionSizes, Softmax};

use flash::{Does, Kernels};

use super::matmul::{Factors, product};
use super::{Cx, Emitted, softmax};
use crate::error::KernelError;
use crate::view::View;

type Made<T> = Result<T, KernelError>;

/// The axis of keys of `[shares, sequences, groups, rows, keys]`.
const KEYS: usize = 4;

pub(super) fn forward(op: Attention, cx: &mut Cx<'_>) -> Emitted {
    forward_by(flash::kernels(cx)?, op, cx)
}

fn forward_by(kernels: Option<&Kernels>, op: Attention, cx: &mut Cx<'_>) -> Emitted {
    let set_up = kernels.map(|kernels| kernels.forward(op, cx));
    otherwise(set_up, cx, |cx| forward::forward(op, cx))
}

pub(super) fn backward(op: AttentionGrad, cx: &mut Cx<'_>) -> Emitted {
    backward_by(flash::kernels(cx)?, op, cx)
}

fn backward_by(kernels: Option<&Kernels>, op: AttentionGrad, cx: &mut Cx<'_>) -> Emitted {
    let set_up = kernels.map(|kernels| kernels.backward(op, cx));
    otherwise(set_up, cx, |cx| backward::backward(op, cx))
}

/// In blocks what flash kernels do not do, or only if a mask hides nothing.
fn otherwise(
    set_up: Option<Made<Does>>,
    cx: &mut Cx<'_>,
    blocks: impl FnOnce(&mut Cx<'_>) -> Emitted,
) -> Emitted {
    match set_up.transpose()?.unwrap_or(Does::Nothing) {
        Does::Nothing => blocks(cx)?,
        Does::All => cx.take_all(),
        Does::If(unmasked) => {
            cx.given(Some((unmasked, false)));
            blocks(cx)?;
            cx.given(None);
        }
    }
    Ok(())
}

/// `[batch, rows, heads, n]` as `[batch, heads, rows, n]`, or the other way round.
fn heads_first(x: &View) -> View {
    let mut view = x.clone();
    view.layout.shape.swap(1, 2);
    view.layout.strides.swap(1, 2);
    view
}

/// `[sequences, heads, rows, n]` as `[shares, sequences, groups, rows, n]`; query head `group·shares + share` is one of
/// `shares`, one of keys or of a mask that all heads have is all shares' own.
fn by_share(x: &View, s: &AttentionSizes) -> View {
    let [sequences, heads, rows, n] = [0, 1, 2, 3].map(|axis| x.layout.shape[axis]);
    let [next, far, down, along] = [0, 1, 2, 3].map(|axis| x.layout.strides[axis]);
    let shares = if heads == s.heads {
        (s.heads / s.groups.max(1)).max(1)
    } else {
        1
    };
    let mut view = x.clone();
    view.layout.shape = [shares, sequences, heads / shares, rows, n]
        .as_slice()
        .into();
    view.layout.strides = [far, next, far * shares, down, along].as_slice().into();
    view
}

/// `out = beta·out + alpha·a·b` for `[shares, sequences, groups, …]`, an axis of one share being all shares' own.
fn products(cx: &mut Cx<'_>, [a, b, out]: [&View; 3], beta: f64, alpha: f64) -> Emitted {
    let shares = [a, b, out].map(|x| x.shape()[0]);
    for share in 0..shares.into_iter().max().unwrap_or(0) {
        let of = |x: &View| {
            let x = x.select(0, if x.shape()[0] == 1 { 0 } else { share });
            let [sequences, groups, m, n] = [0, 1, 2, 3].map(|axis| x.layout.shape[axis]);
            if sequences == 1 {
                return Ok(x.select(0, 0));
            }
            x.reshaped(&[sequences * groups, m, n])
        };
        // The first share begins a sum, the others add to it.
        let beta = if out.shape()[0] == 1 && share > 0 {
            1.0
        } else {
            beta
        };
        product([&of(a)?, &of(b)?, &of(out)?], Factors { alpha, beta }, cx)?;
    }
    Ok(())
}

fn softmax(cx: &mut Cx<'_>, scores: &View) -> Emitted {
    let over_keys = Softmax {
        axis: KEYS,
        log: false,
    };
    softmax::into(scores, over_keys, scores, cx)
}

fn sizes([q, k, v]: [&View; 3]) -> Made<AttentionSizes> {
    let sizes = AttentionSizes::new(q.dtype, [q.shape(), k.shape(), v.shape()]);
    sizes.ok_or_else(|| KernelError::Unsupported(format!("attention of {:?}", q.layout)))
}
