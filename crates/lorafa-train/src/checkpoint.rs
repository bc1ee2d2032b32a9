//! Checkpoints: everything by which a run goes on as if it had not stopped.
//!
//! ```text
//! SAVE/checkpoint-40/
//!   state.json               which run this is, its schedule, and how far it has come
//!   trained.safetensors      adapters and every other trained parameter, by name
//!   optimizer.safetensors    moments, and what else the optimizer keeps from update to update
//!   adapter_model.safetensors, adapter_config.json    the adapter as PEFT loads it, if there is one
//! ```
//!
//! A checkpoint appears by a rename once all of it is on the disk.

use lorafa_data::Position;
use lorafa_ir::Graph;
use lorafa_ir::ops::{Data, Role};
use lorafa_onnx::export::weights;
use lorafa_onnx::external::ExternalStore;
use lorafa_onnx::write::Staged;
use lorafa_weights::{SaveError, atomic_dir};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::TrainError;
use crate::schedule::Schedule;

/// What the names of checkpoints begin with; the number of updates follows.
pub(crate) const PREFIX: &str = "checkpoint-";

/// The form of `state.json`.
pub(crate) const FORMAT: u64 = 2;

pub(crate) const STATE: &str = "state.json";

/// What a checkpoint is called while it is removed.
const DOOMED: &str = ".removed-checkpoint";

/// Which run this is. A checkpoint of a run with another identity is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// What is trained, in words: `model.onnx · lora-fa · bf16 · batch 4 · seq 1024`.
    pub step: String,
    /// Digest of the step's graph.
    pub graph: String,
    /// Digest of the weights that training leaves as they are.
    pub weights: String,
    /// Bytes of the planned arena.
    pub arena: u64,
    /// Digest of the training data.
    pub data: String,
    /// Seed of what is drawn: first values, dropout, the order of the data.
    pub seed: u64,
    /// Whether the data are shuffled.
    pub shuffled: bool,
    /// Micro-batches an update.
    pub accumulate: u64,
}

impl Identity {
    /// What differs, in words.
    fn differs(&self, other: &Identity) -> Vec<String> {
        let mut found = Vec::new();
        if self.step != other.step {
            found.push(format!("it trains {}, this run {}", other.step, self.step));
        } else if self.graph != other.graph && self.seed == other.seed {
            found.push("the model is another, or flags that change its step are".into());
        } else if self.arena != other.arena {
            let (theirs, ours) = (other.arena, self.arena);
            found.push(format!("its plan takes {theirs} B, this one's {ours} B"));
        }
        if self.weights != other.weights {
            found.push("the weights of the base model are others".into());
        }
        if self.data != other.data {
            found.push("the training data are others, or are cut or packed otherwise".into());
        }
        if self.seed != other.seed {
            let (theirs, ours) = (other.seed, self.seed);
            found.push(format!("it has --seed {theirs}, this run --seed {ours}"));
        }
        if self.shuffled != other.shuffled {
            let order = |shuffled| if shuffled { "shuffled" } else { "in order" };
            let (theirs, ours) = (order(other.shuffled), order(self.shuffled));
            found.push(format!("it takes the data {theirs}, this run {ours}"));
        }
        if self.accumulate != other.accumulate {
            let (theirs, ours) = (other.accumulate, self.accumulate);
            found.push(format!("it has --accumulate {theirs}, this run {ours}"));
        }
        found
    }
}

/// How far a run has come.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Updates done.
    pub updates: u64,
    /// Steps done, over all micro-batches: dropout masks follow from it.
    pub steps: u64,
    /// Where the data go on.
    pub position: Position,
    /// Tokens seen, padding left out.
    pub tokens: u64,
    /// Updates that were done when the data for evaluation were last gone through; zero if they never were.
    pub evaluated: u64,
    /// The evaluation of the lowest loss, the first of equal ones.
    pub best: Option<Best>,
    /// Evaluations since then.
    pub evaluations_since_best: u64,
}

