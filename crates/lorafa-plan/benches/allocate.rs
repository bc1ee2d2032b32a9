//! How the allocator's time grows with the number of buffers: `cargo bench -p lorafa-plan`.
//!
//! Items are buffers: O(n log n) shows as a rate that falls slowly.

#[path = "../tests/patterns/mod.rs"]
mod patterns;

use divan::Bencher;
use divan::counter::ItemsCount;
use lorafa_plan::{ALIGN, Buffer, Problem, allocate};
use patterns::{LLAMA, Random, Step, random_program};

/// Buffers, about.
const SIZES: [u64; 4] = [1 << 10, 4 << 10, 16 << 10, 64 << 10];

fn main() {
    divan::main();
}

fn bench(bencher: Bencher<'_, '_>, problem: Problem) {
    bencher
        .counter(ItemsCount::new(problem.buffers().len()))
        .bench(|| allocate(divan::black_box(&problem)));
}

/// A layer of `LLAMA` with decomposed norms has about this many buffers.
const DECOMPOSED: u64 = 140;

/// LoRA-FA with more and more layers.
#[divan::bench(args = SIZES)]
fn layers(bencher: Bencher<'_, '_>, n: u64) {
    let layers = n.div_ceil(DECOMPOSED);
    bench(
        bencher,
        Step {
            layers,
            chain: 12,
            ..LLAMA
        }
        .problem(),
    );
}

/// Full fine-tuning with more and more layers: gradients of all weights live to the end.
#[divan::bench(args = SIZES)]
fn layers_full(bencher: Bencher<'_, '_>, n: u64) {
    let layers = n.div_ceil(DECOMPOSED + 28);
    bench(
        bencher,
        Step {
            layers,
            chain: 12,
            keeps_x: true,
            full: true,
            ..LLAMA
        }
        .problem(),
    );
}

/// Eight layers of longer and longer chains of elementwise ops.
#[divan::bench(args = SIZES)]
fn chains(bencher: Bencher<'_, '_>, n: u64) {
    bench(
        bencher,
        Step {
            layers: 8,
            chain: n / 50,
            ragged: 100,
            ..LLAMA
        }
        .problem(),
    );
}

/// No structure at all: nothing reaches the lower bound, so all steps are spent.
#[divan::bench(args = SIZES)]
fn noise(bencher: Bencher<'_, '_>, n: u64) {
    let mut random = Random(1);
    let buffer = |_| {
        let start = random.below(n) as u32;
        let live = start..start + 1 + random.below(1000) as u32;
        let size = ALIGN * (1 + random.below(100));
        Buffer { live, size }
    };
    let buffers = (0..n).map(buffer).collect();
    bench(
        bencher,
        Problem::new(buffers).expect("valid by construction"),
    );
}

/// No structure but that of a backward pass.
#[divan::bench(args = SIZES)]
fn program(bencher: Bencher<'_, '_>, n: u64) {
    bench(bencher, random_program(n as usize / 2, 3));
}

/// The sweep for the lower bound alone.
#[divan::bench(args = SIZES)]
fn lower_bound(bencher: Bencher<'_, '_>, n: u64) {
    let problem = random_program(n as usize / 2, 3);
    bencher
        .counter(ItemsCount::new(problem.buffers().len()))
        .bench(|| divan::black_box(&problem).lower_bound());
}
