//! Tensor types.

use crate::dim::{Bindings, Dim};
use crate::dtype::DType;
use smallvec::SmallVec;
use std::fmt;

/// The dimensions of a tensor, outermost first.
pub type Shape = SmallVec<[Dim; 4]>;

/// The largest number of elements a tensor may have: beyond it, byte counts could overflow.
pub const MAX_ELEMENTS: u64 = 1 << 56;

/// Element type and shape of a value.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct TensorType {
    /// Element type.
    pub dtype: DType,
    /// Dimensions, outermost first.
    pub shape: Shape,
}

/// Why operands do not fit an op, lower case, without the op's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeError(pub String);

impl fmt::Display for TypeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TypeError {}

impl TensorType {
    /// The type of `shape` and `dtype`.
    pub fn new(dtype: DType, shape: impl IntoIterator<Item = Dim>) -> Self {
        Self {
            dtype,
            shape: shape.into_iter().collect(),
        }
    }

    /// The type of a scalar.
    pub fn scalar(dtype: DType) -> Self {
        Self {
            dtype,
            shape: Shape::new(),
        }
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// This shape with another element type.
    pub fn with_dtype(&self, dtype: DType) -> Self {
        Self {
            dtype,
            shape: self.shape.clone(),
        }
    }

    /// This element type with another shape.
    pub fn with_shape(&self, shape: impl IntoIterator<Item = Dim>) -> Self {
        Self {
            dtype: self.dtype,
            shape: shape.into_iter().collect(),
        }
    }

    /// The shape in numbers, if no symbol is left.
    pub fn known_shape(&self) -> Option<SmallVec<[u64; 4]>> {
        self.shape
            .iter()
            .map(|d| d.known().and_then(|n| u64::try_from(n).ok()))
            .collect()
    }

    /// Number of elements, if no symbol is left.
    pub fn elements(&self) -> Option<u64> {
        let shape = self.known_shape()?;
        let n = shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d))?;
        (n <= MAX_ELEMENTS).then_some(n)
    }

    /// Size in bytes, if no symbol is left.
    pub fn bytes(&self) -> Option<u64> {
        Some(self.elements()? * self.dtype.size())
    }

    /// Puts numbers in for symbols; `None` where a dimension would be negative or undefined.
    pub fn bind(&self, bindings: &Bindings) -> Option<Self> {
        let shape: Option<Shape> = self.shape.iter().map(|d| d.bind(bindings)).collect();
        let ty = Self {
            dtype: self.dtype,
            shape: shape?,
        };
        ty.check().is_ok().then_some(ty)
    }

    /// Refuses negative dimensions and sizes beyond [`MAX_ELEMENTS`].
    pub fn check(&self) -> Result<(), TypeError> {
        if let Some(d) = self.shape.iter().find(|d| d.known().is_some_and(|n| n < 0)) {
            return Err(TypeError(format!("dimension {d} of {self} is negative")));
        }
        // Zeros are not counted: strides are products of the other dimensions.
        let mut dims = self.shape.iter().filter_map(Dim::known).filter(|n| *n > 0);
        let elements = dims.try_fold(1u64, |n, d| n.checked_mul(d as u64));
        if elements.is_none_or(|n| n > MAX_ELEMENTS) {
            return Err(TypeError(format!("{self} has more than 2^56 elements")));
        }
        Ok(())
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.dtype, ShapeDisplay(&self.shape))
    }
}

impl fmt::Debug for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Prints a shape as `[2,seq,64]`.
pub struct ShapeDisplay<'a>(pub &'a [Dim]);

impl fmt::Display for ShapeDisplay<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, d) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            write!(f, "{d}")?;
        }
        f.write_str("]")
    }
}

/// The shape that operands of these shapes broadcast to, by NumPy's rule.
///
/// Two different symbols at one place are taken to be equal (exporters give one batch several
/// names): binding them to different numbers is an error when the graph is bound.
pub fn broadcast(a: &[Dim], b: &[Dim]) -> Result<Shape, TypeError> {
    let rank = a.len().max(b.len());
    let mut shape = Shape::with_capacity(rank);
    for i in 0..rank {
        let x = (i + a.len()).checked_sub(rank).map(|i| &a[i]);
        let y = (i + b.len()).checked_sub(rank).map(|i| &b[i]);
        shape.push(match (x, y) {
            (Some(x), None) => x.clone(),
            (None, Some(y)) => y.clone(),
            (Some(x), Some(y)) => unify(x, y).ok_or_else(|| {
                TypeError(format!(
                    "shapes {} and {} do not broadcast: {x} against {y}",
                    ShapeDisplay(a),
                    ShapeDisplay(b)
                ))
            })?,
            (None, None) => return Err(TypeError("no operand to broadcast".into())),
        });
    }
    Ok(shape)
}

fn unify(x: &Dim, y: &Dim) -> Option<Dim> {
    match (x, y) {
        _ if x == y => Some(x.clone()),
        (Dim::Known(1), _) => Some(y.clone()),
        (_, Dim::Known(1)) => Some(x.clone()),
        (Dim::Known(_), Dim::Known(_)) => None,
        (Dim::Known(_), Dim::Expr(_)) => Some(x.clone()),
        (Dim::Expr(_), Dim::Known(_)) => Some(y.clone()),
        // A mask's table that is cut to `min(64, seq)`: against `seq` it is `seq`.
        (Dim::Expr(_), Dim::Expr(_)) if x.is_least_of(y) => Some(y.clone()),
        (Dim::Expr(_), Dim::Expr(_)) => Some(x.clone()),
    }
}

/// Whether the dimensions are equal or may be (one of them is symbolic).
pub fn may_equal(x: &Dim, y: &Dim) -> bool {
    x == y || x.known().is_none() || y.known().is_none()
}

/// Whether shapes are equal or may be, axis by axis.
pub fn line_up<'a>(
    x: impl IntoIterator<Item = &'a Dim>,
    y: impl IntoIterator<Item = &'a Dim>,
) -> bool {
    let (mut x, mut y) = (x.into_iter(), y.into_iter());
    loop {
        match (x.next(), y.next()) {
            (None, None) => return true,
            (Some(a), Some(b)) if may_equal(a, b) => {}
            _ => return false,
        }
    }
}

/// The product of dimensions.
pub fn product(dims: &[Dim]) -> Dim {
    dims.iter().fold(Dim::Known(1), |p, d| p.times(d))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_broadcast_to_what_they_must_be() {
        let unify = |x: &str, y: &str| {
            let dims = [x, y].map(|text| text.parse::<Dim>().unwrap());
            unify(&dims[0], &dims[1]).map(|dim| dim.to_string())
        };
        for (x, y, expected) in [
            ("1", "seq", Some("seq")),
            ("seq", "1", Some("seq")),
            ("seq", "8", Some("8")),
            ("3", "8", None),
            ("min(64, seq)", "seq", Some("seq")),
            ("seq", "min(64, seq)", Some("seq")),
            ("batch", "rows", Some("batch")),
        ] {
            assert_eq!(unify(x, y).as_deref(), expected, "{x} against {y}");
        }
    }
}