/// An evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Updates that were done.
    pub updates: u64,
    /// The mean loss, a finite number.
    pub loss: f64,
}

impl Progress {
    /// Counts an evaluation after the updates that are done. True if none had a lower loss or the same.
    pub fn evaluate(&mut self, loss: f64) -> bool {
        self.evaluated = self.updates;
        let is_best = loss.is_finite() && self.best.is_none_or(|best| loss < best.loss);
        if is_best {
            let updates = self.updates;
            self.best = Some(Best { updates, loss });
            self.evaluations_since_best = 0;
        } else {
            self.evaluations_since_best += 1;
        }
        is_best
    }
}

/// What `state.json` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub(crate) format: u64,
    /// Which run this is.
    pub identity: Identity,
    /// The learning rates that it was to have.
    pub schedule: Schedule,
    /// How far it has come.
    pub progress: Progress,
}

impl State {
    /// That of a run.
    #[must_use]
    pub fn new(identity: Identity, schedule: Schedule, progress: Progress) -> Self {
        State {
            format: FORMAT,
            identity,
            schedule,
            progress,
        }
    }

    pub(crate) fn json(&self) -> Result<Vec<u8>, TrainError> {
        let mut json = serde_json::to_vec_pretty(self).map_err(SaveError::Json)?;
        json.push(b'\n');
        Ok(json)
    }
}

/// What every version says.
#[derive(Deserialize)]
struct Format {
    format: u64,
}

/// The checkpoints of a run.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    pub(crate) folder: PathBuf,
    keep: usize,
    /// Whether that of the lowest loss in evaluation stays, too.
    pub keep_best: bool,
}

