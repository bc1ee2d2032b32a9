//! The allocator: offsets for every buffer of a [`Problem`], in an arena close to its lower bound.
//!
//! Two kinds of placement are tried in a fixed order; the smallest arena wins, the earlier one on a tie, and the
//! search stops as soon as an arena equals the [lower bound](Problem::lower_bound).
//!
//! **Outwards from the peak.** A training step is a mountain: saved activations pile up in the forward pass and are
//! freed in reverse by the backward pass. Where most bytes live they must be stacked without a hole, so they are, with
//! what dies last (or was born first) at the bottom. Then one sweep walks forwards from there and one backwards; each
//! places a buffer as it meets it, at one end of the smallest hole that fits.
//!
//! ```text
//!   bytes           peak
//!     |            +----+
//!     |  temporary | b3 | gradient
//!     |    +--+ +--+----+----+ +-------+     b1, b2, b3 live at the peak: a stack, no holes
//!     |    |b4| |     b2     | |  b5   |     b4, b5 do not: they fill holes on either side
//!     |  +-+--+-+------------+-+--+    |
//!     |  |           b1           |    |
//!     +--+------------------------+----+--> position
//!           <-- sweep     sweep -->
//! ```
//!
//! **First fit in a static order**, at the lowest offset that is free for a buffer's whole life: by size, by size ×
//! duration, by duration, largest first; and what lives where most bytes do first, by birth. Each keeps below the best
//! arena so far; the first buffer that does not fit moves towards the front and the order is tried again, up to a fixed
//! number of steps. It closes most of what is left where a schedule has many equal peaks, as recomputation does.
//!
//! Also measured, and never better often enough to stay: sweeping from either end of the schedule instead of the peak;
//! first fit, and short lives apart from long ones, in the sweeps; a stack by duration; an order by the logarithm of
//! duration.

mod chart;
mod holes;
mod pressure;
mod sweep;

use std::cmp::Reverse;

use crate::problem::{Buffer, BufferId, Layout, Problem};
use chart::{Attempt, Chart};
use holes::End;
use sweep::{Stack, Sweep};

/// Steps of first fit to spend on one problem, some 50 ms: a step is a look at one node or interval of the chart.
///
/// A count and not a time, so that the layout does not depend on the machine.
const STEPS: u64 = 1 << 22;

/// Fewer steps for a small problem: what has not improved after some hundred attempts seldom does.
const MOST_STEPS_PER_BUFFER: u64 = 1 << 12;

/// More steps for a huge problem: one attempt on a training step of 100,000 buffers needs about this.
const LEAST_STEPS_PER_BUFFER: u64 = 1 << 6;

/// A buffer that did not fit moves to its index divided by one of these, in turn.
///
/// Of moves to the very front, 1/4, 1/2 and 3/4 of the way and mixtures, none is best for all problems. Taking turns
/// keeps small problems from trying the same orders again and again.
const JUMPS: [usize; 5] = [2, 3, 4, 5, 6];

/// The sweeps to try, most often best first.
const SWEEPS: [(Stack, End); 4] = [
    (Stack::ByDeath, End::High),
    (Stack::ByBirth, End::High),
    (Stack::ByDeath, End::Low),
    (Stack::ByBirth, End::Low),
];

/// Places every buffer so that none that live at the same time share a byte.
///
/// The layout passes [`check`](crate::check()), is at least as large as the [lower bound](Problem::lower_bound), and
/// depends on nothing but the problem. Takes O(n log n) time when a sweep reaches the bound, as it does for most
/// training steps, and a bounded number of steps more otherwise.
#[must_use]
pub fn allocate(problem: &Problem) -> Layout {
    let bound = problem.lower_bound();
    let sweep = Sweep::new(problem, bound.position);
    let [first, others @ ..] = SWEEPS;
    let mut best = sweep.layout(first.0, first.1);
    for (stack, end) in others {
        if best.arena == bound.bytes {
            return best;
        }
        let layout = sweep.layout(stack, end);
        if layout.arena < best.arena {
            best = layout;
        }
    }
    if best.arena > bound.bytes {
        improve(problem, bound.bytes, &mut best);
    }
    best
}

/// Replaces `best` by ever smaller layouts until one takes `bound` bytes or the steps are used up.
fn improve(problem: &Problem, bound: u64, best: &mut Layout) {
    let count = problem.buffers().len() as u64;
    let steps = STEPS
        .min(count * MOST_STEPS_PER_BUFFER)
        .max(count * LEAST_STEPS_PER_BUFFER);
    let mut chart = Chart::new(problem, steps);
    let mut orders = [
        largest_first(problem, |buffer| u128::from(buffer.size)),
        largest_first(problem, |buffer| {
            u128::from(buffer.size) * u128::from(duration(buffer))
        }),
        largest_first(problem, |buffer| u128::from(duration(buffer))),
        fullest_first(problem),
    ];
    let mut turn = 0;
    while best.arena > bound {
        let order = &mut orders[turn % orders.len()];
        match chart.first_fit(order, best.arena) {
            Attempt::Placed(layout) => *best = layout,
            Attempt::TooHigh(index) => {
                order[index / JUMPS[turn % JUMPS.len()]..=index].rotate_right(1);
                turn += 1;
            }
            Attempt::OutOfSteps => return,
        }
    }
}

/// The buffers that take space, by descending pressure, then by birth, and then by id.
fn fullest_first(problem: &Problem) -> Vec<BufferId> {
    let buffers = problem.iter().zip(pressure::pressure(problem));
    let mut keyed: Vec<_> = buffers
        .filter(|((_, buffer), _)| buffer.size > 0)
        .map(|((id, buffer), pressure)| (Reverse(pressure), buffer.live.start, id))
        .collect();
    keyed.sort_unstable();
    keyed.into_iter().map(|(.., id)| id).collect()
}

fn duration(buffer: &Buffer) -> u32 {
    buffer.live.end - buffer.live.start
}

/// The buffers that take space, by descending key and then by id.
fn largest_first(problem: &Problem, key: impl Fn(&Buffer) -> u128) -> Vec<BufferId> {
    let mut keyed: Vec<_> = problem
        .iter()
        .filter(|(_, buffer)| buffer.size > 0)
        .map(|(id, buffer)| (Reverse(key(buffer)), id))
        .collect();
    keyed.sort_unstable();
    keyed.into_iter().map(|(_, id)| id).collect()
}
