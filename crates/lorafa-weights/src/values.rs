//! Where the values of parameters come from when a model is saved.

use crate::error::SaveError;
use bytes::Bytes;
use lorafa_ir::DType;
use lorafa_ir::ops::Param;
use lorafa_onnx::export::weights;
use lorafa_onnx::external::ExternalStore;
use std::error::Error;
use std::fmt;

/// The values of parameters that training changed, by their names in the graph.
pub trait Trained {
    /// The element type of a parameter's values, without reading them. `None` for a parameter that has the values that the
    /// graph says.
    fn dtype(&self, name: &str) -> Option<DType>;

    /// The values of a parameter that has a type here: little-endian, row-major, in the parameter's own shape.
    ///
    /// # Errors
    ///
    /// Whatever is in the way of reading them; nothing is saved then.
    fn read(&self, name: &str) -> Result<Bytes, Box<dyn Error + Send + Sync>>;
}

/// The values of a graph's parameters: those that training changed, and those that the graph says.
#[derive(Clone, Copy)]
pub struct Values<'a> {
    /// The folder of the model, for values that are in a file next to it.
    pub store: &'a ExternalStore,
    /// What training changed; `None` if nothing.
    pub trained: Option<&'a dyn Trained>,
}

impl fmt::Debug for Values<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Values")
            .field("store", self.store)
            .finish_non_exhaustive()
    }
}

impl<'a> Values<'a> {
    /// Where the values of a parameter that training changed are, and their element type.
    fn trained(&self, param: &Param) -> Option<(&'a dyn Trained, DType)> {
        let trained = self.trained?;
        Some((trained, trained.dtype(&param.name)?))
    }

    /// The element type that [`Values::get`] gives a parameter, without reading it.
    pub(crate) fn dtype(&self, param: &Param) -> DType {
        let trained = self.trained(param);
        trained.map_or_else(|| weights::source_dtype(param), |(_, dtype)| dtype)
    }

    /// A parameter's values, row-major, and their element type.
    pub(crate) fn get(&self, param: &Param) -> Result<(DType, Bytes), SaveError> {
        let (dtype, bytes) = match self.trained(param) {
            Some((trained, dtype)) => {
                let bytes = trained.read(&param.name);
                let bytes = bytes.map_err(|error| SaveError::Trained {
                    name: param.name.to_string(),
                    error,
                })?;
                (dtype, bytes)
            }
            None => weights::in_order(param, self.store)?,
        };
        let expected = param.ty.with_dtype(dtype).bytes();
        if expected != Some(bytes.len() as u64) {
            return Err(SaveError::Size {
                name: param.name.to_string(),
                expected: expected.unwrap_or(0),
                found: bytes.len(),
            });
        }
        Ok((dtype, bytes))
    }
}
