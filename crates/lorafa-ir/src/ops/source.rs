//! Ops without operands: constants, counters, fills, dimensions as data.

use super::attrs::{AttrReader, Attrs, split};
use super::{Op, Operator, Scalar, Types, one};
use crate::dim::{Bindings, Dim};
use crate::dtype::DType;
use crate::interp::{Array, EvalError};
use crate::types::{Shape, TensorType, TypeError};

/// The elements of a small constant.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Literal {
    /// For float types.
    Floats(Vec<Scalar>),
    /// For integer types and bool.
    Ints(Vec<i64>),
}

impl Literal {
    /// The elements as floats.
    pub fn to_f64(&self) -> Vec<f64> {
        match self {
            Literal::Floats(x) => x.iter().map(|s| s.0).collect(),
            Literal::Ints(x) => x.iter().map(|i| *i as f64).collect(),
        }
    }

    /// Elements of `dtype` from floats, rounded to it.
    pub fn from_f64(dtype: DType, values: impl IntoIterator<Item = f64>) -> Self {
        let values = values.into_iter().map(|x| dtype.round(x));
        if dtype.is_float() {
            Literal::Floats(values.map(Scalar).collect())
        } else {
            Literal::Ints(values.map(|x| x as i64).collect())
        }
    }

    fn len(&self) -> usize {
        match self {
            Literal::Floats(x) => x.len(),
            Literal::Ints(x) => x.len(),
        }
    }

    fn print(&self) -> Vec<String> {
        match self {
            Literal::Floats(x) => x.iter().map(Scalar::to_string).collect(),
            Literal::Ints(x) => x.iter().map(i64::to_string).collect(),
        }
    }
}

/// `constant {value=2.0}`: a small constant, printed in full.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Constant {
    /// Its type, without symbols.
    pub ty: TensorType,
    /// Its elements.
    pub literal: Literal,
}

impl Constant {
    /// The scalar `value`, rounded to `dtype`.
    pub fn scalar(dtype: DType, value: f64) -> Self {
        Constant {
            ty: TensorType::scalar(dtype),
            literal: Literal::from_f64(dtype, [value]),
        }
    }

    /// The one element, if there is just one.
    pub fn as_f64(&self) -> Option<f64> {
        match self.literal.to_f64().as_slice() {
            [x] => Some(*x),
            _ => None,
        }
    }
}

impl Operator for Constant {
    fn name(&self) -> &'static str {
        "constant"
    }

    fn attrs(&self) -> Attrs {
        let attrs = Attrs::default().with("dtype", self.ty.dtype);
        if self.ty.rank() == 0 {
            attrs.with("value", self.literal.print().concat())
        } else {
            attrs
                .dims("shape", &self.ty.shape)
                .list("value", self.literal.print())
        }
    }

    fn arity(&self) -> (usize, usize) {
        (0, 0)
    }

    fn infer(&self, _: &[&TensorType]) -> Result<Types, TypeError> {
        if self.ty.elements() != Some(self.literal.len() as u64) {
            let n = self.literal.len();
            return Err(TypeError(format!("{} has not {n} elements", self.ty)));
        }
        Ok(one(self.ty.clone()))
    }

    fn bind(&self, _: &Bindings) -> Option<Op> {
        Some(self.clone().into())
    }

    fn flops(&self, _: &[&TensorType], _: &[&TensorType]) -> u64 {
        0
    }

    fn eval(&self, _: &[&Array], _: &[&TensorType]) -> Result<Vec<Array>, EvalError> {
        Array::new(&self.ty, self.literal.to_f64()).map(|a| vec![a])
    }
}

/// `iota {start=0, step=1, len=seq}`: an arithmetic sequence, one-dimensional.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Iota {
    /// Element type.
    pub dtype: DType,
    /// First element.
    pub start: Dim,
    /// Difference between neighbours.
    pub step: i64,
    /// Number of elements.
    pub len: Dim,
}

impl Operator for Iota {
    fn name(&self) -> &'static str {
        "iota"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default()
            .with("dtype", self.dtype)
            .with("len", &self.len)
            .unless("start", self.start.clone(), Dim::Known(0))
            .unless("step", self.step, 1)
    }

    fn arity(&self) -> (usize, usize) {
        (0, 0)
    }

    fn infer(&self, _: &[&TensorType]) -> Result<Types, TypeError> {
        let ty = TensorType::new(self.dtype, [self.len.clone()]);
        super::number(&ty)?;
        Ok(one(ty))
    }

    fn bind(&self, b: &Bindings) -> Option<Op> {
        Some(
            Iota {
                start: self.start.bind(b)?,
                len: self.len.bind(b)?,
                ..*self
            }
            .into(),
        )
    }

    fn eval(&self, _: &[&Array], results: &[&TensorType]) -> Result<Vec<Array>, EvalError> {
        let start = self
            .start
            .known()
            .ok_or_else(|| EvalError::new("iota with symbols"))?;
        let len = self.len.known().unwrap_or(0);
        let data = (0..len)
            .map(|i| start.saturating_add(i.saturating_mul(self.step)) as f64)
            .collect();
        Array::new(results[0], data).map(|a| vec![a])
    }
}

