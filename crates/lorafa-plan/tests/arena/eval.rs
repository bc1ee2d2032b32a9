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
