//! Learning rates over a run, by the formulas of Hugging Face's `get_scheduler`.

use serde::{Deserialize, Serialize};
use std::fmt::Display;

/// How the learning rate goes on after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decay {
    /// It stays.
    Constant,
    /// It falls to zero on a line.
    Linear,
    /// It falls to zero on half a cosine.
    Cosine,
}

impl Decay {
    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Decay::Constant => "constant",
            Decay::Linear => "linear",
            Decay::Cosine => "cosine",
        }
    }
}

/// The learning rate of every update of a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// After the warm-up.
    pub decay: Decay,
    /// The highest rate.
    pub lr: f64,
    /// Updates over which the rate rises to `lr`, on a line from zero.
    pub warmup: u64,
    /// Updates of the run, the warm-up's included.
    pub total: u64,
}

impl Schedule {
    /// The rate of an update, which are counted from zero. With a warm-up the first update has the rate zero, as in
    /// Hugging Face's trainer.
    #[must_use]
    pub fn at(&self, update: u64) -> f64 {
        let ratio = |a: u64, b: u64| a as f64 / b.max(1) as f64;
        let factor = if update < self.warmup {
            ratio(update, self.warmup)
        } else {
            let rest = self.total.saturating_sub(self.warmup);
            let done = ratio(update - self.warmup, rest).min(1.0);
            match self.decay {
                Decay::Constant => 1.0,
                Decay::Linear => 1.0 - done,
                Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
            }
        };
        self.lr * factor
    }

    /// What of it another one has otherwise, in words.
    #[must_use]
    pub fn differs(&self, other: &Schedule) -> Vec<String> {
        let line = |what: &str, theirs: &dyn Display, ours: &dyn Display| {
            format!("{what} was {theirs} and is {ours}")
        };
        let mut found = Vec::new();
        if self.lr != other.lr {
            found.push(line("--lr", &other.lr, &self.lr));
        }
        if self.decay != other.decay {
            let (theirs, ours) = (other.decay.name(), self.decay.name());
            found.push(line("--schedule", &theirs, &ours));
        }
        if self.warmup != other.warmup {
            found.push(line("--warmup", &other.warmup, &self.warmup));
        }
        if self.total != other.total {
            found.push(line("the number of updates", &other.total, &self.total));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `transformers.get_scheduler(name, optimizer, 2, 8)` with a rate of 1 over updates 0 to 8, transformers 5.17.
    #[test]
    fn rates_are_those_of_transformers() {
        let expected: [(Decay, [f64; 9]); 3] = [
            (
                Decay::Constant,
                [0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
            ),
            (
                Decay::Linear,
                [
                    0.0,
                    0.5,
                    1.0,
                    0.8333333333333334,
                    0.6666666666666666,
                    0.5,
                    0.3333333333333333,
                    0.16666666666666666,
                    0.0,
                ],
            ),
            (
                Decay::Cosine,
                [
                    0.0,
                    0.5,
                    1.0,
                    0.9330127018922194,
                    0.75,
                    0.5,
                    0.2500000000000001,
                    0.06698729810778065,
                    0.0,
                ],
            ),
        ];
        for (decay, rates) in expected {
            let schedule = Schedule {
                decay,
                lr: 1.0,
                warmup: 2,
                total: 8,
            };
            for (update, rate) in rates.iter().enumerate() {
                let found = schedule.at(update as u64);
                assert!((found - rate).abs() < 1e-12, "{decay:?} {update}: {found}");
            }
        }
    }

    #[test]
    fn no_length_is_a_division_by_zero() {
        for decay in [Decay::Constant, Decay::Linear, Decay::Cosine] {
            let at = |warmup, total, update| {
                Schedule {
                    decay,
                    lr: 0.1,
                    warmup,
                    total,
                }
                .at(update)
            };
            for rate in [at(0, 0, 0), at(5, 3, 2), at(5, 3, 9), at(0, 1, 1)] {
                assert!((0.0..=0.1).contains(&rate), "{decay:?} {rate}");
            }
        }
    }
}
