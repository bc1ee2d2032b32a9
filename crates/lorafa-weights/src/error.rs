//! What can be wrong with weights that are read or saved.

use crate::atomic_dir::StageError;
use crate::names::Lines;
use lorafa_onnx::export::ExportError;
use safetensors::{Dtype, SafeTensorError};
use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// Weights that cannot be used, and why.
#[derive(Debug, Error)]
pub enum WeightsError {
    /// A file that cannot be read as what it should be.
    #[error("{}: {problem}", .path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        problem: Box<FileProblem>,
    },
    /// Tensors that do not fit the model: all of them.
    #[error("{} does not fit the model:\n{}", .path.display(), Lines(.problems))]
    Tensors {
        /// The checkpoint or adapter.
        path: PathBuf,
        /// What is wrong, in the order of the model's parameters.
        problems: Vec<TensorProblem>,
    },
    /// An adapter that was made in another way than LoRA's own.
    #[error("{}: {what}", .path.display())]
    Adapter {
        /// The adapter's configuration.
        path: PathBuf,
        /// What is not supported, and what to do.
        what: String,
    },
}

/// What is wrong with a file.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FileProblem {
    /// Not there.
    #[error("there is no such file or folder")]
    Missing,
    /// A device, a pipe or the like.
    #[error("this is no regular file")]
    NotAFile,
    /// The operating system refused.
    #[error("{0}")]
    Io(io::Error),
    /// No valid header, or one that does not fit the file.
    #[error("not a whole safetensors file ({error}): {hint}")]
    Header {
        /// What the format's own check says.
        error: SafeTensorError,
        /// What the file looks like.
        hint: &'static str,
    },
    /// A checkpoint of onnxruntime-training that is cut off or damaged.
    #[error("not a whole checkpoint of onnxruntime-training; copy it again ({0})")]
    OrtDamaged(flatbuffers::InvalidFlatbuffer),
    /// A checkpoint of onnxruntime-training without the values that are needed.
    #[error("not a checkpoint of onnxruntime-training that can be read: {0}")]
    OrtCheckpoint(String),
    /// Text that is not the JSON it should be.
    #[error("not the JSON that belongs here: {0}")]
    Json(serde_json::Error),
    /// The index names a file outside its folder.
    #[error("the index names `{file}`; every file must be next to the index")]
    IndexPath {
        /// The name.
        file: String,
    },
    /// The index names a file that is not there.
    #[error("the index names `{file}`, which is not in the folder; download it, too")]
    IndexFile {
        /// The name.
        file: String,
    },
    /// A tensor is not where the index says.
    #[error(
        "the index says that `{name}` is in `{file}`, which does not have it; download both again"
    )]
    IndexTensor {
        /// The tensor.
        name: String,
        /// The file.
        file: String,
    },
    /// Two files have a tensor of one name.
    #[error(
        "`{name}` is also in `{other}`; keep only the files of one checkpoint in the folder, or give its file"
    )]
    Twice {
        /// The tensor.
        name: String,
        /// The other file.
        other: String,
    },
    /// No safetensors file in the folder.
    #[error(
        "no *.safetensors file in this folder; give the folder of a Hugging Face model, or a file"
    )]
    NoSafetensors,
    /// An adapter where a model is needed.
    #[error(
        "this folder holds an adapter and no model; give the folder of the model that it was trained on"
    )]
    OnlyAdapter,
    /// A checkpoint in PyTorch's old format, which can run code when read.
    #[error(
        "the weights are in PyTorch's pickle format; save the model with `save_pretrained`, which writes safetensors"
    )]
    OnlyPickle,
}

/// What is wrong with one tensor. Names are the model's own, without what PEFT puts around them.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum TensorProblem {
    /// The checkpoint has no tensor of any of the names that it could have.
    Missing {
        /// The parameter.
        name: String,
        /// The names that were looked for.
        sought: Vec<String>,
    },
    /// The shapes differ.
    Shape {
        /// The parameter.
        name: String,
        /// The tensor.
        tensor: String,
        /// The model's shape.
        expected: Vec<u64>,
        /// The tensor's.
        found: Vec<u64>,
    },
    /// The element type cannot stand for the model's.
    Dtype {
        /// The parameter.
        name: String,
        /// The tensor.
        tensor: String,
        /// The tensor's type.
        found: Dtype,
    },
    /// The checkpoint holds the weight in a compressed form.
    Quantized {
        /// The parameter.
        name: String,
        /// A tensor of the compressed form.
        tensor: String,
    },
    /// Names that the model ties hold different values.
    Untied {
        /// The parameter.
        name: String,
        /// The tensors.
        tensors: Vec<String>,
    },
    /// More than one way of matching names fits.
    Ambiguous {
        /// The parameter.
        name: String,
        /// The tensors that could be it.
        tensors: Vec<String>,
    },
    /// A weight of the model whose name the exporter lost.
    Nameless {
        /// The name that the exporter gave it.
        name: String,
    },
    /// An adapter's scale differs from the model's.
    Scale {
        /// The module.
        module: String,
        /// The model's scale.
        expected: f64,
        /// The adapter's.
        found: f64,
    },
    /// An adapter's tensor that the model has no place for.
    Unused {
        /// The tensor.
        tensor: String,
    },
}

