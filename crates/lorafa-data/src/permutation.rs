//! Random orders that are the same on every machine and in every version.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// A random order of `0..len`: the Fisher–Yates shuffle, from the last place down, driven by ChaCha8 with the seed's
/// eight little-endian bytes and zeros as its key, and with `stream` as its stream.
///
/// A place below `n` is drawn by Lemire's method: the upper half of a 64-bit draw times `n`, drawn again while the lower
/// half is below `2^64 mod n`, so that every order is equally likely.
pub(crate) fn permutation(len: usize, seed: u64, stream: u64) -> Vec<usize> {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let mut random = ChaCha8Rng::from_seed(key);
    random.set_stream(stream);
    let mut order: Vec<usize> = (0..len).collect();
    for last in (1..len).rev() {
        order.swap(last, below(&mut random, last as u64 + 1) as usize);
    }
    order
}

fn below(random: &mut ChaCha8Rng, n: u64) -> u64 {
    let refused = n.wrapping_neg() % n;
    loop {
        let product = u128::from(random.next_u64()) * u128::from(n);
        if product as u64 >= refused {
            return (product >> 64) as u64;
        }
    }
}
