//! `attention` and its gradient by libtorch's flash kernels, which never have scores in memory.
//!
//! They return fresh tensors, so their allocations, temporaries and all, are served from the op's scratch, and results are
//! copied to their places. What they take depends on the GPU and on how much they do at once. So the largest part of the
//! op is looked for that runs in its scratch, by running it when the program is compiled; the op is calls of such parts,
//! and one that takes other memory than the first did is an error. Sequences are independent, and so are groups of heads
//! that share keys.
//!
//! They take 16-bit operands, without bias, window and dropout, and no mask. One that hides nothing is none: exporters write
//! one for padding, though a step may have no padding. So an op with a mask is set up both ways, and in each run the mask is
//! looked at, once for all ops that read it, before the first of them.
//!
//! The gradient is in their deterministic form, which sums in as many pieces as keep the GPU busy: on 132 multiprocessors at
//! least `132·rows·width` numbers of f32. Where that does not fit into the scratch, as of few heads of keys, the gradient
//! is computed in blocks.
// Runs calls while the program is compiled.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::rc::Rc;

use lorafa_ir::DType;
use lorafa_ir::ops::{Attention, AttentionGrad, AttentionSizes};

use super::{Made, heads_first, sizes};
use crate::error::KernelError;
use crate::kernels::{Cx, In, Work};
use crate::shim::PlacedCall;
use crate::view::View;

/// The operators for a kind of device.
pub(super) struct Kernels {
    pub dtypes: &'static [DType],
    pub forward: Operator,
    pub backward: Operator,
}

/// An operator whose first arguments are what the op reads.
pub(super) struct Operator {
    pub name: &'static str,
    /// The other arguments.
    pub rest: fn(&Attention, &AttentionSizes) -> Vec<In<'static>>,
}

static CUDA: Kernels = Kernels {
    dtypes: &[DType::BF16, DType::F16],
    forward: Operator {
        name: "_scaled_dot_product_flash_attention",
        rest: |op, _| {
            let (dropout, debug) = (In::Double(0.0), In::Bool(false));
            vec![dropout, In::Bool(op.causal), debug, In::Double(op.scale.0)]
        },
    },
    // Cumulative lengths are for sequences of several lengths, seed and offset for dropout.
    backward: Operator {
        name: "_scaled_dot_product_flash_attention_backward",
        rest: |op, s| {
            vec![
                In::Undefined,
                In::Undefined,
                In::Int(s.rows as i64),
                In::Int(s.keys as i64),
                In::Double(0.0),
                In::Bool(op.causal),
                In::Undefined,
                In::Undefined,
                In::Double(op.scale.0),
            ]
        },
    },
};

/// The first GPUs that run them are Ampere's.
const CAPABILITY: u64 = 8;

/// The widest heads.
const MOST_WIDTH: u64 = 256;

/// Wider heads than this up to the next have no gradient on GPUs with little shared memory.
const NO_GRADIENT: std::ops::RangeInclusive<u64> = 193..=224;

/// Queries and keys are read 16 bytes at a time.
const ALIGN: u64 = 16;

/// Query rows of heads that a call takes at least, unless the op has fewer: with less to do, it costs more than it saves.
const LEAST_ROWS: u64 = 4096;

/// What was set up of an op.
pub(super) enum Does {
    Nothing,
    /// If the mask hides nothing.
    If(Rc<Cell<bool>>),
    All,
}

/// A part of an op: consecutive sequences, consecutive heads of keys with the query heads that read them.
#[derive(Clone, Copy)]
struct Part {
    sequence: u64,
    sequences: u64,
    group: u64,
    groups: u64,
}

impl Part {
    /// Of something `[batch, heads or groups, …]`.
    fn of(&self, x: &View, s: &AttentionSizes) -> View {
        let heads = x.shape()[1] / s.groups;
        x.narrow(0, self.sequence, self.sequences).narrow(
            1,
            self.group * heads,
            self.groups * heads,
        )
    }
}

