//! The gradient of `attention`.

use super::attention::{extras, part, spread};
use super::attrs::Attrs;
use super::{
    Attention, AttentionBlock, AttentionSizes, DropoutGrad, DropoutMask, Op, Operator, ReduceKind,
    Types, UnaryKind,
};
use crate::build::Built;
use crate::dim::Bindings;
use crate::ids::ValueId;
use crate::layout::{Layout, pieces};
use crate::patch::{Patch, PatchError, Results};
use crate::types::{Shape, TensorType, TypeError, line_up};

/// `attention_grad dout, q, k, v, out, lse, mask, bias {scale=0.125, causal, window=4096, dropout=0.1, seed=3, bias}` gives the gradients of
/// queries, keys and values, and of the bias if asked. Mask and bias are there if the attention has them; `out` and `lse`
/// are what it gave.
///
/// The first three are `[batch, rows, heads, width]`, as the products that follow read them; the bias's is in the type of
/// `lse`. Weights are computed again, block by block, and who survived dropout is drawn again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct AttentionGrad {
    /// Of which attention.
    pub of: Attention,
    /// Whether something is trained that leads to the bias.
    pub bias: bool,
}

/// Queries, keys, values, mask and bias, as the attention has them.
fn forward<T: Copy>(operands: &[T]) -> Vec<T> {
    let extras = operands.iter().skip(6);
    operands
        .iter()
        .skip(1)
        .take(3)
        .chain(extras)
        .copied()
        .collect()
}

/// The layout with rows before heads as heads before rows.
fn heads_first(layout: &Layout) -> Layout {
    let mut layout = layout.clone();
    if layout.shape.len() == 4 {
        layout.shape.swap(1, 2);
        layout.strides.swap(1, 2);
    }
    layout
}

impl Operator for AttentionGrad {
    fn name(&self) -> &'static str {
        "attention_grad"
    }

    fn attrs(&self) -> Attrs {
        self.of.attrs().flag("bias", self.bias)
    }

    fn arity(&self) -> (usize, usize) {
        (6, 8)
    }

    fn infer(&self, operands: &[&TensorType]) -> Result<Types, TypeError> {
        let ins = forward(operands);
        let results = self.of.check(&ins)?;
        let same =
            |a: &TensorType, b: &TensorType| a.dtype == b.dtype && line_up(&a.shape, &b.shape);
        for (operand, result) in [(0, 0), (4, 0), (5, 1)] {
            let (found, expected) = (operands[operand], &results[result]);
            if !same(found, expected) {
                return Err(TypeError(format!("expected {expected}, found {found}")));
            }
        }
        let rows_first = |x: &TensorType| {
            let [b, h, s, d] = [0, 1, 2, 3].map(|axis| x.shape[axis].clone());
            x.with_shape([b, s, h, d])
        };
        let mut types: Types = ins[..3].iter().map(|x| rows_first(x)).collect();
        if self.bias {
            let (_, bias) = extras(&ins[3..]);
            let bias = bias.ok_or_else(|| TypeError("there is no bias".into()))?;
            types.push(bias.with_dtype(results[1].dtype));
        }
        Ok(types)
    }

    fn bind(&self, _: &Bindings) -> Option<Op> {
        Some((*self).into())
    }

    fn writes_strided(&self) -> bool {
        true
    }

    /// The weights of a block and their gradients, for each of its rows a sum and whether it sees anything, what scores are masked
    /// with and who survives dropout; copies of operands that are not read as they are, results that are not written as
    /// they are made, and the part of the bias's gradient.
    fn scratch(&self, operands: &[(&TensorType, &Layout)], _: &[&TensorType]) -> u64 {
        let types: Vec<&TensorType> = operands.iter().map(|(ty, _)| *ty).collect();
        let Some(s) = AttentionSizes::of(types[1], types[2], types[3]) else {
            return 0;
        };
        let (mask, bias) = extras(&types[6..]);
        let block = s.block(2);
        let (scores, rows) = s.of_block(block);
        let blind = self.of.may_see_nothing(operands.len() - 3);
        let when = |on: bool, numbers: u64| if on { s.bytes(numbers) } else { 0 };
        let copy = |slot: usize, numbers: u64| when(s.copies(block, operands[slot].1), numbers);
        let keys = block.sequences * s.groups * s.keys;
        let d_out = s.copies(block, &heads_first(operands[0].1));
        let result = |numbers: u64| when(s.collects(block), numbers);
        let bias = bias.filter(|bias| self.bias && summed(&s, block, bias));
        let bias = bias.and_then(|bias| part(block, bias));
        let own = [
            s.bytes(scores),
            s.bytes(scores),
            s.bytes(rows),
            when(blind, rows),
            when(blind, 1),
        ];
        let copies = [
            copy(1, rows * s.width),
            copy(2, keys * s.width),
            copy(3, keys * s.value_width),
            when(d_out || blind, rows * s.value_width),
            result(rows * s.width),
            result(keys * s.width),
            result(keys * s.value_width),
            bias.map_or(0, |shape| s.bytes(shape.iter().product())),
        ];
        let masks = s.mask_bytes(block, self.of.causal, mask);
        let dropped = s.dropout_bytes(block, self.of.dropout);
        pieces(own.into_iter().chain(masks).chain(dropped).chain(copies))
    }

    fn flops(&self, operands: &[&TensorType], _: &[&TensorType]) -> u64 {
        let sizes = AttentionSizes::of(operands[1], operands[2], operands[3]);
        sizes.map_or(0, |s| {
            let widths = 3 * s.width + 2 * s.value_width;
            self.of.product_flops(&s, widths)
        })
    }

    fn decompose(&self, p: &mut Patch<'_>, ins: &[ValueId]) -> Option<Result<Results, PatchError>> {
        Some(self.build(p, ins))
    }
}

