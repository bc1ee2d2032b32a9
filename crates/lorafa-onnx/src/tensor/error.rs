//! What can be wrong with a tensor's payload.

use crate::external::ExternalError;

/// A tensor whose elements cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TensorError {
    /// Strings, complex numbers, 8-bit floats, sub-byte types.
    #[error(
        "tensor `{tensor}` is of type {data_type}; supported are f32, f64, f16, bf16, bool and integers of 8 to 64 bits"
    )]
    Unsupported {
        /// The tensor.
        tensor: String,
        /// Its type, as the schema calls it.
        data_type: String,
    },
    /// Dimensions count elements.
    #[error("tensor `{tensor}` has the dimension {dim}; dimensions must not be negative")]
    NegativeDim {
        /// The tensor.
        tensor: String,
        /// The dimension.
        dim: i64,
    },
    /// More elements or bytes than 64 bits count.
    #[error("tensor `{tensor}` of shape {dims:?} is larger than 2^64 bytes")]
    TooLarge {
        /// The tensor.
        tensor: String,
        /// Its shape.
        dims: Vec<i64>,
    },
    /// `raw_data` of another size.
    #[error("tensor `{tensor}` has {found} bytes of raw data; its shape and type need {expected}")]
    RawLength {
        /// The tensor.
        tensor: String,
        /// Bytes needed.
        expected: u64,
        /// Bytes there are.
        found: usize,
    },
    /// A typed field with another number of elements.
    #[error("tensor `{tensor}` has {found} elements in {field}; its shape needs {expected}")]
    Count {
        /// The tensor.
        tensor: String,
        /// The field.
        field: &'static str,
        /// Elements needed.
        expected: u64,
        /// Elements there are.
        found: usize,
    },
    /// Elements in the field of another type.
    #[error(
        "tensor `{tensor}` of type {data_type} has its elements in {found}; they belong in {expected}"
    )]
    WrongField {
        /// The tensor.
        tensor: String,
        /// Its type.
        data_type: String,
        /// Where they belong.
        expected: &'static str,
        /// Where they are.
        found: &'static str,
    },
    /// Elements in two places.
    #[error("tensor `{tensor}` has elements in both {first} and {second}; keep one")]
    TwoPayloads {
        /// The tensor.
        tensor: String,
        /// One place.
        first: &'static str,
        /// The other.
        second: &'static str,
    },
    /// 300 in a `uint8`.
    #[error("tensor `{tensor}`: {value} at {field}[{index}] is out of range for {data_type}")]
    OutOfRange {
        /// The tensor.
        tensor: String,
        /// Its type.
        data_type: String,
        /// The field.
        field: &'static str,
        /// The element.
        index: usize,
        /// Its value.
        value: String,
    },
    /// A tensor in pieces.
    #[error("tensor `{tensor}` is one segment of a larger tensor; store it whole")]
    Segmented {
        /// The tensor.
        tensor: String,
    },
    /// A `data_location` the schema does not have.
    #[error("tensor `{tensor}` has data_location {value}; 0 (inline) and 1 (external) are known")]
    UnknownLocation {
        /// The tensor.
        tensor: String,
        /// The value.
        value: i32,
    },
    /// The elements are in another file, which is the problem.
    #[error("tensor `{tensor}`: {cause}")]
    External {
        /// The tensor.
        tensor: String,
        /// What is wrong with the reference or the file.
        cause: ExternalError,
    },
}

impl TensorError {
    /// Whether the tensor is fine and only the file that holds its elements is not there.
    pub fn is_missing_file(&self) -> bool {
        matches!(
            self,
            Self::External {
                cause: ExternalError::Missing { .. },
                ..
            }
        )
    }
}
