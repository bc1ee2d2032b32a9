//! Why a model could not be imported.

use crate::tensor::TensorError;
use lorafa_ir::PatchError;
use std::fmt;
use thiserror::Error;

/// A node, as an error names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePlace {
    /// Its name, or that of its first output.
    pub node: String,
    /// Its operator with the domain, `com.microsoft::Gelu`.
    pub op: String,
    /// The opset version of that domain.
    pub opset: i64,
    /// The module it belongs to; empty if unknown.
    pub module: String,
}

impl fmt::Display for NodePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node `{}` ({}, opset {}", self.node, self.op, self.opset)?;
        if !self.module.is_empty() {
            write!(f, ", in module {}", self.module)?;
        }
        f.write_str(")")
    }
}

/// Why a model could not be imported.
#[derive(Debug, Error)]
pub enum ImportError {
    /// An operator that is not known and whose results' types the model does not state.
    #[error("{place}: the operator is not supported")]
    UnknownOp {
        /// The node.
        place: Box<NodePlace>,
    },
    /// An operator of a training graph that is not known.
    #[error(
        "{place}: the operator is not supported, and what a training graph computes must be known to the last operator, or \
         nobody could say what its backward pass keeps: make the artifacts of a model without it, or give the forward \
         graph, whose gradients are then our own"
    )]
    UnknownInTraining {
        /// The node.
        place: Box<NodePlace>,
    },
    /// A known operator, used in a way that is not supported or not valid.
    #[error("{place}: {why}")]
    Node {
        /// The node.
        place: Box<NodePlace>,
        /// What was expected and what was found.
        why: String,
    },
    /// A tensor's payload is wrong, or needed and missing.
    #[error("{place}: {error}")]
    Weight {
        /// What needed it.
        place: String,
        /// What is wrong.
        error: Box<TensorError>,
    },
    /// A node reads a value that nothing defines.
    #[error("{place}: its input `{input}` is not defined by any node, initializer or graph input")]
    MissingInput {
        /// The node.
        place: Box<NodePlace>,
        /// The name it reads.
        input: String,
    },
    /// Nodes that need each other's results.
    #[error("{place}: the node is on a cycle, or reads the result of one")]
    Cycle {
        /// One of them.
        place: Box<NodePlace>,
    },
    /// Two definitions of one name.
    #[error("`{name}` is defined twice: by {first} and by {second}")]
    Duplicate {
        /// The name.
        name: String,
        /// What defines it first.
        first: String,
        /// What defines it again.
        second: String,
    },
    /// A graph input or initializer of a type that is not supported.
    #[error("{what} `{name}` has type {found}; supported are floats, integers and bool tensors")]
    Type {
        /// `input` or `initializer`.
        what: &'static str,
        /// Its name.
        name: String,
        /// Its type.
        found: String,
    },
    /// An input's dimension that makes no sense.
    #[error("input `{name}`: {why}")]
    Dim {
        /// The input.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// An output that nothing defines.
    #[error("graph output `{name}` is not defined")]
    MissingOutput {
        /// The output.
        name: String,
    },
    /// More than one output looks like the loss.
    #[error("the outputs {} could each be the loss: call the one to train on `loss`", names.join(", "))]
    Losses {
        /// Their names.
        names: Vec<String>,
    },
    /// The model has no output.
    #[error("the graph has no output")]
    NoOutput,
    /// An opset before the first supported one.
    #[error(
        "opset {found} is too old: {least} is the first supported; export again with a newer \
         opset_version (18 to 23 are what PyTorch writes today)"
    )]
    OldOpset {
        /// The model's.
        found: i64,
        /// The first supported.
        least: i64,
    },
    /// An accumulator of a training graph that is not as onnxruntime-training makes them.
    #[error("{place}: {why}")]
    Accumulator {
        /// The accumulator, or the output that it should give.
        place: String,
        /// What is wrong.
        why: String,
    },
    /// An input of a training graph that may be a frozen weight or data.
    #[error(
        "input `{name}` may be a frozen weight or data: it is a float of fixed shape, comes before the first weight, and \
         its name is no module path (`model.embed.weight`); rename it, or give it a symbolic dimension if it is data"
    )]
    AmbiguousInput {
        /// The input.
        name: String,
    },
    /// A training graph none of whose outputs is the loss.
    #[error(
        "none of the outputs {} is the loss of the training graph: onnxruntime-training begins the backward pass with a \
         constant `<loss>_grad`, and there is none for these",
        names.join(", ")
    )]
    NoLoss {
        /// The outputs that are no gradients.
        names: Vec<String>,
    },
}

/// Why one node could not be imported; the driver adds the place.
#[derive(Debug)]
pub(super) enum Fail {
    Why(String),
    Weight(Box<TensorError>),
    Unknown,
}

impl From<PatchError> for Fail {
    fn from(error: PatchError) -> Self {
        match error {
            PatchError::IllTyped { error, .. } => Fail::Why(error.to_string()),
            other => Fail::Why(other.to_string()),
        }
    }
}

impl From<lorafa_ir::types::TypeError> for Fail {
    fn from(error: lorafa_ir::types::TypeError) -> Self {
        Fail::Why(error.to_string())
    }
}

impl From<TensorError> for Fail {
    fn from(error: TensorError) -> Self {
        Fail::Weight(Box::new(error))
    }
}

impl From<String> for Fail {
    fn from(why: String) -> Self {
        Fail::Why(why)
    }
}

impl From<&str> for Fail {
    fn from(why: &str) -> Self {
        Fail::Why(why.into())
    }
}
