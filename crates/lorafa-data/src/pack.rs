//! Packing: several examples in one row.

use std::collections::{BTreeMap, VecDeque};

/// Best-fit decreasing, TRL's default (`packing_strategy="bfd"`): the longest example first, each into the row whose room
/// it fills best, or into a new one. Equally long examples go in the order of the data, equally full rows in the order in
/// which they became so. No example is cut.
///
/// Rows are then put in the order of their first example, and examples within a row in the order of the data, so that
/// training without a shuffle stays close to the order of the file.
///
/// `lengths` are at most `capacity`.
pub(crate) fn pack(lengths: &[usize], capacity: usize) -> Vec<Box<[u32]>> {
    let mut longest_first: Vec<u32> = (0..lengths.len() as u32).collect();
    longest_first.sort_by_key(|index| std::cmp::Reverse(lengths[*index as usize]));
    let mut rows: Vec<Vec<u32>> = Vec::new();
    let mut by_room: BTreeMap<usize, VecDeque<usize>> = BTreeMap::new();
    for example in longest_first {
        let length = lengths[example as usize];
        let (room, row) = match take_first(&mut by_room, length) {
            Some(found) => found,
            None => {
                rows.push(Vec::new());
                (capacity, rows.len() - 1)
            }
        };
        rows[row].push(example);
        if room > length {
            by_room.entry(room - length).or_default().push_back(row);
        }
    }
    for row in &mut rows {
        row.sort_unstable();
    }
    rows.sort_unstable();
    rows.into_iter().map(Vec::into_boxed_slice).collect()
}

/// Takes the row with the least room of at least `length`.
fn take_first(
    by_room: &mut BTreeMap<usize, VecDeque<usize>>,
    length: usize,
) -> Option<(usize, usize)> {
    let (&room, rows) = by_room.range_mut(length..).next()?;
    let row = rows.pop_front();
    if rows.is_empty() {
        by_room.remove(&room);
    }
    row.map(|row| (room, row))
}
