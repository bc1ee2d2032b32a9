//! The metrics log of a run: one JSON object a line.

use lorafa_onnx::write::Staged;
use lorafa_train::{TrainError, Update};
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

#[derive(Serialize)]
struct UpdateLine {
    update: u64,
    epoch: f64,
    loss: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    gradient_norm: Option<f64>,
    lr: f64,
    tokens: u64,
    trained_tokens: u64,
    seconds: f64,
    tokens_per_second: f64,
}

#[derive(Serialize)]
struct EvaluationLine {
    update: u64,
    eval_loss: f64,
}

impl Metrics {
    /// Opens the log of a run in `folder` that goes on after `updates` updates; lines about later ones are dropped.
    ///
    /// # Errors
    /// A log that cannot be read or written.
    pub fn open(folder: &Path, updates: u64) -> Result<Self, TrainError> {
        let path = folder.join(NAME);
        let kept = match fs::read_to_string(&path) {
            Ok(text) => before(&text, updates),
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
            update: update.number,
            epoch: update.epoch,
            loss: update.loss,
            gradient_norm: update.gradient_norm,
            lr: update.lr,
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
    pub fn evaluation(&mut self, update: u64, eval_loss: f64) -> Result<(), TrainError> {
        self.line(&EvaluationLine { update, eval_loss })
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

/// The whole lines about the first `updates` updates. A line that a kill cut short is none.
fn before(text: &str, updates: u64) -> String {
    let number = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        line.get("update")?.as_u64()
    };
    let kept = text
        .lines()
        .filter(|line| number(line).is_some_and(|n| n <= updates));
    kept.map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_lost_updates_go() {
        let text = "{\"update\":1}\n{\"update\":2}\n{\"update\":2,\"eval_loss\":1.0}\n{\"update\":3}\n{\"upd";
        assert_eq!(
            before(text, 2),
            "{\"update\":1}\n{\"update\":2}\n{\"update\":2,\"eval_loss\":1.0}\n"
        );
        assert_eq!(before(text, 0), "");
    }
}
