//! Why a graph could not be written.

use crate::tensor::TensorError;
use lorafa_ir::verify::Violations;
use lorafa_ir::{PatchError, TensorType};
use thiserror::Error;

/// Why a graph could not be written as ONNX.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The graph breaks the IR's own rules.
    #[error("the graph is not valid, which is a bug in what made it:\n{0}")]
    Invalid(Violations),
    /// A dimension is not a number yet.
    #[error("`{line}`: {ty} has a symbolic dimension; bind it to a number first")]
    Symbolic {
        /// The op's line.
        line: String,
        /// The type.
        ty: TensorType,
    },
    /// An op could not be turned into simpler ones.
    #[error("`{line}`: {error}")]
    Lower {
        /// The op's line.
        line: String,
        /// What was wrong with the simpler ones.
        error: PatchError,
    },
    /// An op that cannot be spelled in ONNX.
    #[error("`{line}`: {why}")]
    Op {
        /// The op's line.
        line: String,
        /// What is in the way.
        why: String,
    },
    /// A parameter whose values are wrong, or needed and missing.
    #[error("parameter `{name}`: {error}")]
    Weight {
        /// The parameter.
        name: String,
        /// What is wrong.
        error: Box<TensorError>,
    },
    /// A parameter whose values cannot be had from what the graph says.
    #[error("parameter `{name}`: {why}")]
    Values {
        /// The parameter.
        name: String,
        /// What is in the way.
        why: String,
    },
    /// A name that ONNX does not allow.
    #[error("{what} `{name}` {why}")]
    Name {
        /// `parameter` or `output`.
        what: &'static str,
        /// The name.
        name: String,
        /// What is wrong with it, and what to do.
        why: &'static str,
    },
}
