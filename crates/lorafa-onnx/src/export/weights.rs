//! Parameters as initializers.
//!
//! A graph says how its source holds a parameter: in another element type, or transposed. Values
//! inside the file are brought into the parameter's own form. Values in another file stay there,
//! and nodes bring them into form, unless a product can read them as they are.

use super::proto::{self, dims};
use super::writer::Writer;
use super::{ExportError, init};
use crate::dtype::{self, to_onnx};
use crate::external::{ExternalRef, ExternalStore};
use crate::proto::{AttributeProto, TensorProto};
use crate::tensor::{self, TensorError, TensorPayload};
use crate::write::MAX_MODEL_BYTES;
use bytes::Bytes;
use lorafa_ir::ops::{Data, External, Init, Param};
use lorafa_ir::{DType, OpId, TensorType, ValueId};
use std::collections::BTreeMap;

/// Elements converted at a time: conversion goes through f64, and weights are large.
const CHUNK: usize = 1 << 12;

/// What was written of parameters so far.
#[derive(Debug, Default)]
pub(super) struct Weights {
    initializers: BTreeMap<OpId, TensorProto>,
    /// Names of parameters in their own form.
    own: BTreeMap<ValueId, String>,
    /// Names of what another file holds, in the parameter's element type.
    stored: BTreeMap<ValueId, String>,
    /// Names of transposes that a node makes.
    swapped: BTreeMap<ValueId, String>,
}

impl Weights {
    /// In the order of the parameters.
    pub(super) fn into_initializers(self) -> Vec<TensorProto> {
        self.initializers.into_values().collect()
    }
}

impl Writer<'_> {
    /// The name under which a parameter is read.
    pub(super) fn weight(&mut self, value: ValueId, param: &Param) -> Result<String, ExportError> {
        let given = param.stored.data == Data::Runtime && !param.stored.transposed;
        if given || self.options.is_fed(param) {
            return Ok(param.name.to_string());
        }
        if let Some(name) = self.weights.own.get(&value) {
            return Ok(name.clone());
        }
        let name = match self.options.elsewhere(param) {
            // Of a function, which is given the transpose.
            None if param.stored.data == Data::Runtime => {
                let perm = vec![proto::ints("perm", [1, 0])];
                self.helper("Transpose", vec![param.name.to_string()], perm, &param.ty)
            }
            Some(external) => {
                let stored = self.stored(value, param, external)?;
                if param.stored.transposed {
                    let perm = proto::ints("perm", [1, 0]);
                    self.in_form(&param.name, "Transpose", stored, perm, &param.ty)
                } else {
                    stored
                }
            }
            None => {
                let tensor = self.inline(param)?;
                self.initializer(value, tensor);
                param.name.to_string()
            }
        };
        self.weights.own.insert(value, name.clone());
        Ok(name)
    }

    /// The name of a parameter's transpose, if another file holds that or a function is given it.
    pub(super) fn transposed_weight(
        &mut self,
        value: ValueId,
    ) -> Option<Result<String, ExportError>> {
        let param = self.graph.param(value)?;
        if param.stored.data == Data::Runtime {
            let transposed = param.stored.transposed;
            return transposed.then(|| Ok(param.name.to_string()));
        }
        let external = self.options.held_transposed(param)?;
        Some(self.stored(value, param, external))
    }

    /// The name of the transpose of a value of at least two axes.
    pub(super) fn swapped(&mut self, value: ValueId) -> Result<String, ExportError> {
        if let Some(name) = self.transposed_weight(value) {
            return name;
        }
        if let Some(name) = self.weights.swapped.get(&value) {
            return Ok(name.clone());
        }
        let from = self.read(value)?;
        let mut ty = self.graph.ty(value).clone();
        let rank = ty.rank();
        let mut perm: Vec<i64> = (0..rank as i64).collect();
        if let [.., a, b] = perm.as_mut_slice() {
            std::mem::swap(a, b);
            ty.shape.swap(rank - 2, rank - 1);
        }
        let perm = vec![proto::ints("perm", perm)];
        let name = self.helper("Transpose", vec![from], perm, &ty);
        // Runtimes fold this for weights; an activation's would be kept alive between its readers.
        if self.graph.param(value).is_some() {
            self.weights.swapped.insert(value, name.clone());
        }
        Ok(name)
    }

    fn initializer(&mut self, value: ValueId, tensor: TensorProto) {
        let op = self.graph.value(value).op;
        self.weights.initializers.insert(op, tensor);
    }

    /// The name of what another file holds, in the parameter's element type: the parameter's own,
    /// unless it is the transpose.
    fn stored(
        &mut self,
        value: ValueId,
        param: &Param,
        external: &External,
    ) -> Result<String, ExportError> {
        if let Some(name) = self.weights.stored.get(&value) {
            return Ok(name.clone());
        }
        let stored = stored_type(param)?;
        let same = stored.dtype == param.ty.dtype;
        let mut name = if same && !param.stored.transposed {
            param.name.to_string()
        } else {
            self.names.fresh(&format!("{}.stored", param.name))
        };
        let tensor = reference(param, &name, external)?;
        self.initializer(value, tensor);
        if !same {
            let to = if param.stored.transposed {
                self.names.fresh(&format!("{}.transposed", param.name))
            } else {
                param.name.to_string()
            };
            let dtype = proto::int("to", i64::from(to_onnx(param.ty.dtype)));
            let ty = stored.with_dtype(param.ty.dtype);
            name = self.in_form(&to, "Cast", name, dtype, &ty);
        }
        self.weights.stored.insert(value, name.clone());
        Ok(name)
    }

    /// Writes the node that makes `to` out of what another file holds.
    fn in_form(
        &mut self,
        to: &str,
        onnx: &str,
        from: String,
        attribute: AttributeProto,
        ty: &TensorType,
    ) -> String {
        let output = to.to_string();
        self.push(
            output.clone(),
            onnx,
            vec![from],
            vec![output.clone()],
            vec![attribute],
        );
        self.describe(to, ty);
        output
    }

    /// The parameter with its values, in its own form.
    fn inline(&self, param: &Param) -> Result<TensorProto, ExportError> {
        encode(param, &param.ty, values(param, self.options.store)?)
    }
}

