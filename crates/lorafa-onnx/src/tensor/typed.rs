//! Elements held one by one in a protobuf field of their kind.

use std::fmt::Display;

use bytes::Bytes;

use super::{TensorError, data_type_name, element_count, label};
use crate::proto::TensorProto;
use crate::proto::tensor_proto::DataType;

/// Names of the fields that hold at least one element.
pub(super) fn filled_fields(tensor: &TensorProto) -> Vec<&'static str> {
    let raw = tensor.raw_data.as_ref().map_or(0, Bytes::len);
    [
        ("raw_data", raw),
        ("float_data", tensor.float_data.len()),
        ("int32_data", tensor.int32_data.len()),
        ("string_data", tensor.string_data.len()),
        ("int64_data", tensor.int64_data.len()),
        ("double_data", tensor.double_data.len()),
        ("uint64_data", tensor.uint64_data.len()),
    ]
    .into_iter()
    .filter(|&(_, len)| len > 0)
    .map(|(field, _)| field)
    .collect()
}

/// The elements as little-endian bytes. `filled` is the one field that holds any.
pub(super) fn bytes(
    tensor: &TensorProto,
    filled: Option<&'static str>,
) -> Result<Bytes, TensorError> {
    use DataType as D;
    let reader = Reader { tensor, filled };
    let float = ("float_data", tensor.float_data.as_slice());
    let double = ("double_data", tensor.double_data.as_slice());
    let int = ("int32_data", tensor.int32_data.as_slice());
    let long = ("int64_data", tensor.int64_data.as_slice());
    let unsigned = ("uint64_data", tensor.uint64_data.as_slice());
    match D::try_from(tensor.data_type()) {
        Ok(D::Float) => reader.pack(float, |v| Some(v.to_le_bytes())),
        Ok(D::Double) => reader.pack(double, |v| Some(v.to_le_bytes())),
        Ok(D::Int32) => reader.pack(int, |v| Some(v.to_le_bytes())),
        Ok(D::Int16) => reader.pack(int, |v| Some(i16::try_from(v).ok()?.to_le_bytes())),
        Ok(D::Int8) => reader.pack(int, |v| Some(i8::try_from(v).ok()?.to_le_bytes())),
        // Half-precision floats are stored as the integer with the same bits.
        Ok(D::Uint16 | D::Float16 | D::Bfloat16) => {
            reader.pack(int, |v| Some(u16::try_from(v).ok()?.to_le_bytes()))
        }
        Ok(D::Uint8) => reader.pack(int, |v| Some(u8::try_from(v).ok()?.to_le_bytes())),
        Ok(D::Bool) => reader.pack(int, |v| matches!(v, 0 | 1).then_some([u8::from(v == 1)])),
        Ok(D::Int64) => reader.pack(long, |v| Some(v.to_le_bytes())),
        Ok(D::Uint64) => reader.pack(unsigned, |v| Some(v.to_le_bytes())),
        Ok(D::Uint32) => reader.pack(unsigned, |v| Some(u32::try_from(v).ok()?.to_le_bytes())),
        _ => Err(TensorError::Unsupported {
            tensor: label(tensor),
            data_type: data_type_name(tensor.data_type()),
        }),
    }
}

struct Reader<'a> {
    tensor: &'a TensorProto,
    filled: Option<&'static str>,
}

impl Reader<'_> {
    /// Encodes every value of a field, whose count is checked first; `encode` gives `None` for a value the data type
    /// cannot hold.
    fn pack<T: Copy + Display, const N: usize>(
        &self,
        (field, values): (&'static str, &[T]),
        encode: impl Fn(T) -> Option<[u8; N]>,
    ) -> Result<Bytes, TensorError> {
        if let Some(found) = self.filled.filter(|&found| found != field) {
            return Err(TensorError::WrongField {
                tensor: label(self.tensor),
                data_type: data_type_name(self.tensor.data_type()),
                expected: field,
                found,
            });
        }
        let expected = element_count(self.tensor)?;
        if values.len() as u64 != expected {
            return Err(TensorError::Count {
                tensor: label(self.tensor),
                field,
                expected,
                found: values.len(),
            });
        }
        let mut bytes = Vec::with_capacity(values.len() * N);
        for (index, &value) in values.iter().enumerate() {
            let encoded = encode(value).ok_or_else(|| TensorError::OutOfRange {
                tensor: label(self.tensor),
                data_type: data_type_name(self.tensor.data_type()),
                field,
                index,
                value: value.to_string(),
            })?;
            bytes.extend_from_slice(&encoded);
        }
        Ok(bytes.into())
    }
}
