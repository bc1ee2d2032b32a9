//! `canonicalize`: one form for what exporters spell in several ways.
//!
//! ```text
//! - v0 = transpose %w {perm=[1,0]}    : f32[8,4]
//! - v1 = matmul %x, v0                : f32[2,4]
//! + v1 = matmul %x, %w {trans_b}      : f32[2,4]
//!   v2 = reshape v1 {shape=[2,2,2]}   : f32[2,2,2]
//! - v3 = reshape v2 {shape=[4,2]}     : f32[4,2]
//! + v3 = reshape v1 {shape=[4,2]}     : f32[4,2]
//! ```
//!
//! Ops that change nothing go, chains of reshapes and of transposes become one, a transpose of the
//! last two axes becomes a flag of the product that reads it, products of batches that were merged for
//! them have them apart, and constants stand on the right of ops that commute. Every rule gives the same
//! numbers to the last bit.

use crate::pass::{Changed, Pass, PassCx, PassError, PassKind};
use lorafa_ir::ops::{Binary, BinaryKind, Cast, MatMul, Op, Transpose};
use lorafa_ir::{DType, Graph, OpData, OpId, Patch, PatchError, ValueId};

/// See the module.
pub struct Canonicalize;

impl Pass for Canonicalize {
    fn name(&self) -> &'static str {
        "canonicalize"
    }

    fn kind(&self) -> PassKind {
        PassKind::Canonicalize
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<Changed, PassError> {
        let mut edits = 0;
        for id in graph.order() {
            for rule in RULES {
                let mut patch = graph.patch(rule.name);
                (rule.apply)(&mut patch, id)?;
                edits += patch.changes();
                if patch.graph().get_op(id).is_none() {
                    break;
                }
            }
        }
        if edits > 0 {
            cx.note(format_args!("{edits} edits"));
        }
        Ok(Changed::from_count(edits))
    }
}

/// A rewrite of one op, whose operands are in canonical form already.
struct Rule {
    name: &'static str,
    apply: fn(&mut Patch<'_>, OpId) -> Result<(), PatchError>,
}

const RULES: &[Rule] = &[
    Rule {
        name: "merge-reshapes",
        apply: merge_reshapes,
    },
    Rule {
        name: "merge-transposes",
        apply: merge_transposes,
    },
    Rule {
        name: "keep-batches-apart",
        apply: keep_batches_apart,
    },
    Rule {
        name: "transpose-into-matmul",
        apply: transpose_into_matmul,
    },
    Rule {
        name: "constant-right",
        apply: constant_right,
    },
    Rule {
        name: "drop-no-op",
        apply: drop_no_op,
    },
];

/// The op that defines operand `slot`.
fn operand<'g>(graph: &'g Graph, op: &OpData, slot: usize) -> &'g OpData {
    graph.def(op.operands[slot])
}

/// `reshape (reshape x)` is `reshape x`, but where that would copy again what is copied already: a reshape of what is
/// transposed or cut lays it out, for others too, and one of that is a view.
fn merge_reshapes(p: &mut Patch<'_>, id: OpId) -> Result<(), PatchError> {
    let graph = p.graph();
    let op = graph.op(id);
    let Op::Reshape(_) = op.kind else {
        return Ok(());
    };
    let inner = operand(graph, op, 0);
    let Op::Reshape(_) = inner.kind else {
        return Ok(());
    };
    let x = inner.operands[0];
    let askew = matches!(
        graph.def(x).kind,
        Op::Transpose(_) | Op::Slice(_) | Op::Expand(_)
    );
    let shared = graph.reads(inner.results[0]).nth(1).is_some();
    if !(askew && shared) {
        p.set_operand(id, 0, x);
    }
    Ok(())
}

/// `transpose (transpose x)` is one transpose.
fn merge_transposes(p: &mut Patch<'_>, id: OpId) -> Result<(), PatchError> {
    let op = p.graph().op(id);
    let Op::Transpose(outer) = &op.kind else {
        return Ok(());
    };
    let def = operand(p.graph(), op, 0);
    if let Op::Transpose(inner) = &def.kind {
        let perm = outer.perm.iter().map(|axis| inner.perm[*axis]).collect();
        let x = def.operands[0];
        p.set_kind(id, Transpose { perm }.into());
        p.set_operand(id, 0, x);
    }
    Ok(())
}

/// `matmul (reshape x), (reshape y)` is `reshape (matmul x, y)` where both only merged the same batches, as is done for
/// operators that know of one.
fn keep_batches_apart(p: &mut Patch<'_>, id: OpId) -> Result<(), PatchError> {
    let graph = p.graph();
    let op = graph.op(id);
    let (kind, old) = (op.kind.clone(), op.results[0]);
    if !matches!(kind, Op::MatMul(_)) || op.operands.len() != 2 {
        return Ok(());
    }
    let (Some(x), Some(y)) = (apart(graph, op.operands[0]), apart(graph, op.operands[1])) else {
        return Ok(());
    };
    let batches = |value| graph.ty(value).shape.split_last_chunk::<2>();
    if batches(x).map(|(batch, _)| batch) != batches(y).map(|(batch, _)| batch) {
        return Ok(());
    }
    let shape = graph.ty(old).shape.clone();
    p.at(id);
    let product = p.add1(kind, &[x, y])?;
    let merged = p.reshape(product, shape)?;
    p.replace(old, merged)?;
    p.remove(id)?;
    let product = p.graph().value(product).op;
    transpose_into_matmul(p, product)
}

