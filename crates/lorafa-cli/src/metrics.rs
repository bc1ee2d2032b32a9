//! The metrics log of a run: one JSON object a line.

use lorafa_onnx::write::Staged;
use lorafa_train::{Evaluation, Progress, TrainError, Update};
use serde::Serialize;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The log's name in the folder of a run.
const NAME: &str = "metrics.jsonl";

/// A log that lines are added to.
#[derive(Debug)]
pub struct Metrics {
    path: PathBuf,
    file: File,
}

/// The keys that transformers' `Trainer` has, too, mean what they mean there.
#[derive(Serialize)]
struct UpdateLine {
    step: u64,
    epoch: f64,
    loss: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    grad_norm: Option<f64>,
    learning_rate: f64,
    tokens: u64,
    trained_tokens: u64,
    seconds: f64,
    tokens_per_second: f64,
}

#[derive(Serialize)]
struct EvaluationLine {
    step: u64,
    epoch: f64,
    eval_loss: f64,
}

impl Metrics {
    /// Opens the log of a run in `folder` that has come as far as `progress` says; lines about what came after that are
    /// dropped.
    ///
    /// # Errors
    /// A log that cannot be read or written.
    pub fn open(folder: &Path, progress: &Progress) -> Result<Self, TrainError> {
        let path = folder.join(NAME);
        let kept = match fs::read_to_string(&path) {
            Ok(text) => before(&text, progress),
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(failed(&path, &error)),
        };
        let staged = Staged::new(&path, kept.as_bytes()).and_then(Staged::commit);
        staged.map_err(|error| TrainError::Observer(error.to_string()))?;
        let file = OpenOptions::new().append(true).open(&path);
        let file = file.map_err(|error| failed(&path, &error))?;
        Ok(Self { path, file })
    }

    /// Adds an update.
    ///
    /// # Errors
    /// The line cannot be written.
    pub fn update(&mut self, update: &Update) -> Result<(), TrainError> {
        let seconds = update.time.as_secs_f64();
        self.line(&UpdateLine {
            step: update.number,
            epoch: update.epoch,
            loss: update.loss,
            grad_norm: update.grad_norm,
            learning_rate: update.lr,
            tokens: update.tokens,
            trained_tokens: update.trained_tokens,
            seconds,
            tokens_per_second: update.tokens as f64 / seconds.max(1e-9),
        })
    }

    /// Adds an evaluation.
    ///
    /// # Errors
    /// The line cannot be written.
    pub fn evaluation(&mut self, evaluation: &Evaluation) -> Result<(), TrainError> {
        self.line(&EvaluationLine {
            step: evaluation.updates,
            epoch: evaluation.epoch,
            eval_loss: evaluation.loss,
        })
    }

    fn line(&mut self, line: &impl Serialize) -> Result<(), TrainError> {
        let mut text = serde_json::to_string(line).unwrap_or_default();
        text.push('\n');
        let written = self.file.write_all(text.as_bytes());
        written.map_err(|error| failed(&self.path, &error))
    }
}

fn failed(path: &Path, error: &io::Error) -> TrainError {
    TrainError::Observer(format!("{}: {error}", path.display()))
}

/// The whole lines about updates and evaluations that were done. A line that a kill cut short is none.
fn before(text: &str, progress: &Progress) -> String {
    let is_kept = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        let done = match line.get("eval_loss") {
            Some(_) => progress.evaluated,
            None => progress.updates,
        };
        Some(line.get("step")?.as_u64()? <= done)
    };
    let kept = text.lines().filter(|line| is_kept(line) == Some(true));
    kept.map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_what_was_lost_go() {
        let text = "{\"step\":1}\n{\"step\":1,\"eval_loss\":1.0}\n{\"step\":2}\n\
                    {\"step\":2,\"eval_loss\":1.0}\n{\"step\":3}\n{\"st";
        let kept = |updates, evaluated| {
            let progress = Progress {
                updates,
                evaluated,
                ..Progress::default()
            };
            before(text, &progress)
        };
        assert_eq!(kept(2, 2), text[..text.find("{\"step\":3}").unwrap()]);
        // The checkpoint was written before it was evaluated.
        let not_evaluated = text.find("{\"step\":2,").unwrap();
        assert_eq!(kept(2, 1), text[..not_evaluated]);
        assert_eq!(kept(0, 0), "");
    }
}
