//! What can be wrong with a model file.

use std::io;
use std::path::PathBuf;

use prost::DecodeError;

use super::{MAX_IR_VERSION, MAX_OPSET, NESTING_LIMIT};

/// A model file that cannot be used, and why.
#[derive(Debug, thiserror::Error)]
#[error("{}: {kind}", .path.display())]
pub struct FileError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub kind: FileErrorKind,
}

/// What is wrong with a model file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileErrorKind {
    /// Nothing at that path.
    #[error("no such file")]
    NotFound,
    /// A folder.
    #[error("this is a folder; give the .onnx file inside it")]
    Directory,
    /// A pipe, a device, a socket.
    #[error("this is not a regular file; the model is memory-mapped, so write it to a file first")]
    NotAFile,
    /// The operating system refused.
    #[error("cannot be read: {0}")]
    Io(io::Error),
    /// No bytes at all.
    #[error("the file is empty; the export or the copy that made it did not finish")]
    Empty,
    /// Some other kind of file.
    #[error("not an ONNX model: {hint}")]
    NotOnnx {
        /// What it looks like, with the remedy.
        hint: &'static str,
    },
    /// The first part of a model.
    #[error("the file ends inside `{field}` after {size} bytes; copy or export it again")]
    Truncated {
        /// Field of `ModelProto` that is cut short.
        field: &'static str,
        /// Bytes there are.
        size: usize,
    },
    /// Messages inside messages inside messages.
    #[error("messages are nested more than {NESTING_LIMIT} deep; no exporter makes such a model")]
    TooDeep,
    /// A model's outline with damage inside.
    #[error("damaged: {0}; copy or export it again")]
    Malformed(DecodeError),
    /// Written for a schema we do not have.
    #[error(
        "IR version {found} is newer than {MAX_IR_VERSION}, the newest supported; export with an older onnx package, \
         or set `ir_version` to {MAX_IR_VERSION} if the model needs nothing newer"
    )]
    NewerIr {
        /// The file's `ir_version`.
        found: i64,
    },
    /// Operators we do not have.
    #[error(
        "{whose} imports ai.onnx opset {found}, newer than {MAX_OPSET}, the newest supported; export with \
         `opset_version={MAX_OPSET}` or convert with onnx.version_converter"
    )]
    NewerOpset {
        /// "the model", or a function's name.
        whose: String,
        /// The opset asked for.
        found: i64,
    },
    /// An opset number that no release ever had.
    #[error("{whose} imports ai.onnx opset {found}; opsets begin at 1")]
    BadOpset {
        /// "the model", or a function's name.
        whose: String,
        /// The opset asked for.
        found: i64,
    },
    /// Two answers to what an operator means.
    #[error("{whose} imports ai.onnx opset {first} and {second}; keep one")]
    TwoOpsets {
        /// "the model", or a function's name.
        whose: String,
        /// The import that comes first.
        first: i64,
        /// One that disagrees.
        second: i64,
    },
    /// No answer to what an operator means.
    #[error("no opset is imported for the default domain ai.onnx; add an `opset_import` for it")]
    NoOpset,
    /// Functions to call and nobody to call them.
    #[error("the model has {functions} function(s) and no graph; give the model that calls them")]
    OnlyFunctions {
        /// How many.
        functions: usize,
    },
    /// No graph.
    #[error("the model has no graph; it was cut short, or is not an ONNX model")]
    NoGraph,
    /// A graph that computes nothing.
    #[error("the graph has no nodes and no outputs; export the model again")]
    EmptyGraph,
}
