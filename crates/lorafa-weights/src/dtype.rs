//! The IR's element types and those of safetensors files.

use lorafa_ir::DType;
use safetensors::Dtype;

/// The IR's type for a file's, if it has one.
pub(crate) fn from_file(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::I16 => DType::I16,
        Dtype::I8 => DType::I8,
        Dtype::U64 => DType::U64,
        Dtype::U32 => DType::U32,
        Dtype::U16 => DType::U16,
        Dtype::U8 => DType::U8,
        Dtype::BOOL => DType::Bool,
        _ => return None,
    })
}

/// A file's type for the IR's.
pub(crate) fn to_file(dtype: DType) -> Dtype {
    match dtype {
        DType::F64 => Dtype::F64,
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::I64 => Dtype::I64,
        DType::I32 => Dtype::I32,
        DType::I16 => Dtype::I16,
        DType::I8 => Dtype::I8,
        DType::U64 => Dtype::U64,
        DType::U32 => Dtype::U32,
        DType::U16 => Dtype::U16,
        DType::U8 => Dtype::U8,
        DType::Bool => Dtype::BOOL,
    }
}

/// Numbers of a float type of at most 32 bits, exactly; `None` for other types.
pub(crate) fn to_f32(dtype: DType, bytes: &[u8]) -> Option<Vec<f32>> {
    let halves = || bytes.as_chunks::<2>().0.iter();
    match dtype {
        DType::F32 => {
            let words = bytes.as_chunks::<4>().0.iter();
            Some(words.map(|w| f32::from_le_bytes(*w)).collect())
        }
        DType::F16 => Some(
            halves()
                .map(|h| half::f16::from_le_bytes(*h).to_f32())
                .collect(),
        ),
        DType::BF16 => Some(
            halves()
                .map(|h| half::bf16::from_le_bytes(*h).to_f32())
                .collect(),
        ),
        _ => None,
    }
}

/// Numbers in a float type, rounded to nearest, ties to even; `None` for types that [`to_f32`] does not read.
pub(crate) fn from_f32(dtype: DType, numbers: &[f32]) -> Option<Vec<u8>> {
    match dtype {
        DType::F32 => Some(numbers.iter().flat_map(|x| x.to_le_bytes()).collect()),
        DType::F16 => {
            let halves = numbers.iter().map(|x| half::f16::from_f32(*x));
            Some(halves.flat_map(half::f16::to_le_bytes).collect())
        }
        DType::BF16 => {
            let halves = numbers.iter().map(|x| half::bf16::from_f32(*x));
            Some(halves.flat_map(half::bf16::to_le_bytes).collect())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_even() {
        // Between 1 and the next bf16, 1 + 2^-7, and between that and the one after.
        let ties = [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0];
        let bytes = from_f32(DType::BF16, &ties).unwrap();
        assert_eq!(
            to_f32(DType::BF16, &bytes).unwrap(),
            [1.0, 1.0 + 4.0 / 256.0]
        );
        let ties = [1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0];
        let bytes = from_f32(DType::F16, &ties).unwrap();
        assert_eq!(
            to_f32(DType::F16, &bytes).unwrap(),
            [1.0, 1.0 + 4.0 / 2048.0]
        );
        assert!(to_f32(DType::F64, &[0; 8]).is_none() && from_f32(DType::I8, &[0.0]).is_none());
    }
}