impl fmt::Display for TensorProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TensorProblem::Missing { name, sought } => {
                write!(f, "{name}: missing")?;
                let others: Vec<&String> = sought.iter().filter(|s| *s != name).collect();
                for (i, other) in others.iter().enumerate() {
                    let start = if i == 0 { " (also sought: " } else { ", " };
                    write!(f, "{start}{other}")?;
                }
                f.write_str(if others.is_empty() { "" } else { ")" })
            }
            TensorProblem::Shape {
                name,
                tensor,
                expected,
                found,
            } => {
                let mut swapped = found.clone();
                swapped.reverse();
                let transposed = found.len() == 2 && swapped == *expected;
                let hint = if transposed {
                    ", the transpose: the checkpoint is of another architecture"
                } else {
                    ""
                };
                let of = renamed(name, tensor);
                write!(
                    f,
                    "{name}: expected shape {expected:?}, found {found:?}{of}{hint}"
                )
            }
            TensorProblem::Dtype {
                name,
                tensor,
                found,
            } => {
                let of = renamed(name, tensor);
                write!(
                    f,
                    "{name}: elements of type {found}{of}; save the checkpoint as f32, f16 or bf16"
                )
            }
            TensorProblem::Quantized { name, tensor } => write!(
                f,
                "{name}: the checkpoint is quantized ({tensor}); give the one it was made from"
            ),
            TensorProblem::Untied { name, tensors } => write!(
                f,
                "{name}: the model shares this weight, and {} hold different values",
                tensors.join(" and ")
            ),
            TensorProblem::Ambiguous { name, tensors } => write!(
                f,
                "{name}: could be {}; rename the tensors as the model calls them",
                tensors.join(" or ")
            ),
            TensorProblem::Nameless { name } => write!(
                f,
                "{name}: the exporter lost this weight's name; export with `optimize=False`"
            ),
            TensorProblem::Scale {
                module,
                expected,
                found,
            } => write!(
                f,
                "{module}: expected scale {expected}, found {found}; give the adapter's own rank and alpha"
            ),
            TensorProblem::Unused { tensor } => write!(
                f,
                "{tensor}: the model adapts no such module; choose the adapter's own target modules"
            ),
        }
    }
}

/// The tensor's name, if it is not the parameter's.
fn renamed(name: &str, tensor: &str) -> String {
    match tensor == name {
        true => String::new(),
        false => format!(" in {tensor}"),
    }
}

/// Weights that were not saved, and why. What was there before is there still.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SaveError {
    /// The folder or a file in it cannot be written.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// A parameter's values cannot be had.
    #[error(transparent)]
    Values(#[from] ExportError),
    /// A trained parameter's values cannot be read.
    #[error("parameter `{name}` cannot be read: {error}")]
    Trained {
        /// The parameter.
        name: String,
        /// What its source says.
        error: Box<dyn StdError + Send + Sync>,
    },
    /// A trained parameter's values have another size than its type says.
    #[error("parameter `{name}`: {expected} bytes were expected, and {found} given")]
    Size {
        /// The parameter.
        name: String,
        /// What its type says.
        expected: u64,
        /// What was given.
        found: usize,
    },
    /// The graph has no adapters.
    #[error("the model has no adapters to save; save the merged model")]
    NoAdapters,
    /// An adapter that has no place in PEFT's format or cannot be merged.
    #[error("adapter of `{module}`: {why}")]
    Adapter {
        /// The adapted module.
        module: String,
        /// What is in the way, and what to do.
        why: String,
    },
    /// Two parameters that would be saved under one name.
    #[error("`{name}` is the name of two parameters; export the model without wrapping it")]
    Twice {
        /// The name.
        name: String,
    },
    /// Weights whose names the exporter lost.
    #[error("weights without names of their own; export with `optimize=False`:\n{}", Lines(.0))]
    Nameless(Vec<String>),
    /// The header of a file cannot be made.
    #[error("cannot describe the tensors: {0}")]
    Header(SafeTensorError),
    /// A JSON file cannot be made.
    #[error("cannot write JSON: {0}")]
    Json(serde_json::Error),
}
