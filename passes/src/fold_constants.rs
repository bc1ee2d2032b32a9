//! `fold-constants`: computes now what no step can change.
//!
//! ```text
//! - v0 = constant {value=2.0}        : f32[]
//! - v1 = constant {value=0.5}        : f32[]
//! - v2 = pow v0, v1                  : f32[]
//! + v2 = constant {value=1.4142135}  : f32[]
//!   v3 = fill {value=1}              : bool[2,1,8,8]
//! - v4 = and v3, %mask               : bool[2,1,8,8]
//! ```
//!
//! Small results of constants become constants. A tensor that is one number everywhere stays a
//! `fill` through casts, reshapes and the like, and goes where a logical op or a `select` does not
//! need it. Large tables are left to the step: folding them would trade time for memory.

use crate::pass::{Changed, Pass, PassCx, PassError, PassKind};
use lorafa_ir::interp::{Array, EvalError};
use lorafa_ir::ops::{Binary, BinaryKind, Constant, Fill, Literal, Op, Scalar, Unary, UnaryKind};
use lorafa_ir::{DType, Graph, OpData, OpId, Patch, PatchError, TensorType, ValueId};

/// The largest constant that folding makes, in elements: scalars, shapes and permutations are
/// smaller, tables and masks larger.
const MAX_FOLDED: u64 = 64;

/// See the module.
pub struct FoldConstants;

impl Pass for FoldConstants {
    fn name(&self) -> &'static str {
        "fold-constants"
    }

    fn kind(&self) -> PassKind {
        PassKind::Equivalence
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<Changed, PassError> {
        let mut folded = 0;
        for id in graph.order() {
            folded += usize::from(fold(graph, id)?);
        }
        if folded > 0 {
            cx.note(format_args!("folded {folded} ops"));
        }
        Ok(Changed::from_count(folded))
    }
}

fn fold(graph: &mut Graph, id: OpId) -> Result<bool, PatchError> {
    let op = graph.op(id);
    if op.operands.is_empty() || op.results.len() != 1 {
        return Ok(false);
    }
    if let Some(kind) = evaluated(graph, op).or_else(|| filled(graph, op)) {
        let mut patch = graph.patch("fold-constants");
        let old = patch.graph().op(id).results[0];
        let new = patch.at(id).add1(kind, &[])?;
        return swap(&mut patch, id, old, new);
    }
    if let Some(new) = picked(graph, op) {
        let old = op.results[0];
        return swap(&mut graph.patch("fold-constants"), id, old, new);
    }
    Ok(false)
}

fn swap(patch: &mut Patch<'_>, id: OpId, old: ValueId, new: ValueId) -> Result<bool, PatchError> {
    patch.replace(old, new)?;
    patch.remove(id)?;
    Ok(true)
}

/// The result as a constant, if the operands are and it is small.
fn evaluated(graph: &Graph, op: &OpData) -> Option<Op> {
    let ty = graph.ty(op.results[0]);
    if ty.elements()? > MAX_FOLDED || matches!(op.kind, Op::Dropout(_)) {
        return None;
    }
    let operands: Vec<Array> = op
        .operands
        .iter()
        .map(|v| array(graph, *v)?.ok())
        .collect::<Option<_>>()?;
    let operands: Vec<&Array> = operands.iter().collect();
    let result = op.kind.eval(&operands, &[ty]).ok()?.pop()?;
    let inputs = operands.iter().flat_map(|a| &a.data);
    if !inputs.chain(&result.data).all(|x| is_exact(ty.dtype, *x)) {
        return None;
    }
    let literal = Literal::from_f64(ty.dtype, result.data);
    Some(
        Constant {
            ty: ty.clone(),
            literal,
        }
        .into(),
    )
}

/// Whether a number means the same here and in the step: where one is infinite, not a number or
/// beyond the type's range, implementations differ, and the step decides.
fn is_exact(dtype: DType, x: f64) -> bool {
    dtype.round(x).is_finite() && x.is_finite() && x.abs() <= dtype.round(f64::MAX).abs()
}

fn array(graph: &Graph, value: ValueId) -> Option<Result<Array, EvalError>> {
    match &graph.def(value).kind {
        Op::Constant(c) => Some(Array::new(&c.ty, c.literal.to_f64())),
        _ => None,
    }
}

/// The number that a value is everywhere.
fn uniform(graph: &Graph, value: ValueId) -> Option<f64> {
    match &graph.def(value).kind {
        Op::Constant(c) => c.as_f64(),
        Op::Fill(f) => Some(f.value.0),
        _ => None,
    }
}

/// The result as a fill, if the operands are one number everywhere and the op works elementwise or
/// moves elements.
fn filled(graph: &Graph, op: &OpData) -> Option<Op> {
    let ty = graph.ty(op.results[0]);
    let moves = matches!(
        op.kind,
        Op::Reshape(_) | Op::Expand(_) | Op::Transpose(_) | Op::Slice(_)
    );
    let elementwise = matches!(
        op.kind,
        Op::Unary(_) | Op::Binary(_) | Op::Select(_) | Op::Cast(_)
    );
    let numbers: Vec<f64> = op
        .operands
        .iter()
        .map(|v| uniform(graph, *v))
        .collect::<Option<_>>()?;
    let value = match numbers.as_slice() {
        [x] if moves => *x,
        _ if elementwise => {
            let x = scalar_result(graph, op, &numbers, ty.dtype)?;
            let exact = numbers.iter().chain([&x]).all(|x| is_exact(ty.dtype, *x));
            exact.then_some(x)?
        }
        _ => return None,
    };
    Some(
        Fill {
            ty: ty.clone(),
            value: Scalar(ty.dtype.round(value)),
        }
        .into(),
    )
}

/// What an elementwise op makes of one number an operand.
fn scalar_result(graph: &Graph, op: &OpData, numbers: &[f64], dtype: DType) -> Option<f64> {
    let operands: Vec<Array> = op
        .operands
        .iter()
        .zip(numbers)
        .map(|(v, x)| Array::new(&TensorType::scalar(graph.ty(*v).dtype), vec![*x]).ok())
        .collect::<Option<_>>()?;
    let operands: Vec<&Array> = operands.iter().collect();
    let result = op
        .kind
        .eval(&operands, &[&TensorType::scalar(dtype)])
        .ok()?;
    result.first()?.data.first().copied()
}

/// The operand that the result equals because another one is known.
fn picked(graph: &Graph, op: &OpData) -> Option<ValueId> {
    let same_type = |v: &ValueId| graph.ty(*v) == graph.ty(op.results[0]);
    let number = |slot: usize| uniform(graph, op.operands[slot]);
    let candidate = match op.kind {
        Op::Binary(Binary(kind @ (BinaryKind::And | BinaryKind::Or))) => {
            let neutral = f64::from(u8::from(kind == BinaryKind::And));
            match (number(0), number(1)) {
                (Some(x), _) if x == neutral => op.operands[1],
                (_, Some(x)) if x == neutral => op.operands[0],
                _ => return None,
            }
        }
        Op::Select(_) => op.operands[if number(0)? != 0.0 { 1 } else { 2 }],
        Op::Unary(Unary(UnaryKind::Not)) => {
            let inner = graph.def(op.operands[0]);
            match inner.kind {
                Op::Unary(Unary(UnaryKind::Not)) => inner.operands[0],
                _ => return None,
            }
        }
        _ => return None,
    };
    Some(candidate).filter(same_type)
}
