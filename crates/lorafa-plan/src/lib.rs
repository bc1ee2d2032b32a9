//! Static memory planning: where every byte of a training step lives, decided before the first op runs.
//!
//! ```text
//!   Graph ──▶ Schedule ──▶ Storages ──▶ live ranges ──▶ buffers ──▶ Problem ──allocate──▶ Layout ──▶ Plan ──▶ report
//!             position     views and    when bytes      in place,             check          │
//!             of each op   updates      are needed      scratch                              └──▶ executor
//! ```
//!
//! | question | answered in |
//! |---|---|
//! | which op runs when | [`schedule`] |
//! | which values share bytes because one is a view or an update of the other | [`storage`] |
//! | from where to where bytes are needed | [`liveness`] |
//! | which op writes over what it reads | [`in_place`] |
//! | where each buffer goes | [`problem`], [`mod@allocate`]; [`mod@check`] shares no code with it |
//! | what bytes are for | [`category`] |
//! | what an executor runs from | [`mod@plan`] |
//! | what the user is told | [`report`]; [`display`] for snapshots |
//!
//! All sizes and offsets are in bytes unless they say otherwise; live ranges are half-open and count positions of the
//! schedule.
//!
//! ```
//! use lorafa_plan::{Category, plan};
//!
//! let graph = lorafa_ir::text::parse(
//!     "graph @square {
//!        param %x : f32[64,8] input
//!        param %w : f32[8,8] trained
//!        v0 = matmul %x, %w : f32[64,8]
//!        v1 = mul v0, v0 : f32[64,8]
//!        v2 = reduce_sum v1 {axes=[0,1]} : f32[]
//!      backward:
//!        v3 = add v0, v0 : f32[64,8]
//!        v4 = matmul %x, v3 {trans_a} : f32[8,8]
//!        out \"loss\" = v2 loss
//!        out \"grad::w\" = v4 gradient %w
//!      }",
//! )?;
//! let plan = plan(&graph)?;
//! let report = plan.report(&graph, 0);
//! assert_eq!(report.breakdown.total(), report.peak_bytes);
//! assert_eq!(report.breakdown[Category::SavedActivations], 64 * 8 * 4);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod allocate;
pub mod category;
pub mod check;
pub mod display;
pub mod error;
pub mod in_place;
pub mod liveness;
pub mod plan;
pub mod problem;
pub mod report;
pub mod schedule;
pub mod storage;

pub use allocate::allocate;
pub use category::{Breakdown, Category};
pub use check::{Violation, Violations, check};
pub use display::PlanDisplay;
pub use error::PlanError;
pub use in_place::Content;
pub use liveness::{LiveRange, live_ranges};
pub use plan::{Peak, Place, Plan, PlannedBuffer, Scratch, peak, plan};
pub use problem::{ALIGN, Buffer, BufferId, Layout, LowerBound, MAX_TOTAL, Problem, ProblemError};
pub use report::{MethodReport, Reader, SavedActivation};
pub use schedule::Schedule;
pub use storage::{Alias, Storage, StorageId, StorageKind, Storages};
