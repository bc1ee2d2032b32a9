//! Where the values of parameters come from when a model is saved.

use crate::error::SaveError;
use bytes::Bytes;
use lorafa_ir::DType;
use lorafa_ir::ops::{Data, Param};
use lorafa_onnx::export::weights;
use lorafa_onnx::external::ExternalStore;
use std::fmt;

/// The values of a graph's parameters: those that training changed, and those that the graph says.
#[derive(Clone, Copy)]
pub struct Values<'a> {
    /// The folder of the model, for values that are in a file next to it.
    pub store: &'a ExternalStore,
    /// The values of a parameter that training changed, by its name in the graph: little-endian, row-major, in the
    /// parameter's own shape. `None` for a parameter that has the values that the graph says. It is
    /// called for the type and again for the values, so it should not copy them.
    pub trained: &'a dyn Fn(&str) -> Option<(DType, Bytes)>,
}

impl fmt::Debug for Values<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Values")
            .field("store", self.store)
            .finish_non_exhaustive()
    }
}

/// Values as their source holds them.
#[derive(Clone, Debug)]
pub(crate) struct Value {
    pub(crate) dtype: DType,
    bytes: Bytes,
    /// Whether they are the transpose of the parameter.
    transposed: bool,
    /// Elements in the parameter's rows.
    columns: u64,
}

impl Value {
    /// The bytes in the parameter's order, row-major.
    pub(crate) fn in_order(self) -> Bytes {
        if !self.transposed {
            return self.bytes;
        }
        let (size, columns) = (self.dtype.size() as usize, self.columns as usize);
        let rows = self.bytes.len() / (size * columns).max(1);
        let mut out = Vec::with_capacity(self.bytes.len());
        for row in 0..rows {
            for column in 0..columns {
                let at = (column * rows + row) * size;
                out.extend_from_slice(&self.bytes[at..at + size]);
            }
        }
        out.into()
    }
}

impl Values<'_> {
    /// The element type that [`Values::get`] gives a parameter, without reading it.
    pub(crate) fn dtype(&self, param: &Param) -> DType {
        match (self.trained)(&param.name) {
            Some((dtype, _)) => dtype,
            None => source(param).0,
        }
    }

    /// A parameter's values.
    pub(crate) fn get(&self, param: &Param) -> Result<Value, SaveError> {
        let (dtype, transposed) = source(param);
        let columns = param
            .ty
            .known_shape()
            .and_then(|shape| shape.last().copied());
        let columns = columns.unwrap_or(1);
        let value = match (self.trained)(&param.name) {
            Some((dtype, bytes)) => Value {
                dtype,
                bytes,
                transposed: false,
                columns,
            },
            None => Value {
                dtype,
                bytes: weights::stored(param, self.store)?,
                transposed,
                columns,
            },
        };
        let expected = param.ty.with_dtype(value.dtype).bytes();
        if expected != Some(value.bytes.len() as u64) {
            return Err(SaveError::Size {
                name: param.name.to_string(),
                expected: expected.unwrap_or(0),
                found: value.bytes.len(),
            });
        }
        Ok(value)
    }
}

/// The element type and order of what the graph says.
fn source(param: &Param) -> (DType, bool) {
    match &param.stored.data {
        Data::Init(_) => (param.ty.dtype, false),
        _ => (param.stored.dtype, param.stored.transposed),
    }
}
