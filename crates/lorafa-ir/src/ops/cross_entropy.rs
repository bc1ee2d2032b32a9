//! `cross_entropy` and its gradient.

use super::attrs::{AttrReader, Attrs};
use super::{
    BinaryKind, Iota, Op, Operator, ReduceKind, Softmax, Types, UnaryKind, float, index, one,
};
use crate::build::Built;
use crate::dim::{Bindings, Dim};
use crate::dtype::DType;
use crate::grad::{Gradient, GradientError};
use crate::ids::ValueId;
use crate::layout::{Layout, pieces};
use crate::patch::{Patch, PatchError, Results};
use crate::types::{TensorType, TypeError, may_equal};

/// `cross_entropy logits, labels {ignore_index=-100}`: the mean over rows of
/// `-log_softmax(logits)[label]`, rows labelled `ignore_index` left out. Logits are
/// `[rows, classes]`, labels `[rows]`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct CrossEntropy {
    /// The label that does not count.
    pub ignore_index: i64,
}

fn check(logits: &TensorType, labels: &TensorType) -> Result<(), TypeError> {
    float(logits)?;
    index(labels)?;
    if logits.rank() != 2 || labels.rank() != 1 || !may_equal(&logits.shape[0], &labels.shape[0]) {
        return Err(TypeError(format!(
            "expected [rows,classes] and [rows], found {logits} and {labels}"
        )));
    }
    Ok(())
}

impl Operator for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().unless("ignore_index", self.ignore_index, -100)
    }

    fn arity(&self) -> (usize, usize) {
        (2, 2)
    }

    fn infer(&self, operands: &[&TensorType]) -> Result<Types, TypeError> {
        check(operands[0], operands[1])?;
        Ok(one(TensorType::scalar(operands[0].dtype)))
    }

    fn bind(&self, _: &Bindings) -> Option<Op> {
        Some((*self).into())
    }

    /// Needs the logits and the labels: probabilities are computed again.
    fn gradient(&self, g: &mut Gradient<'_, '_>) -> Result<(), GradientError> {
        let ins = [g.dy()?, g.operand(0), g.operand(1)];
        let dx = g.add1(
            CrossEntropyGrad {
                ignore_index: self.ignore_index,
            }
            .into(),
            &ins,
        )?;
        Ok(g.give(0, dx)?)
    }

    /// The log-probabilities, how many labels count, and labels that are not row-major i64 as such.
    fn scratch(&self, operands: &[(&TensorType, &Layout)], _: &[&TensorType]) -> u64 {
        let [(logits, _), labels] = [operands[0], operands[1]];
        let labels = if labels.0.dtype == DType::I64 {
            super::row_major(labels)
        } else {
            super::bytes_as(DType::I64, labels.0)
        };
        pieces([logits.bytes().unwrap_or(0), logits.dtype.size(), labels])
    }

    fn flops(&self, operands: &[&TensorType], _: &[&TensorType]) -> u64 {
        5 * operands[0].elements().unwrap_or(0)
    }

    fn decompose(&self, p: &mut Patch<'_>, ins: &[ValueId]) -> Option<Result<Results, PatchError>> {
        let loss = self.build(p, ins[0], ins[1]);
        Some(loss.map(|loss| [loss].into_iter().collect()))
    }
}

impl CrossEntropy {
    /// The loss of these logits and labels, out of simpler ops.
    pub(super) fn build(&self, p: &mut Patch<'_>, logits: ValueId, labels: ValueId) -> Built {
        let (hits, share) = targets(p, self.ignore_index, logits, labels)?;
        let log = p.add1(Softmax { axis: 1, log: true }.into(), &[logits])?;
        let picked = p.times(log, hits)?;
        let rows = p.reduce(ReduceKind::Sum, picked, [1], true)?;
        let weighted = p.times(rows, share)?;
        let sum = p.reduce(ReduceKind::Sum, weighted, [0, 1], false)?;
        p.unary(UnaryKind::Neg, sum)
    }
}

/// `cross_entropy_grad dloss, logits, labels {ignore_index=-100}`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct CrossEntropyGrad {
    /// The label that does not count.
    pub ignore_index: i64,
}

