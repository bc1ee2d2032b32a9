//! How large a step may be in so many bytes.

use crate::args::{MAX_DIM, TrainingArgs};
use crate::compile::{self, Single};
use crate::dims::Dims;
use crate::error::Error;
use crate::units::bytes;
use lorafa_onnx::file::ModelFile;
use serde::Serialize;
use std::fmt;

/// An axis of the inputs, on which a smaller number makes a smaller step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Axis {
    /// The number of sequences.
    Batch,
    /// The number of positions.
    Seq,
}

/// The largest number on an axis with which a step fits.
#[derive(Debug, Serialize)]
pub struct Largest {
    /// Which flag gives it: `--batch`, `--seq` or `--dim NAME=`.
    flag: String,
    number: i64,
}

impl fmt::Display for Largest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let space = if self.flag.ends_with('=') { "" } else { " " };
        write!(f, "{}{space}{}", self.flag, self.number)
    }
}

/// Whether a step fits into a number of bytes, and the largest that do.
#[derive(Debug, Serialize)]
pub struct Fit {
    /// What there is.
    bytes: u64,
    /// What the step takes.
    needed: u64,
    /// Whether that is no more.
    pub fits: bool,
    /// The largest batch that fits, if one does and the model leaves it open.
    batch: Option<Largest>,
    /// The largest number of positions that fits.
    seq: Option<Largest>,
}

impl Fit {
    /// Compiles the model for other numbers on each axis until it is known which is the largest.
    ///
    /// # Errors
    ///
    /// The model does not compile as `training` says.
    pub fn of(
        budget: u64,
        reserve: u64,
        model: &ModelFile,
        training: &TrainingArgs,
    ) -> Result<Self, Error> {
        let single = compile::single(model, training)?;
        let needed = needed(&single, reserve);
        let largest = |axis| largest(axis, budget, reserve, model, training, &single);
        Ok(Fit {
            bytes: budget,
            needed,
            fits: needed <= budget,
            batch: largest(Axis::Batch)?,
            seq: largest(Axis::Seq)?,
        })
    }

    /// In words.
    pub fn text(&self) -> String {
        let (needed, budget) = (bytes(self.needed), bytes(self.bytes));
        let flags = [&self.batch, &self.seq].into_iter().flatten();
        let flags: Vec<String> = flags.map(Largest::to_string).collect();
        match (self.fits, flags.as_slice()) {
            (true, []) => format!("takes {needed} of a budget of {budget}"),
            (true, flags) => format!(
                "takes {needed} of a budget of {budget}; the most that fits is {}",
                flags.join(", or ")
            ),
            (false, []) => format!(
                "takes {needed}, more than the budget of {budget}, and nothing smaller that the model allows fits"
            ),
            (false, flags) => format!(
                "takes {needed}, more than the budget of {budget}; what fits is {}",
                flags.join(", or ")
            ),
        }
    }
}

/// Bytes that a step takes with what is kept back for others.
pub fn needed(single: &Single, reserve: u64) -> u64 {
    single.step.plan.arena_bytes().saturating_add(reserve)
}

/// The largest number on an axis with which the step fits into a budget; none if not even one does, or the model has the
/// axis fixed. Numbers with which the model does not compile are too large.
///
/// # Errors
///
/// The model does not compile with a smaller number than it compiled with.
pub fn largest(
    axis: Axis,
    budget: u64,
    reserve: u64,
    model: &ModelFile,
    training: &TrainingArgs,
    single: &Single,
) -> Result<Option<Largest>, Error> {
    let Dims { batch, seq, .. } = single.dims;
    let now = match axis {
        Axis::Batch => batch,
        Axis::Seq => seq,
    };
    let symbols = single.dims.symbols(axis);
    let (Some(now), false) = (now, symbols.is_empty()) else {
        return Ok(None);
    };
    let of_axis = |name: &str| symbols.contains(name);
    let named = training
        .dims
        .iter()
        .map(|(name, _)| name)
        .find(|name| of_axis(name));
    let mut other = training.clone();
    other.dims.retain(|(name, _)| !of_axis(name));
    let mut compiled = |n: i64| {
        match axis {
            Axis::Batch => other.batch = Some(n),
            Axis::Seq => other.seq = Some(n),
        }
        compile::single(model, &other).map(|single| needed(&single, reserve) <= budget)
    };

    // What fits, and what does not or is one more than can be.
    let (mut least, mut most) = (0, now);
    if needed(single, reserve) <= budget {
        least = now;
        most = MAX_DIM;
        while let Some(next) = least.checked_mul(2).filter(|next| *next < most) {
            match compiled(next) {
                Ok(true) => least = next,
                Ok(false) | Err(_) => most = next,
            }
        }
    }
    // By bisection: less never needs more.
    while most - least > 1 {
        let middle = least + (most - least) / 2;
        let fits = match compiled(middle) {
            Err(error) if middle < now => return Err(error),
            fits => fits.unwrap_or(false),
        };
        if fits {
            least = middle;
        } else {
            most = middle;
        }
    }
    let flag = match (named, axis) {
        (Some(name), _) => format!("--dim {name}="),
        (None, Axis::Batch) => "--batch".to_owned(),
        (None, Axis::Seq) => "--seq".to_owned(),
    };
    let largest = Largest {
        flag,
        number: least,
    };
    Ok((least > 0).then_some(largest))
}
