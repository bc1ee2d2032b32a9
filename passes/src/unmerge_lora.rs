//! `unmerge-lora`: products with merged adapters become products with their matrices.
//!
//! ```text
//! - v0 = matmul %b, %a                : f32[8,8]
//! - v1 = mul v0, v3                   : f32[8,8]
//! - v2 = add %w, v1                   : f32[8,8]
//! - v4 = matmul %x, v2 {trans_b}      : f32[4,8]
//! + v5 = matmul %x, %w {trans_b}      : f32[4,8]
//! + v6 = matmul %x, %a {trans_b}      : f32[4,2]
//! + v7 = matmul v6, %b {trans_b}      : f32[4,8]
//! + v8 = mul v7, v3                   : f32[4,8]
//! + v4 = add v5, v8                   : f32[4,8]
//! ```
//!
//! `x·(W + s·A·B)` and `x·(A·B)` compute a matrix as large as the weight, and a training graph keeps it, and `x` for its
//! gradient. Only `x·W + s·(x·A)·B` has the narrow `x·A` that the gradient of B can be made of, and that `find-lora` looks for. The
//! same holds of what the backward pass hands on, `dy·(W + s·A·B)ᵀ`. That a matrix is a product of two weights over an inner
//! dimension smaller than both outer ones is all that counts.

use crate::find_lora::weight;
use crate::matching::{MAX_STEPS, either, plain_product, times};
use crate::pass::{Changed, Pass, PassCx, PassError, PassKind};
use lorafa_ir::ops::{Binary, BinaryKind, MatMul, Op};
use lorafa_ir::{Graph, OpData, OpId, PatchError, ValueId};

/// See the module.
pub struct UnmergeLora;

impl Pass for UnmergeLora {
    fn name(&self) -> &'static str {
        "unmerge-lora"
    }

    fn kind(&self) -> PassKind {
        PassKind::Canonicalize
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<Changed, PassError> {
        let mut products = 0;
        for id in graph.order() {
            // A layer may have several adapters.
            let mut next = Some(id);
            for _ in 0..MAX_STEPS {
                let Some(id) = next.take() else { break };
                if let Some((slot, merged)) = find(graph, graph.op(id)) {
                    next = unmerge(graph, id, slot, &merged)?;
                    products += 1;
                }
            }
        }
        if products > 0 {
            cx.note(format_args!("{products} products with merged matrices"));
        }
        Ok(Changed::from_count(products))
    }
}

/// A matrix, to be transposed if the flag is set.
type Matrix = (ValueId, bool);

/// `base + scale·left·right`, or that without a base.
struct Merged {
    base: Option<Matrix>,
    left: Matrix,
    right: Matrix,
    scale: f64,
}

/// The operand of a product that is a merged matrix.
fn find(graph: &Graph, op: &OpData) -> Option<(usize, Merged)> {
    let product = plain_product(op)?;
    let flags = [product.trans_a, product.trans_b];
    (0..2).find_map(|slot| {
        let x = weight(graph, op, 1 - slot).is_none();
        let merged = merged(graph, (op.operands[slot], flags[slot]), (true, MAX_STEPS))?;
        x.then_some((slot, merged))
    })
}

/// What is merged in a matrix, at most so many steps behind it; without a base, if that may not be.
fn merged(graph: &Graph, (value, turned): Matrix, (based, steps): (bool, usize)) -> Option<Merged> {
    let op = graph.def(value);
    let steps = steps.checked_sub(1)?;
    match &op.kind {
        Op::MatMul(_) => low_rank(graph, op, turned),
        Op::Transpose(transpose) if transpose.swaps_last_two() => {
            merged(graph, (op.operands[0], !turned), (based, steps))
        }
        Op::Binary(Binary(BinaryKind::Add)) if based => {
            let mut summands = either(graph, value, BinaryKind::Add);
            summands.find_map(|(base, low)| {
                let alike = graph.ty(base) == graph.ty(low);
                let found = merged(graph, (low, turned), (false, steps))?;
                alike.then_some(Merged {
                    base: Some((base, turned)),
                    ..found
                })
            })
        }
        _ => {
            let (low, by) = times(graph, value)?;
            let found = merged(graph, (low, turned), (false, steps))?;
            let scale = found.scale * by;
            Some(Merged { scale, ..found })
        }
    }
}

/// A product of two weights over an inner dimension smaller than both outer ones.
fn low_rank(graph: &Graph, op: &OpData, turned: bool) -> Option<Merged> {
    let product = plain_product(op)?;
    let [a, b] = [weight(graph, op, 0)?.param, weight(graph, op, 1)?.param];
    let inner = graph.ty(op.operands[0]).known_shape()?;
    let inner = inner[if product.trans_a { 0 } else { 1 }];
    let outer = graph.ty(op.results[0]).known_shape()?;
    let narrow = a != b && outer.len() == 2 && outer.iter().all(|n| inner < *n);
    let (l, r) = (
        (op.operands[0], product.trans_a),
        (op.operands[1], product.trans_b),
    );
    let (left, right) = match turned {
        false => (l, r),
        true => ((r.0, !r.1), (l.0, !l.1)),
    };
    narrow.then_some(Merged {
        base: None,
        left,
        right,
        scale: 1.0,
    })
}

/// Makes the products with a merged matrix's parts, and of them the result; the product with the base, if there is one.
fn unmerge(
    graph: &mut Graph,
    id: OpId,
    slot: usize,
    merged: &Merged,
) -> Result<Option<OpId>, PatchError> {
    let op = graph.op(id);
    let (x, kind) = (op.operands[1 - slot], op.kind.clone());
    let Op::MatMul(kind) = kind else {
        return Ok(None);
    };
    let turned = if slot == 1 {
        kind.trans_a
    } else {
        kind.trans_b
    };
    // What one side of the product is multiplied with, in this order.
    let near_to_far = match slot {
        1 => [merged.left, merged.right],
        _ => [merged.right, merged.left],
    };
    let with = |(x, turned): Matrix, (matrix, flag): Matrix| match slot {
        1 => (MatMul::new(turned, flag), [x, matrix]),
        _ => (MatMul::new(flag, turned), [matrix, x]),
    };
    let mut patch = graph.patch("unmerge-lora");
    patch.at(id);
    let base = match merged.base {
        Some(base) => {
            let (kind, factors) = with((x, turned), base);
            Some(patch.add1(kind.into(), &factors)?)
        }
        None => None,
    };
    let (kind, factors) = with((x, turned), near_to_far[0]);
    let narrow = patch.add1(kind.into(), &factors)?;
    let (kind, factors) = with((narrow, false), near_to_far[1]);
    let by = merged.scale;
    match base {
        None if by == 1.0 => patch.rewrite(id, kind.into(), &factors)?,
        None => {
            let wide = patch.add1(kind.into(), &factors)?;
            let by = patch.scalar_like(wide, by)?;
            patch.rewrite(id, Binary(BinaryKind::Mul).into(), &[wide, by])?;
        }
        Some(base) => {
            let wide = patch.add1(kind.into(), &factors)?;
            let wide = patch.scaled(wide, by)?;
            patch.rewrite(id, Binary(BinaryKind::Add).into(), &[base, wide])?;
        }
    }
    Ok(base.map(|base| graph.value(base).op))
}
