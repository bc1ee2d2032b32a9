//! One op, with results rounded to their types.

use lorafa_ir::interp::{self, Array, EvalError};
use lorafa_ir::ops::{Param, Role};
use lorafa_ir::{Graph, Op, TensorType};

use super::bytes::round;

/// What an op makes of its operands: its own semantics, or those of what it decomposes into.
pub fn eval(
    kind: &Op,
    operands: &[&Array],
    types: &[&TensorType],
) -> Result<Vec<Array>, EvalError> {
    let mut results = match kind {
        Op::Dropout(_) => Ok(dropout(operands[0], types)?),
        Op::DropoutMask(_) => Ok(vec![mask(types[0])?]),
        Op::AdamW(_) => decomposed(kind, operands),
        _ => kind
            .eval(operands, types)
            .or_else(|_| decomposed(kind, operands)),
    }?;
    for (array, ty) in results.iter_mut().zip(types) {
        array.dtype = ty.dtype;
        round(array);
    }
    Ok(results)
}

/// Drops every third element: what is dropped does not matter here, only that it is the same twice.
fn dropout(x: &Array, types: &[&TensorType]) -> Result<Vec<Array>, EvalError> {
    let mask = mask(types[1])?;
    let data = x.data.iter().zip(&mask.data);
    let survivors = data.map(|(x, keep)| x * keep * 2.0).collect();
    Ok(vec![Array::new(types[0], survivors)?, mask])
}

fn mask(ty: &TensorType) -> Result<Array, EvalError> {
    let elements = 0..ty.elements().unwrap_or(0);
    let keep = elements.map(|i| f64::from(u8::from(i % 3 != 0)));
    Array::new(ty, keep.collect())
}

/// What an op's decomposition makes of its operands.
pub fn decomposed(kind: &Op, operands: &[&Array]) -> Result<Vec<Array>, EvalError> {
    let mut graph = Graph::new("one");
    let mut patch = graph.patch("one");
    let mut values = super::Values::new();
    let mut ins = Vec::new();
    for (slot, array) in operands.iter().enumerate() {
        let shape = array.shape.iter().map(|d| (*d as i64).into());
        let ty = TensorType::new(array.dtype, shape);
        let param = Param::runtime(slot.to_string(), Role::Input, ty);
        let value = patch.add1(Op::Param(Box::new(param)), &[]).expect("typed");
        values.insert(value, (*array).clone());
        ins.push(value);
    }
    let results = kind.decompose(&mut patch, &ins);
    let results =
        results.ok_or_else(|| EvalError::new(format!("{} has no meaning", kind.name())))?;
    let results = results.map_err(|error| EvalError::new(error.to_string()))?;
    let values = interp::run(&graph, &values)?;
    Ok(results.iter().map(|value| values[value].clone()).collect())
}
