//! A reference interpreter: slow, in f64, for folding constants and for tests.

use crate::dtype::DType;
use crate::graph::Graph;
use crate::ids::ValueId;
use crate::ops::Op;
use crate::types::TensorType;
use std::collections::BTreeMap;
use std::fmt;

/// Why an op could not be evaluated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvalError(String);

impl EvalError {
    /// An error with this message.
    pub fn new(message: impl Into<String>) -> Self {
        EvalError(message.into())
    }
}

impl fmt::Display for EvalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for EvalError {}

/// A tensor of numbers; bool is 0 or 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Element type that the numbers stand for.
    pub dtype: DType,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Elements, row-major.
    pub data: Vec<f64>,
}

impl Array {
    /// An array of a type without symbols.
    pub fn new(ty: &TensorType, data: Vec<f64>) -> Result<Self, EvalError> {
        let shape = ty
            .known_shape()
            .ok_or_else(|| EvalError::new(format!("{ty} has symbols")))?;
        if ty.elements() != Some(data.len() as u64) {
            return Err(EvalError::new(format!("{} elements for {ty}", data.len())));
        }
        Ok(Array {
            dtype: ty.dtype,
            shape: shape.iter().map(|d| *d as usize).collect(),
            data,
        })
    }

    /// An array of a type without symbols, from a function of the multi-index.
    pub fn from_fn(ty: &TensorType, mut f: impl FnMut(&[usize]) -> f64) -> Result<Self, EvalError> {
        let shape = ty
            .known_shape()
            .ok_or_else(|| EvalError::new(format!("{ty} has symbols")))?;
        let shape: Vec<usize> = shape.iter().map(|d| *d as usize).collect();
        let mut data = Vec::new();
        for_each_index(&shape, |index| data.push(f(index)));
        Ok(Array {
            dtype: ty.dtype,
            shape,
            data,
        })
    }

    /// The element at a multi-index.
    pub fn at(&self, index: &[usize]) -> f64 {
        self.data[self.flat(index)]
    }

    /// The position of a multi-index.
    pub fn flat(&self, index: &[usize]) -> usize {
        self.shape.iter().zip(index).fold(0, |n, (d, i)| n * d + i)
    }

    /// The element at a multi-index of a shape that this one broadcasts to.
    pub fn at_broadcast(&self, index: &[usize]) -> f64 {
        let skip = index.len() - self.shape.len();
        let flat = self.shape.iter().zip(&index[skip..]);
        self.data[flat.fold(0, |n, (d, i)| n * d + if *d == 1 { 0 } else { *i })]
    }
}

/// The position in an axis of length `n` that an index stands for: a negative one counts from the
/// end.
pub fn position(index: f64, n: usize) -> Result<usize, EvalError> {
    let at = if index < 0.0 { index + n as f64 } else { index };
    if (0.0..n as f64).contains(&at) {
        Ok(at as usize)
    } else {
        Err(EvalError::new(format!(
            "index {index} is out of range for {n} elements"
        )))
    }
}

/// Calls `f` with every multi-index of a shape, in row-major order.
pub fn for_each_index(shape: &[usize], mut f: impl FnMut(&[usize])) {
    if shape.contains(&0) {
        return;
    }
    let mut index = vec![0; shape.len()];
    loop {
        f(&index);
        let Some(axis) = (0..shape.len()).rev().find(|a| index[*a] + 1 < shape[*a]) else {
            return;
        };
        index[axis] += 1;
        index[axis + 1..].fill(0);
    }
}

/// Runs a graph without symbols on values for its parameters.
///
/// Every intermediate is kept at f64 precision, so that finite differences are meaningful; ops
/// with a decomposition must have been decomposed.
pub fn run(
    graph: &Graph,
    params: &BTreeMap<ValueId, Array>,
) -> Result<BTreeMap<ValueId, Array>, EvalError> {
    let mut values = params.clone();
    for id in graph.order() {
        let op = graph.op(id);
        if let Op::Param(param) = &op.kind {
            if !values.contains_key(&op.results[0]) {
                return Err(EvalError::new(format!("no value for %{}", param.name)));
            }
            continue;
        }
        let operands: Vec<&Array> = op.operands.iter().map(|v| &values[v]).collect();
        let types: Vec<&TensorType> = op.results.iter().map(|v| graph.ty(*v)).collect();
        let results = op.kind.eval(&operands, &types)?;
        for (value, array) in op.results.iter().zip(results) {
            values.insert(*value, array);
        }
    }
    Ok(values)
}
