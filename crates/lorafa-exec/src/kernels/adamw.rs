//! `adamw`: PyTorch's fused step, and PEFT's written out.

use lorafa_ir::DType;
use lorafa_ir::layout::Blocks;
use lorafa_ir::ops::{AdamW, AdamWForm};

use super::{Cx, Emitted, In};
use crate::error::KernelError;
use crate::view::View;

/// Works in place, where results lie, too.
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
    let lr = cx.ins[5].clone();
    let steps = cx.copied(&cx.ins[4], DType::F32)?;
    in_blocks(false, cx, |cx, [p, g, m, v]| {
        let args = [
            In::Views(&[p]),
            In::Views(&[g]),
            In::Views(&[m]),
            In::Views(&[v]),
            In::Views(&[]),
            In::Views(&[&steps]),
            (&lr).into(),
            In::Double(op.beta1.0),
            In::Double(op.beta2.0),
            In::Double(op.weight_decay.0),
            In::Double(op.eps.0),
            In::Bool(false),
            In::Bool(false),
            In::None,
            In::None,
        ];
        cx.call("_fused_adamw_", "tensor_lr", &args)
    })
}

/// The corrections of the bias are computed in f64, as in PEFT.
fn peft(op: &AdamW, cx: &mut Cx<'_>) -> Emitted {
    let [step, lr] = [4, 5].map(|slot| &cx.ins[slot]);
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
        decay => {
            let keep = cx.literal(DType::F32, 1.0)?;
            let args = [(&keep).into(), lr.into(), In::Double(decay), (&keep).into()];
            cx.call("sub", "out", &args)?;
            Some(keep)
        }
    };
    in_blocks(true, cx, |cx, [p, g, m, v]| {
        cx.mul(m, &beta1, m)?;
        cx.add(m, g, In::Double(1.0 - op.beta1.0), m)?;
        cx.mul(v, &beta2, v)?;
        let share = In::Double(1.0 - op.beta2.0);
        let args = [v.into(), g.into(), g.into(), share, v.into()];
        cx.call("addcmul", "out", &args)?;
        // The gradient's copy becomes the change.
        let change = g;
        cx.map("sqrt", v, change)?;
        cx.add(change, &eps, In::Int(1), change)?;
        divide(m, change, change, cx)?;
        cx.mul(change, &rate, change)?;
        cx.sub(p, change, 1, p)?;
        match &keep {
            Some(keep) => cx.mul(p, keep, p),
            None => Ok(()),
        }
    })
}

fn divide(a: &View, b: &View, out: &View, cx: &mut Cx<'_>) -> Emitted {
    cx.call("div", "out", &[a.into(), b.into(), out.into()])
}

/// Updates parameter and moments by a gradient, all of them as row-major f32: as they lie if they are that, or by blocks
/// of scratch. The gradient may be overwritten where it `is_copied` whatever it is.
fn in_blocks(
    is_copied: bool,
    cx: &mut Cx<'_>,
    mut update: impl FnMut(&mut Cx<'_>, [&View; 4]) -> Emitted,
) -> Emitted {
    let all = [0, 1, 2, 3].map(|slot| cx.ins[slot].clone());
    let [param, grad, ..] = &all;
    let widens = param.dtype != DType::F32;
    let copies = is_copied || grad.dtype != DType::F32 || !grad.is_contiguous();
    if grad.elements() == 0 {
        return Ok(());
    }
    if !widens && !copies {
        return update(cx, all.each_ref());
    }
    let Blocks { rows, at_once, .. } = Blocks::of(&grad.layout);
    let mut shape = grad.shape().to_vec();
    if grad.is_contiguous() {
        shape = vec![rows];
    }
    let [param, grad, m, v] = all.map(|view| view.reshaped(&shape));
    let (param, grad, m, v) = (param?, grad?, m?, v?);
    shape[0] = rows.min(at_once);
    let wide = widens.then(|| cx.scratch(DType::F32, &shape));
    let copy = copies.then(|| cx.scratch(DType::F32, &shape));
    let mut from = 0;
    while from < rows {
        let count = at_once.min(rows - from);
        let [param, grad, m, v] = [&param, &grad, &m, &v].map(|view| view.narrow(0, from, count));
        let [wide, copy] = [&wide, &copy].map(|block| Some(block.as_ref()?.narrow(0, 0, count)));
        if let Some(wide) = &wide {
            cx.copy(wide, &param)?;
        }
        if let Some(copy) = &copy {
            cx.copy(copy, &grad)?;
        }
        let (p, g) = (
            wide.as_ref().unwrap_or(&param),
            copy.as_ref().unwrap_or(&grad),
        );
        update(cx, [p, g, &m, &v])?;
        cx.copy(&param, p)?;
        from += count;
    }
    Ok(())
}
