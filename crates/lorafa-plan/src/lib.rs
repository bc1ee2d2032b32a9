//! Static memory planning: where every byte of a training step lives, decided before the first op runs.
//!
//! [`Problem`] → [`allocate()`] → [`Layout`] → [`check()`]. A [`Problem`] says which buffers exist, when each one lives
//! and how large it is; a [`Layout`] gives each an offset in one arena. The checker shares no code with the allocator.
//!
//! ```
//! use lorafa_plan::{Buffer, Problem, allocate, check};
//!
//! let problem = Problem::new(vec![
//!     Buffer { live: 0..4, size: 512 },
//!     Buffer { live: 1..3, size: 1024 },
//!     Buffer { live: 3..5, size: 1024 },
//! ])?;
//! let layout = allocate(&problem);
//! check(&problem, &layout)?;
//! assert_eq!(layout.arena, problem.lower_bound().bytes);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod allocate;
pub mod check;
pub mod problem;

pub use allocate::allocate;
pub use check::{Violation, Violations, check};
pub use problem::{ALIGN, Buffer, BufferId, Layout, LowerBound, MAX_TOTAL, Problem, ProblemError};
