//! Why a run could not begin or go on.

use lorafa_data::DataError;
#[cfg(feature = "torch")]
use lorafa_exec::ExecError;
use lorafa_onnx::write::WriteError;
use lorafa_weights::atomic_dir::StageError;
use lorafa_weights::{SaveError, WeightsError};
use std::io;
use std::path::PathBuf;

/// Why a run could not begin or go on. The message is complete by itself.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The step cannot be trained with data.
    #[error("this step cannot be trained: {why}")]
    Step {
        /// What is missing.
        why: String,
    },
    /// The data cannot be read or do not fit the step.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Weights or checkpoints cannot be read.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A checkpoint cannot be written.
    #[error(transparent)]
    Save(#[from] SaveError),
    /// A checkpoint cannot be written.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// A checkpoint cannot be changed.
    #[error(transparent)]
    Record(WriteError),
    /// The step cannot be run.
    #[cfg(feature = "torch")]
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// A checkpoint cannot be read.
    #[error("{}: {why}", .path.display())]
    Checkpoint {
        /// The checkpoint or a file of it.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A checkpoint is of another run.
    #[error(
        "{} is of another run: {}; give the flags of that run, or choose another --save folder", .path.display(), .differs.join("; ")
    )]
    OtherRun {
        /// The checkpoint.
        path: PathBuf,
        /// What differs.
        differs: Vec<String>,
    },
    /// A folder of checkpoints cannot be read or changed.
    #[error("the folder {} cannot be used: {error}", .path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the operating system said.
        error: io::Error,
    },
    /// Another process trains into the folder.
    #[error("{}: another run is writing to this folder; wait for it, or choose another --save folder", .0.display())]
    InUse(PathBuf),
    /// The loss, the norm of the gradients or a parameter is no number.
    #[error(
        "update {update}: the {what} is {value}; {}. --check-finite names the op that made it, a lower --lr or --clip may \
         avoid it", last_good(.last.as_ref())
    )]
    NotFinite {
        /// The update, counted from one.
        update: u64,
        /// The loss, the norm of the gradients, or a parameter after the update.
        what: String,
        /// What it is.
        value: f64,
        /// The last checkpoint.
        last: Option<PathBuf>,
    },
    /// What watches the run wants it to stop, and an update is under way.
    #[error("the run was stopped within an update")]
    Stopped,
    /// What watches the run refused to go on.
    #[error("{0}")]
    Observer(String),
}

fn last_good(last: Option<&PathBuf>) -> String {
    match last {
        Some(path) => format!("{} is the last good checkpoint", path.display()),
        None => "there is no checkpoint yet (--save-every)".into(),
    }
}
