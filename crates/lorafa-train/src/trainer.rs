//! The loop.
//!
//! ```text
//! update:  batches of one update ─▶ inputs ─▶ micro_step … micro_step, step ─▶ loss, norm of the gradients
//!          every so often: evaluate, save a checkpoint
//! ```

use lorafa_data::{Batch, Dataset, Sampler};
use lorafa_exec::Program;
use lorafa_ir::ops::Role;
use lorafa_ir::{Graph, TensorType};
use lorafa_onnx::dtype;
use lorafa_onnx::external::ExternalStore;
use lorafa_weights::peft;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::checkpoint::{Checkpoints, Identity, Progress};
use crate::error::TrainError;
use crate::inputs;
use crate::schedule::Schedule;

/// How a run goes.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Learning rates, and the number of updates.
    pub schedule: Schedule,
    /// Micro-batches an update; more than one only if the step's graph accumulates gradients.
    pub accumulate: u64,
    /// Updates between evaluations, beside the one at the end.
    pub eval_every: Option<u64>,
    /// Updates between checkpoints, beside the one at the end.
    pub save_every: Option<u64>,
    /// Look for the first op that makes a NaN or an infinity.
    pub check_finite: bool,
    /// Look for allocations beside the arena.
    pub check_memory: bool,
}

/// One update.
#[derive(Debug, Clone)]
pub struct Update {
    /// Its number, from one.
    pub number: u64,
    /// Passes over the data, with a fraction for the one under way.
    pub epoch: f64,
    /// The mean loss of a trained token (of a sequence, where those are classified).
    pub loss: f64,
    /// The norm of all gradients before clipping, if they are clipped.
    pub gradient_norm: Option<f64>,
    /// The learning rate.
    pub lr: f64,
    /// Tokens in it, padding left out.
    pub tokens: u64,
    /// Of those, the ones that count in the loss.
    pub trained_tokens: u64,
    /// What it took.
    pub time: Duration,
}

/// What a run reports while it goes on.
pub trait Observer {
    /// An update is done.
    ///
    /// # Errors
    /// The run ends with what this returns.
    fn updated(&mut self, update: &Update) -> Result<(), TrainError>;
    /// The data for evaluation were gone through.
    ///
    /// # Errors
    /// As [`updated`](Self::updated).
    fn evaluated(&mut self, updates: u64, loss: f64) -> Result<(), TrainError>;
    /// A checkpoint was written.
    ///
    /// # Errors
    /// As [`updated`](Self::updated).
    fn saved(&mut self, updates: u64, path: &Path) -> Result<(), TrainError>;
    /// Whether to save and end after this update.
    fn wants_to_stop(&self) -> bool;
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// With its last update.
    Finished,
    /// Before, because the observer wanted it.
    Stopped,
}

/// A run of training.
#[derive(Debug)]
pub struct Trainer<'a> {
    /// The step.
    pub graph: &'a Graph,
    /// The step, compiled and loaded.
    pub program: &'a mut Program,
    /// What to train on.
    pub train: &'a Dataset,
    /// What to evaluate on.
    pub eval: Option<&'a Dataset>,
    /// Rows of a batch.
    pub batch: usize,
    /// The order of the data.
    pub sampler: Sampler,
    /// How the run goes.
    pub settings: &'a Settings,
    /// The folder of the model, for weights in files next to it.
    pub store: &'a ExternalStore,
    /// Where checkpoints go.
    pub checkpoints: &'a Checkpoints,
    /// Which run this is.
    pub identity: &'a Identity,
    /// What adapters in checkpoints say of themselves.
    pub info: peft::Info<'a>,
}

