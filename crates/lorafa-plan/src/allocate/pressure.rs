//! How full it gets around each buffer.

use crate::problem::{Buffer, Problem};

/// By buffer, the most bytes that live at once at some time of its life, itself included. Takes O(n log n).
pub(super) fn pressure(problem: &Problem) -> Vec<u64> {
    let buffers = problem.buffers();
    // Live bytes change most where something is born: the maximum of any life is at such a position.
    let mut births: Vec<u32> = buffers.iter().map(|buffer| buffer.live.start).collect();
    births.sort_unstable();
    births.dedup();
    let index = |position| births.partition_point(|birth| *birth < position);
    let mut changes = vec![0i64; births.len() + 1];
    for buffer in buffers {
        changes[index(buffer.live.start)] += buffer.size as i64;
        changes[index(buffer.live.end)] -= buffer.size as i64;
    }
    // A tree of maxima: the leaves from `count` on, the children of `n` are `2n` and `2n + 1`.
    let count = births.len();
    let mut most = vec![0u64; 2 * count];
    let mut live = 0i64;
    for (leaf, change) in most[count..].iter_mut().zip(&changes) {
        live += change;
        *leaf = live.unsigned_abs();
    }
    for node in (1..count).rev() {
        most[node] = most[2 * node].max(most[2 * node + 1]);
    }
    let of_life = |buffer: &Buffer| {
        let (mut low, mut high) = (
            index(buffer.live.start) + count,
            index(buffer.live.end) + count,
        );
        let mut found = 0;
        while low < high {
            if low % 2 == 1 {
                found = found.max(most[low]);
                low += 1;
            }
            if high % 2 == 1 {
                high -= 1;
                found = found.max(most[high]);
            }
            (low, high) = (low / 2, high / 2);
        }
        found
    };
    buffers.iter().map(of_life).collect()
}
