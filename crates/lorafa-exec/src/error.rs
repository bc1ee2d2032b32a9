//! Why a step could not be compiled or run.

use std::fmt::Write as _;

use lorafa_onnx::export::ExportError;

use crate::device::Device;

/// What a number is that is not finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NonFinite {
    /// No number.
    Nan,
    /// Infinite, of either sign.
    Infinity,
}

impl std::fmt::Display for NonFinite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            NonFinite::Nan => "NaN",
            NonFinite::Infinity => "an infinity",
        })
    }
}

fn parameters(count: usize) -> String {
    match count {
        1 => "a parameter".into(),
        n => format!("{n} parameters"),
    }
}

fn lines(errors: &[ExecError]) -> String {
    errors.iter().fold(String::new(), |mut text, error| {
        // Writing to a string does not fail.
        let _ = write!(text, "\n  {error}");
        text
    })
}

/// Why a step could not be compiled, filled or run. Ops are named by their line in the text form.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// There is no kernel for an op, or not for its element types.
    #[error("{line}: {why}")]
    Unsupported {
        /// The op.
        line: String,
        /// What there is no kernel for.
        why: String,
    },
    /// The plan is for another graph.
    #[error("{line}: the plan has no place for {value}; plan this graph")]
    NotPlanned {
        /// The op.
        line: String,
        /// The value without a place.
        value: String,
    },
    /// A kernel uses another amount of scratch than the plan counts.
    #[error("{line}: the plan counts {planned} B of scratch, the kernel uses {used} B")]
    Scratch {
        /// The op.
        line: String,
        /// What the op says it needs.
        planned: u64,
        /// What its kernel takes.
        used: u64,
    },
    /// libtorch refused a call.
    #[error("{line}: {message}")]
    Torch {
        /// The op.
        line: String,
        /// What libtorch says.
        message: String,
    },
    /// The arena does not fit into memory.
    #[error("no memory for {bytes} B on {device}: {why}")]
    OutOfMemory {
        /// Where.
        device: Device,
        /// What was asked for.
        bytes: u64,
        /// What the allocator says.
        why: String,
    },
    /// A device has no memory left for a kernel that the plan does not know of: one that its libraries load or make.
    #[error("{line}: {device} has no memory left: {message}")]
    NoMemoryLeft {
        /// The op.
        line: String,
        /// Where.
        device: Device,
        /// What libtorch says.
        message: String,
    },
    /// A device cannot be used, or does not say what it was asked.
    #[error("{device}: {why}")]
    Device {
        /// The device.
        device: Device,
        /// What is wrong, and the remedy.
        why: String,
    },
    /// No name of a device.
    #[error("`{0}` is no device; expected `cpu`, `cuda` or `cuda:N`")]
    NoDevice(String),
    /// Values of a parameter could not be had.
    #[error(transparent)]
    Weights(#[from] ExportError),
    /// Parameters that could not be filled, all of them.
    #[error("{} could not be filled:{}", parameters(.0.len()), lines(.0))]
    Parameters(Vec<ExecError>),
    /// A step took other memory than was planned.
    #[error("the plan's peak is {planned} B, the step's {measured} B: {by}")]
    Memory {
        /// Bytes that were planned.
        planned: u64,
        /// Bytes that the step took at its peak.
        measured: u64,
        /// The op that allocated, and how much.
        by: String,
    },
    /// A number that is none, or infinite, made of numbers that were finite.
    #[error("{what}: {found}")]
    NotFinite {
        /// The op's line, which says its module, or the parameter.
        what: String,
        /// The module that the op belongs to; empty if unknown.
        module: String,
        /// Which of the two.
        found: NonFinite,
    },
    /// There is no parameter or output of this name.
    #[error("the step has no {what} `{name}`")]
    Unknown {
        /// Parameter or output.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// The wrong number of bytes for a parameter.
    #[error("`{name}` : {ty} takes {expected} B, found {found} B")]
    Size {
        /// The parameter.
        name: String,
        /// Its type.
        ty: String,
        /// What it takes.
        expected: u64,
        /// What was given.
        found: u64,
    },
}

impl ExecError {
    /// Whether a smaller step or a larger device would do.
    #[must_use]
    pub fn is_out_of_memory(&self) -> bool {
        matches!(
            self,
            ExecError::OutOfMemory { .. } | ExecError::NoMemoryLeft { .. }
        )
    }
}

/// Why a kernel could not be set up, before it is known for which op.
#[derive(Debug)]
pub(crate) enum KernelError {
    /// There is none.
    Unsupported(String),
    /// libtorch refused.
    Torch(String),
}

impl KernelError {
    /// The error of an op.
    pub(crate) fn of(self, line: String) -> ExecError {
        match self {
            KernelError::Unsupported(why) => ExecError::Unsupported { line, why },
            KernelError::Torch(message) => ExecError::Torch { line, message },
        }
    }
}
