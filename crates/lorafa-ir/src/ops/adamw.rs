//! `adamw`: one optimizer step of one parameter.

use super::attrs::{AttrReader, Attrs};
use super::{BinaryKind, Op, Operator, Scalar, Types, UnaryKind, float};
use crate::dim::Bindings;
use crate::dtype::DType;
use crate::ids::ValueId;
use crate::layout::{Blocks, Layout, pieces};
use crate::patch::{Patch, PatchError, Results};
use crate::types::{TensorType, TypeError};
use std::fmt;

/// What formula the update follows; `c1 = 1 - beta1^step` and `c2 = 1 - beta2^step` correct the bias.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum AdamWForm {
    /// `torch.optim.AdamW`: `p·(1 - lr·decay) - lr/c1 · m / (√(v/c2) + eps)`.
    #[default]
    Torch,
    /// PEFT's LoRA-FA optimizer and transformers' AdamW, which onnxruntime-training takes: `(p - lr·√c2/c1 · m / (√v + eps))·(1 - lr·decay)`.
    Peft,
}

impl AdamWForm {
    const NAMES: [(AdamWForm, &'static str); 2] =
        [(AdamWForm::Torch, "torch"), (AdamWForm::Peft, "peft")];
}

impl fmt::Display for AdamWForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::NAMES.iter().find(|(form, _)| form == self);
        f.write_str(name.map_or("?", |(_, name)| name))
    }
}

/// `adamw param, grad, m, v, step, lr` gives the next parameter and moments, with bias correction
/// and decoupled weight decay. Moments and arithmetic are f32, `step` counts from one.
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
    /// The formula.
    pub form: AdamWForm,
}

impl Default for AdamW {
    /// PyTorch's defaults, without weight decay.
    fn default() -> Self {
        AdamW {
            beta1: Scalar(0.9),
            beta2: Scalar(0.999),
            eps: Scalar(1e-8),
            weight_decay: Scalar(0.0),
            form: AdamWForm::Torch,
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
            .unless("form", self.form, d.form)
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

    /// Blocks of parameter and gradient as row-major f32 if they are not; for PyTorch's fused kernel the step as such.
    /// PEFT's form has no fused kernel: numbers, and a block of the gradient whatever it is, which becomes the change.
    fn scratch(&self, operands: &[(&TensorType, &Layout)], _: &[&TensorType]) -> u64 {
        let ((param, _), (grad, layout)) = (operands[0], operands[1]);
        let f32 = DType::F32.size();
        let block = |copied: bool| copied.then(|| Blocks::of(layout).bytes());
        let param = block(param.dtype != DType::F32);
        match self.form {
            AdamWForm::Torch => {
                let grad = block(grad.dtype != DType::F32 || !layout.is_contiguous());
                pieces([f32].into_iter().chain(param).chain(grad))
            }
            AdamWForm::Peft => {
                let decay = (self.weight_decay.0 != 0.0).then_some(f32);
                let numbers = [DType::F64.size(); 5].into_iter().chain([f32; 4]);
                pieces(numbers.chain(decay).chain(param).chain(block(true)))
            }
        }
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
        let rate = p.over(lr, c1)?;
        let (second, rate) = match self.form {
            AdamWForm::Torch => (p.over(v, c2)?, rate),
            AdamWForm::Peft => {
                let root = p.unary(UnaryKind::Sqrt, c2)?;
                (v, p.times(rate, root)?)
            }
        };
        let root = p.unary(UnaryKind::Sqrt, second)?;
        let eps = p.scalar(DType::F32, self.eps.0)?;
        let denominator = p.plus(root, eps)?;
        let ratio = p.over(m, denominator)?;
        let change = p.times(ratio, rate)?;
        let decayed = |p: &mut Patch<'_>, param: ValueId| {
            if self.weight_decay.0 == 0.0 {
                return Ok(param);
            }
            let decay = p.scaled(lr, self.weight_decay.0)?;
            let keep = p.minus(one, decay)?;
            p.times(param, keep)
        };
        let next = match self.form {
            AdamWForm::Torch => {
                let param = decayed(p, param)?;
                p.minus(param, change)?
            }
            AdamWForm::Peft => {
                let next = p.minus(param, change)?;
                decayed(p, next)?
            }
        };
        Ok([p.cast(next, dtype)?, m, v].into_iter().collect())
    }
}

pub(super) fn parse(name: &str, a: &mut AttrReader<'_>) -> Option<Result<Op, String>> {
    (name == "adamw").then(|| {
        let d = AdamW::default();
        let form = match a.text("form") {
            None => d.form,
            Some(text) => {
                let found = AdamWForm::NAMES.iter().find(|(_, name)| *name == text);
                let found = found.map(|(form, _)| *form);
                found.ok_or_else(|| {
                    format!("attribute `form`: expected torch or peft, found `{text}`")
                })?
            }
        };
        Ok(AdamW {
            beta1: a.float_or("beta1", d.beta1.0)?,
            beta2: a.float_or("beta2", d.beta2.0)?,
            eps: a.float_or("eps", d.eps.0)?,
            weight_decay: a.float_or("weight_decay", d.weight_decay.0)?,
            form,
        }
        .into())
    })
}
