//! A tensor's payload as raw little-endian bytes of its type, and back.
//!
//! ONNX stores elements in one of seven fields, or in another file. Everything past this module sees one form. Data
//! types are the protobuf's integer codes ([`DataType`]); what they mean to the IR is the importer's business.

mod error;
mod typed;

use bytes::Bytes;

use crate::external::{ExternalRef, ExternalStore};
use crate::proto::TensorProto;
use crate::proto::tensor_proto::{DataLocation, DataType};

pub use error::TensorError;

/// Where a tensor's elements are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TensorPayload {
    /// Here: little-endian, row-major, exactly as many as shape and type need. A slice of the model's own bytes when
    /// the protobuf holds them raw.
    Inline(Bytes),
    /// In another file, at a range whose length, if given, agrees with shape and type.
    External(ExternalRef),
}

/// Bytes an element of `data_type` takes; `None` for the types this crate does not carry (strings, complex numbers, and
/// everything of 8 bits or fewer that is not an integer or a bool).
pub fn element_size(data_type: i32) -> Option<u64> {
    use DataType as D;
    match DataType::try_from(data_type).ok()? {
        D::Int8 | D::Uint8 | D::Bool => Some(1),
        D::Float16 | D::Bfloat16 | D::Int16 | D::Uint16 => Some(2),
        D::Float | D::Int32 | D::Uint32 => Some(4),
        D::Double | D::Int64 | D::Uint64 => Some(8),
        _ => None,
    }
}

/// The schema's name of a data type (`BFLOAT16`), or `number 99` if the schema has none.
pub fn data_type_name(data_type: i32) -> String {
    match DataType::try_from(data_type) {
        Ok(known) => known.as_str_name().to_owned(),
        Err(_) => format!("number {data_type}"),
    }
}

/// Elements in the tensor: 1 for a scalar, 0 if any dimension is 0.
///
/// # Errors
///
/// A negative dimension, or a product past 2⁶⁴.
pub fn element_count(tensor: &TensorProto) -> Result<u64, TensorError> {
    let mut count = Some(1u64);
    for &dim in &tensor.dims {
        let size = u64::try_from(dim).map_err(|_| TensorError::NegativeDim {
            tensor: label(tensor),
            dim,
        })?;
        count = count.and_then(|count| count.checked_mul(size));
    }
    match count {
        Some(count) => Ok(count),
        None if tensor.dims.contains(&0) => Ok(0),
        None => Err(too_large(tensor)),
    }
}

/// Bytes the tensor's elements take, from shape and type alone.
///
/// # Errors
///
/// As [`element_count`]; also a data type this crate does not carry.
pub fn byte_len(tensor: &TensorProto) -> Result<u64, TensorError> {
    let size = element_size(tensor.data_type()).ok_or_else(|| TensorError::Unsupported {
        tensor: label(tensor),
        data_type: data_type_name(tensor.data_type()),
    })?;
    element_count(tensor)?
        .checked_mul(size)
        .ok_or_else(|| too_large(tensor))
}

/// The tensor's elements, or the reference to them. Touches no disk, and allocates nothing that the protobuf does not
/// hold already.
///
/// # Errors
///
/// [`TensorError`], which names the tensor.
pub fn payload(tensor: &TensorProto) -> Result<TensorPayload, TensorError> {
    let expected = byte_len(tensor)?;
    if tensor.segment.is_some() {
        return Err(TensorError::Segmented {
            tensor: label(tensor),
        });
    }
    let filled = typed::filled_fields(tensor);
    match DataLocation::try_from(tensor.data_location.unwrap_or_default()) {
        Ok(DataLocation::Default) => {}
        Ok(DataLocation::External) => {
            if let Some(&field) = filled.first() {
                return Err(TensorError::TwoPayloads {
                    tensor: label(tensor),
                    first: field,
                    second: "external_data",
                });
            }
            return external(tensor, expected).map(TensorPayload::External);
        }
        Err(_) => {
            return Err(TensorError::UnknownLocation {
                tensor: label(tensor),
                value: tensor.data_location.unwrap_or_default(),
            });
        }
    }
    if let &[first, second, ..] = filled.as_slice() {
        return Err(TensorError::TwoPayloads {
            tensor: label(tensor),
            first,
            second,
        });
    }
    let bytes = match &tensor.raw_data {
        Some(raw) if filled.is_empty() || !raw.is_empty() => {
            if raw.len() as u64 != expected {
                return Err(TensorError::RawLength {
                    tensor: label(tensor),
                    expected,
                    found: raw.len(),
                });
            }
            raw.clone()
        }
        _ => typed::bytes(tensor, filled.first().copied())?,
    };
    Ok(TensorPayload::Inline(bytes))
}

fn external(tensor: &TensorProto, expected: u64) -> Result<ExternalRef, TensorError> {
    ExternalRef::from_entries(&tensor.external_data)
        .and_then(|reference| reference.check_length(expected).map(|()| reference))
        .map_err(|cause| TensorError::External {
            tensor: label(tensor),
            cause,
        })
}

/// The tensor's elements, wherever they are.
///
/// # Errors
///
/// As [`payload`] and [`ExternalStore::read`]; [`TensorError::is_missing_file`] tells a file that is not there from a
/// reference that is wrong.
pub fn read(tensor: &TensorProto, store: &ExternalStore) -> Result<Bytes, TensorError> {
    match payload(tensor)? {
        TensorPayload::Inline(bytes) => Ok(bytes),
        TensorPayload::External(reference) => {
            store
                .read(&reference, byte_len(tensor)?)
                .map_err(|cause| TensorError::External {
                    tensor: label(tensor),
                    cause,
                })
        }
    }
}

/// A tensor that holds `payload`: inline elements become `raw_data`, without a copy.
///
/// # Errors
///
/// A data type this crate does not carry, a negative dimension, a size past 2⁶⁴, or a payload of another size.
pub fn encode(
    name: &str,
    data_type: i32,
    dims: &[i64],
    payload: TensorPayload,
) -> Result<TensorProto, TensorError> {
    let mut tensor = TensorProto {
        name: Some(name.to_owned()),
        data_type: Some(data_type),
        dims: dims.to_vec(),
        ..TensorProto::default()
    };
    match payload {
        TensorPayload::Inline(bytes) => tensor.raw_data = Some(bytes),
        TensorPayload::External(reference) => {
            tensor.data_location = Some(DataLocation::External as i32);
            tensor.external_data = reference.to_entries();
        }
    }
    self::payload(&tensor)?;
    Ok(tensor)
}

/// How errors call the tensor; those in attributes often have no name.
fn label(tensor: &TensorProto) -> String {
    match tensor.name() {
        "" => "(unnamed)".to_owned(),
        name => name.to_owned(),
    }
}

fn too_large(tensor: &TensorProto) -> TensorError {
    TensorError::TooLarge {
        tensor: label(tensor),
        dims: tensor.dims.clone(),
    }
}
