//! The order in which rows are trained.

use serde::{Deserialize, Serialize};

use crate::error::{DataError, UseError};
use crate::permutation::permutation;

/// Gives batches of row indices, epoch after epoch, without end.
///
/// Every row comes once an epoch; the last batch of an epoch may be short. With `shuffle`, epoch `e` has the order that
/// ChaCha8 with key `seed` and stream `e` gives by a Fisher–Yates shuffle (see the source of `permutation` for each bit);
/// without, the order of the rows. The order is a function of rows, seed and epoch alone: it stays the same from machine
/// to machine and version to version, and a [`Position`] is all that is needed to go on.
#[derive(Debug, Clone)]
pub struct Sampler {
    rows: usize,
    batch: usize,
    seed: u64,
    shuffle: bool,
    next: Position,
    /// The order of `next`'s epoch, once it is needed.
    order: Option<Vec<usize>>,
}

/// How far a sampler has come: the next batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Position {
    /// Epochs that are finished.
    pub epoch: u64,
    /// Batches of this epoch that are finished.
    pub batch: u64,
}

impl Sampler {
    /// A sampler at the start of the first epoch.
    ///
    /// # Errors
    ///
    /// If there are no rows, or if a batch has none.
    pub fn new(rows: usize, batch: usize, seed: u64, shuffle: bool) -> Result<Self, DataError> {
        if rows == 0 || batch == 0 {
            return Err(UseError::Sampler { rows, batch }.into());
        }
        Ok(Self {
            rows,
            batch,
            seed,
            shuffle,
            next: Position::default(),
            order: None,
        })
    }

    /// Batches in an epoch, the short one included.
    #[must_use]
    pub fn batches_per_epoch(&self) -> u64 {
        self.rows.div_ceil(self.batch) as u64
    }

    /// The position of the batch that comes next.
    #[must_use]
    pub fn position(&self) -> Position {
        self.next
    }

    /// Goes to a position, of an earlier run with the same rows, batch and seed.
    ///
    /// # Errors
    ///
    /// If an epoch has no such batch.
    pub fn seek(&mut self, position: Position) -> Result<(), DataError> {
        let batches = self.batches_per_epoch();
        if position.batch >= batches {
            let found = position.batch;
            return Err(UseError::Position { found, batches }.into());
        }
        if position.epoch != self.next.epoch {
            self.order = None;
        }
        self.next = position;
        Ok(())
    }

    /// The rows of the next batch.
    pub fn next_batch(&mut self) -> Vec<usize> {
        let Position { epoch, batch } = self.next;
        let (rows, seed, shuffle) = (self.rows, self.seed, self.shuffle);
        let order = self.order.get_or_insert_with(|| match shuffle {
            true => permutation(rows, seed, epoch),
            false => (0..rows).collect(),
        });
        let start = batch as usize * self.batch;
        let rows = order[start..rows.min(start + self.batch)].to_vec();
        self.next.batch += 1;
        if self.next.batch == self.batches_per_epoch() {
            self.next = Position {
                epoch: epoch + 1,
                batch: 0,
            };
            self.order = None;
        }
        rows
    }
}