/// A parameter's values in its own element type and order, little-endian and row-major, as they are before the first
/// step: from the model, from a file next to it, or drawn from the parameter's name.
///
/// # Errors
/// [`ExportError::Values`] if the graph does not say what they are, or says it of another number of elements;
/// [`ExportError::Weight`] if they cannot be read.
pub fn values(param: &Param, store: &ExternalStore) -> Result<Bytes, ExportError> {
    let (dtype, bytes) = in_order(param, store)?;
    if dtype == param.ty.dtype {
        return Ok(bytes);
    }
    Ok(convert(&bytes, dtype, param.ty.dtype).into())
}

/// A parameter's values in its own order, little-endian and row-major, and their element type, which is
/// [`source_dtype`]. They are not copied unless the source holds the transpose.
///
/// # Errors
/// As [`values`].
pub fn in_order(param: &Param, store: &ExternalStore) -> Result<(DType, Bytes), ExportError> {
    let mut bytes = stored(param, store)?;
    if param.stored.transposed && !is_drawn(param) {
        let row = dims(&param.ty).first().copied().unwrap_or(0);
        bytes = transpose(&bytes, row as usize, param.stored.dtype.size() as usize).into();
    }
    Ok((source_dtype(param), bytes))
}

/// The element type in which a parameter's source holds it; first values that are drawn have its own.
pub fn source_dtype(param: &Param) -> DType {
    match is_drawn(param) {
        true => param.ty.dtype,
        false => param.stored.dtype,
    }
}

fn is_drawn(param: &Param) -> bool {
    matches!(param.stored.data, Data::Init { .. })
}

