//! `accumulate`.

use lorafa_ir::DType;
use lorafa_ir::layout::Blocks;

use super::{Cx, Emitted, In};
use crate::error::KernelError;
use crate::view::View;

/// Products with a number that only the step knows want f32 throughout: other gradients go through a block of scratch.
pub(super) fn accumulate(cx: &mut Cx<'_>) -> Emitted {
    let [acc, grad, keep, weight] = [0, 1, 2, 3].map(|slot| cx.ins[slot].clone());
    if !acc.is_contiguous() {
        let why = "an accumulator that is not row-major";
        return Err(KernelError::Unsupported(why.into()));
    }
    let zero = cx.literal(DType::F32, 0.0)?;
    let first = cx.scratch(DType::Bool, &[]);
    let equal = [&keep, &zero, &first];
    cx.call("eq", "Tensor_out", &equal.map(Into::into))?;
    cx.mul(&acc, &keep, &acc)?;
    // Zero times what is no number is none.
    let kept = [&first, &zero, &acc, &acc];
    cx.call("where", "self_out", &kept.map(Into::into))?;
    if grad.dtype == DType::F32 {
        return add(&acc, &grad, &weight, cx);
    }
    let Blocks { rows, at_once, .. } = Blocks::of(&grad.layout);
    let (acc, grad) = if grad.is_contiguous() {
        (acc.reshaped(&[rows])?, grad.reshaped(&[rows])?)
    } else {
        (acc, grad)
    };
    let mut shape = grad.shape().to_vec();
    shape[0] = rows.min(at_once);
    let block = cx.scratch(DType::F32, &shape);
    let mut from = 0;
    while from < rows {
        let count = at_once.min(rows - from);
        let (wide, acc) = (block.narrow(0, 0, count), acc.narrow(0, from, count));
        cx.copy(&wide, &grad.narrow(0, from, count))?;
        add(&acc, &wide, &weight, cx)?;
        from += count;
    }
    Ok(())
}

/// `acc += weight·grad`.
fn add(acc: &View, grad: &View, weight: &View, cx: &mut Cx<'_>) -> Emitted {
    let one = In::Int(1);
    let args = [acc.into(), grad.into(), weight.into(), one, acc.into()];
    cx.call("addcmul", "out", &args)
}