/// `fill {shape=[2,seq], value=0.0}`: one number everywhere.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Fill {
    /// Its type.
    pub ty: TensorType,
    /// The number.
    pub value: Scalar,
}

impl Operator for Fill {
    fn name(&self) -> &'static str {
        "fill"
    }

    fn attrs(&self) -> Attrs {
        let attrs = Attrs::default()
            .with("dtype", self.ty.dtype)
            .dims("shape", &self.ty.shape);
        attrs.with("value", self.value)
    }

    fn arity(&self) -> (usize, usize) {
        (0, 0)
    }

    fn infer(&self, _: &[&TensorType]) -> Result<Types, TypeError> {
        Ok(one(self.ty.clone()))
    }

    fn bind(&self, bindings: &Bindings) -> Option<Op> {
        Some(
            Fill {
                ty: self.ty.bind(bindings)?,
                value: self.value,
            }
            .into(),
        )
    }

    fn eval(&self, _: &[&Array], results: &[&TensorType]) -> Result<Vec<Array>, EvalError> {
        Array::from_fn(results[0], |_| self.ty.dtype.exact(self.value.0)).map(|a| vec![a])
    }
}

/// `dims {value=[batch,-1]}`: dimensions as an i64 tensor, where a model computes with them.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct DimValue {
    /// The shape of the tensor.
    pub shape: Shape,
    /// Its elements.
    pub values: Shape,
}

impl Operator for DimValue {
    fn name(&self) -> &'static str {
        "dims"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default()
            .dims("shape", &self.shape)
            .dims("value", &self.values)
    }

    fn arity(&self) -> (usize, usize) {
        (0, 0)
    }

    fn infer(&self, _: &[&TensorType]) -> Result<Types, TypeError> {
        let ty = TensorType::new(DType::I64, self.shape.iter().cloned());
        if ty.elements() != Some(self.values.len() as u64) {
            return Err(TypeError(format!(
                "{ty} has not {} elements",
                self.values.len()
            )));
        }
        Ok(one(ty))
    }

    /// Becomes a constant once every element is a number.
    fn bind(&self, b: &Bindings) -> Option<Op> {
        let values: Option<Shape> = self.values.iter().map(|d| d.bind(b)).collect();
        let values = values?;
        let numbers: Option<Vec<i64>> = values.iter().map(Dim::known).collect();
        Some(match numbers {
            Some(numbers) => {
                let ty = TensorType::new(DType::I64, self.shape.iter().cloned());
                Constant {
                    ty,
                    literal: Literal::Ints(numbers),
                }
                .into()
            }
            None => DimValue {
                shape: self.shape.clone(),
                values,
            }
            .into(),
        })
    }
}

pub(super) fn parse(name: &str, a: &mut AttrReader<'_>) -> Option<Result<Op, String>> {
    Some(match name {
        "constant" => constant(a),
        "iota" => iota(a),
        "fill" => fill(a),
        "dims" => dims(a),
        _ => return None,
    })
}

fn constant(a: &mut AttrReader<'_>) -> Result<Op, String> {
    let dtype = a.dtype("dtype")?;
    let text = a.text("value").ok_or("attribute `value` is missing")?;
    let (shape, items) = match text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
        Some(inner) => (a.dims("shape")?, split(inner)),
        None => (Shape::new(), vec![text]),
    };
    let bad = |item: &str| format!("attribute `value`: bad {dtype} `{item}`");
    let literal = if dtype.is_float() {
        let items = items
            .iter()
            .map(|i| i.parse().map(Scalar).map_err(|_| bad(i)));
        Literal::Floats(items.collect::<Result<_, _>>()?)
    } else {
        Literal::Ints(
            items
                .iter()
                .map(|i| i.parse().map_err(|_| bad(i)))
                .collect::<Result<_, _>>()?,
        )
    };
    Ok(Constant {
        ty: TensorType { dtype, shape },
        literal,
    }
    .into())
}

fn iota(a: &mut AttrReader<'_>) -> Result<Op, String> {
    let start = if a.0.contains_key("start") {
        a.dim("start")?
    } else {
        Dim::Known(0)
    };
    let (dtype, step, len) = (a.dtype("dtype")?, a.int_or("step", 1)?, a.dim("len")?);
    Ok(Iota {
        dtype,
        start,
        step,
        len,
    }
    .into())
}

fn fill(a: &mut AttrReader<'_>) -> Result<Op, String> {
    let ty = TensorType {
        dtype: a.dtype("dtype")?,
        shape: a.dims("shape")?,
    };
    Ok(Fill {
        ty,
        value: a.float("value")?,
    }
    .into())
}

fn dims(a: &mut AttrReader<'_>) -> Result<Op, String> {
    Ok(DimValue {
        shape: a.dims("shape")?,
        values: a.dims("value")?,
    }
    .into())
}
