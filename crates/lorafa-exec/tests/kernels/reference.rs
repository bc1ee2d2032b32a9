//! What an op should give.

use crate::arena::eval::decomposed;
use lorafa_ir::interp::{Array, EvalError};
use lorafa_ir::{DType, Op, TensorType};

/// The op's results from its operands, in f64 up to the last rounding.
pub fn eval(
    kind: &Op,
    operands: &[&Array],
    types: &[&TensorType],
) -> Result<Vec<Array>, EvalError> {
    let mut results = match kind {
        Op::DimValue(op) => {
            let numbers = op.values.iter().filter_map(|dim| dim.known());
            vec![Array::new(types[0], numbers.map(|n| n as f64).collect())?]
        }
        _ => kind
            .eval(operands, types)
            .or_else(|_| decomposed(kind, operands))?,
    };
    for (array, ty) in results.iter_mut().zip(types) {
        array.dtype = ty.dtype;
        array.data.iter_mut().for_each(|x| *x = ty.dtype.round(*x));
    }
    Ok(results)
}

/// Whether the numbers agree as well as their type lets them: relative to the largest of result and operands, as sums
/// may cancel.
pub fn compare(
    expected: &Array,
    found: &Array,
    kind: &Op,
    operands: &[&Array],
) -> Result<(), String> {
    let dtype = match kind {
        // Its logits are as narrow as its operands, though the loss is f32.
        Op::LinearCrossEntropy(_) | Op::LinearCrossEntropyGrad(_) => operands[0].dtype,
        // The reference reads the attention's result, which has this type; the bias's gradient has a wider one.
        Op::AttentionGrad(_) => operands[0].dtype,
        _ => expected.dtype,
    };
    let tolerance = match dtype {
        // Its arithmetic is f32, and the reference rounds the betas to that.
        DType::F64 | DType::F32 if matches!(kind, Op::AdamW(_)) => 1e-5,
        // Differences of products of what may be large.
        DType::F32 if matches!(kind, Op::LayerNormGrad(_)) => 2e-5,
        DType::F64 => 1e-9,
        DType::F32 => 2e-6,
        DType::F16 => 4e-3,
        DType::BF16 => 3e-2,
        _ => 0.0,
    };
    let operands = operands.iter().filter(|x| x.dtype.is_float());
    let numbers = operands.flat_map(|x| &x.data).chain(&expected.data);
    let finite = numbers.filter(|x| x.is_finite());
    let size = finite.fold(0.0f64, |size, x| size.max(x.abs()));
    for (i, (e, f)) in expected.data.iter().zip(&found.data).enumerate() {
        let same = e == f || e.is_nan() && f.is_nan() || (e - f).abs() <= tolerance * size;
        if !same {
            return Err(format!(
                "{} [{i}]: expected {e}, found {f}\n expected {:?}\n found {:?}",
                kind.name(),
                expected.data,
                found.data
            ));
        }
    }
    Ok(())
}
