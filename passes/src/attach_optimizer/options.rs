//! What the user may ask of the optimizer.

use lorafa_ir::DType;
use lorafa_ir::ops::{AdamW, AdamWForm, Scalar};

/// Which optimizer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OptimizerKind {
    /// `torch.optim.AdamW`.
    AdamW,
    /// PEFT's LoRA-FA optimizer: AdamW on the gradient of B times `pinv(A·Aᵀ + 1e-8·I)/scale²`. For
    /// methods that train A it is AdamW.
    LoraFa,
}

impl OptimizerKind {
    /// Every optimizer.
    pub const ALL: [OptimizerKind; 2] = [OptimizerKind::AdamW, OptimizerKind::LoraFa];

    /// The spelling.
    pub fn name(self) -> &'static str {
        match self {
            OptimizerKind::AdamW => "adamw",
            OptimizerKind::LoraFa => "lorafa",
        }
    }
}

/// The optimizer, and what happens to gradients before it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct OptimizerOptions {
    /// Which.
    pub kind: OptimizerKind,
    /// The formula of [`OptimizerKind::AdamW`].
    pub form: AdamWForm,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// The norm of all gradients together beyond which they are scaled down to it.
    pub max_grad_norm: Option<f64>,
    /// The type of the product by which [`OptimizerKind::LoraFa`] projects. PEFT takes bf16 wherever
    /// there is bf16, by autocast.
    pub projection: DType,
    /// Gradients of several micro-batches are summed in f32 before an update.
    pub accumulate: bool,
    /// Gradients are outputs, to be read after the step, and live until then.
    pub keep_gradients: bool,
}

impl OptimizerOptions {
    /// An optimizer with its own library's defaults, but no weight decay.
    pub fn new(kind: OptimizerKind) -> Self {
        OptimizerOptions {
            kind,
            form: AdamWForm::Torch,
            beta1: 0.9,
            beta2: 0.999,
            eps: match kind {
                OptimizerKind::AdamW => 1e-8,
                OptimizerKind::LoraFa => 1e-6,
            },
            weight_decay: 0.0,
            max_grad_norm: None,
            projection: DType::F32,
            accumulate: false,
            keep_gradients: false,
        }
    }

    pub(super) fn adamw(&self, form: AdamWForm) -> AdamW {
        AdamW {
            beta1: Scalar(self.beta1),
            beta2: Scalar(self.beta2),
            eps: Scalar(self.eps),
            weight_decay: Scalar(self.weight_decay),
            form,
        }
    }
}

impl Default for OptimizerOptions {
    fn default() -> Self {
        OptimizerOptions::new(OptimizerKind::AdamW)
    }
}
