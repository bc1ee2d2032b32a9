//! What a model's path names: a file, or the folder that onnxruntime-training's `generate_artifacts` writes.
//!
//! | in the folder | what becomes of it |
//! |---|---|
//! | `training_model.onnx` | the model |
//! | `optimizer_model.onnx` | defaults of the optimizer's flags |
//! | `checkpoint` | the default of `--weights` |

use crate::args::TrainingArgs;
use crate::error::Error;
use lorafa_onnx::file::ModelFile;
use lorafa_onnx::import::is_onnxruntime_training;
use lorafa_onnx::optimizer;
use std::path::{Path, PathBuf};

const MODEL: &str = "training_model.onnx";
const OPTIMIZER: &str = "optimizer_model.onnx";
const CHECKPOINT: &str = "checkpoint";

/// The files that a path names.
#[derive(Clone, Debug)]
pub struct Files {
    /// The model.
    pub model: PathBuf,
    /// The optimizer that comes with it.
    pub optimizer: Option<PathBuf>,
    /// The weights that come with it.
    pub checkpoint: Option<PathBuf>,
}

impl Files {
    /// The file itself, or what a folder has.
    ///
    /// # Errors
    ///
    /// A folder without a model.
    pub fn of(path: &Path) -> Result<Self, Error> {
        if !path.is_dir() {
            return Ok(Files {
                model: path.to_owned(),
                optimizer: None,
                checkpoint: None,
            });
        }
        let there = |name| Some(path.join(name)).filter(|file| file.exists());
        let model = there(MODEL).ok_or_else(|| {
            Error::Args(format!(
                "{}: there is no {MODEL} in this folder, which onnxruntime-training's artifacts have; give an ONNX \
                 file",
                path.display()
            ))
        })?;
        Ok(Files {
            model,
            optimizer: there(OPTIMIZER),
            checkpoint: there(CHECKPOINT),
        })
    }
}

/// A model, and how to train it.
#[derive(Debug)]
pub struct Opened {
    /// The model.
    pub model: ModelFile,
    /// What the command line asks for, with the optimizer that comes with the model.
    pub training: TrainingArgs,
    /// The weights that come with the model.
    pub checkpoint: Option<PathBuf>,
}

/// Opens what a path names.
///
/// # Errors
///
/// A file that is no model; a folder without one, or with an optimizer that is not known.
pub fn open(path: &Path, training: &TrainingArgs) -> Result<Opened, Error> {
    let files = Files::of(path)?;
    let mut training = training.clone();
    if let (Some(file), None) = (files.optimizer, training.optimizer.optimizer) {
        training.optimizer.given = Some(optimizer::read(&ModelFile::open(file)?)?);
    }
    Ok(Opened {
        model: ModelFile::open(files.model)?,
        training,
        checkpoint: files.checkpoint,
    })
}

/// What the report says about where a training graph and its optimizer come from.
pub fn origin(model: &ModelFile, training: &TrainingArgs) -> Vec<String> {
    let mut lines = Vec::new();
    if is_onnxruntime_training(model) {
        lines.push("made by onnxruntime-training, whose accumulators are left out: --accumulate sums gradients".into());
    }
    if let Some(given) = training.optimizer.from_model() {
        let file = given.path.file_name().unwrap_or_default();
        lines.push(format!("{given} ({})", file.display()));
    }
    lines
}