impl Operator for CrossEntropyGrad {
    fn name(&self) -> &'static str {
        "cross_entropy_grad"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().unless("ignore_index", self.ignore_index, -100)
    }

    fn arity(&self) -> (usize, usize) {
        (3, 3)
    }

    fn infer(&self, operands: &[&TensorType]) -> Result<Types, TypeError> {
        check(operands[1], operands[2])?;
        if *operands[0] != TensorType::scalar(operands[1].dtype) {
            return Err(TypeError(format!(
                "expected a scalar gradient, found {}",
                operands[0]
            )));
        }
        Ok(one(operands[1].clone()))
    }

    fn bind(&self, _: &Bindings) -> Option<Op> {
        Some((*self).into())
    }

    /// The probabilities may overwrite the logits.
    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 1)]
    }

    /// What the labels say, and the gradient at each row's class.
    fn scratch(&self, operands: &[(&TensorType, &Layout)], _: &[&TensorType]) -> u64 {
        let (dtype, labels) = (operands[1].0.dtype, operands[2].0);
        let picked = super::bytes_as(dtype, labels);
        pieces(targets_pieces(labels, dtype).into_iter().chain([picked]))
    }

    fn flops(&self, operands: &[&TensorType], _: &[&TensorType]) -> u64 {
        6 * operands[1].elements().unwrap_or(0)
    }

    fn decompose(&self, p: &mut Patch<'_>, ins: &[ValueId]) -> Option<Result<Results, PatchError>> {
        let grad = self.build(p, ins[0], ins[1], ins[2]);
        Some(grad.map(|grad| [grad].into_iter().collect()))
    }
}

impl CrossEntropyGrad {
    /// The gradient by the logits, out of simpler ops.
    pub(super) fn build(
        &self,
        p: &mut Patch<'_>,
        d_loss: ValueId,
        logits: ValueId,
        labels: ValueId,
    ) -> Built {
        let (hits, share) = targets(p, self.ignore_index, logits, labels)?;
        let (axis, log) = (1, false);
        let y = p.add1(Softmax { axis, log }.into(), &[logits])?;
        let off = p.minus(y, hits)?;
        let share = p.times(share, d_loss)?;
        p.times(off, share)
    }
}

/// Pieces of scratch for what labels say to a loss of type `dtype`: the label that does not count; for each row whether it
/// counts, its share and its class; how many count; labels that are not i64 as such.
pub(super) fn targets_pieces(labels: &TensorType, dtype: DType) -> [u64; 6] {
    let wide = super::bytes_as(DType::I64, labels);
    [
        labels.dtype.size(),
        super::bytes_as(DType::Bool, labels),
        super::bytes_as(dtype, labels),
        dtype.size(),
        wide,
        if labels.dtype == DType::I64 { 0 } else { wide },
    ]
}

/// One-hot rows of the labels, and each row's weight in the mean: `1/counted` or zero.
fn targets(
    p: &mut Patch<'_>,
    ignore_index: i64,
    logits: ValueId,
    labels: ValueId,
) -> Result<(ValueId, ValueId), PatchError> {
    let ty = p.ty(logits).clone();
    let labels_type = p.ty(labels).dtype;
    let column = p.reshape(labels, [ty.shape[0].clone(), Dim::Known(1)])?;
    let classes = Iota {
        dtype: labels_type,
        start: 0.into(),
        step: 1,
        len: ty.shape[1].clone(),
    };
    let classes = p.add1(classes.into(), &[])?;
    let hits = p.binary(BinaryKind::Eq, column, classes)?;
    let hits = p.cast(hits, ty.dtype)?;
    let counted = counted(p, ignore_index, column)?;
    let counted = p.cast(counted, ty.dtype)?;
    let total = p.reduce(ReduceKind::Sum, counted, [0], true)?;
    Ok((hits, p.over(counted, total)?))
}

fn counted(p: &mut Patch<'_>, ignore_index: i64, labels: ValueId) -> Built {
    let ignored = p.scalar_like(labels, ignore_index as f64)?;
    let hit = p.binary(BinaryKind::Eq, labels, ignored)?;
    p.unary(UnaryKind::Not, hit)
}

pub(super) fn parse(name: &str, a: &mut AttrReader<'_>) -> Option<Result<Op, String>> {
    let grad = match name {
        "cross_entropy" => false,
        "cross_entropy_grad" => true,
        _ => return None,
    };
    Some(
        a.int_or("ignore_index", -100)
            .map(|ignore_index| match grad {
                false => CrossEntropy { ignore_index }.into(),
                true => CrossEntropyGrad { ignore_index }.into(),
            }),
    )
}
