//! The order of training.

use crate::common::{answers, numbers};
use lorafa_data::{Position, Sampler};

fn epoch(sampler: &mut Sampler) -> Vec<Vec<usize>> {
    (0..sampler.batches_per_epoch())
        .map(|_| sampler.next_batch())
        .collect()
}

#[test]
fn every_row_comes_once_an_epoch() {
    for shuffle in [false, true] {
        let mut sampler = Sampler::new(10, 4, 7, shuffle).expect("a sampler");
        assert_eq!(sampler.batches_per_epoch(), 3);
        let mut epochs = Vec::new();
        for number in 0..3 {
            assert_eq!(
                sampler.position(),
                Position {
                    epoch: number,
                    batch: 0
                }
            );
            let batches = epoch(&mut sampler);
            let lengths: Vec<usize> = batches.iter().map(Vec::len).collect();
            assert_eq!(lengths, [4, 4, 2]);
            let mut rows = batches.concat();
            epochs.push(rows.clone());
            rows.sort_unstable();
            assert_eq!(rows, (0..10).collect::<Vec<_>>());
        }
        assert_eq!(epochs[0] == epochs[1], !shuffle);
        assert_eq!(epochs[0] == (0..10).collect::<Vec<_>>(), !shuffle);
    }
}

#[test]
fn the_order_stays_what_it_is() {
    for case in answers("permutation.json").as_array().expect("cases") {
        let number = |key: &str| case[key].as_u64().expect("a number");
        let rows = number("rows") as usize;
        let mut sampler = Sampler::new(rows, rows, number("seed"), true).expect("a sampler");
        let position = Position {
            epoch: number("epoch"),
            batch: 0,
        };
        sampler.seek(position).expect("a position");
        let order: Vec<i64> = sampler
            .next_batch()
            .into_iter()
            .map(|row| row as i64)
            .collect();
        assert_eq!(order, numbers(&case["order"]));
    }
}

#[test]
fn goes_on_from_any_position() {
    let mut sampler = Sampler::new(7, 2, 1, true).expect("a sampler");
    let mut seen = Vec::new();
    for _ in 0..12 {
        seen.push((sampler.position(), sampler.next_batch()));
    }
    for (index, (position, rows)) in seen.iter().enumerate() {
        let text = serde_json::to_string(position).expect("JSON");
        let position: Position = serde_json::from_str(&text).expect("a position");
        for mut other in [
            sampler.clone(),
            Sampler::new(7, 2, 1, true).expect("a sampler"),
        ] {
            other.seek(position).expect("a position");
            assert_eq!(other.next_batch(), *rows);
            if let Some((_, next)) = seen.get(index + 1) {
                assert_eq!(other.next_batch(), *next);
            }
        }
    }
    let beyond = Position { epoch: 0, batch: 4 };
    let error = sampler.seek(beyond).expect_err("no such batch");
    assert_eq!(
        error.to_string(),
        "batch 4 is out of range: an epoch has 4 batches"
    );
}

#[test]
fn every_order_is_as_likely() {
    let mut counts = std::collections::BTreeMap::new();
    for seed in 0..2400 {
        let mut sampler = Sampler::new(4, 4, seed, true).expect("a sampler");
        *counts.entry(sampler.next_batch()).or_insert(0) += 1;
    }
    assert_eq!(counts.len(), 24);
    // 100 each on average, with a standard deviation of 10.
    assert!(
        counts.values().all(|count| (50..150).contains(count)),
        "{counts:?}"
    );
}

#[test]
fn nothing_cannot_be_sampled() {
    for (rows, batch) in [(0, 1), (1, 0)] {
        assert!(Sampler::new(rows, batch, 0, true).is_err());
    }
}
