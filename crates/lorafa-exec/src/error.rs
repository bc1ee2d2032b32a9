//! Why a step could not be compiled or run.

use lorafa_onnx::export::ExportError;

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
    #[error("no memory for {bytes} B")]
    OutOfMemory {
        /// What was asked for.
        bytes: u64,
    },
    /// Values of a parameter could not be had.
    #[error(transparent)]
    Weights(#[from] ExportError),
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
