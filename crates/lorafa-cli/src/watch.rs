//! What a person sees of a run, and how they stop it.

use crate::error::INTERRUPTED;
use crate::metrics::Metrics;
use crate::units;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lorafa_train::{Evaluation, Observer, TrainError, Update};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A progress bar on standard error if that is a terminal, and the metrics log.
#[derive(Debug)]
pub struct Watch {
    bar: ProgressBar,
    metrics: Metrics,
    stop: Arc<AtomicBool>,
    log_every: u64,
    memory: u64,
}

impl Watch {
    /// Of a run of `total` updates, of which `done` are done, whose step takes `memory` bytes.
    pub fn new(metrics: Metrics, total: u64, done: u64, log_every: u64, memory: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
        // Checked by the test below.
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            bar.set_style(style);
        }
        bar.set_position(done);
        bar.reset_eta();
        Self {
            bar,
            metrics,
            stop: catch_interrupts(),
            log_every,
            memory,
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }

    /// Prints a line above the bar, or just prints it where there is none.
    fn say(&self, line: &str) {
        if self.bar.is_hidden() {
            note(line);
        } else {
            self.bar.println(line);
        }
    }
}

/// Prints to standard error; where that is gone, the run goes on.
fn note(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

const TEMPLATE: &str = "{bar:24} {pos}/{len} · {msg} · {eta} left";

/// A flag that the first Ctrl-C raises; the second ends the process.
fn catch_interrupts() -> Arc<AtomicBool> {
    let flag = Arc::new(AtomicBool::new(false));
    let raised = flag.clone();
    // Where no handler can be set, Ctrl-C ends the process, and the last checkpoint is whole all the same.
    let _ = ctrlc::set_handler(move || {
        if raised.swap(true, Ordering::SeqCst) {
            std::process::exit(i32::from(INTERRUPTED));
        }
        note("\nsaving the updates that are done; a second Ctrl-C or SIGTERM ends at once");
    });
    flag
}

impl Observer for Watch {
    fn updated(&mut self, update: &Update) -> Result<(), TrainError> {
        let rate = update.tokens as f64 / update.time.as_secs_f64().max(1e-9);
        let message = format!(
            "loss {:.4} · {} tokens/s · {}",
            update.loss,
            units::count(rate as u64),
            units::bytes(self.memory)
        );
        self.bar.set_position(update.number);
        if update.number.is_multiple_of(self.log_every) || update.number == 1 {
            if self.bar.is_hidden() {
                let total = self.bar.length().unwrap_or_default();
                note(&format!("update {}/{total} · {message}", update.number));
            }
            self.metrics.update(update)?;
        }
        self.bar.set_message(message);
        Ok(())
    }

    fn evaluated(&mut self, evaluation: &Evaluation) -> Result<(), TrainError> {
        let Evaluation { updates, loss, .. } = evaluation;
        self.say(&format!("update {updates}: evaluation loss {loss:.4}"));
        self.metrics.evaluation(evaluation)
    }

    fn saved(&mut self, updates: u64, path: &Path) -> Result<(), TrainError> {
        self.say(&format!("update {updates}: saved {}", path.display()));
        Ok(())
    }

    fn wants_to_stop(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bars_template_is_one() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
    }
}
