//! Free bytes during a sweep.

use std::collections::{BTreeMap, BTreeSet};

/// Which end of a hole to use.
#[derive(Clone, Copy)]
pub(super) enum End {
    /// The lower offsets.
    Low,
    /// The higher offsets.
    High,
}

/// The free bytes below the top of the arena, as maximal holes: no two touch.
pub(super) struct Holes {
    /// End of every hole by its start.
    ends: BTreeMap<u64, u64>,
    /// Size and start of every hole.
    sizes: BTreeSet<(u64, u64)>,
    top: u64,
}

impl Holes {
    /// An arena of `top` bytes, all taken.
    pub(super) fn new(top: u64) -> Self {
        Self {
            ends: BTreeMap::new(),
            sizes: BTreeSet::new(),
            top,
        }
    }

    /// Bytes from the bottom to the end of the highest buffer there ever was.
    pub(super) fn top(&self) -> u64 {
        self.top
    }

    /// Takes `size` bytes off one end of the smallest hole that has them (the lowest of equals), or makes the arena
    /// larger. Returns their offset.
    pub(super) fn take(&mut self, size: u64, end: End) -> u64 {
        if let Some(&(found, low)) = self.sizes.range((size, 0)..).next() {
            let high = low + found;
            self.remove(low, high);
            let (start, rest) = match end {
                End::Low => (low, low + size..high),
                End::High => (high - size, low..high - size),
            };
            if !rest.is_empty() {
                self.insert(rest.start, rest.end);
            }
            return start;
        }
        let start = match self.ends.last_key_value() {
            Some((&start, &end)) if end == self.top => {
                self.remove(start, end);
                start
            }
            _ => self.top,
        };
        self.top = start + size;
        start
    }

    /// Gives the bytes `start..end` back, which were taken.
    pub(super) fn free(&mut self, mut start: u64, mut end: u64) {
        if let Some((&before, &touch)) = self.ends.range(..start).next_back()
            && touch == start
        {
            self.remove(before, touch);
            start = before;
        }
        if let Some(&after) = self.ends.get(&end) {
            self.remove(end, after);
            end = after;
        }
        self.insert(start, end);
    }

    fn insert(&mut self, start: u64, end: u64) {
        self.ends.insert(start, end);
        self.sizes.insert((end - start, start));
    }

    fn remove(&mut self, start: u64, end: u64) {
        self.ends.remove(&start);
        self.sizes.remove(&(end - start, start));
    }
}
