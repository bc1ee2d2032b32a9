//! The optimizer's flags.

use crate::error::Error;
use clap::{Args, ValueEnum};
use lorafa_ir::DType;
use lorafa_passes::attach_optimizer::{OptimizerKind, OptimizerOptions};

/// How gradients change parameters.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Optimizer")]
pub struct OptimizerArgs {
    /// `lorafa` is PEFT's, for the method lora-fa: AdamW on the gradient that brings B·A closest to
    /// full fine-tuning.
    #[arg(long, value_enum, default_value_t = OptimizerArg::Adamw)]
    pub optimizer: OptimizerArg,

    /// Decoupled weight decay.
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    pub weight_decay: f64,

    /// Decay of the first moment.
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.9,
        allow_negative_numbers = true
    )]
    pub beta1: f64,

    /// Decay of the second moment.
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.999,
        allow_negative_numbers = true
    )]
    pub beta2: f64,

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
}

/// [`OptimizerKind`] on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum OptimizerArg {
    Adamw,
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
    /// What the passes are asked for.
    ///
    /// # Errors
    ///
    /// A number out of its range.
    pub fn options(&self) -> Result<OptimizerOptions, Error> {
        let defaults = OptimizerOptions::new(self.optimizer.into());
        if self.projection.is_some() && self.optimizer != OptimizerArg::Lorafa {
            return Err(Error::Args(
                "--projection is for --optimizer lorafa, which alone projects gradients".into(),
            ));
        }
        let eps = self.eps.unwrap_or(defaults.eps);
        let not_negative = "a number that is not negative";
        let positive = "a number above zero";
        let decay = "a number from 0 up to, but not including, 1";
        let refused = [
            ("--weight-decay", self.weight_decay, 0.0.., not_negative),
            ("--eps", eps, 0.0.., not_negative),
            (
                "--clip",
                self.clip.unwrap_or(1.0),
                f64::MIN_POSITIVE..,
                positive,
            ),
        ]
        .into_iter()
        .find(|(_, x, range, _)| !(x.is_finite() && range.contains(x)))
        .map(|(flag, _, _, expected)| (flag, expected));
        let betas = [("--beta1", self.beta1), ("--beta2", self.beta2)];
        let beta = betas.into_iter().find(|(_, x)| !(0.0..1.0).contains(x));
        if let Some((flag, expected)) = refused.or(beta.map(|(flag, _)| (flag, decay))) {
            return Err(Error::Args(format!("{flag}: expected {expected}")));
        }
        Ok(OptimizerOptions {
            beta1: self.beta1,
            beta2: self.beta2,
            eps,
            weight_decay: self.weight_decay,
            max_grad_norm: self.clip,
            projection: self.projection.map_or(defaults.projection, Into::into),
            accumulate: self.accumulate > 1,
            ..defaults
        })
    }
}
