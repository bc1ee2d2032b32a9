//! The checker against deliberate mistakes and a picture painted unit by unit; and what a problem may be.

mod patterns;

use lorafa_plan::{
    ALIGN, Buffer, BufferId, Layout, LowerBound, MAX_TOTAL, Problem, ProblemError, Violation,
    allocate, check,
};
use patterns::{LLAMA, Step, config, problem, problems};
use proptest::prelude::*;

proptest! {
    #![proptest_config(config(4000))]

    #[test]
    fn the_checker_sees_what_a_painted_picture_shows(
        problem in problems(8, 12, 4),
        units in proptest::collection::vec(0..10_u64, 8),
    ) {
        let offsets: Vec<u64> = units.iter().take(problem.buffers().len()).map(|unit| unit * ALIGN).collect();
        let mut painted = std::collections::BTreeMap::<(u32, u64), Vec<u32>>::new();
        let mut pairs = std::collections::BTreeSet::new();
        for ((id, buffer), offset) in problem.iter().zip(&offsets) {
            for position in buffer.live.clone() {
                for unit in (*offset..offset + buffer.size).step_by(ALIGN as usize) {
                    let there = painted.entry((position, unit)).or_default();
                    pairs.extend(there.iter().map(|&other| (other, id.0)));
                    there.push(id.0);
                }
            }
        }
        let arena = 20 * ALIGN;
        let found = check(&problem, &Layout { offsets, arena }).expect_err("the arena is too large").0;
        let overlaps = found.iter().filter_map(|violation| match violation {
            Violation::Overlap { first, second, .. } => Some((first.0, second.0)),
            _ => None,
        });
        prop_assert_eq!(overlaps.collect::<Vec<_>>(), pairs.into_iter().collect::<Vec<_>>());
    }
}

#[test]
fn the_lower_bound_is_the_first_largest_sum() {
    let bound = |buffers| problem(buffers).lower_bound();
    assert_eq!(
        bound(&[]),
        LowerBound {
            bytes: 0,
            position: 0
        }
    );
    // Half-open: b0 is gone where b1 is born.
    assert_eq!(
        bound(&[(0, 2, 3), (3, 4, 3)]),
        LowerBound {
            bytes: 3 * ALIGN,
            position: 0
        }
    );
    assert_eq!(
        bound(&[(0, 3, 3), (3, 4, 3), (4, 9, 3)]),
        LowerBound {
            bytes: 6 * ALIGN,
            position: 3
        }
    );
}

#[test]
fn what_is_not_a_problem_is_an_error() {
    let error = |buffers: &[Buffer]| Problem::new(buffers.to_vec()).expect_err("not a problem");
    let good = Buffer {
        live: 0..1,
        size: ALIGN,
    };
    assert_eq!(
        error(&[
            good.clone(),
            Buffer {
                live: 0..1,
                size: 700
            }
        ])
        .to_string(),
        "buffer b1: expected a size that is a multiple of 512 B, found 700 B; round it up"
    );
    #[expect(clippy::reversed_empty_ranges, reason = "the mistake under test")]
    for live in [5..5, 5..4] {
        assert_eq!(
            error(&[Buffer {
                live: live.clone(),
                size: ALIGN
            }]),
            ProblemError::EmptyLive {
                buffer: BufferId(0),
                live
            }
        );
    }
    let most = Buffer {
        live: 0..1,
        size: MAX_TOTAL / ALIGN * ALIGN,
    };
    assert_eq!(
        error(&[most.clone(), good]),
        ProblemError::TooManyBytes {
            buffer: BufferId(1)
        }
    );
    assert_eq!(
        error(&[most.clone(), most.clone(), most]),
        ProblemError::TooManyBytes {
            buffer: BufferId(1)
        }
    );
}

/// A good layout spoilt by `spoil`, and what the checker says.
fn spoilt(spoil: impl FnOnce(&mut Layout)) -> String {
    let problem = problem(&[(0, 3, 1), (1, 2, 2), (4, 5, 3)]);
    let mut layout = Layout {
        offsets: vec![0, ALIGN, 0],
        arena: 3 * ALIGN,
    };
    assert_eq!(check(&problem, &layout), Ok(()));
    spoil(&mut layout);
    check(&problem, &layout).expect_err("spoilt").to_string()
}

#[test]
fn the_checker_names_every_kind_of_mistake() {
    assert_eq!(
        spoilt(|layout| layout.offsets[0] = 0x1ff),
        "buffer b0: expected an offset that is a multiple of 512, found 0x1ff\n\
         buffers b0 and b1: expected disjoint bytes while both live in [1,3), found both in 0x200..0x3ff"
    );
    assert_eq!(
        spoilt(|layout| layout.offsets[2] = 2 * ALIGN),
        "buffer b2: expected to end within the arena of 1536 B, found 1536 B @0x400"
    );
    assert_eq!(
        spoilt(|layout| layout.offsets[1] = u64::MAX - ALIGN + 1),
        "buffer b1: expected to end within the arena of 1536 B, found 1024 B @0xfffffffffffffe00"
    );
    assert_eq!(
        spoilt(|layout| layout.arena += ALIGN),
        "layout: expected an arena of 1536 B, the end of the highest buffer, found 2048 B"
    );
    assert_eq!(
        spoilt(|layout| layout.offsets.truncate(2)),
        "layout: expected 3 offsets, one a buffer, found 2"
    );
}

#[test]
fn no_shift_of_a_tight_layout_goes_unseen() {
    let problem = Step {
        layers: 2,
        tokens: 64,
        hidden: 64,
        ffn: 128,
        vocab: 256,
        ..LLAMA
    }
    .problem();
    let good = allocate(&problem);
    for (id, _) in problem.iter() {
        for offset in [good.arena, good.offsets[id.index()] + 1] {
            let mut bad = good.clone();
            bad.offsets[id.index()] = offset;
            assert!(check(&problem, &bad).is_err(), "{id} at {offset}");
        }
    }
}
