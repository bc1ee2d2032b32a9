//! Who survives a dropout: as many as should, whoever else does.

use lorafa_ir::ops::{Dropout, Scalar};

const DRAWS: u64 = 1 << 18;

fn mask(ratio: f64, seed: i64, step: u64, from: u64) -> Vec<bool> {
    let of = Dropout {
        ratio: Scalar(ratio),
        seed,
    };
    let survivors = of.survivors(step);
    (from..from + DRAWS)
        .map(|place| survivors.has(place))
        .collect()
}

/// The share of places at which `f` holds is this, up to five deviations.
#[track_caller]
fn share(count: impl Iterator<Item = bool>, expected: f64, what: &str) {
    let found = count.filter(|hit| *hit).count() as f64;
    let (n, p) = (DRAWS as f64, expected);
    let off = (found - n * p).abs() / (n * p * (1.0 - p)).sqrt();
    assert!(off < 5.0, "{what}: {found} of {n}, expected {p}");
}

#[test]
fn the_share_that_survives_is_what_was_asked_for() {
    for ratio in [0.01, 0.05, 0.1, 0.5, 0.9] {
        for (seed, step, from) in [(0, 0, 0), (7, 1, 0), (-3, 1000, 1 << 40)] {
            let mask = mask(ratio, seed, step, from);
            share(mask.into_iter(), 1.0 - ratio, "survivors");
        }
    }
    assert!(mask(0.0, 1, 1, 0).into_iter().all(|survives| survives));
}

/// Of any two draws, both survive as often as if neither knew of the other: of neighbours and of those a row apart, of
/// steps and of ops that follow each other.
#[test]
fn draws_are_independent_in_pairs() {
    for ratio in [0.1, 0.5] {
        let both = (1.0 - ratio) * (1.0 - ratio);
        let mask = |seed, step, from| mask(ratio, seed, step, from);
        let one = mask(3, 5, 0);
        let others = [
            (mask(3, 5, 1), "neighbours"),
            (mask(3, 5, 2), "every second"),
            (mask(3, 5, 64), "short rows"),
            (mask(3, 5, 4096), "rows"),
            (mask(3, 5, 1 << 32), "far apart"),
            (mask(3, 6, 0), "steps"),
            (mask(3, 7, 0), "every second step"),
            (mask(4, 5, 0), "ops"),
            (mask(2, 5, 0), "other ops"),
            (mask(5, 3, 0), "seed and step swapped"),
        ];
        for (other, what) in &others {
            let pairs = one.iter().zip(other);
            share(pairs.map(|(a, b)| *a && *b), both, what);
        }
    }
}
