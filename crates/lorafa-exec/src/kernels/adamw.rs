//! `adamw`: PyTorch's fused step.

use lorafa_ir::DType;
use lorafa_ir::ops::AdamW;

use super::{Cx, Emitted, In};
use crate::error::KernelError;
use crate::view::View;

/// The fused kernel wants f32 throughout and row-major: what is otherwise is copied to scratch, and the parameter back.
pub(super) fn adamw(op: &AdamW, cx: &mut Cx<'_>) -> Emitted {
    let [param, grad, m, v, step, lr] = [0, 1, 2, 3, 4, 5].map(|slot| &cx.ins[slot]);
    if [param, m, v].iter().any(|x| !x.is_contiguous()) {
        let why = "a parameter or moment that is not row-major";
        return Err(KernelError::Unsupported(why.into()));
    }
    let steps = cx.copied(step, DType::F32)?;
    let (p, g) = (wide(param, cx)?, wide(grad, cx)?);
    if grad.elements() == 0 {
        return Ok(());
    }
    let args = [
        In::Views(&[&p]),
        In::Views(&[&g]),
        In::Views(&[m]),
        In::Views(&[v]),
        In::Views(&[]),
        In::Views(&[&steps]),
        lr.into(),
        In::Double(op.beta1.0),
        In::Double(op.beta2.0),
        In::Double(op.weight_decay.0),
        In::Double(op.eps.0),
        In::Bool(false),
        In::Bool(false),
        In::None,
        In::None,
    ];
    cx.call("_fused_adamw_", "tensor_lr", &args)?;
    cx.copy(&cx.outs[0], &p)
}

fn wide(x: &View, cx: &mut Cx<'_>) -> Result<View, KernelError> {
    if x.dtype == DType::F32 {
        cx.row_major(x)
    } else {
        cx.copied(x, DType::F32)
    }
}
