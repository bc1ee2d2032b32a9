//! Running a program: whole steps, parts of them, and steps that are watched.
// Runs kernels over raw pointers.
#![allow(unsafe_code)]

use std::time::{Duration, Instant};

use lorafa_ir::text::OpDisplay;
use lorafa_ir::{OpId, Region};

use crate::device::OpenDevice;
use crate::error::ExecError;
use crate::kernels::{Task, When, Work};
use crate::program::Program;
use crate::shim::{self, InferenceMode, Tracer};
use crate::trace::{Trace, Watch};
use crate::transfer;

/// A task with its place in the step.
#[derive(Debug)]
pub(crate) struct Step {
    /// Of the schedule.
    pub position: u32,
    /// The first region that needs it.
    pub region: Region,
    pub task: Task,
}

impl Step {
    /// Whether it is part of runs that train.
    fn trains(&self) -> bool {
        self.task.when != When::Evaluation
    }
}

/// How much of a step runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// All.
    Step,
    /// All but the update.
    MicroStep,
    /// The loss alone, without dropout.
    Evaluation,
}

impl Part {
    pub(crate) fn has(self, step: &Step) -> bool {
        let has = match self {
            Part::Step => step.trains(),
            Part::MicroStep => step.trains() && step.region < Region::Update,
            Part::Evaluation => step.region == Region::Forward && step.task.when != When::Training,
        };
        has && step.task.is_due()
    }
}

impl Program {
    /// Runs the step. On a device other than the CPU it may still be running when this returns; reading an output waits
    /// for it, and [`OpenDevice::synchronize`] does.
    ///
    /// # Errors
    /// A kernel refuses its operands' values: a label or an index out of range. The op is named; what the step wrote up
    /// to there stays written.
    pub fn step(&mut self) -> Result<(), ExecError> {
        self.run(Part::Step, |_| Ok(()))
    }

    /// Runs the step without its update: the loss, and gradients to where the backward pass leaves or accumulates them.
    /// Counts as a step for dropout, so that each micro-batch has masks of its own.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn micro_step(&mut self) -> Result<(), ExecError> {
        self.run(Part::MicroStep, |_| Ok(()))
    }

    /// Computes the loss alone, as PyTorch's `eval` mode does: dropout passes everything. No parameter and no count of
    /// steps changes; outputs other than those of the forward pass are garbage afterwards.
    ///
    /// # Errors
    /// As [`step`](Self::step), and if the forward pass updates a parameter.
    pub fn evaluate(&mut self) -> Result<(), ExecError> {
        let forward = |op: &&OpId| self.graph.op(**op).site.region == Region::Forward;
        let updates = |op: &&OpId| !self.graph.op(**op).kind.updates().is_empty();
        if let Some(op) = self.ops.iter().filter(forward).find(updates) {
            return Err(ExecError::Unsupported {
                line: self.line_of(*op),
                why: "it updates a parameter in the forward pass, which evaluation must not".into(),
            });
        }
        self.run(Part::Evaluation, |_| Ok(()))
    }

    /// Runs the step and reports what memory it took.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn step_traced(&mut self) -> Result<Trace, ExecError> {
        self.traced(Part::Step)
    }

    /// Runs the step without its update and reports what memory that took.
    ///
    /// # Errors
    /// As [`micro_step`](Self::micro_step).
    pub fn micro_step_traced(&mut self) -> Result<Trace, ExecError> {
        self.traced(Part::MicroStep)
    }

    fn traced(&mut self, part: Part) -> Result<Trace, ExecError> {
        let tracer = Tracer::start().map_err(|message| ExecError::Torch {
            line: "the allocation tracer".into(),
            message,
        })?;
        let mut watch = Watch::default();
        self.run(part, |position| {
            watch.record(position, tracer.take());
            Ok(())
        })?;
        Ok(watch.finish(self))
    }

    /// Runs the step and reports how long each kernel call took, in the order they ran. Waits for each.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn step_timed(&mut self) -> Result<Vec<(OpId, Duration)>, ExecError> {
        let mut times = Vec::with_capacity(self.steps.len());
        let device = self.device;
        device.synchronize()?;
        let mut last = Instant::now();
        self.run(Part::Step, |position| {
            device.synchronize()?;
            let now = Instant::now();
            times.push((position, now - last));
            last = now;
            Ok(())
        })?;
        let of_op =
            |(position, time): (u32, Duration)| Some((*self.ops.get(position as usize)?, time));
        Ok(times.into_iter().filter_map(of_op).collect())
    }

    /// Runs tasks in order, and calls `after` with each one's position.
    fn run(
        &mut self,
        part: Part,
        mut after: impl FnMut(u32) -> Result<(), ExecError>,
    ) -> Result<(), ExecError> {
        let _inference = InferenceMode::enter();
        for index in 0..self.steps.len() {
            if part.has(&self.steps[index]) {
                self.task(index)?;
                after(self.steps[index].position)?;
            }
        }
        self.count(part);
        Ok(())
    }

    /// Counts a run that trains.
    pub(crate) fn count(&mut self, part: Part) {
        if part != Part::Evaluation {
            self.runs += 1;
        }
    }

    /// Runs one task.
    pub(crate) fn task(&mut self, index: usize) -> Result<(), ExecError> {
        let Step { position, task, .. } = &self.steps[index];
        work(task, self.runs, self.device).map_err(|message| {
            let line = self.line(*position);
            if shim::out_of_memory() {
                let device = self.device.device();
                return ExecError::NoMemoryLeft {
                    line,
                    device,
                    message,
                };
            }
            ExecError::Torch { line, message }
        })
    }

    /// Runs tasks on views of the program that are not part of its step.
    pub(crate) fn once(&mut self, tasks: &[Task]) -> Result<(), String> {
        let mut tasks = tasks.iter();
        tasks.try_for_each(|task| work(task, self.runs, self.device))
    }

    /// The op at a position, in the text form.
    pub(crate) fn line(&self, position: u32) -> String {
        let op = self.ops.get(position as usize);
        op.map_or_else(String::new, |op| self.line_of(*op))
    }

    /// An op in the text form.
    pub(crate) fn line_of(&self, op: OpId) -> String {
        OpDisplay(&self.graph, op).to_string()
    }
}

/// Does a task of a program that is borrowed mutably.
pub(crate) fn work(task: &Task, step: u64, device: OpenDevice) -> Result<(), String> {
    match &task.work {
        // SAFETY: the program owns the memory, and nobody else uses it.
        Work::Call(call) => unsafe { call.run() },
        // SAFETY: the same, and its scratch is the op's own.
        Work::Placed(call) => unsafe { call.run() },
        Work::Mask(mask) => mask.draw(step, device),
        Work::Look(view, shown) => {
            shown.set(transfer::read(view, device)?.iter().all(|byte| *byte != 0));
            Ok(())
        }
    }
}