impl Trainer<'_> {
    /// Trains up to the last update of the schedule.
    ///
    /// # Errors
    /// A step that cannot be run, a loss that is no number, a checkpoint that cannot be written. Checkpoints that were
    /// written stay.
    pub fn run(
        &mut self,
        mut progress: Progress,
        observer: &mut dyn Observer,
    ) -> Result<Outcome, TrainError> {
        let inputs = self.inputs();
        self.program.set_steps(progress.steps);
        self.sampler.seek(progress.position)?;
        let mut saved: Option<u64> = None;
        let mut last: Option<PathBuf> = self.checkpoints.latest()?;
        let due = |every: Option<u64>, n: u64| every.is_some_and(|every| n.is_multiple_of(every));
        while progress.updates < self.settings.schedule.total {
            let update = self.update(&inputs, progress.updates)?;
            self.check(&update, last.as_ref())?;
            progress.updates = update.number;
            progress.steps = self.program.steps();
            progress.position = self.sampler.position();
            progress.tokens += update.tokens;
            observer.updated(&update)?;
            if due(self.settings.eval_every, progress.updates)
                && progress.updates < self.settings.schedule.total
            {
                self.evaluate(&inputs, progress.updates, observer)?;
            }
            let stop = observer.wants_to_stop();
            if stop || due(self.settings.save_every, progress.updates) {
                last = Some(self.save(&progress, observer)?);
                saved = Some(progress.updates);
            }
            if stop && progress.updates < self.settings.schedule.total {
                return Ok(Outcome::Stopped);
            }
        }
        self.evaluate(&inputs, progress.updates, observer)?;
        if saved != Some(progress.updates) {
            self.save(&progress, observer)?;
        }
        Ok(Outcome::Finished)
    }

    /// The inputs that data fill, with their types.
    fn inputs(&self) -> BTreeMap<String, TensorType> {
        let params = self.graph.params().filter(|(_, p)| p.role == Role::Input);
        params
            .map(|(_, p)| (p.name.to_string(), p.ty.clone()))
            .collect()
    }

    fn update(
        &mut self,
        inputs: &BTreeMap<String, TensorType>,
        done: u64,
    ) -> Result<Update, TrainError> {
        let start = Instant::now();
        let batches = self.batches()?;
        let trained: u64 = batches.iter().map(|batch| batch.trained_tokens).sum();
        let lr = self.settings.schedule.at(done);
        self.program
            .write("optim::lr", &(lr as f32).to_le_bytes())?;
        self.program
            .write("optim::step", &(done as i64 + 1).to_le_bytes())?;
        let mut loss = 0.0;
        for (i, batch) in batches.iter().enumerate() {
            let share = batch.trained_tokens as f64 / trained.max(1) as f64;
            if self.settings.accumulate > 1 {
                let keep = if i == 0 { 0.0f32 } else { 1.0 };
                self.program.write("optim::keep", &keep.to_le_bytes())?;
                self.program
                    .write("optim::weight", &(share as f32).to_le_bytes())?;
            }
            self.fill(inputs, batch)?;
            self.step(i + 1 == batches.len())?;
            loss += share * self.scalar(&self.loss()?)?;
        }
        let norm = self.program.outputs().any(|name| name == "grad_norm");
        let gradient_norm = norm.then(|| self.scalar("grad_norm")).transpose()?;
        Ok(Update {
            number: done + 1,
            epoch: self.epochs(),
            loss,
            gradient_norm,
            lr,
            tokens: batches.iter().map(|batch| batch.tokens).sum(),
            trained_tokens: trained,
            time: start.elapsed(),
        })
    }

    /// The micro-batches of one update, all of one pass over the data: its last update may have fewer.
    fn batches(&mut self) -> Result<Vec<Batch>, TrainError> {
        let mut batches = Vec::new();
        while (batches.len() as u64) < self.settings.accumulate {
            batches.push(self.train.batch(&self.sampler.next_batch())?);
            if self.sampler.position().batch == 0 {
                break;
            }
        }
        Ok(batches)
    }

    /// Passes over the data so far.
    fn epochs(&self) -> f64 {
        let position = self.sampler.position();
        position.epoch as f64 + position.batch as f64 / self.sampler.batches_per_epoch() as f64
    }

    fn fill(
        &mut self,
        inputs: &BTreeMap<String, TensorType>,
        batch: &Batch,
    ) -> Result<(), TrainError> {
        for (name, column) in &batch.inputs {
            if let Some(ty) = inputs.get(name) {
                self.program.write(name, &inputs::encode(ty, column))?;
            }
        }
        Ok(())
    }

    /// Runs the step; the last of an update changes the parameters.
    fn step(&mut self, last: bool) -> Result<(), TrainError> {
        let (finite, memory) = (self.settings.check_finite, self.settings.check_memory);
        match last {
            true if finite => self.program.step_checked()?,
            true if memory => self.program.step_traced()?.check()?,
            true => self.program.step()?,
            false if finite => self.program.micro_step_checked()?,
            false => self.program.micro_step()?,
        }
        Ok(())
    }

    fn loss(&self) -> Result<String, TrainError> {
        let loss = self.graph.loss().ok_or_else(|| TrainError::Step {
            why: "it has no loss".into(),
        })?;
        Ok(loss.name.to_string())
    }

    fn scalar(&self, output: &str) -> Result<f64, TrainError> {
        let (ty, bytes) = self.program.output(output)?;
        let numbers = dtype::decode(ty.dtype, &bytes);
        Ok(numbers.first().copied().unwrap_or(f64::NAN))
    }

    /// Refuses an update whose numbers are none: nothing of it must reach a checkpoint.
    fn check(&self, update: &Update, last: Option<&PathBuf>) -> Result<(), TrainError> {
        let numbers = [
            ("loss", Some(update.loss)),
            ("norm of the gradients", update.gradient_norm),
        ];
        for (what, value) in numbers {
            if let Some(value) = value.filter(|value| !value.is_finite()) {
                return Err(TrainError::NotFinite {
                    update: update.number,
                    what: what.into(),
                    value,
                    last: last.cloned(),
                });
            }
        }
        Ok(())
    }

    /// The mean loss over the data for evaluation.
    fn evaluate(
        &mut self,
        inputs: &BTreeMap<String, TensorType>,
        updates: u64,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        let Some(data) = self.eval else {
            return Ok(());
        };
        let name = self.loss()?;
        let (mut sum, mut trained) = (0.0, 0u64);
        let rows: Vec<usize> = (0..data.len()).collect();
        for rows in rows.chunks(self.batch.max(1)) {
            let batch = data.batch(rows)?;
            self.fill(inputs, &batch)?;
            self.program.evaluate()?;
            sum += batch.trained_tokens as f64 * self.scalar(&name)?;
            trained += batch.trained_tokens;
        }
        observer.evaluated(updates, sum / trained.max(1) as f64)
    }

    fn save(
        &self,
        progress: &Progress,
        observer: &mut dyn Observer,
    ) -> Result<PathBuf, TrainError> {
        let path = self.checkpoints.save(
            self.graph,
            self.program,
            self.store,
            self.identity,
            progress,
            self.info,
        )?;
        observer.saved(progress.updates, &path)?;
        Ok(path)
    }
}
