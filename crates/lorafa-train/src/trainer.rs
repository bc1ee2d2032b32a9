//! The loop.
//!
//! ```text
//! batches of one update ─▶ update ─▶ loss, norm of the gradients ─▶ observer
//!                                    every so often: save a checkpoint, evaluate, say so in the checkpoint
//! ```

use lorafa_data::{Batch, Dataset, Sampler};
use lorafa_exec::Program;
use lorafa_ir::ops::Role;
use lorafa_ir::optimizer::GRADIENT_NORM;
use lorafa_ir::{Graph, TensorType};
use lorafa_onnx::external::ExternalStore;
use lorafa_weights::peft;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::checkpoint::{Checkpoints, Identity, Progress, State};
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
    /// Evaluations without a lower loss after which the run is over.
    pub patience: Option<u64>,
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
    pub grad_norm: Option<f64>,
    /// The learning rate.
    pub lr: f64,
    /// Tokens in it, padding left out.
    pub tokens: u64,
    /// Of those, the ones that count in the loss.
    pub trained_tokens: u64,
    /// What it took.
    pub time: Duration,
}

/// An evaluation.
#[derive(Debug, Clone, Copy)]
pub struct Evaluation {
    /// Updates that are done.
    pub updates: u64,
    /// Passes over the data for training, as in [`Update`].
    pub epoch: f64,
    /// The mean loss of a token (of a sequence, where those are classified).
    pub loss: f64,
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
    fn evaluated(&mut self, evaluation: &Evaluation) -> Result<(), TrainError>;
    /// A checkpoint was written.
    ///
    /// # Errors
    /// As [`updated`](Self::updated).
    fn saved(&mut self, updates: u64, path: &Path) -> Result<(), TrainError>;
    /// Whether to save and end. Once true, it stays so. It is asked between updates, between the micro-batches of one,
    /// which is given up then, and between the batches of an evaluation.
    fn wants_to_stop(&self) -> bool;
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// With its last update and the evaluation after it, or when evaluations had no lower loss for long enough.
    Finished,
    /// Before, because the observer wanted it; a checkpoint has all that was done.
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
    /// What is added to the number of a step, from which dropout draws.
    pub first_step: u64,
    /// What adapters in checkpoints say of themselves.
    pub info: peft::Info<'a>,
}

