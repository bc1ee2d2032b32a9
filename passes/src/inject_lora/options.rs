//! What the user asks of injected adapters.

use super::heads;
use super::layers::{self, Linear};
use crate::pass::PassError;
use crate::targets::{Matched, Patterns, Targets, layer_index, selects};
use lorafa_ir::ops::Init;
use lorafa_ir::{DType, Graph};
use std::collections::BTreeSet;

/// How to inject adapters.
#[derive(Clone, Debug)]
pub struct InjectOptions {
    /// The rank, where no pattern gives another.
    pub rank: Option<u64>,
    /// The numerator of the scale, where no pattern gives another; twice [`rank`](Self::rank) if
    /// none, so that the scale is 2. (PEFT's default is 8 whatever the rank.)
    pub alpha: Option<f64>,
    /// Scale by `alpha/√rank` and not `alpha/rank`.
    pub rslora: bool,
    /// The first values of A; those of B are zero.
    pub init_a: Init,
    /// The seed of these.
    pub seed: u64,
    /// The layers to adapt.
    pub targets: Targets,
    /// Of those, the layers not to adapt.
    pub exclude: Option<Targets>,
    /// Of those, the layers by number; all if empty.
    pub layers_to_transform: Vec<usize>,
    /// Ranks by layer.
    pub rank_pattern: Patterns<u64>,
    /// Alphas by layer.
    pub alpha_pattern: Patterns<f64>,
    /// The share of a layer's input that its adapter does not see, drawn anew in each step.
    pub dropout: f64,
    /// The adapters' element type; the layer's if none.
    pub adapter_dtype: Option<DType>,
}

impl Default for InjectOptions {
    fn default() -> Self {
        InjectOptions {
            rank: None,
            alpha: None,
            rslora: false,
            init_a: Init::Kaiming,
            seed: 0,
            targets: Targets::AllLinear,
            exclude: None,
            layers_to_transform: Vec::new(),
            rank_pattern: Patterns::default(),
            alpha_pattern: Patterns::default(),
            dropout: 0.0,
            adapter_dtype: None,
        }
    }
}

impl InjectOptions {
    /// The rank and the scale of the adapter of a module.
    pub(super) fn rank_and_scale(&self, module: &str, rank: u64) -> Result<(u64, f64), PassError> {
        let alpha = self
            .alpha_pattern
            .get(module)
            .or(self.alpha)
            .unwrap_or(2.0 * rank as f64);
        let rank = self.rank_pattern.get(module).unwrap_or(rank);
        let divisor = if self.rslora {
            (rank as f64).sqrt()
        } else {
            rank as f64
        };
        let scale = alpha / divisor;
        if rank == 0 || i64::try_from(rank).is_err() || !scale.is_finite() {
            let refusal = format!("{module}: no adapter has rank {rank} and alpha {alpha}");
            return Err(PassError::Refused(refusal));
        }
        Ok((rank, scale))
    }

    pub(super) fn selects(&self, layer: &Linear) -> bool {
        let (targets, exclude) = (&self.targets, self.exclude.as_ref());
        let chosen = selects(targets, exclude, &self.layers_to_transform, &layer.module);
        match targets {
            Targets::AllLinear => chosen == Some(Matched::ByRule) && !layer.is_output,
            _ => chosen.is_some(),
        }
    }

    /// A module that is named as a target and cannot be one. PEFT refuses these, too, except
    /// embeddings, which it adapts by look-ups.
    pub(super) fn not_linear(
        &self,
        graph: &Graph,
        layers: &[Linear],
        classifier: bool,
    ) -> Option<String> {
        if matches!(self.targets, Targets::AllLinear) {
            return None;
        }
        let linear: BTreeSet<&str> = layers.iter().map(|l| &*l.module).collect();
        let (exclude, numbers) = (self.exclude.as_ref(), &self.layers_to_transform);
        let apart = |module: &str| {
            linear.contains(module) || classifier && heads::in_head(module) || module.is_empty()
        };
        let mut others = layers::module_paths(graph).into_iter();
        others.find(|module| {
            !apart(module) && selects(&self.targets, exclude, numbers, module).is_some()
        })
    }

    /// What was asked for and fits no layer, a line each.
    pub(super) fn unused(&self, layers: &[Linear]) -> Vec<String> {
        let any = |test: &dyn Fn(&str) -> bool| layers.iter().any(|l| test(&l.module));
        let mut lines = Vec::new();
        let mut unused = |flag: &str, what: &dyn std::fmt::Display, used: bool| {
            if !used {
                lines.push(format!("{flag} {what} matches no linear layer"));
            }
        };
        for (flag, targets) in [
            ("--targets", Some(&self.targets)),
            ("--exclude", self.exclude.as_ref()),
        ] {
            for part in targets.map_or(Vec::new(), Targets::parts) {
                unused(flag, &part, any(&|module| part.matches(module).is_some()));
            }
        }
        for number in &self.layers_to_transform {
            unused(
                "--layers",
                number,
                any(&|module| layer_index(module) == Some(*number)),
            );
        }
        for key in self.rank_pattern.unused(|test| any(test)) {
            unused("--rank-pattern", &key, false);
        }
        for key in self.alpha_pattern.unused(|test| any(test)) {
            unused("--alpha-pattern", &key, false);
        }
        lines
    }
}
