//! The names by which who builds a step's optimizer and who runs the step know its state.

/// What the names of all state begin with.
pub const STATE: &str = "optim::";

/// The number of the update, `i64[]`, from one.
pub const STEP: &str = "optim::step";

/// The learning rate, `f32[]`.
pub const LR: &str = "optim::lr";

/// What an accumulated gradient keeps of earlier micro-batches, `f32[]`: 0 on the first of an update, then 1.
pub const KEEP: &str = "optim::keep";

/// The share of the update's labels that the micro-batch has, `f32[]`.
pub const WEIGHT: &str = "optim::weight";

/// The output with the norm of all gradients before clipping, `f32[]`.
pub const GRADIENT_NORM: &str = "grad_norm";

/// What precedes the name of A in that of the state `pinv(A·Aᵀ + `[`RIDGE`]`·I)`, `f32[rank,rank]`: the step reads it, and
/// who runs the step computes it, once, as A never changes.
pub const INVERSE: &str = "optim::inverse::";

/// What is added to the diagonal of A·Aᵀ, as in PEFT.
pub const RIDGE: f64 = 1e-8;

/// What precedes the name of a parameter in that of the output with its next value.
pub const UPDATED: &str = "updated::";

/// Whether an output of this name is there for the optimizer's sake.
pub fn is_optimizers(output: &str) -> bool {
    output == GRADIENT_NORM
        || [STATE, UPDATED]
            .iter()
            .any(|prefix| output.starts_with(prefix))
}
