//! Random problems for property tests.

use lorafa_plan::{ALIGN, Buffer, Problem};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

/// Buffers from (first position, last position, size in units of [`ALIGN`]).
pub fn problem(buffers: &[(u32, u32, u64)]) -> Problem {
    let buffer = |&(first, last, units): &(u32, u32, u64)| Buffer {
        live: first..last + 1,
        size: units * ALIGN,
    };
    Problem::new(buffers.iter().map(buffer).collect()).expect("valid by construction")
}

/// The same seed everywhere, so that a red run is red again.
pub fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        rng_seed: RngSeed::Fixed(1),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// Up to `count` buffers in `0..positions` of up to `units` units, zero included.
pub fn problems(count: usize, positions: u32, units: u64) -> impl Strategy<Value = Problem> {
    let buffer = (0..positions, 0..positions / 2, 0..=units);
    proptest::collection::vec(buffer, 0..=count).prop_map(|buffers| {
        problem(
            &buffers
                .iter()
                .map(|&(at, more, units)| (at, at + more, units))
                .collect::<Vec<_>>(),
        )
    })
}
