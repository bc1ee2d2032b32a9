//! Runs a planned training step through libtorch, in the arena that was planned.
//!
//! ```text
//!   Graph ──plan──▶ Plan ──┐
//!     │                    ├─ Program::compile ─▶ Program ── load, write ─▶ step ─▶ read
//!     └────────────────────┘      │
//!                                 one flat list of kernel calls; every operand a view of the arena
//! ```
//!
//! There is no autograd: the backward pass is in the graph. A `Program` is compiled once. It holds one allocation of
//! exactly the bytes that the plan counts and calls of ATen's out-variant kernels, whose operands and results are views
//! at the planned offsets. A step runs the calls one after the other and allocates nothing; `Program::step_traced`
//! measures that it does not.
//!
//! | to | go to |
//! |---|---|
//! | compile and run a step | `program` |
//! | know what an op calls | `kernels`, one op family a file as in [`lorafa_ir::ops`] |
//! | know what fills the parameters | [`lorafa_onnx::export::weights::values`] |
//! | fill what PEFT's LoRA-FA optimizer needs of A | `inverse` |
//! | call libtorch | `shim`: the dispatcher, inference mode, the allocation tracer |
//!
//! Needs libtorch and the cargo feature `torch`; `setup.sh` installs the one and prints the `LIBTORCH` to build with.
//! Without the feature this crate is empty.

#[cfg(feature = "torch")]
pub mod error;
#[cfg(feature = "torch")]
pub mod inverse;
#[cfg(feature = "torch")]
mod kernels;
#[cfg(feature = "torch")]
mod memory;
#[cfg(feature = "torch")]
pub mod program;
#[cfg(feature = "torch")]
mod shim;
#[cfg(feature = "torch")]
mod view;

#[cfg(feature = "torch")]
pub use error::ExecError;
#[cfg(feature = "torch")]
pub use inverse::write_inverses;
#[cfg(feature = "torch")]
pub use program::{Allocation, Mode, Program, Trace};