/// What a batch of matrices was before its batches were merged.
fn apart(graph: &Graph, value: ValueId) -> Option<ValueId> {
    let op = graph.def(value);
    let Op::Reshape(_) = op.kind else {
        return None;
    };
    let (one, many) = (&graph.ty(value).shape, &graph.ty(op.operands[0]).shape);
    let (_, matrix) = many.split_last_chunk::<2>()?;
    (one.len() == 3 && many.len() > 3 && one.ends_with(matrix)).then_some(op.operands[0])
}

/// A product of a matrix whose last two axes were swapped swaps them itself.
fn transpose_into_matmul(p: &mut Patch<'_>, id: OpId) -> Result<(), PatchError> {
    for slot in 0..2 {
        let op = p.graph().op(id);
        let Op::MatMul(product) = op.kind else {
            return Ok(());
        };
        let def = operand(p.graph(), op, slot);
        let Op::Transpose(swap) = &def.kind else {
            continue;
        };
        if !swap.swaps_last_two() {
            continue;
        }
        let x = def.operands[0];
        let flagged = match slot {
            0 => MatMul {
                trans_a: !product.trans_a,
                ..product
            },
            _ => MatMul {
                trans_b: !product.trans_b,
                ..product
            },
        };
        p.set_kind(id, flagged.into());
        p.set_operand(id, slot, x);
    }
    Ok(())
}

/// `2 * x` is `x * 2`.
fn constant_right(p: &mut Patch<'_>, id: OpId) -> Result<(), PatchError> {
    let op = p.graph().op(id);
    let Op::Binary(Binary(kind)) = op.kind else {
        return Ok(());
    };
    let is_constant = |slot| matches!(operand(p.graph(), op, slot).kind, Op::Constant(_));
    if kind.commutes() && is_constant(0) && !is_constant(1) {
        let (l, r) = (op.operands[0], op.operands[1]);
        p.set_operand(id, 0, r);
        p.set_operand(id, 1, l);
    }
    Ok(())
}

/// What only passes its operand on goes.
fn drop_no_op(p: &mut Patch<'_>, id: OpId) -> Result<(), PatchError> {
    let graph = p.graph();
    let op = graph.op(id);
    let Some(x) = passes_on(graph, op).filter(|x| graph.ty(*x) == graph.ty(op.results[0])) else {
        return Ok(());
    };
    let y = op.results[0];
    p.replace(y, x)?;
    p.remove(id)
}

/// The value that an op gives again, if that has the type of its result.
fn passes_on(graph: &Graph, op: &OpData) -> Option<ValueId> {
    let x = *op.operands.first()?;
    match &op.kind {
        Op::Reshape(_) | Op::Expand(_) => Some(x),
        Op::Transpose(t) => t
            .perm
            .iter()
            .enumerate()
            .all(|(i, axis)| i == *axis)
            .then_some(x),
        Op::Slice(s) => s
            .axes
            .iter()
            .all(|a| a.start.is(0) && a.step == 1)
            .then_some(x),
        Op::Pad(p) => p
            .before
            .iter()
            .chain(&p.after)
            .all(|d| d.is(0))
            .then_some(x),
        Op::Concat(_) => (op.operands.len() == 1).then_some(x),
        Op::Cast(cast) => undone(graph, x, *cast),
        Op::Binary(Binary(kind)) => {
            let Op::Constant(c) = &operand(graph, op, 1).kind else {
                return None;
            };
            let neutral = match kind {
                BinaryKind::Mul | BinaryKind::Div => 1.0,
                _ => return None,
            };
            (c.as_f64() == Some(neutral)).then_some(x)
        }
        _ => None,
    }
}

/// What a cast gives back: its operand if that has the type, or what was widened to give it.
fn undone(graph: &Graph, x: ValueId, cast: Cast) -> Option<ValueId> {
    if graph.ty(x).dtype == cast.to {
        return Some(x);
    }
    let inner = graph.def(x);
    let source = *inner
        .operands
        .first()
        .filter(|_| matches!(inner.kind, Op::Cast(_)))?;
    let (narrow, wide) = (graph.ty(source).dtype, graph.ty(x).dtype);
    (narrow == cast.to && widens(narrow, wide)).then_some(source)
}

/// Whether every value of one float type is one of the other.
fn widens(from: DType, to: DType) -> bool {
    matches!(
        (from, to),
        (DType::F16 | DType::BF16, DType::F32 | DType::F64) | (DType::F32, DType::F64)
    )
}
