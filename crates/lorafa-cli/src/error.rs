//! Why a job was not done.

use lorafa_onnx::export::ExportError;
use lorafa_onnx::file::FileError;
use lorafa_onnx::import::ImportError;
use lorafa_onnx::write::WriteError;
use lorafa_passes::RunError;
use lorafa_plan::PlanError;
use thiserror::Error;

/// The exit status after Ctrl-C, as a shell has it for a process that SIGINT ended.
pub const INTERRUPTED: u8 = 130;

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
    /// The optimizer that comes with the model is not known.
    #[error(transparent)]
    Optimizer(#[from] lorafa_onnx::optimizer::OptimizerError),
    /// The step cannot be written as ONNX.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// A file could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The flags contradict each other or the model.
    #[error("{0}")]
    Args(String),
    /// The plan does not fit into the device's free memory.
    #[error("{0}")]
    DoesNotFit(String),
    /// Gradients that are not those of the loss; which, has been said.
    #[error("{wrong} of {of} gradients are wrong")]
    Wrong {
        /// How many.
        wrong: usize,
        /// Of how many.
        of: usize,
    },
    /// Ctrl-C: what was done is saved.
    #[error("{0}")]
    Interrupted(String),
    /// The step cannot be run.
    #[cfg(feature = "torch")]
    #[error(transparent)]
    Exec(#[from] lorafa_exec::ExecError),
    /// Training data cannot be read.
    #[cfg(feature = "torch")]
    #[error(transparent)]
    Data(#[from] lorafa_data::DataError),
    /// Weights or adapters cannot be read.
    #[cfg(feature = "torch")]
    #[error(transparent)]
    Weights(#[from] lorafa_weights::WeightsError),
    /// Weights that no file has.
    #[cfg(feature = "torch")]
    #[error(transparent)]
    NoValues(#[from] lorafa_weights::bind::NoValues),
    /// Adapters or models cannot be written.
    #[cfg(feature = "torch")]
    #[error(transparent)]
    Save(#[from] lorafa_weights::SaveError),
    /// A run could not begin or go on.
    #[cfg(feature = "torch")]
    #[error(transparent)]
    Train(#[from] lorafa_train::TrainError),
    /// Standard output cannot be written.
    #[error("cannot write to standard output: {0}")]
    Output(#[from] std::io::Error),
}

impl Error {
    /// Whether a smaller step or a larger device would do.
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            Error::DoesNotFit(_) => true,
            #[cfg(feature = "torch")]
            Error::Exec(error) | Error::Train(lorafa_train::TrainError::Exec(error)) => {
                error.is_out_of_memory()
            }
            _ => false,
        }
    }

    /// The exit status of a process that ends with this.
    pub fn status(&self) -> u8 {
        match self {
            error if error.is_out_of_memory() => 3,
            Error::Wrong { .. } => 1,
            Error::Interrupted(_) => INTERRUPTED,
            _ => 2,
        }
    }
}
