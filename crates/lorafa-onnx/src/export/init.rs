//! First values of new adapter matrices, as PEFT draws them, except `orthogonal`.
//!
//! PEFT's orthogonal A and B come of one basis, so that B is not zero and A has half the rank.
//! LoRA-FA learns through A alone and wants all of its rank: here A is orthonormal and B zero.

use lorafa_ir::ops::Init;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rand_distr::{Distribution, StandardNormal};

/// Row-major values for a parameter of this name and shape, the same on every run with this seed; `None` if
/// the shape is no matrix and has to be one.
///
/// | init | values |
/// |---|---|
/// | zeros | zero |
/// | kaiming | uniform in ±1/√in, `in` being the last dimension |
/// | gaussian | normal with standard deviation 1/rank, `rank` being the first dimension |
/// | orthogonal | orthonormal rows, or columns if there are more rows than columns |
pub(super) fn values(init: Init, seed: u64, name: &str, shape: &[usize]) -> Option<Vec<f64>> {
    let mut rng = generator(seed, name);
    let (first, last) = (shape.first().copied(), shape.last().copied());
    let count = shape.iter().product();
    Some(match init {
        Init::Zeros => vec![0.0; count],
        Init::Kaiming => {
            let bound = 1.0 / (last.unwrap_or(1).max(1) as f64).sqrt();
            let draw = |_| bound * (2.0 * unit(&mut rng) - 1.0);
            (0..count).map(draw).collect()
        }
        Init::Gaussian => {
            let deviation = 1.0 / first.unwrap_or(1).max(1) as f64;
            (0..count).map(|_| deviation * normal(&mut rng)).collect()
        }
        Init::Orthogonal => {
            let &[rows, cols] = shape else {
                return None;
            };
            orthogonal(&mut rng, rows, cols)
        }
    })
}

/// A generator whose key is made of a name, by FNV-1a from four starting points, and whose stream is the seed.
fn generator(seed: u64, name: &str) -> ChaCha8Rng {
    let mut key = [0; 32];
    for (i, lane) in key.chunks_exact_mut(8).enumerate() {
        let hash = name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325 ^ i as u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
            });
        lane.copy_from_slice(&hash.to_le_bytes());
    }
    let mut rng = ChaCha8Rng::from_seed(key);
    rng.set_stream(seed);
    rng
}

/// Uniform in [0, 1).
fn unit(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

fn normal(rng: &mut ChaCha8Rng) -> f64 {
    StandardNormal.sample(rng)
}

/// Gram and Schmidt on normal vectors. Each is made orthogonal twice: once leaves errors where
/// vectors are nearly parallel.
fn orthogonal(rng: &mut ChaCha8Rng, rows: usize, cols: usize) -> Vec<f64> {
    let (count, len) = (rows.min(cols), rows.max(cols));
    let mut basis: Vec<Vec<f64>> = Vec::with_capacity(count);
    while basis.len() < count {
        let mut next: Vec<f64> = (0..len).map(|_| normal(rng)).collect();
        for _ in 0..2 {
            for vector in &basis {
                let along = dot(vector, &next);
                next.iter_mut()
                    .zip(vector)
                    .for_each(|(x, v)| *x -= along * v);
            }
        }
        let norm = dot(&next, &next).sqrt();
        next.iter_mut().for_each(|x| *x /= norm);
        basis.push(next);
    }
    let at = |row: usize, col: usize| {
        if rows <= cols {
            basis[row][col]
        } else {
            basis[col][row]
        }
    };
    (0..rows)
        .flat_map(|row| (0..cols).map(move |col| (row, col)))
        .map(|(row, col)| at(row, col))
        .collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}