impl Trainer<'_> {
    /// Trains from where `progress` says up to the end of the schedule.
    ///
    /// # Errors
    /// A step that cannot be run, a loss that is no number, a checkpoint that cannot be written. Checkpoints that were
    /// written stay.
    pub fn run(
        &mut self,
        progress: &mut Progress,
        observer: &mut dyn Observer,
    ) -> Result<Outcome, TrainError> {
        let inputs = self.inputs();
        self.go_to(progress)?;
        loop {
            // Before all else: a run that was stopped may go on here.
            if self.is_due(progress) && !self.evaluate(&inputs, progress, observer)? {
                self.save_if_new(progress, observer)?;
                return Ok(Outcome::Stopped);
            }
            if self.is_over(progress) {
                self.save_if_new(progress, observer)?;
                return Ok(Outcome::Finished);
            }
            if observer.wants_to_stop() {
                self.save_if_new(progress, observer)?;
                return Ok(Outcome::Stopped);
            }
            let update = match self.update(&inputs, progress.updates, observer) {
                Err(TrainError::Stopped) => {
                    self.go_to(progress)?;
                    self.save_if_new(progress, observer)?;
                    return Ok(Outcome::Stopped);
                }
                update => update?,
            };
            self.check(&update)?;
            progress.updates = update.number;
            progress.steps = self.program.steps().wrapping_sub(self.first_step);
            progress.position = self.sampler.position();
            progress.tokens += update.tokens;
            // Whatever ends the run, what was done is saved first.
            let heard = observer.updated(&update);
            let is_last = update.number >= self.settings.schedule.total;
            if heard.is_err() || is_last || is_due(self.settings.save_every, update.number) {
                self.save(progress, observer)?;
            }
            heard?;
        }
    }

    /// Brings the data and what dropout draws to where a run has come.
    fn go_to(&mut self, progress: &Progress) -> Result<(), TrainError> {
        let step = self.first_step.wrapping_add(progress.steps);
        self.program.set_steps(step);
        Ok(self.sampler.seek(progress.position)?)
    }

    fn is_over(&self, progress: &Progress) -> bool {
        let patience = self.settings.patience;
        progress.updates >= self.settings.schedule.total
            || patience.is_some_and(|most| progress.evaluations_since_best >= most)
    }

    /// Whether the updates that are done are to be evaluated, and have not been.
    fn is_due(&self, progress: &Progress) -> bool {
        let updates = progress.updates;
        let at_end = updates >= self.settings.schedule.total;
        let due = at_end || is_due(self.settings.eval_every, updates);
        self.eval.is_some() && due && progress.evaluated < updates
    }

    /// The inputs that data fill, with their types.
    fn inputs(&self) -> BTreeMap<String, TensorType> {
        let params = self.graph.params().filter(|(_, p)| p.role == Role::Input);
        params
            .map(|(_, p)| (p.name.to_string(), p.ty.clone()))
            .collect()
    }

    /// Runs an update; [`TrainError::Stopped`] if the observer wants to stop between two of its micro-batches, when no
    /// parameter has changed yet.
    fn update(
        &mut self,
        inputs: &BTreeMap<String, TensorType>,
        done: u64,
        observer: &dyn Observer,
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
            |program, i| match i > 0 && observer.wants_to_stop() {
                true => Err(TrainError::Stopped),
                false => fill(program, inputs, &batches[i]),
            },
        )?;
        let clips = program.outputs().any(|name| name == GRADIENT_NORM);
        let grad_norm = clips
            .then(|| update::scalar(program, GRADIENT_NORM))
            .transpose()?;
        Ok(Update {
            number,
            epoch: self.epochs(),
            loss,
            grad_norm,
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
    fn check(&self, update: &Update) -> Result<(), TrainError> {
        let numbers = [
            ("loss", Some(update.loss)),
            ("norm of the gradients", update.grad_norm),
        ];
        for (what, value) in numbers {
            if let Some(value) = value.filter(|value| !value.is_finite()) {
                return Err(TrainError::NotFinite {
                    update: update.number,
                    what: what.into(),
                    value,
                    last: self.checkpoints.latest()?,
                });
            }
        }
        Ok(())
    }

    /// Goes through the data for evaluation. False if the observer did not want to wait for that.
    fn evaluate(
        &mut self,
        inputs: &BTreeMap<String, TensorType>,
        progress: &mut Progress,
        observer: &mut dyn Observer,
    ) -> Result<bool, TrainError> {
        let Some(data) = self.eval else {
            return Ok(true);
        };
        let (mut sum, mut trained) = (0.0, 0u64);
        let rows: Vec<usize> = (0..data.len()).collect();
        for rows in rows.chunks(self.batch.max(1)) {
            if observer.wants_to_stop() {
                return Ok(false);
            }
            let batch = data.batch(rows)?;
            fill(self.program, inputs, &batch)?;
            self.program.evaluate()?;
            sum += batch.trained_tokens as f64 * update::loss(self.program, self.graph)?;
            trained += batch.trained_tokens;
        }
        let loss = sum / trained.max(1) as f64;
        observer.evaluated(&Evaluation {
            updates: progress.updates,
            epoch: self.epochs(),
            loss,
        })?;
        let is_best = progress.evaluate(loss);
        if self.is_saved(progress) {
            self.checkpoints.record(&self.state(progress))?;
        } else if is_best && self.checkpoints.keep_best {
            self.save(progress, observer)?;
        }
        Ok(true)
    }

    fn state(&self, progress: &Progress) -> State {
        let (identity, schedule) = (self.identity.clone(), self.settings.schedule);
        State::new(identity, schedule, progress.clone())
    }

    /// Whether there is a checkpoint of the updates that are done.
    fn is_saved(&self, progress: &Progress) -> bool {
        self.checkpoints.path(progress.updates).exists()
    }

    fn save_if_new(
        &self,
        progress: &Progress,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        match self.is_saved(progress) {
            true => Ok(()),
            false => self.save(progress, observer),
        }
    }

    fn save(&self, progress: &Progress, observer: &mut dyn Observer) -> Result<(), TrainError> {
        let state = self.state(progress);
        let path =
            self.checkpoints
                .save(self.graph, self.program, self.store, &state, self.info)?;
        observer.saved(progress.updates, &path)
    }
}

fn is_due(every: Option<u64>, updates: u64) -> bool {
    every.is_some_and(|every| updates.is_multiple_of(every))
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
