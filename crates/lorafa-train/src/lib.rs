//! The training loop.
//!
//! ```text
//! Graph ──spec──▶ Spec ──▶ lorafa_data::Dataset ──Sampler──▶ batches ─┐
//!                                                                   Trainer ──▶ Observer: loss, checkpoints
//! Plan ──▶ lorafa_exec::Program ────────────────────────────────────┘  │
//!                                     checkpoint-40/ ◀── Checkpoints ──┘
//! ```
//!
//! | to | go to |
//! |---|---|
//! | know what data a step takes | [`inputs`] |
//! | change learning rates | [`schedule`] |
//! | know what a checkpoint holds, and when one is refused | [`checkpoint`] |
//! | change what an update does | `update` |
//! | change the loop | `trainer` |
//!
//! The loop needs libtorch and the cargo feature `torch`, see `lorafa_exec`; the rest does not.

pub mod checkpoint;
pub mod error;
pub mod inputs;
pub mod schedule;
#[cfg(feature = "torch")]
pub mod store;
#[cfg(feature = "torch")]
pub mod trainer;
#[cfg(feature = "torch")]
pub mod update;

pub use checkpoint::{Best, Checkpoints, Identity, Progress, State, digest, weights_digest};
pub use error::TrainError;
pub use schedule::{Decay, Schedule};
#[cfg(feature = "torch")]
pub use store::trained_values;
#[cfg(feature = "torch")]
pub use trainer::{Evaluation, Observer, Outcome, Settings, Trainer, Update};
#[cfg(feature = "torch")]
pub use update::Check;
