//! `accumulate`: the gradient of a large batch, one part after the other.

use super::attrs::AttrReader;
use super::{BinaryKind, Op, Operator, Types, float, one};
use crate::dim::Bindings;
use crate::dtype::DType;
use crate::ids::ValueId;
use crate::interp::{Array, EvalError};
use crate::layout::{Blocks, Layout, pieces};
use crate::patch::{Patch, PatchError, Results};
use crate::types::{TensorType, TypeError};

/// `accumulate acc, grad, keep, weight` gives the next accumulator, `keep·acc + weight·grad`, in f32.
///
/// Where `keep` is zero the accumulator's old elements count for nothing, even if they are no
/// numbers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Accumulate;

impl Operator for Accumulate {
    fn name(&self) -> &'static str {
        "accumulate"
    }

    fn arity(&self) -> (usize, usize) {
        (4, 4)
    }

    fn infer(&self, operands: &[&TensorType]) -> Result<Types, TypeError> {
        let (acc, grad) = (operands[0], operands[1]);
        float(grad)?;
        if *acc != grad.with_dtype(DType::F32) {
            return Err(TypeError(format!("{acc} does not accumulate {grad}")));
        }
        let scalar = TensorType::scalar(DType::F32);
        if *operands[2] != scalar || *operands[3] != scalar {
            let (keep, weight) = (operands[2], operands[3]);
            return Err(TypeError(format!(
                "expected keep f32[] and weight f32[], found {keep} and {weight}"
            )));
        }
        Ok(one(acc.clone()))
    }

    fn bind(&self, _: &Bindings) -> Option<Op> {
        Some((*self).into())
    }

    fn updates(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    /// A zero, whether `keep` is zero, and a block of the gradient as f32 if it is not.
    fn scratch(&self, operands: &[(&TensorType, &Layout)], _: &[&TensorType]) -> u64 {
        let (grad, layout) = operands[1];
        let block = (grad.dtype != DType::F32).then(|| Blocks::of(layout).bytes());
        let numbers = [DType::F32.size(), DType::Bool.size()];
        pieces(numbers.into_iter().chain(block))
    }

    fn flops(&self, operands: &[&TensorType], _: &[&TensorType]) -> u64 {
        3 * operands[0].elements().unwrap_or(0)
    }

    fn eval(&self, ins: &[&Array], results: &[&TensorType]) -> Result<Vec<Array>, EvalError> {
        let (keep, weight) = (ins[2].at(&[]), ins[3].at(&[]));
        let kept = |acc: f64| if keep == 0.0 { 0.0 } else { keep * acc };
        let pairs = ins[0].data.iter().zip(&ins[1].data);
        let data = pairs.map(|(acc, grad)| kept(*acc) + weight * grad);
        Array::new(results[0], data.collect()).map(|a| vec![a])
    }

    fn decompose(&self, p: &mut Patch<'_>, ins: &[ValueId]) -> Option<Result<Results, PatchError>> {
        let mut build = || {
            let zero = p.scalar(DType::F32, 0.0)?;
            let first = p.binary(BinaryKind::Eq, ins[2], zero)?;
            let old = p.times(ins[0], ins[2])?;
            let old = p.select(first, zero, old)?;
            let grad = p.cast(ins[1], DType::F32)?;
            let new = p.times(grad, ins[3])?;
            Ok([p.plus(old, new)?].into_iter().collect())
        };
        Some(build())
    }
}

pub(super) fn parse(name: &str, _: &mut AttrReader<'_>) -> Option<Result<Op, String>> {
    (name == "accumulate").then(|| Ok(Accumulate.into()))
}