/// Whether the bias's gradient is a sum over an axis of a block.
fn summed(s: &AttentionSizes, block: AttentionBlock, bias: &TensorType) -> bool {
    let full = [block.sequences, s.heads, s.rows, s.keys];
    let lasting = part(
        AttentionBlock {
            sequences: s.batch,
            rows: s.rows,
        },
        bias,
    );
    lasting.is_some_and(|shape| shape.iter().zip(full).any(|(n, full)| *n == 1 && full != 1))
}

impl AttentionGrad {
    fn build(&self, p: &mut Patch<'_>, ins: &[ValueId]) -> Result<Results, PatchError> {
        let operands = forward(ins);
        let [q, k, v] = [operands[0], operands[1], operands[2]];
        let (dtype, heads) = (p.ty(q).dtype, p.ty(q).shape[1].clone());
        let (groups, wide) = (p.ty(k).shape[1].clone(), p.ty(ins[5]).dtype);
        let scores = self.of.scores(p, &operands)?;
        let sums = p.unsqueeze(ins[5], 3)?;
        let weights = p.minus(scores, sums)?;
        let weights = p.unary(UnaryKind::Exp, weights)?;
        let wide_rows = |p: &mut Patch<'_>, x: ValueId| -> Built {
            let x = p.cast(x, wide)?;
            p.transpose(x, [0, 2, 1, 3])
        };
        let (dout, out) = (wide_rows(p, ins[0])?, wide_rows(p, ins[4])?);
        let product = p.times(dout, out)?;
        let delta = p.reduce(ReduceKind::Sum, product, [3], true)?;
        let values = spread(p, v, &heads)?;
        let mut d_weights = p.matmul(dout, values, false, true)?;
        let mut kept = weights;
        if let Some(of) = self.of.dropout {
            let shape = p.ty(weights).shape.clone();
            let mask = p.add1(DropoutMask { of, shape }.into(), &[])?;
            let survivors = DropoutGrad { ratio: of.ratio };
            kept = p.add1(survivors.into(), &[weights, mask])?;
            d_weights = p.add1(survivors.into(), &[d_weights, mask])?;
        }
        let d_scores = p.minus(d_weights, delta)?;
        let d_scores = p.times(weights, d_scores)?;
        let keys = spread(p, k, &heads)?;
        let dq = p.matmul(d_scores, keys, false, false)?;
        let dq = p.scaled(dq, self.of.scale.0)?;
        let queries = p.cast(q, wide)?;
        let dk = p.matmul(d_scores, queries, true, false)?;
        let dk = p.scaled(dk, self.of.scale.0)?;
        let dv = p.matmul(kept, dout, true, false)?;
        let mut results = Results::new();
        for (grad, heads) in [(dq, &heads), (dk, &groups), (dv, &groups)] {
            let sum = gathered(p, grad, heads)?;
            let sum = p.transpose(sum, [0, 2, 1, 3])?;
            results.push(p.cast(sum, dtype)?);
        }
        if self.bias {
            let bias = operands[3..].iter().find(|v| p.ty(**v).dtype.is_float());
            if let Some(bias) = bias {
                let shape = p.ty(*bias).shape.clone();
                results.push(p.unbroadcast(d_scores, &shape)?);
            }
        }
        Ok(results)
    }
}

/// The sum over the query heads that read one group.
fn gathered(p: &mut Patch<'_>, x: ValueId, groups: &crate::dim::Dim) -> Built {
    let shape: Shape = p.ty(x).shape.clone();
    let [b, heads, s, d] = shape.as_slice() else {
        return Ok(x);
    };
    let Some(share) = heads.exact_div(groups).filter(|n| !n.is(1)) else {
        return Ok(x);
    };
    let x = p.reshape(x, [b, groups, &share, s, d].into_iter().cloned())?;
    p.reduce(ReduceKind::Sum, x, [2], false)
}
