//! Elements as bytes.

use lorafa_ir::DType;
use lorafa_ir::interp::Array;

/// Rounds every element to the array's type.
pub fn round(array: &mut Array) {
    for x in &mut array.data {
        *x = decode(array.dtype, &encode(array.dtype, *x));
    }
}

/// The little-endian bytes of the element nearest to `x`.
pub fn encode(dtype: DType, x: f64) -> Vec<u8> {
    let x = if x.is_nan() { f64::NAN } else { dtype.round(x) };
    match dtype {
        DType::F64 => x.to_le_bytes().to_vec(),
        DType::F32 => (x as f32).to_le_bytes().to_vec(),
        DType::BF16 => (x as f32).to_le_bytes()[2..].to_vec(),
        DType::I64 => (x as i64).to_le_bytes().to_vec(),
        DType::I32 => (x as i32).to_le_bytes().to_vec(),
        DType::U8 | DType::Bool => vec![x as u8],
        other => panic!("the random graphs have no {other}"),
    }
}

/// The element in these bytes.
pub fn decode(dtype: DType, bytes: &[u8]) -> f64 {
    let wide = |zeros: &[u8]| f32::from_le_bytes([zeros, bytes].concat().try_into().expect("4 B"));
    match dtype {
        DType::F64 => f64::from_le_bytes(bytes.try_into().expect("8 B")),
        DType::F32 => f64::from(wide(&[])),
        DType::BF16 => f64::from(wide(&[0, 0])),
        DType::I64 => i64::from_le_bytes(bytes.try_into().expect("8 B")) as f64,
        DType::I32 => f64::from(i32::from_le_bytes(bytes.try_into().expect("4 B"))),
        DType::U8 | DType::Bool => f64::from(bytes[0]),
        other => panic!("the random graphs have no {other}"),
    }
}
