//! Element types.

use std::fmt;

/// The element type of a tensor.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[allow(missing_docs)]
pub enum DType {
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
}

/// Every element type with its spelling in the text form.
const NAMES: &[(DType, &str)] = &[
    (DType::F64, "f64"),
    (DType::F32, "f32"),
    (DType::F16, "f16"),
    (DType::BF16, "bf16"),
    (DType::I64, "i64"),
    (DType::I32, "i32"),
    (DType::I16, "i16"),
    (DType::I8, "i8"),
    (DType::U64, "u64"),
    (DType::U32, "u32"),
    (DType::U16, "u16"),
    (DType::U8, "u8"),
    (DType::Bool, "bool"),
];

impl DType {
    /// Bytes per element.
    pub fn size(self) -> u64 {
        match self {
            DType::F64 | DType::I64 | DType::U64 => 8,
            DType::F32 | DType::I32 | DType::U32 => 4,
            DType::F16 | DType::BF16 | DType::I16 | DType::U16 => 2,
            DType::I8 | DType::U8 | DType::Bool => 1,
        }
    }

    /// Whether gradients can have this type.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F64 | DType::F32 | DType::F16 | DType::BF16)
    }

    /// Whether the type is a 16-bit float.
    pub fn is_half(self) -> bool {
        matches!(self, DType::F16 | DType::BF16)
    }

    /// The type that sums and statistics of this one are taken in: f32 for 16-bit floats, the type itself otherwise.
    pub fn arithmetic(self) -> DType {
        if self.is_half() { DType::F32 } else { self }
    }

    /// The type with this spelling in the text form.
    pub fn parse(name: &str) -> Option<Self> {
        NAMES.iter().find(|(_, n)| *n == name).map(|(d, _)| *d)
    }

    /// Rounds `x` to the nearest value of this type, to finite values for the 16-bit floats,
    /// whose ranges are smaller than the masks that exporters write (-3.4e38).
    pub fn round(self, x: f64) -> f64 {
        match self {
            DType::F64 => x,
            DType::F32 => f64::from(x as f32),
            DType::F16 if x.is_finite() => {
                let max = f64::from(half::f16::MAX);
                f64::from(half::f16::from_f64(x.clamp(-max, max)))
            }
            DType::BF16 if x.is_finite() => {
                let max = f64::from(half::bf16::MAX);
                f64::from(half::bf16::from_f64(x.clamp(-max, max)))
            }
            DType::F16 | DType::BF16 => x,
            DType::I64 => x as i64 as f64,
            DType::I32 => f64::from(x as i32),
            DType::I16 => f64::from(x as i16),
            DType::I8 => f64::from(x as i8),
            DType::U64 => x as u64 as f64,
            DType::U32 => f64::from(x as u32),
            DType::U16 => f64::from(x as u16),
            DType::U8 => f64::from(x as u8),
            DType::Bool => f64::from(u8::from(x != 0.0)),
        }
    }

    /// An integer as this type holds it: the low bits; 0 or 1 for bool, unchanged for floats.
    pub fn wrap(self, n: i64) -> i64 {
        match self {
            DType::I32 => i64::from(n as i32),
            DType::I16 => i64::from(n as i16),
            DType::I8 => i64::from(n as i8),
            DType::U32 => i64::from(n as u32),
            DType::U16 => i64::from(n as u16),
            DType::U8 => i64::from(n as u8),
            DType::Bool => i64::from(n != 0),
            DType::I64 | DType::U64 | DType::F64 | DType::F32 | DType::F16 | DType::BF16 => n,
        }
    }

    /// What the reference interpreter, which is exact for floats, makes of `x`: integers and bool
    /// are rounded.
    pub(crate) fn exact(self, x: f64) -> f64 {
        if self.is_float() { x } else { self.round(x) }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES
            .iter()
            .find(|(d, _)| d == self)
            .map_or("?", |(_, n)| n);
        f.write_str(name)
    }
}
