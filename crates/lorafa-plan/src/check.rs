//! The independent checker: is this layout a solution of this problem?
//!
//! It is the O(n²) definition, written to be read, and shares no code with the allocator. What it looks for:
//!
//! ```text
//!   arena ........................................ top of the arena
//!                        +-----------+
//!                        |    b2     |              outside the arena: b2 sticks out of the top
//!   .....................|...........|............
//!          +---------+   +-----------+
//!          |   b1    |
//!      +---|####+    |                              overlap: b0 and b1 share positions and bytes (#)
//!      |   +----|----+
//!      |   b0   |             +------+
//!      +--------+             |  b3  |              misaligned: b3 starts off the 512-byte grid
//!   0 ------------------------+------+------------> position
//! ```
//!
//! and an arena larger than the top of the highest buffer, which would be reported to the user as memory he needs.

use std::fmt;
use std::ops::Range;

use crate::problem::{ALIGN, BufferId, Layout, Problem};

/// One way in which a layout is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The layout is for another number of buffers. Nothing else is checked then.
    #[error("layout: expected {expected} offsets, one a buffer, found {found}")]
    Count {
        /// Buffers in the problem.
        expected: usize,
        /// Offsets in the layout.
        found: usize,
    },
    /// A buffer does not start on a multiple of [`ALIGN`].
    #[error("buffer {buffer}: expected an offset that is a multiple of {ALIGN}, found {offset:#x}")]
    Misaligned {
        /// The buffer at fault.
        buffer: BufferId,
        /// Its offset in bytes.
        offset: u64,
    },
    /// A buffer ends beyond the arena.
    #[error(
        "buffer {buffer}: expected to end within the arena of {arena} B, found {size} B @{offset:#x}"
    )]
    OutsideArena {
        /// The buffer at fault.
        buffer: BufferId,
        /// Its offset in bytes.
        offset: u64,
        /// Its size in bytes.
        size: u64,
        /// The arena's size in bytes.
        arena: u64,
    },
    /// Two buffers use the same bytes at the same positions.
    #[error(
        "buffers {first} and {second}: expected disjoint bytes while both live in [{},{}), found both in {:#x}..{:#x}",
        live.start, live.end, bytes.start, bytes.end
    )]
    Overlap {
        /// The buffer with the smaller id.
        first: BufferId,
        /// The buffer with the larger id.
        second: BufferId,
        /// Positions at which both live.
        live: Range<u32>,
        /// Bytes that both use; ends beyond 64 bits are cut off there.
        bytes: Range<u64>,
    },
    /// The arena is larger than any buffer needs.
    #[error("layout: expected an arena of {top} B, the end of the highest buffer, found {arena} B")]
    Slack {
        /// The end of the highest buffer.
        top: u64,
        /// The arena's size in bytes.
        arena: u64,
    },
}

/// Everything that is wrong with a layout; displayed one violation a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violations(pub Vec<Violation>);

impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, violation) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{violation}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Violations {}

/// Checks that `layout` solves `problem`, whoever made it. Takes O(n²) time.
///
/// # Errors
/// Every violation there is: first those of single buffers in id order, then overlaps by their two ids, then the arena.
pub fn check(problem: &Problem, layout: &Layout) -> Result<(), Violations> {
    let buffers = problem.buffers();
    if buffers.len() != layout.offsets.len() {
        let count = Violation::Count {
            expected: buffers.len(),
            found: layout.offsets.len(),
        };
        return Err(Violations(vec![count]));
    }
    let arena = layout.arena;
    let mut found = Vec::new();
    let mut top = 0u64;
    for ((buffer, b), &offset) in problem.iter().zip(&layout.offsets) {
        if offset % ALIGN != 0 {
            found.push(Violation::Misaligned { buffer, offset });
        }
        if offset.checked_add(b.size).is_none_or(|end| end > arena) {
            found.push(Violation::OutsideArena {
                buffer,
                offset,
                size: b.size,
                arena,
            });
        }
        top = top.max(offset.saturating_add(b.size));
    }
    let placed: Vec<_> = problem.iter().zip(layout.offsets.iter().copied()).collect();
    for (index, &((first, a), a_at)) in placed.iter().enumerate() {
        for &((second, b), b_at) in &placed[index + 1..] {
            let live = a.live.start.max(b.live.start)..a.live.end.min(b.live.end);
            if live.is_empty() {
                continue;
            }
            let bytes =
                a_at.max(b_at)..a_at.saturating_add(a.size).min(b_at.saturating_add(b.size));
            if !bytes.is_empty() {
                found.push(Violation::Overlap {
                    first,
                    second,
                    live,
                    bytes,
                });
            }
        }
    }
    if arena > top {
        found.push(Violation::Slack { top, arena });
    }
    if found.is_empty() {
        Ok(())
    } else {
        Err(Violations(found))
    }
}
