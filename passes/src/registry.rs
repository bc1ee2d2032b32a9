//! The one list of passes.

use crate::pass::{Method, Pass};
use crate::{
    attach_loss, attach_optimizer, bind_dims, canonicalize, convert_precision, differentiate,
    eliminate_common_subexpressions, eliminate_dead_code, find_lora, fold_constants, freeze_lora_a,
    fuse_attention, inject_lora,
};

/// Passes that every method shares: from the imported graph to a bound and clean one whose
/// adapters are known.
pub const PREPARE: &[&dyn Pass] = &[
    &bind_dims::BindDims,
    &canonicalize::Canonicalize,
    &fold_constants::FoldConstants,
    &eliminate_common_subexpressions::EliminateCommonSubexpressions,
    &fuse_attention::FuseAttention,
    &eliminate_dead_code::EliminateDeadCode,
    &find_lora::FindLora,
];

/// Passes that build the training step of `full` and `lora`.
pub const TRAIN: &[&dyn Pass] = &[
    &inject_lora::InjectLora,
    &attach_loss::AttachLoss,
    &convert_precision::ConvertPrecision,
    &eliminate_dead_code::EliminateDeadCode,
    &differentiate::Differentiate,
    &attach_optimizer::AttachOptimizer,
    &eliminate_common_subexpressions::EliminateCommonSubexpressions,
    &eliminate_dead_code::EliminateDeadCode,
];

/// Passes that turn LoRA's training step into LoRA-FA's.
pub const FREEZE: &[&dyn Pass] = &[
    &freeze_lora_a::FreezeLoraA,
    &eliminate_dead_code::EliminateDeadCode,
];

/// The stages that lead to a method's training step.
pub fn stages(method: Method) -> Vec<&'static [&'static dyn Pass]> {
    match method {
        Method::Full | Method::Lora => vec![PREPARE, TRAIN],
        Method::LoraFa => vec![PREPARE, TRAIN, FREEZE],
    }
}

/// Every pass once, in pipeline order.
pub fn all() -> Vec<&'static dyn Pass> {
    let mut passes: Vec<&'static dyn Pass> = Vec::new();
    for pass in [PREPARE, TRAIN, FREEZE].concat() {
        if passes.iter().all(|p| p.name() != pass.name()) {
            passes.push(pass);
        }
    }
    passes
}