/// A parameter's values as its source holds them, not copied: in the element type and the order that
/// [`Stored`](lorafa_ir::ops::Stored) says. First values that are drawn have the parameter's own type and order.
///
/// # Errors
/// As [`values`].
pub fn stored(param: &Param, store: &ExternalStore) -> Result<Bytes, ExportError> {
    let bytes = match &param.stored.data {
        Data::Inline(bytes) => bytes.clone(),
        Data::External(external) => {
            let tensor = reference(param, &param.name, external)?;
            let read = tensor::read(&tensor, store);
            read.map_err(|error| weight_error(param, error))?
        }
        Data::Init { init, seed } => return initial(param, *init, *seed),
        Data::Digest(_) => {
            let why = "only the digest of its values is known, because the graph was read from \
                       text; export the graph that was imported from the model";
            return Err(no_values(param, why));
        }
        Data::Runtime => return Err(no_values(param, "its values are given at run time")),
    };
    // Refuses another number of bytes than the stored type needs.
    encode(param, &stored_type(param)?, bytes.clone())?;
    Ok(bytes)
}

/// The type of what the source holds.
fn stored_type(param: &Param) -> Result<TensorType, ExportError> {
    let mut ty = param.ty.with_dtype(param.stored.dtype);
    if param.stored.transposed {
        if ty.rank() != 2 {
            let why = format!("it is stored transposed, but has {} axes", ty.rank());
            return Err(no_values(param, why));
        }
        ty.shape.swap(0, 1);
    }
    Ok(ty)
}

fn no_values(param: &Param, why: impl Into<String>) -> ExportError {
    ExportError::Values {
        name: param.name.to_string(),
        why: why.into(),
    }
}

fn weight_error(param: &Param, error: TensorError) -> ExportError {
    ExportError::Weight {
        name: param.name.to_string(),
        error: Box::new(error),
    }
}

fn encode(param: &Param, ty: &TensorType, bytes: Bytes) -> Result<TensorProto, ExportError> {
    let payload = TensorPayload::Inline(bytes);
    let tensor = tensor::encode(&param.name, to_onnx(ty.dtype), &dims(ty), payload);
    tensor.map_err(|error| weight_error(param, error))
}

/// An initializer that refers to the source's file.
fn reference(param: &Param, name: &str, external: &External) -> Result<TensorProto, ExportError> {
    let ty = stored_type(param)?;
    let External {
        location,
        offset,
        length,
    } = external;
    let tensor = ExternalRef::new(&**location, *offset, *length)
        .map_err(|cause| TensorError::External {
            tensor: param.name.to_string(),
            cause,
        })
        .and_then(|reference| {
            let payload = TensorPayload::External(reference);
            tensor::encode(name, to_onnx(ty.dtype), &dims(&ty), payload)
        });
    tensor.map_err(|error| weight_error(param, error))
}

/// First values, in the parameter's own type.
fn initial(param: &Param, init: Init, seed: u64) -> Result<Bytes, ExportError> {
    let size = param.ty.bytes().unwrap_or(u64::MAX);
    if size > MAX_MODEL_BYTES {
        let why =
            format!("its first values take {size} bytes, and a model holds {MAX_MODEL_BYTES}");
        return Err(no_values(param, why));
    }
    if init == Init::Zeros {
        return Ok(vec![0; size as usize].into());
    }
    let shape: Vec<usize> = dims(&param.ty).iter().map(|n| *n as usize).collect();
    match init::values(init, seed, &param.name, &shape) {
        Some(numbers) => Ok(dtype::encode(param.ty.dtype, numbers).into()),
        None => Err(no_values(
            param,
            format!("`{}` makes matrices, not {}", init.name(), param.ty),
        )),
    }
}

/// Rows for columns. `bytes` holds whole columns of `rows` elements each.
fn transpose(bytes: &[u8], rows: usize, size: usize) -> Vec<u8> {
    let columns: Vec<&[u8]> = bytes.chunks_exact((rows * size).max(1)).collect();
    let mut out = Vec::with_capacity(bytes.len());
    for row in 0..rows {
        for column in &columns {
            out.extend_from_slice(&column[row * size..(row + 1) * size]);
        }
    }
    out
}

/// Elements in another type, rounded to nearest, ties to even.
fn convert(bytes: &[u8], from: DType, to: DType) -> Vec<u8> {
    bytes
        .chunks(CHUNK * from.size() as usize)
        .flat_map(|chunk| dtype::encode(to, dtype::decode(from, chunk)))
        .collect()
}
