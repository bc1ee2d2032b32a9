//! Why a job was not done.

use lorafa_onnx::export::ExportError;
use lorafa_onnx::file::FileError;
use lorafa_onnx::import::ImportError;
use lorafa_onnx::write::WriteError;
use lorafa_passes::RunError;
use lorafa_plan::PlanError;
use thiserror::Error;

/// Why a job was not done. The message is complete by itself.
#[derive(Debug, Error)]
pub enum Error {
    /// The file is no model that can be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The model cannot become a graph.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// A pass refused the model or the flags.
    #[error(transparent)]
    Pass(#[from] RunError),
    /// The step cannot be planned.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The step cannot be written as ONNX.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// A file could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The flags contradict each other or the model.
    #[error("{0}")]
    Args(String),
    /// Standard output cannot be written.
    #[error("cannot write to standard output: {0}")]
    Output(#[from] std::io::Error),
}
