//! The IR's element types and ONNX's codes for them.

use crate::proto::tensor_proto::DataType;
use lorafa_ir::DType;

const CODES: &[(DType, DataType)] = &[
    (DType::F64, DataType::Double),
    (DType::F32, DataType::Float),
    (DType::F16, DataType::Float16),
    (DType::BF16, DataType::Bfloat16),
    (DType::I64, DataType::Int64),
    (DType::I32, DataType::Int32),
    (DType::I16, DataType::Int16),
    (DType::I8, DataType::Int8),
    (DType::U64, DataType::Uint64),
    (DType::U32, DataType::Uint32),
    (DType::U16, DataType::Uint16),
    (DType::U8, DataType::Uint8),
    (DType::Bool, DataType::Bool),
];

/// The IR's type for an ONNX code, if it has one.
pub fn from_onnx(code: i32) -> Option<DType> {
    CODES
        .iter()
        .find(|(_, c)| *c as i32 == code)
        .map(|(d, _)| *d)
}

/// The ONNX code of a type.
pub fn to_onnx(dtype: DType) -> i32 {
    CODES
        .iter()
        .find(|(d, _)| *d == dtype)
        .map_or(0, |(_, c)| *c as i32)
}

/// Elements of `dtype` from little-endian bytes, as numbers.
pub fn decode(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    macro_rules! read {
        ($ty:ty, $n:literal, $f:expr) => {
            bytes
                .as_chunks::<$n>()
                .0
                .iter()
                .map(|chunk| $f(<$ty>::from_le_bytes(*chunk)))
                .collect()
        };
    }
    match dtype {
        DType::F64 => read!(f64, 8, |x| x),
        DType::F32 => read!(f32, 4, f64::from),
        DType::F16 => read!(u16, 2, |x| f64::from(half::f16::from_bits(x))),
        DType::BF16 => read!(u16, 2, |x| f64::from(half::bf16::from_bits(x))),
        DType::I64 => read!(i64, 8, |x| x as f64),
        DType::I32 => read!(i32, 4, f64::from),
        DType::I16 => read!(i16, 2, f64::from),
        DType::I8 => read!(i8, 1, f64::from),
        DType::U64 => read!(u64, 8, |x| x as f64),
        DType::U32 => read!(u32, 4, f64::from),
        DType::U16 => read!(u16, 2, f64::from),
        DType::U8 | DType::Bool => read!(u8, 1, f64::from),
    }
}

/// Integers of `dtype` from little-endian bytes, without going through floats.
pub fn decode_ints(dtype: DType, bytes: &[u8]) -> Vec<i64> {
    if dtype == DType::I64 {
        return bytes
            .as_chunks::<8>()
            .0
            .iter()
            .map(|c| i64::from_le_bytes(*c))
            .collect();
    }
    decode(dtype, bytes).into_iter().map(|x| x as i64).collect()
}

/// Numbers as little-endian bytes of `dtype`, rounded to it.
pub fn encode(dtype: DType, numbers: impl IntoIterator<Item = f64>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for x in numbers {
        let x = dtype.round(x);
        match dtype {
            DType::F64 => bytes.extend(x.to_le_bytes()),
            DType::F32 => bytes.extend((x as f32).to_le_bytes()),
            DType::F16 => bytes.extend(half::f16::from_f64(x).to_le_bytes()),
            DType::BF16 => bytes.extend(half::bf16::from_f64(x).to_le_bytes()),
            DType::I64 => bytes.extend((x as i64).to_le_bytes()),
            DType::I32 => bytes.extend((x as i32).to_le_bytes()),
            DType::I16 => bytes.extend((x as i16).to_le_bytes()),
            DType::I8 => bytes.extend((x as i8).to_le_bytes()),
            DType::U64 => bytes.extend((x as u64).to_le_bytes()),
            DType::U32 => bytes.extend((x as u32).to_le_bytes()),
            DType::U16 => bytes.extend((x as u16).to_le_bytes()),
            DType::U8 | DType::Bool => bytes.push(x as u8),
        }
    }
    bytes
}
