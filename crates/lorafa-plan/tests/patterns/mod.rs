//! Allocation problems shaped like a training step, for the tests and the benchmark.
//!
//! A step is recorded the way a compiler would see it: every op has a position, a value lives from the op that makes it
//! to the last op that reads it. Sizes follow Llama: bf16 activations, fp32 norms, attention that keeps its output.

#![allow(
    dead_code,
    unused_imports,
    reason = "each test binary and the benchmark use a part"
)]

mod random;
mod step;

use lorafa_plan::{ALIGN, Buffer, Problem};

pub use random::{config, problem, problems};
pub use step::{LLAMA, Step};

/// A small deterministic random generator (SplitMix64), so that a pattern is the same everywhere.
pub struct Random(pub u64);

impl Random {
    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

/// Index of a recorded buffer.
type Value = usize;

#[derive(Default)]
struct Tape {
    position: u32,
    /// First and last position of use, and the size.
    values: Vec<(u32, u32, u64)>,
}

impl Tape {
    /// An op that reads some values and makes one of that many bytes.
    fn op(&mut self, reads: &[Value], bytes: u64) -> Value {
        self.read(reads);
        self.make(bytes)
    }

    fn read(&mut self, reads: &[Value]) {
        self.position += 1;
        for &value in reads {
            self.values[value].1 = self.position;
        }
    }

    /// One more output, or the scratch, of the op at this position.
    fn make(&mut self, bytes: u64) -> Value {
        self.values
            .push((self.position, self.position, bytes.max(1)));
        self.values.len() - 1
    }

    /// Elementwise ops one after the other; every third works in place.
    fn chain(&mut self, mut value: Value, length: u64, bytes: u64) -> Value {
        for index in 0..length {
            if index % 3 == 2 {
                self.read(&[value]);
            } else {
                value = self.op(&[value], bytes);
            }
        }
        value
    }

    fn finish(self) -> Problem {
        let buffer = |(start, last, bytes): (u32, u32, u64)| Buffer {
            live: start..last + 1,
            size: bytes.next_multiple_of(ALIGN),
        };
        Problem::new(self.values.into_iter().map(buffer).collect())
            .expect("a recorded step is a valid problem")
    }
}

/// The forward and backward pass of a random program: branches, skips over many ops, sizes over four orders of
/// magnitude, and gradients of a tenth of the ops that live to the end.
pub fn random_program(ops: usize, seed: u64) -> Problem {
    let mut random = Random(seed);
    let mut tape = Tape::default();
    let mut below = |limit: usize| random.below(limit as u64) as usize;
    let mut forward: Vec<(Vec<Value>, Value)> = Vec::new();
    for index in 0..ops {
        let reads: Vec<Value> = (0..(1 + below(2)).min(index))
            .map(|_| {
                if below(20) == 0 {
                    below(index)
                } else {
                    index - 1 - below(index.min(4))
                }
            })
            .map(|op| forward[op].1)
            .collect();
        let bytes = (1 << below(14)) * (512 + below(512));
        let value = tape.op(&reads, bytes as u64);
        forward.push((reads, value));
    }
    let mut gradient: Vec<Option<Value>> = vec![None; tape.values.len()];
    let mut trained = Vec::new();
    for (reads, value) in forward.iter().rev() {
        let dy = gradient[*value].unwrap_or(*value);
        if below(10) == 0 {
            let bytes = tape.values[*value].2 / 8;
            trained.push(tape.op(&[dy, *value], bytes));
        }
        for &input in reads {
            let bytes = tape.values[input].2;
            let saved = if below(2) == 0 { input } else { *value };
            match gradient[input] {
                Some(sum) => tape.read(&[dy, saved, sum]),
                None => gradient[input] = Some(tape.op(&[dy, saved], bytes)),
            }
        }
    }
    tape.read(&trained);
    tape.finish()
}

/// Steps of all kinds, with a name each.
pub fn steps() -> Vec<(&'static str, Step)> {
    let lora = Step {
        keeps_x: true,
        ..LLAMA
    };
    vec![
        ("lora-fa", LLAMA),
        ("lora", lora),
        ("full", Step { full: true, ..lora }),
        (
            "full, few tokens",
            Step {
                full: true,
                tokens: 256,
                ..lora
            },
        ),
        (
            "recompute",
            Step {
                recompute: true,
                ..LLAMA
            },
        ),
        (
            "recompute, full",
            Step {
                recompute: true,
                full: true,
                ..lora
            },
        ),
        ("decomposed", Step { chain: 12, ..LLAMA }),
        ("decomposed, lora", Step { chain: 12, ..lora }),
        (
            "decomposed, full, few tokens",
            Step {
                chain: 12,
                full: true,
                tokens: 256,
                ..lora
            },
        ),
        (
            "ragged",
            Step {
                ragged: 100,
                ..LLAMA
            },
        ),
        (
            "ragged, lora, decomposed",
            Step {
                ragged: 100,
                chain: 7,
                ..lora
            },
        ),
        (
            "ragged, full, few tokens",
            Step {
                ragged: 100,
                full: true,
                tokens: 300,
                ..lora
            },
        ),
        (
            "ragged, recompute",
            Step {
                ragged: 100,
                recompute: true,
                ..LLAMA
            },
        ),
        (
            "small model",
            Step {
                layers: 4,
                tokens: 130,
                hidden: 96,
                ffn: 200,
                vocab: 500,
                rank: 4,
                ..lora
            },
        ),
    ]
}
