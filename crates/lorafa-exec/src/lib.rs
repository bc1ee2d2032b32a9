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
//! measures that it does not. One build runs on the CPU and on CUDA, whose part of libtorch is opened when it is asked
//! for.
//!
//! | to | go to |
//! |---|---|
//! | choose a device, ask for its memory | `device`; `host` knows what Linux says of the CPU's |
//! | compile a step | `compile` |
//! | fill parameters, read outputs | `program`; what fills parameters is [`lorafa_onnx::export::weights::values`] |
//! | run a step, part of one, or measure one | `run` |
//! | hold measured memory against the plan | `trace` |
//! | find what is not finite | `finite` |
//! | know what an op calls | `kernels`, one op family a file as in [`lorafa_ir::ops`] |
//! | fill what PEFT's LoRA-FA optimizer needs of A | `inverse` |
//! | move bytes between host and device | `transfer`, and nowhere else |
//! | call libtorch | `shim`: the dispatcher, calls in planned memory, inference mode, the allocation tracer, CUDA |
//!
//! Needs libtorch and the cargo feature `torch`; `setup.sh` installs the one and prints the `LIBTORCH` to build with.
//! Without the feature this crate is empty.

#![cfg(feature = "torch")]

mod compile;
pub mod device;
pub mod error;
mod finite;
mod host;
pub mod inverse;
mod kernels;
mod memory;
pub mod program;
mod run;
mod shim;
pub mod trace;
mod transfer;
mod view;

pub use device::{Device, DeviceMemory, OpenDevice, Peaks};
pub use error::{ExecError, NonFinite};
pub use inverse::write_inverses;
pub use program::{Mode, Program};
pub use trace::{Allocation, Trace};
