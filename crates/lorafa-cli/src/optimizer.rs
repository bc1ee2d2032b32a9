//! The optimizer's flags.

use crate::error::Error;
use clap::{Args, ValueEnum};
use lorafa_ir::DType;
use lorafa_onnx::optimizer::AdamWModel;
use lorafa_passes::attach_optimizer::{OptimizerKind, OptimizerOptions};

/// How gradients change parameters.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Optimizer")]
pub struct OptimizerArgs {
    /// `lorafa` is PEFT's, for the method lora-fa: AdamW on the gradient that brings B·A closest to
    /// full fine-tuning. [default: adamw, or what the optimizer_model.onnx of a folder says, whose numbers are then the
    /// defaults of the other flags]
    #[arg(long, value_enum)]
    pub optimizer: Option<OptimizerArg>,

    /// Decoupled weight decay [default: 0].
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub weight_decay: Option<f64>,

    /// Decay of the first moment [default: 0.9].
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub beta1: Option<f64>,

    /// Decay of the second moment [default: 0.999].
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub beta2: Option<f64>,

    /// Added to the root of the second moment [default: 1e-8, for lorafa 1e-6].
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub eps: Option<f64>,

    /// The type in which `--optimizer lorafa` projects gradients [default: f32]. PEFT's takes bf16
    /// wherever there is bf16.
    #[arg(long, value_enum)]
    pub projection: Option<ProjectionArg>,

    /// Scale gradients down to this norm, that of all of them together [default: never].
    #[arg(long, value_name = "NORM", allow_negative_numbers = true)]
    pub clip: Option<f64>,

    /// Micro-batches for one update; their gradients are summed in f32.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub accumulate: u32,

    /// The optimizer that comes with the model.
    #[arg(skip)]
    pub given: Option<AdamWModel>,
}

/// [`OptimizerKind`] on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum OptimizerArg {
    Adamw,
    #[value(alias = "lora-fa")]
    Lorafa,
}

/// A type to multiply in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum ProjectionArg {
    F32,
    Bf16,
}

impl From<ProjectionArg> for DType {
    fn from(projection: ProjectionArg) -> Self {
        match projection {
            ProjectionArg::F32 => DType::F32,
            ProjectionArg::Bf16 => DType::BF16,
        }
    }
}

impl From<OptimizerArg> for OptimizerKind {
    fn from(optimizer: OptimizerArg) -> Self {
        match optimizer {
            OptimizerArg::Adamw => OptimizerKind::AdamW,
            OptimizerArg::Lorafa => OptimizerKind::LoraFa,
        }
    }
}

impl OptimizerArgs {
    /// Which optimizer.
    pub fn kind(&self) -> OptimizerArg {
        self.optimizer.unwrap_or(OptimizerArg::Adamw)
    }

    /// The optimizer that comes with the model, unless a flag asks for another.
    pub fn from_model(&self) -> Option<&AdamWModel> {
        self.given.as_ref().filter(|_| self.optimizer.is_none())
    }

    /// What the passes are asked for.
    ///
    /// # Errors
    ///
    /// A number out of its range.
    pub fn options(&self) -> Result<OptimizerOptions, Error> {
        let mut defaults = OptimizerOptions::new(self.kind().into());
        if let Some(given) = self.from_model() {
            defaults.form = given.form;
            [defaults.beta1, defaults.beta2] = given.betas;
            defaults.eps = given.eps;
            defaults.weight_decay = given.weight_decay;
            defaults.max_grad_norm = given.max_grad_norm;
        }
        if self.projection.is_some() && self.kind() != OptimizerArg::Lorafa {
            return Err(Error::Args(
                "--projection is for --optimizer lorafa, which alone projects gradients".into(),
            ));
        }
        let eps = self.eps.unwrap_or(defaults.eps);
        let weight_decay = self.weight_decay.unwrap_or(defaults.weight_decay);
        let beta1 = self.beta1.unwrap_or(defaults.beta1);
        let beta2 = self.beta2.unwrap_or(defaults.beta2);
        let clip = self.clip.or(defaults.max_grad_norm);
        let not_negative = "a number that is not negative";
        let positive = "a number above zero";
        let decay = "a number from 0 up to, but not including, 1";
        let refused = [
            ("--weight-decay", weight_decay, 0.0.., not_negative),
            ("--eps", eps, 0.0.., not_negative),
            ("--clip", clip.unwrap_or(1.0), f64::MIN_POSITIVE.., positive),
        ]
        .into_iter()
        .find(|(_, x, range, _)| !(x.is_finite() && range.contains(x)))
        .map(|(flag, _, _, expected)| (flag, expected));
        let betas = [("--beta1", beta1), ("--beta2", beta2)];
        let beta = betas.into_iter().find(|(_, x)| !(0.0..1.0).contains(x));
        if let Some((flag, expected)) = refused.or(beta.map(|(flag, _)| (flag, decay))) {
            return Err(Error::Args(format!("{flag}: expected {expected}")));
        }
        Ok(OptimizerOptions {
            beta1,
            beta2,
            eps,
            weight_decay,
            max_grad_norm: clip,
            projection: self.projection.map_or(defaults.projection, Into::into),
            accumulate: self.accumulate > 1,
            ..defaults
        })
    }
}
