//! The graph passes of lorafa-opt, one file each, and the manager that runs them.
//!
//! A pass is a unit struct with a name (its file, its CLI spelling and its fixture folder), a kind
//! and a `run`. The list in [`registry`] is the only place that names them all; the manager
//! ([`manager`]) alone verifies, times, dumps and stops.

pub mod attach_loss;
pub mod attach_optimizer;
pub mod bind_dims;
pub mod canonicalize;
pub mod compare_gradients;
pub mod convert_precision;
pub mod differentiate;
pub mod eliminate_common_subexpressions;
pub mod eliminate_dead_code;
mod eqsat;
pub mod find_gradients;
pub mod find_lora;
pub mod find_training;
pub mod fold_constants;
pub mod freeze_lora_a;
pub mod fuse_activations;
pub mod fuse_attention;
pub mod fuse_cross_entropy;
pub mod fuse_loss;
pub mod fuse_norms;
pub mod fuse_products;
pub mod fuse_rotary;
pub mod inject_lora;
pub mod manager;
pub mod mask_relu;
mod matching;
pub mod pack_frozen;
pub mod pass;
pub mod redraw_masks;
pub mod registry;
pub mod rematerialize;
pub mod schedule_backward;
pub mod simplify_lora;
pub mod targets;
pub mod unmerge_lora;

pub use manager::{Manager, RunError};
pub use pass::{Changed, Pass, PassCx, PassError, PassKind};