/// Those of the device, if it has any.
pub(super) fn kernels(cx: &Cx<'_>) -> Made<Option<&'static Kernels>> {
    let capability = cx.device.capability().map_err(KernelError::Torch)?;
    Ok(capability.filter(|n| *n >= CAPABILITY).map(|_| &CUDA))
}

impl Kernels {
    /// Sets up an attention.
    pub(super) fn forward(&self, op: Attention, cx: &mut Cx<'_>) -> Made<Does> {
        let (ins, outs) = (cx.ins, cx.outs);
        let s = sizes([&ins[0], &ins[1], &ins[2]])?;
        if !self.take(op, &s, &ins[3..]) || !ins[..3].iter().all(readable) {
            return Ok(Does::Nothing);
        }
        let writes = [heads_first(&outs[0]), outs[1].clone()];
        parts(&self.forward, op, &s, &ins[..3], &writes, cx)
    }

    /// Sets up the gradient of an attention.
    pub(super) fn backward(&self, op: AttentionGrad, cx: &mut Cx<'_>) -> Made<Does> {
        let (ins, outs) = (cx.ins, cx.outs);
        let s = sizes([&ins[1], &ins[2], &ins[3]])?;
        if !self.take(op.of, &s, &ins[6..]) || NO_GRADIENT.contains(&s.width) {
            return Ok(Does::Nothing);
        }
        let mut reads = ins[..6].to_vec();
        for slot in [0, 4] {
            reads[slot] = heads_first(&ins[slot]);
        }
        if !reads[..5].iter().all(readable) || !reads[5].is_contiguous() {
            return Ok(Does::Nothing);
        }
        let writes: Vec<View> = outs.iter().map(heads_first).collect();
        parts(&self.backward, op.of, &s, &reads, &writes, cx)
    }

    fn take(&self, op: Attention, s: &AttentionSizes, extras: &[View]) -> bool {
        let unbiased = match extras {
            [] => true,
            [mask] => mask.dtype == DType::Bool && mask.is_contiguous(),
            _ => false,
        };
        // The last query sees all keys, to them; to us the first one sees the first key.
        let square = !op.causal || s.rows == s.keys;
        let some = [s.batch, s.groups, s.rows, s.keys].iter().all(|n| *n > 0);
        unbiased
            && self.dtypes.contains(&s.dtype)
            && (op.window, op.dropout) == (None, None)
            && op.scale.0.is_finite()
            && op.scale.0 > 0.0
            && s.width == s.value_width
            && (8..=MOST_WIDTH).contains(&s.width)
            && s.width.is_multiple_of(8)
            && square
            && some
    }
}

/// Whether the kernels can read `[batch, heads, rows, width]` where it lies.
fn readable(x: &View) -> bool {
    let [far @ .., last] = x.layout.strides.as_slice() else {
        return false;
    };
    let aligned = |bytes: u64| bytes.is_multiple_of(ALIGN);
    let mut axes = far.iter().zip(x.shape());
    *last == 1
        && aligned(x.address().addr() as u64)
        && axes.all(|(stride, n)| *n == 1 || aligned(stride * x.dtype.size()))
}

/// How many sequences, and how many heads of keys of each, may be a part, the most first.
fn at_once(s: &AttentionSizes) -> impl Iterator<Item = (u64, u64)> + use<> {
    let s = *s;
    let divisors = |n: u64| (1..=n).rev().filter(move |part| n.is_multiple_of(*part));
    let sequences = divisors(s.batch).map(move |n| (n, s.groups));
    let groups = divisors(s.groups).skip(1).map(|n| (1, n));
    let rows = s.heads / s.groups * s.rows;
    let enough = move |(sequences, groups): &(u64, u64)| {
        (*sequences, *groups) == (s.batch, s.groups) || sequences * groups * rows >= LEAST_ROWS
    };
    sequences.chain(groups).filter(enough)
}

/// Calls the operator for each part, the largest that run in the op's scratch.
fn parts(
    operator: &Operator,
    op: Attention,
    s: &AttentionSizes,
    reads: &[View],
    writes: &[View],
    cx: &mut Cx<'_>,
) -> Made<Does> {
    let Some((start, bytes)) = cx.planned() else {
        return Ok(Does::Nothing);
    };
    let bind = |cx: &Cx<'_>, part: Part, taken: u64| -> Made<PlacedCall> {
        let reads: Vec<View> = reads.iter().map(|x| part.of(x, s)).collect();
        let mut args: Vec<In<'_>> = reads.iter().map(In::View).collect();
        args.extend((operator.rest)(&op, s));
        let outs = writes.iter().map(|x| part.of(x, s).tensor(cx.device));
        Ok(PlacedCall {
            call: cx.bind(operator.name, "", &args)?,
            outs: outs.collect::<Made<_>>()?,
            device: cx.device.index(),
            start,
            bytes,
            taken,
        })
    };
    for (sequences, groups) in at_once(s) {
        let part = |sequence: u64, group: u64| Part {
            sequence,
            sequences,
            group,
            groups,
        };
        let first = bind(cx, part(0, 0), 0)?;
        // SAFETY: the program that is compiled has its memory already, and nobody else uses it.
        let measured = unsafe { first.measure() }.map_err(KernelError::Torch)?;
        let Some(taken) = measured else {
            continue;
        };
        // The mask comes after all that is read.
        let unmasked = (cx.ins.len() > reads.len()).then(|| cx.look(reads.len()));
        cx.given(unmasked.clone().map(|unmasked| (unmasked, true)));
        for sequence in (0..s.batch).step_by(sequences as usize) {
            for group in (0..s.groups).step_by(groups as usize) {
                let call = bind(cx, part(sequence, group), taken)?;
                cx.push(Work::Placed(call));
            }
        }
        cx.given(None);
        return Ok(unmasked.map_or(Does::All, Does::If));
    }
    Ok(Does::Nothing)
}

#[cfg(test)]
mod tests;