impl Checkpoints {
    /// Those in a folder, of which the newest `keep` stay, and that of the lowest loss in evaluation if `keep_best`.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>, keep: usize, keep_best: bool) -> Self {
        Self {
            folder: folder.into(),
            keep: keep.max(1),
            keep_best,
        }
    }

    /// The checkpoint after some updates.
    #[must_use]
    pub fn path(&self, updates: u64) -> PathBuf {
        self.folder.join(format!("{PREFIX}{updates}"))
    }

    /// The newest, if there is one.
    ///
    /// # Errors
    /// The folder cannot be read; one that is not there has none.
    pub fn latest(&self) -> Result<Option<PathBuf>, TrainError> {
        Ok(self.all()?.pop().map(|(_, path)| path))
    }

    /// All of them with their updates, oldest first.
    fn all(&self) -> Result<Vec<(u64, PathBuf)>, TrainError> {
        let failed = |error| TrainError::Folder {
            path: self.folder.clone(),
            error,
        };
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let updates = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
            if let Some(updates) = updates.and_then(|text| text.parse().ok()) {
                found.push((updates, entry.path()));
            }
        }
        found.sort();
        Ok(found)
    }

    /// Makes the folder and takes it for this run, as long as the result lives; then removes what processes that were
    /// killed left half written or half removed.
    ///
    /// # Errors
    /// [`TrainError::InUse`] if another run has it; a folder that cannot be made, read or changed.
    pub fn claim(&self) -> Result<File, TrainError> {
        let failed = |error| TrainError::Folder {
            path: self.folder.clone(),
            error,
        };
        fs::create_dir_all(&self.folder).map_err(failed)?;
        let lock = File::open(&self.folder).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(TrainError::InUse(self.folder.clone())),
            // Some file systems have no locks.
            Err(TryLockError::Error(_)) => {}
        }
        self.clean()?;
        Ok(lock)
    }

    fn clean(&self) -> Result<(), TrainError> {
        let removed = match fs::remove_dir_all(self.folder.join(DOOMED)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        };
        let failed = |path: PathBuf| move |error| TrainError::Folder { path, error };
        let cleaned = removed.and_then(|()| atomic_dir::clean(&self.folder));
        cleaned.map_err(failed(self.folder.clone()))?;
        self.all()?
            .into_iter()
            .try_for_each(|(_, path)| atomic_dir::clean(&path).map_err(failed(path)))
    }

    /// Removes all but those that are to stay. A folder goes under another name first: what bears a checkpoint's name is one.
    ///
    /// # Errors
    /// A folder that cannot be removed.
    pub fn prune(&self, progress: &Progress) -> Result<(), TrainError> {
        let mut all = self.all()?;
        all.truncate(all.len().saturating_sub(self.keep));
        let best = progress.best.filter(|_| self.keep_best);
        all.retain(|(updates, _)| best.is_none_or(|best| best.updates != *updates));
        for (_, path) in all {
            let doomed = self.folder.join(DOOMED);
            let removed = fs::rename(&path, &doomed).and_then(|()| fs::remove_dir_all(&doomed));
            removed.map_err(|error| TrainError::Folder { path, error })?;
        }
        Ok(())
    }

    /// Says in the checkpoint of the updates that are done what has become known since it was written, and removes
    /// checkpoints that are not to be kept.
    ///
    /// # Errors
    /// A file that cannot be written; what it said before is there still.
    pub fn record(&self, state: &State) -> Result<(), TrainError> {
        let path = self.path(state.progress.updates).join(STATE);
        let written = Staged::new(path, &state.json()?).and_then(Staged::commit);
        written.map_err(TrainError::Record)?;
        self.prune(&state.progress)
    }

    /// Reads what a checkpoint says of its run, after making sure that it is this run.
    ///
    /// # Errors
    /// A damaged checkpoint, and one of another run.
    pub fn state(&self, path: &Path, identity: &Identity) -> Result<State, TrainError> {
        let file = path.join(STATE);
        let damaged = |why: String| TrainError::Checkpoint {
            path: file.clone(),
            why,
        };
        let text = fs::read(&file).map_err(|error| damaged(error.to_string()))?;
        let no_state =
            |error: serde_json::Error| damaged(format!("this is no state of a run: {error}"));
        let Format { format } = serde_json::from_slice(&text).map_err(no_state)?;
        if format != FORMAT {
            return Err(damaged(format!(
                "its format is {format}, this version reads {FORMAT}"
            )));
        }
        let state: State = serde_json::from_slice(&text).map_err(no_state)?;
        let differs = identity.differs(&state.identity);
        if !differs.is_empty() {
            return Err(TrainError::OtherRun {
                path: path.to_owned(),
                differs,
            });
        }
        Ok(state)
    }
}

/// A digest of a step: of every op, its operands, types and attributes, and of weights that are in the graph itself.
#[must_use]
pub fn digest(graph: &Graph) -> String {
    hex(&Sha256::digest(graph.to_string().as_bytes()))
}

/// Bytes at either end of a weight that its digest is of: enough to tell models apart without reading all of them.
const ENDS: usize = 4096;

/// A digest of the frozen weights that a graph says, adapters left out: of their names, types, and both ends of their
/// values.
///
/// # Errors
/// Values that cannot be had.
pub fn weights_digest(graph: &Graph, store: &ExternalStore) -> Result<String, TrainError> {
    let mut digest = Sha256::new();
    let frozen = graph.params().map(|(_, param)| param);
    for param in
        frozen.filter(|p| p.role == Role::Frozen && !matches!(p.stored.data, Data::Init { .. }))
    {
        let bytes = weights::stored(param, store).map_err(SaveError::from)?;
        digest.update(format!(
            "{} {} {}\n",
            param.name,
            param.stored.dtype,
            bytes.len()
        ));
        digest.update(&bytes[..bytes.len().min(ENDS)]);
        digest.update(&bytes[bytes.len().saturating_sub(ENDS)..]);
    }
    Ok(hex(&digest.finalize()))
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_run_at_a_time_has_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(folder.path().join("save"), 1, false);
        let claimed = checkpoints.claim().unwrap();
        let second = checkpoints.claim().unwrap_err().to_string();
        assert!(second.contains("another run is writing"), "{second}");
        drop(claimed);
        checkpoints.claim().unwrap();
    }
}
