//! The allocator against its checker, the lower bound and brute force.

mod patterns;

use lorafa_plan::{ALIGN, Buffer, Layout, MAX_TOTAL, Problem, allocate, check};
use patterns::{LLAMA, Step, config, problem, problems, random_program, steps};
use proptest::prelude::*;

fn ratio(problem: &Problem, layout: &Layout) -> f64 {
    layout.arena as f64 / problem.lower_bound().bytes.max(1) as f64
}

/// The best arena there is: of all orders, first fit in the order of an optimal layout's offsets is one of its size.
fn optimum(problem: &Problem) -> u64 {
    fn place(problem: &Problem, placed: &mut Vec<(usize, u64)>, arena: u64, best: &mut u64) {
        if arena >= *best {
            return;
        }
        if placed.len() == problem.buffers().len() {
            *best = arena;
            return;
        }
        for (index, buffer) in problem.buffers().iter().enumerate() {
            if placed.iter().any(|&(other, _)| other == index) {
                continue;
            }
            let in_the_way = |offset: u64| {
                placed.iter().find_map(|&(other, at)| {
                    let other = &problem.buffers()[other];
                    let meets =
                        other.live.start < buffer.live.end && buffer.live.start < other.live.end;
                    let end = at + other.size;
                    (meets && at < offset + buffer.size && offset < end).then_some(end)
                })
            };
            let mut offset = 0;
            while let Some(end) = in_the_way(offset) {
                offset = end;
            }
            placed.push((index, offset));
            place(problem, placed, arena.max(offset + buffer.size), best);
            placed.pop();
        }
    }
    let mut best = u64::MAX;
    place(problem, &mut Vec::new(), 0, &mut best);
    best
}

proptest! {
    #![proptest_config(config(4000))]

    #[test]
    fn layouts_of_random_problems_are_valid(problem in problems(60, 40, 12)) {
        let layout = allocate(&problem);
        prop_assert_eq!(check(&problem, &layout), Ok(()));
        prop_assert!(layout.arena >= problem.lower_bound().bytes);
    }
}

proptest! {
    #![proptest_config(config(1500))]

    #[test]
    fn problems_of_six_are_solved_like_brute_force_solves_them(problem in problems(6, 10, 9)) {
        prop_assert_eq!(allocate(&problem).arena, optimum(&problem));
    }
}

#[test]
fn training_steps_take_at_most_a_percent_more_than_the_bound() {
    for (name, step) in steps() {
        let problem = step.problem();
        let layout = allocate(&problem);
        assert_eq!(check(&problem, &layout), Ok(()), "{name}");
        let ratio = ratio(&problem, &layout);
        assert!((1.0..=1.01).contains(&ratio), "{name}: {ratio}");
    }
}

#[test]
fn random_programs_take_at_most_two_percent_more_than_the_bound() {
    for seed in 0..40 {
        let problem = random_program(20 << (seed % 6), seed);
        let layout = allocate(&problem);
        assert_eq!(check(&problem, &layout), Ok(()), "seed {seed}");
        let ratio = ratio(&problem, &layout);
        assert!((1.0..=1.02).contains(&ratio), "seed {seed}: {ratio}");
    }
}

#[test]
fn sixty_thousand_buffers_reach_the_bound() {
    let problem = Step {
        layers: 400,
        chain: 12,
        ..LLAMA
    }
    .problem();
    assert!(problem.buffers().len() > 55_000);
    assert_eq!(allocate(&problem).arena, problem.lower_bound().bytes);
}

#[test]
fn a_layout_is_the_same_everywhere() {
    let problem = problem(&[
        (0, 5, 2),
        (1, 3, 3),
        (2, 2, 1),
        (4, 5, 3),
        (3, 4, 1),
        (0, 0, 4),
    ]);
    let layout = allocate(&problem);
    let units: Vec<u64> = layout.offsets.iter().map(|offset| offset / ALIGN).collect();
    assert_eq!((units, layout.arena / ALIGN), (vec![0, 3, 2, 3, 2, 2], 6));
}

#[test]
fn extreme_problems_are_no_special_case() {
    let whole = MAX_TOTAL / ALIGN;
    for buffers in [
        vec![],
        vec![Buffer {
            live: 3..4,
            size: 0,
        }],
        vec![Buffer {
            live: u32::MAX - 1..u32::MAX,
            size: whole * ALIGN,
        }],
        vec![
            Buffer {
                live: 0..u32::MAX,
                size: whole / 2 * ALIGN,
            },
            Buffer {
                live: 7..8,
                size: whole / 2 * ALIGN,
            },
        ],
    ] {
        let problem = Problem::new(buffers).expect("valid");
        let layout = allocate(&problem);
        assert_eq!(check(&problem, &layout), Ok(()));
        assert_eq!(layout.arena, problem.lower_bound().bytes);
    }
}
