//! The loop.
//!
//! ```text
//! batches of one update ─▶ update ─▶ loss, norm of the gradients ─▶ observer
//!                                    every so often: save a checkpoint, evaluate
//! ```

use lorafa_data::{Batch, Dataset, Sampler};
use lorafa_exec::Program;
use lorafa_ir::ops::Role;
use lorafa_ir::optimizer::GRADIENT_NORM;
use lorafa_ir::{Graph, TensorType};
use lorafa_onnx::external::ExternalStore;
use lorafa_weights::peft;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::checkpoint::{Checkpoints, Identity, Progress};
use crate::error::TrainError;
use crate::inputs;
use crate::schedule::Schedule;
use crate::update::{self, Check};

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
    /// What to look for in every step.
    pub check: Check,
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
        let total = self.settings.schedule.total;
        let mut last_good: Option<PathBuf> = self.checkpoints.latest()?;
        let due = |every: Option<u64>, n: u64| every.is_some_and(|every| n.is_multiple_of(every));
        while progress.updates < total {
            let update = self.update(&inputs, progress.updates)?;
            self.check(&update, last_good.as_ref())?;
            progress.updates = update.number;
            progress.steps = self.program.steps();
            progress.position = self.sampler.position();
            progress.tokens += update.tokens;
            let is_last = update.number == total;
            // Whatever ends the run, what was done is saved first.
            let heard = observer.updated(&update);
            let mut saved = false;
            if heard.is_err()
                || observer.wants_to_stop()
                || is_last
                || due(self.settings.save_every, update.number)
            {
                last_good = Some(self.save(&progress, observer)?);
                saved = true;
            }
            heard?;
            if is_last || due(self.settings.eval_every, update.number) {
                self.evaluate(&inputs, update.number, observer)?;
            }
            if observer.wants_to_stop() && !is_last {
                if !saved {
                    self.save(&progress, observer)?;
                }
                return Ok(Outcome::Stopped);
            }
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
        let share = |batch: &Batch| batch.trained_tokens as f64 / trained.max(1) as f64;
        let shares: Vec<f64> = batches.iter().map(share).collect();
        let (number, lr) = (done + 1, self.settings.schedule.at(done));
        let check = self.settings.check;
        let program = &mut *self.program;
        let loss = update::update(
            program,
            self.graph,
            (number, lr),
            &shares,
            check,
            |program, i| fill(program, inputs, &batches[i]),
        )?;
        let clips = program.outputs().any(|name| name == GRADIENT_NORM);
        let gradient_norm = clips
            .then(|| update::scalar(program, GRADIENT_NORM))
            .transpose()?;
        Ok(Update {
            number,
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

    /// The mean loss over the data for evaluation. Nothing is reported if the observer does not want to wait for it.
    fn evaluate(
        &mut self,
        inputs: &BTreeMap<String, TensorType>,
        updates: u64,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        let Some(data) = self.eval else {
            return Ok(());
        };
        let (mut sum, mut trained) = (0.0, 0u64);
        let rows: Vec<usize> = (0..data.len()).collect();
        for rows in rows.chunks(self.batch.max(1)) {
            if observer.wants_to_stop() {
                return Ok(());
            }
            let batch = data.batch(rows)?;
            fill(self.program, inputs, &batch)?;
            self.program.evaluate()?;
            sum += batch.trained_tokens as f64 * update::loss(self.program, self.graph)?;
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

fn fill(
    program: &mut Program,
    inputs: &BTreeMap<String, TensorType>,
    batch: &Batch,
) -> Result<(), TrainError> {
    for (name, column) in &batch.inputs {
        if let Some(ty) = inputs.get(name) {
            program.write(name, &inputs::encode(ty, column))?;
        }
    }
    Ok(())
}
