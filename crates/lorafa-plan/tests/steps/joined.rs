//! Values that lie side by side, and results in the place of one of them.

use lorafa_ir::ops::{Concat, Slice, Transpose, Unary, UnaryKind};
use lorafa_ir::{DType, ValueId};

use super::{Role, Steps};

impl Steps<'_> {
    /// Parameters that are joined, one of them lying across.
    pub fn joined_params(&mut self) {
        let first = self.param("j0", Role::Frozen, DType::F32, &[4, 6]);
        let across = self.param("j1", Role::Frozen, DType::F32, &[6, 2]);
        let last = self.param("j2", Role::Input, DType::F32, &[1, 6]);
        self.pool.extend([first, across, last]);
        let second = self.add(swapped(2), &[across]);
        self.join(0, &[first, second[0], last]);
    }

    /// New values like this one, some made lying across, joined and taken apart again.
    pub fn joined(&mut self, x: ValueId) {
        let Some(axis) = self.axis(x) else { return };
        let mut parts = Vec::new();
        for _ in 0..2 + self.rng.below(2) {
            let x = self.like(x);
            let rank = self.shape(x).len();
            let across = self.rng.below(3) == 0 && rank > 1;
            let from = if across {
                self.add(swapped(rank), &[x])
            } else {
                vec![x]
            };
            let made = self.add(Unary(UnaryKind::Neg), &from);
            let part = if across {
                self.add(swapped(rank), &made)
            } else {
                made
            };
            parts.extend(part);
            if self.rng.below(3) == 0 {
                self.op();
            }
        }
        self.join(axis, &parts);
    }

    fn join(&mut self, axis: usize, parts: &[ValueId]) {
        let joined = true;
        let Some(&whole) = self.add(Concat { axis, joined }, parts).first() else {
            return;
        };
        let mut start = 0;
        for part in parts {
            let len = self.shape(*part)[axis];
            if self.rng.below(3) > 0 {
                let slice = self.add(Slice::along(axis, start, len), &[whole]);
                self.add(Unary(UnaryKind::Abs), &slice);
            }
            start += len;
        }
    }
}

/// The last two axes swapped.
fn swapped(rank: usize) -> Transpose {
    let mut perm: Vec<usize> = (0..rank).collect();
    perm.swap(rank - 2, rank - 1);
    Transpose { perm: perm.into() }
}
