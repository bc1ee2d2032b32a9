//! Placement outwards from the peak: a stack of what lives there, then a sweep to either side.

use std::cmp::Reverse;

use super::holes::{End, Holes};
use crate::problem::{Buffer, BufferId, Layout, Problem};

/// What is at the bottom of the stack at the peak.
#[derive(Clone, Copy)]
pub(super) enum Stack {
    /// Whatever dies last.
    ByDeath,
    /// Whatever was born first.
    ByBirth,
}

/// A problem sorted for sweeps from one position; made once for all stacks.
pub(super) struct Sweep<'p> {
    buffers: &'p [Buffer],
    peak: u32,
    /// By ascending start, the longest life first.
    births: Vec<BufferId>,
    /// By descending end, the longest life first: the births of reversed time.
    deaths: Vec<BufferId>,
}

impl<'p> Sweep<'p> {
    pub(super) fn new(problem: &'p Problem, peak: u32) -> Self {
        let buffers = problem.buffers();
        let live = |id: &BufferId| &buffers[id.index()].live;
        let mut births: Vec<_> = problem
            .iter()
            .filter(|(_, b)| b.size > 0)
            .map(|(id, _)| id)
            .collect();
        let mut deaths = births.clone();
        births.sort_unstable_by_key(|id| (live(id).start, Reverse(live(id).end), *id));
        deaths.sort_unstable_by_key(|id| (Reverse(live(id).end), live(id).start, *id));
        Self {
            buffers,
            peak,
            births,
            deaths,
        }
    }

    pub(super) fn layout(&self, stack: Stack, end: End) -> Layout {
        let mut layout = Layout {
            offsets: vec![0; self.buffers.len()],
            arena: 0,
        };
        let order = match stack {
            Stack::ByDeath => &self.deaths,
            Stack::ByBirth => &self.births,
        };
        for id in order
            .iter()
            .filter(|id| self.buffer(**id).live.contains(&self.peak))
        {
            layout.offsets[id.index()] = layout.arena;
            layout.arena += self.buffer(*id).size;
        }
        let height = layout.arena;

        let born = self
            .births
            .iter()
            .filter(|id| self.buffer(**id).live.start > self.peak);
        let dead = self
            .deaths
            .iter()
            .rev()
            .filter(|id| self.buffer(**id).live.end > self.peak);
        self.side(
            born,
            dead,
            |dead, born| dead.live.end <= born.live.start,
            (height, end),
            &mut layout,
        );

        let born = self
            .deaths
            .iter()
            .filter(|id| self.buffer(**id).live.end <= self.peak);
        let dead = self
            .births
            .iter()
            .rev()
            .filter(|id| self.buffer(**id).live.start <= self.peak);
        self.side(
            born,
            dead,
            |dead, born| dead.live.start >= born.live.end,
            (height, end),
            &mut layout,
        );
        layout
    }

    /// Sweeps one side of the peak, where `height` bytes are stacked: places `born` in this order, at this `end` of
    /// holes, and before each frees all of `dead` (in order, too) that are `gone` by then.
    fn side<'a>(
        &self,
        born: impl Iterator<Item = &'a BufferId>,
        dead: impl Iterator<Item = &'a BufferId>,
        gone: impl Fn(&Buffer, &Buffer) -> bool,
        (height, end): (u64, End),
        layout: &mut Layout,
    ) {
        let mut holes = Holes::new(height);
        let mut dead = dead.peekable();
        for &id in born {
            let buffer = self.buffer(id);
            while let Some(freed) = dead.next_if(|dead| gone(self.buffer(**dead), buffer)) {
                let start = layout.offsets[freed.index()];
                holes.free(start, start + self.buffer(*freed).size);
            }
            layout.offsets[id.index()] = holes.take(buffer.size, end);
        }
        layout.arena = layout.arena.max(holes.top());
    }

    fn buffer(&self, id: BufferId) -> &'p Buffer {
        &self.buffers[id.index()]
    }
}
