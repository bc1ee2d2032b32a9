//! `adamw`: one optimizer step of one parameter.

use super::attrs::{AttrReader, Attrs};
use super::{BinaryKind, Op, Operator, Scalar, Types, UnaryKind, float};
use crate::dim::Bindings;
use crate::dtype::DType;
use crate::ids::ValueId;
use crate::layout::{Layout, pieces};
use crate::patch::{Patch, PatchError, Results};
use crate::types::{TensorType, TypeError};

/// `adamw param, grad, m, v, step, lr` gives the next parameter and moments, with bias correction
/// and decoupled weight decay, as `torch.optim.AdamW`. Moments and arithmetic are f32, `step`
/// counts from one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: Scalar,
    /// Decay of the second moment.
    pub beta2: Scalar,
    /// Added to the root of the second moment.
    pub eps: Scalar,
    /// Decoupled weight decay.
    pub weight_decay: Scalar,
}

impl Default for AdamW {
    /// PyTorch's defaults, without weight decay.
    fn default() -> Self {
        AdamW {
            beta1: Scalar(0.9),
            beta2: Scalar(0.999),
            eps: Scalar(1e-8),
            weight_decay: Scalar(0.0),
        }
    }
}

impl Operator for AdamW {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn attrs(&self) -> Attrs {
        let d = AdamW::default();
        Attrs::default()
            .unless("beta1", self.beta1, d.beta1)
            .unless("beta2", self.beta2, d.beta2)
            .unless("eps", self.eps, d.eps)
            .unless("weight_decay", self.weight_decay, d.weight_decay)
    }

    fn arity(&self) -> (usize, usize) {
        (6, 6)
    }

    fn infer(&self, operands: &[&TensorType]) -> Result<Types, TypeError> {
        let (param, moment) = (operands[0], operands[0].with_dtype(DType::F32));
        float(param)?;
        if operands[1].shape != param.shape || *operands[2] != moment || *operands[3] != moment {
            let (g, m, v) = (operands[1], operands[2], operands[3]);
            return Err(TypeError(format!(
                "{param}, {g}, {m} and {v} do not line up"
            )));
        }
        let scalars = [
            TensorType::scalar(DType::I64),
            TensorType::scalar(DType::F32),
        ];
        if *operands[4] != scalars[0] || *operands[5] != scalars[1] {
            let (step, lr) = (operands[4], operands[5]);
            return Err(TypeError(format!(
                "expected step i64[] and lr f32[], found {step} and {lr}"
            )));
        }
        Ok([param.clone(), moment.clone(), moment]
            .into_iter()
            .collect())
    }

    fn bind(&self, _: &Bindings) -> Option<Op> {
        Some((*self).into())
    }

    fn updates(&self) -> &'static [(usize, usize)] {
        &[(0, 0), (1, 2), (2, 3)]
    }

    /// The step, and parameter and gradient if they are not row-major f32, as such.
    fn scratch(&self, operands: &[(&TensorType, &Layout)], _: &[&TensorType]) -> u64 {
        let as_f32 = |x: (&TensorType, &Layout)| match x.0.dtype {
            DType::F32 => super::row_major(x),
            _ => super::bytes_as(DType::F32, x.0),
        };
        pieces([DType::F32.size(), as_f32(operands[0]), as_f32(operands[1])])
    }

    fn flops(&self, operands: &[&TensorType], _: &[&TensorType]) -> u64 {
        12 * operands[0].elements().unwrap_or(0)
    }

    fn decompose(&self, p: &mut Patch<'_>, ins: &[ValueId]) -> Option<Result<Results, PatchError>> {
        Some(self.build(p, ins))
    }
}

impl AdamW {
    fn build(&self, p: &mut Patch<'_>, ins: &[ValueId]) -> Result<Results, PatchError> {
        let dtype = p.ty(ins[0]).dtype;
        let (param, grad) = (p.cast(ins[0], DType::F32)?, p.cast(ins[1], DType::F32)?);
        let (lr, step) = (ins[5], p.cast(ins[4], DType::F32)?);
        let one = p.scalar(DType::F32, 1.0)?;
        let average = |p: &mut Patch<'_>, old: ValueId, new: ValueId, beta: f64| {
            let old = p.scaled(old, beta)?;
            let new = p.scaled(new, 1.0 - beta)?;
            p.plus(old, new)
        };
        let square = p.times(grad, grad)?;
        let m = average(p, ins[2], grad, self.beta1.0)?;
        let v = average(p, ins[3], square, self.beta2.0)?;
        let correction = |p: &mut Patch<'_>, beta: f64| {
            let beta = p.scalar(DType::F32, beta)?;
            let power = p.binary(BinaryKind::Pow, beta, step)?;
            p.minus(one, power)
        };
        let (c1, c2) = (correction(p, self.beta1.0)?, correction(p, self.beta2.0)?);
        let v_hat = p.over(v, c2)?;
        let root = p.unary(UnaryKind::Sqrt, v_hat)?;
        let eps = p.scalar(DType::F32, self.eps.0)?;
        let denominator = p.plus(root, eps)?;
        let rate = p.over(lr, c1)?;
        let ratio = p.over(m, denominator)?;
        let change = p.times(ratio, rate)?;
        let decayed = if self.weight_decay.0 == 0.0 {
            param
        } else {
            let decay = p.scaled(lr, self.weight_decay.0)?;
            let keep = p.minus(one, decay)?;
            p.times(param, keep)?
        };
        let next = p.minus(decayed, change)?;
        Ok([p.cast(next, dtype)?, m, v].into_iter().collect())
    }
}

pub(super) fn parse(name: &str, a: &mut AttrReader<'_>) -> Option<Result<Op, String>> {
    (name == "adamw").then(|| {
        let d = AdamW::default();
        Ok(AdamW {
            beta1: a.float_or("beta1", d.beta1.0)?,
            beta2: a.float_or("beta2", d.beta2.0)?,
            eps: a.float_or("eps", d.eps.0)?,
            weight_decay: a.float_or("weight_decay", d.weight_decay.0)?,
        }
        .into())
    })
}
