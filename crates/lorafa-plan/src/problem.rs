//! The allocation problem and its solution: which buffers exist when, and where each one goes.
//!
//! ```text
//!           position  0    1    2    3    4    5
//!  offset 1024        |----|----|----|----|----|
//!                     |    | b1 [1,3) |    |    |      lower bound: 1024 B, first at position 1
//!          512        |----|----|----|----|----|      arena:       1024 B
//!                     | b0 [0,4)          | b2 |
//!            0        |----|----|----|----|----|
//! ```
//!
//! Time runs in schedule positions (one op, one position), space in bytes.

use std::fmt;
use std::ops::Range;

/// Bytes every buffer's offset and size are a multiple of.
///
/// PyTorch's CUDA allocator rounds every request to 512 bytes, so a kernel that got a
/// [`from_blob`](https://docs.pytorch.org/cppdocs/) view at such an offset sees the alignment it would see in eager
/// mode, and planned sizes compare one to one with traced ones. CPU kernels ask for 64.
pub const ALIGN: u64 = 512;

/// Most bytes all buffers of a [`Problem`] may sum to.
///
/// libtorch addresses storage with signed 64-bit numbers; staying below also means that no layout of these buffers
/// can overflow an offset.
pub const MAX_TOTAL: u64 = i64::MAX as u64;

/// Index of a buffer in its [`Problem`]. Displayed as `b3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BufferId(pub u32);

impl BufferId {
    /// The position of this buffer in [`Problem::buffers`] and [`Layout::offsets`].
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for BufferId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b{}", self.0)
    }
}

/// A piece of memory that one value, or one op's scratch, needs for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buffer {
    /// Schedule positions at which the bytes must not be touched by anybody else; half-open, never empty.
    ///
    /// A value defined at position `d` and last read at position `r` lives in `d..r + 1`.
    pub live: Range<u32>,
    /// Size in bytes, a multiple of [`ALIGN`]. Zero is allowed and takes no space.
    pub size: u64,
}

/// Buffers that passed the rules of [`Problem::new`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    buffers: Vec<Buffer>,
}

/// Why a list of buffers is not a [`Problem`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProblemError {
    /// A size is not a multiple of [`ALIGN`].
    #[error(
        "buffer {buffer}: expected a size that is a multiple of {ALIGN} B, found {size} B; round it up"
    )]
    Unaligned {
        /// The buffer at fault.
        buffer: BufferId,
        /// Its size in bytes.
        size: u64,
    },
    /// A live range is empty or reversed.
    #[error(
        "buffer {buffer}: expected a live range of at least one position, found [{},{}); \
         a value lives at least where it is defined",
        live.start, live.end
    )]
    EmptyLive {
        /// The buffer at fault.
        buffer: BufferId,
        /// Its live range.
        live: Range<u32>,
    },
    /// The sizes sum to more than [`MAX_TOTAL`].
    #[error(
        "buffer {buffer}: expected at most {MAX_TOTAL} B in all buffers together, found more from this one on"
    )]
    TooManyBytes {
        /// The first buffer that does not fit.
        buffer: BufferId,
    },
    /// More buffers than [`BufferId`] can number.
    #[error("expected at most {} buffers, found {found}", u32::MAX)]
    TooManyBuffers {
        /// How many there were.
        found: usize,
    },
}

impl Problem {
    /// Checks the buffers, which keep their order: the `n`th is [`BufferId`]`(n)` from here on.
    ///
    /// # Errors
    /// The first buffer whose size is not a multiple of [`ALIGN`], whose live range is empty, or with which the sizes
    /// exceed [`MAX_TOTAL`].
    pub fn new(buffers: Vec<Buffer>) -> Result<Self, ProblemError> {
        if u32::try_from(buffers.len()).is_err() {
            return Err(ProblemError::TooManyBuffers {
                found: buffers.len(),
            });
        }
        let mut total = 0u64;
        for (buffer, Buffer { live, size }) in (0..).map(BufferId).zip(&buffers) {
            if live.is_empty() {
                return Err(ProblemError::EmptyLive {
                    buffer,
                    live: live.clone(),
                });
            }
            if !size.is_multiple_of(ALIGN) {
                return Err(ProblemError::Unaligned {
                    buffer,
                    size: *size,
                });
            }
            total = match total.checked_add(*size) {
                Some(sum) if sum <= MAX_TOTAL => sum,
                _ => return Err(ProblemError::TooManyBytes { buffer }),
            };
        }
        Ok(Self { buffers })
    }

    /// All buffers, in [`BufferId`] order.
    #[must_use]
    pub fn buffers(&self) -> &[Buffer] {
        &self.buffers
    }

    /// Every id with its buffer, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (BufferId, &Buffer)> {
        self.buffers
            .iter()
            .enumerate()
            .map(|(index, buffer)| (BufferId(index as u32), buffer))
    }

    /// The most bytes live at one position: no layout can be smaller. Takes O(n log n).
    #[must_use]
    pub fn lower_bound(&self) -> LowerBound {
        let mut births: Vec<(u32, u64)> = self
            .buffers
            .iter()
            .map(|b| (b.live.start, b.size))
            .collect();
        let mut deaths: Vec<(u32, u64)> =
            self.buffers.iter().map(|b| (b.live.end, b.size)).collect();
        births.sort_unstable();
        deaths.sort_unstable();
        let mut deaths = deaths.into_iter().peekable();
        let mut bound = LowerBound {
            bytes: 0,
            position: 0,
        };
        let mut live = 0;
        for (position, size) in births {
            while let Some((_, freed)) = deaths.next_if(|&(end, _)| end <= position) {
                live -= freed;
            }
            live += size;
            if live > bound.bytes {
                bound = LowerBound {
                    bytes: live,
                    position,
                };
            }
        }
        bound
    }
}

/// The largest sum of live bytes, and where it is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LowerBound {
    /// Bytes live at [`position`](Self::position).
    pub bytes: u64,
    /// The first schedule position at which that many bytes are live; 0 if there are none.
    pub position: u32,
}

/// Where every buffer goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Offset in bytes from the start of the arena, by [`BufferId`].
    pub offsets: Vec<u64>,
    /// Size of the arena in bytes.
    pub arena: u64,
}

impl Layout {
    /// The offset of a buffer, or `None` if the layout is for a problem without it.
    #[must_use]
    pub fn offset(&self, buffer: BufferId) -> Option<u64> {
        self.offsets.get(buffer.index()).copied()
    }
}
