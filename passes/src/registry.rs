//! The one list of passes.

use crate::pass::{Method, Pass};
use crate::{
    attach_loss, attach_optimizer, bind_dims, canonicalize, compare_gradients, convert_precision,
    differentiate, eliminate_common_subexpressions, eliminate_dead_code, find_gradients, find_lora,
    find_training, fold_constants, freeze_lora_a, fuse_activations, fuse_attention,
    fuse_cross_entropy, fuse_loss, fuse_norms, fuse_products, fuse_rotary, inject_lora, mask_relu,
    pack_frozen, redraw_masks, rematerialize, schedule_backward, simplify_lora, unmerge_lora,
};
use lorafa_ir::Graph;

/// Passes that run one after the other.
pub type Stage = &'static [&'static dyn Pass];

/// Passes that every method shares: from the imported graph to a bound and clean one whose
/// adapters are known, and whose gradients are, if it has any.
pub const PREPARE: Stage = &[
    &bind_dims::BindDims,
    &find_training::FindTraining,
    &canonicalize::Canonicalize,
    &fold_constants::FoldConstants,
    &unmerge_lora::UnmergeLora,
    &eliminate_common_subexpressions::EliminateCommonSubexpressions,
    &eliminate_dead_code::EliminateDeadCode,
    &find_lora::FindLora,
    &find_gradients::FindGradients,
];

/// Passes that every method shares, too: what exporters spell with many ops becomes one, which keeps
/// less for its gradient.
pub const FUSE: Stage = &[
    &fuse_attention::FuseAttention,
    &fuse_norms::FuseNorms,
    &fuse_activations::FuseActivations,
    &fuse_rotary::FuseRotary,
    &fuse_cross_entropy::FuseCrossEntropy,
];

/// Passes that build loss and gradients of `full` and `lora`.
pub const TRAIN: Stage = &[
    &eliminate_dead_code::EliminateDeadCode,
    &inject_lora::InjectLora,
    &attach_loss::AttachLoss,
    &convert_precision::ConvertPrecision,
    &eliminate_dead_code::EliminateDeadCode,
    &fuse_loss::FuseLoss,
    &differentiate::Differentiate,
    &eliminate_common_subexpressions::EliminateCommonSubexpressions,
    &eliminate_dead_code::EliminateDeadCode,
    &mask_relu::MaskRelu,
];

/// What a training graph takes in place of [`TRAIN`]: it has its loss and its gradients.
pub const GIVEN: Stage = &[
    &eliminate_dead_code::EliminateDeadCode,
    &mask_relu::MaskRelu,
];

/// Passes that turn LoRA's gradients into LoRA-FA's.
pub const FREEZE: Stage = &[
    &freeze_lora_a::FreezeLoraA,
    &simplify_lora::SimplifyLora,
    &eliminate_dead_code::EliminateDeadCode,
    &mask_relu::MaskRelu,
];

/// Passes that turn products into what BLAS computes at once, and what is kept into what is drawn or computed again. The
/// last two weigh the step that comes of the graph.
///
/// Nothing merges equal expressions afterwards: what is computed again would be kept.
pub const REFINE: Stage = &[
    &redraw_masks::RedrawMasks,
    &fuse_products::FuseProducts,
    &schedule_backward::ScheduleBackward,
    &rematerialize::Rematerialize,
    &pack_frozen::PackFrozen,
];

/// Passes that turn gradients into a training step.
///
/// Nothing merges equal expressions afterwards: a gradient's f32 copy is made where it is read, again
/// and again, so that there is one at a time. Nor does anything read parameters that did not before: they are updated
/// when what reads them has run.
pub const UPDATE: Stage = &[&attach_optimizer::AttachOptimizer];

/// What puts our own gradients beside those of a training graph, after [`PREPARE`]: to compare, not to train.
pub const COMPARE: Stage = &[
    &compare_gradients::CompareGradients,
    &eliminate_dead_code::EliminateDeadCode,
];

/// The stages after [`PREPARE`] that every method shares. What a training graph brings of a backward pass reads the parts
/// of what would be fused, and needs no gradient of the whole.
pub fn shared(graph: &Graph) -> &'static [Stage] {
    match graph.has_gradients() {
        false => &[FUSE],
        true => &[],
    }
}

/// The stages that follow the shared ones and lead to a method's gradients.
pub fn differentiation(graph: &Graph, method: Method) -> &'static [Stage] {
    match (graph.has_gradients(), method) {
        (false, Method::Full | Method::Lora) => &[TRAIN],
        (false, Method::LoraFa) => &[TRAIN, FREEZE],
        (true, Method::Full | Method::Lora) => &[GIVEN],
        (true, Method::LoraFa) => &[GIVEN, FREEZE],
    }
}

/// The stages after [`PREPARE`] that lead to a method's training step.
pub fn stages(graph: &Graph, method: Method) -> Vec<Stage> {
    [
        shared(graph),
        differentiation(graph, method),
        &[REFINE, UPDATE],
    ]
    .concat()
}

/// The passes that make one op of several.
pub fn fusions() -> impl Iterator<Item = &'static dyn Pass> {
    let all = all().into_iter();
    all.filter(|pass| pass.name().starts_with("fuse-"))
}

/// Every pass once, in pipeline order.
pub fn all() -> Vec<&'static dyn Pass> {
    let mut passes: Vec<&'static dyn Pass> = Vec::new();
    for pass in [PREPARE, FUSE, TRAIN, FREEZE, REFINE, UPDATE, COMPARE].concat() {
        if passes.iter().all(|p| p.name() != pass.name()) {
            passes.push(pass);
        }
    }
    passes
}
