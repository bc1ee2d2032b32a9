//! `adamw`: PyTorch's fused step, and PEFT's written out.

use lorafa_ir::DType;
use lorafa_ir::ops::{AdamW, AdamWForm};

use super::{Cx, Emitted, In};
use crate::error::KernelError;
use crate::view::View;

/// Works on row-major f32: what is otherwise is copied to scratch, and the parameter back.
pub(super) fn adamw(op: &AdamW, cx: &mut Cx<'_>) -> Emitted {
    let [param, m, v] = [0, 2, 3].map(|slot| &cx.ins[slot]);
    if [param, m, v].iter().any(|x| !x.is_contiguous()) {
        let why = "a parameter or moment that is not row-major";
        return Err(KernelError::Unsupported(why.into()));
    }
    match op.form {
        AdamWForm::Torch => torch(op, cx),
        AdamWForm::Peft => peft(op, cx),
    }
}

fn torch(op: &AdamW, cx: &mut Cx<'_>) -> Emitted {
    let [param, grad, m, v, step, lr] = [0, 1, 2, 3, 4, 5].map(|slot| &cx.ins[slot]);
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

/// The corrections of the bias are computed in f64, as in PEFT.
fn peft(op: &AdamW, cx: &mut Cx<'_>) -> Emitted {
    let [param, grad, m, v, step, lr] = [0, 1, 2, 3, 4, 5].map(|slot| &cx.ins[slot]);
    // lr·√(1 - beta2^step) / (1 - beta1^step).
    let steps = cx.copied(step, DType::F64)?;
    let one = cx.literal(DType::F64, 1.0)?;
    let mut correction = |beta: f64| {
        let power = cx.literal(DType::F64, beta)?;
        let args = [&power, &steps, &power];
        cx.call("pow", "Tensor_Tensor_out", &args.map(Into::into))?;
        cx.sub(&one, &power, 1, &power)?;
        Ok(power)
    };
    let (first, second) = (correction(op.beta1.0)?, correction(op.beta2.0)?);
    cx.map("sqrt", &second, &second)?;
    let exact = cx.copied(lr, DType::F64)?;
    cx.mul(&exact, &second, &exact)?;
    divide(&exact, &first, &exact, cx)?;
    let rate = cx.copied(&exact, DType::F32)?;

    let beta1 = cx.literal(DType::F32, op.beta1.0)?;
    let beta2 = cx.literal(DType::F32, op.beta2.0)?;
    let eps = cx.literal(DType::F32, op.eps.0)?;
    let keep = match op.weight_decay.0 {
        0.0 => None,
        _ => Some(cx.literal(DType::F32, 1.0)?),
    };
    let p = wide(param, cx)?;
    // The gradient's copy becomes the change.
    let g = cx.copied(grad, DType::F32)?;
    cx.mul(m, &beta1, m)?;
    cx.add(m, &g, In::Double(1.0 - op.beta1.0), m)?;
    cx.mul(v, &beta2, v)?;
    let share = In::Double(1.0 - op.beta2.0);
    let args = [v.into(), (&g).into(), (&g).into(), share, v.into()];
    cx.call("addcmul", "out", &args)?;
    let change = g;
    cx.map("sqrt", v, &change)?;
    cx.add(&change, &eps, In::Int(1), &change)?;
    divide(m, &change, &change, cx)?;
    cx.mul(&change, &rate, &change)?;
    cx.sub(&p, &change, 1, &p)?;
    if let Some(keep) = keep {
        let decay = In::Double(op.weight_decay.0);
        let args = [(&keep).into(), lr.into(), decay, (&keep).into()];
        cx.call("sub", "out", &args)?;
        cx.mul(&p, &keep, &p)?;
    }
    cx.copy(&cx.outs[0], &p)
}

fn divide(a: &View, b: &View, out: &View, cx: &mut Cx<'_>) -> Emitted {
    cx.call("div", "out", &[a.into(), b.into(), out.into()])
}

fn wide(x: &View, cx: &mut Cx<'_>) -> Result<View, KernelError> {
    if x.dtype == DType::F32 {
        cx.row_major(x)
    } else {
        cx.copied(x, DType::F32)
    }
}
