//! One update: what goes into a step beside data, and which of its parts run.

use lorafa_exec::Program;
use lorafa_ir::Graph;
use lorafa_ir::optimizer::{KEEP, LR, STEP, WEIGHT};
use lorafa_onnx::dtype;

use crate::error::TrainError;

/// What is looked for while a step runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// Nothing.
    Nothing,
    /// The first op that makes a NaN or an infinity.
    Finite,
    /// Memory beside the arena.
    Memory,
}

/// Runs one update, the `number`th from one, of a micro-batch for each of `shares`: the part of the update's labels that
/// it has. `fill` writes the inputs of a micro-batch. The loss is the mean over all labels.
///
/// # Errors
/// A step that cannot be run, and what `check` finds.
pub fn update(
    program: &mut Program,
    graph: &Graph,
    (number, lr): (u64, f64),
    shares: &[f64],
    check: Check,
    mut fill: impl FnMut(&mut Program, usize) -> Result<(), TrainError>,
) -> Result<f64, TrainError> {
    program.write(LR, &(lr as f32).to_le_bytes())?;
    program.write(STEP, &(number as i64).to_le_bytes())?;
    let accumulates = program.params().any(|name| name == KEEP);
    let mut mean = 0.0;
    for (i, share) in shares.iter().enumerate() {
        if accumulates {
            let keep = if i == 0 { 0.0f32 } else { 1.0 };
            program.write(KEEP, &keep.to_le_bytes())?;
            program.write(WEIGHT, &(*share as f32).to_le_bytes())?;
        }
        fill(program, i)?;
        // The last one changes the parameters.
        match (i + 1 == shares.len(), check) {
            (true, Check::Nothing) => program.step()?,
            (true, Check::Finite) => program.step_checked()?,
            (true, Check::Memory) => program.step_traced()?.check()?,
            (false, Check::Finite) => program.micro_step_checked()?,
            (false, Check::Memory) => program.micro_step_traced()?.check()?,
            (false, Check::Nothing) => program.micro_step()?,
        }
        mean += share * loss(program, graph)?;
    }
    Ok(mean)
}

/// The loss that a run of the step has left. Waits for the device.
///
/// # Errors
/// There is no loss, or it cannot be read.
pub fn loss(program: &Program, graph: &Graph) -> Result<f64, TrainError> {
    let loss = graph.loss().ok_or_else(|| TrainError::Step {
        why: "it has no loss".into(),
    })?;
    scalar(program, &loss.name)
}

/// An output of one number.
pub(crate) fn scalar(program: &Program, output: &str) -> Result<f64, TrainError> {
    let (ty, bytes) = program.output(output)?;
    let numbers = dtype::decode(ty.dtype, &bytes);
    Ok(numbers.first().copied().unwrap_or(f64::NAN))
}
