//! `attention`: what `softmax(q·kᵀ)·v` is for, without its matrix of scores.

use super::attrs::{AttrReader, Attrs};
use super::{
    AttentionGrad, BinaryKind, Dropout, Iota, Op, Operator, ReduceKind, Scalar, Types, UnaryKind,
    float, same_dtype,
};
use crate::build::Built;
use crate::dim::{Bindings, Dim};
use crate::dtype::DType;
use crate::grad::{Gradient, GradientError};
use crate::ids::ValueId;
use crate::layout::{Layout, pieces};
use crate::patch::{Patch, PatchError, Results};
use crate::types::{Shape, TensorType, TypeError, broadcast, line_up, may_equal};

/// `attention q, k, v, mask, bias {scale=0.125, causal, window=4096, dropout=0.1, seed=3}` gives the result and the logarithm of each row's
/// sum of exponentials.
///
/// Queries are `[batch, heads, rows, width]`, keys `[batch, groups, keys, width]` and values
/// `[batch, groups, keys, value width]`; `heads` is a multiple of `groups`, and query head `i` reads group
/// `i / (heads / groups)`. Mask and bias may be left out, either alone too, and broadcast to
/// `[batch, heads, rows, keys]`: the mask is bool and says which keys a query sees, the bias is added to the scores. The
/// result is `[batch, rows, heads, value width]`, as the product that follows reads it, the logarithms are
/// `[batch, heads, rows]`.
///
/// Scores are `scale·q·kᵀ + bias`, in f32 if the operands are narrower; what a query does not see has minus infinity.
/// Weights are dropped as [`Dropout`] with this ratio and seed drops elements of `[batch, heads, rows, keys]`; logarithms
/// are of all weights.
/// A query that sees no key, or whose every score is at most [`UNSEEN`], gives zero; its logarithm is plus infinity.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Attention {
    /// Multiplies the products of queries and keys.
    pub scale: Scalar,
    /// Query `i` sees no key after key `i`.
    pub causal: bool,
    /// With `causal`: how many keys a query sees at most, the one at its own place being the last.
    pub window: Option<u64>,
    /// Which weights are dropped.
    pub dropout: Option<Dropout>,
}

/// Scores up to here count as minus infinity: models mask with the least number of f32 or bf16.
pub const UNSEEN: f64 = -1e38;

/// Bytes of scores that a kernel has at once: those that stay in a CPU's cache from one call to the next.
const BLOCK_BYTES: u64 = 4 << 20;

/// Rows of a block, even if their scores are more: products of fewer leave a GPU idle.
const BLOCK_ROWS: u64 = 128;

/// Bytes of the scores of these, unless one row of every head takes more.
const MOST_BYTES: u64 = 32 << 20;

/// Bytes of scores and copies of short sequences that a kernel takes together, so that calls cost little beside what they
/// do.
const TOGETHER_BYTES: u64 = 16 << 20;

/// The sizes of an attention in numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AttentionSizes {
    /// Sequences.
    pub batch: u64,
    /// Query heads.
    pub heads: u64,
    /// Heads of keys and values.
    pub groups: u64,
    /// Queries of a sequence.
    pub rows: u64,
    /// Keys of a sequence.
    pub keys: u64,
    /// Elements of a query and of a key.
    pub width: u64,
    /// Elements of a value.
    pub value_width: u64,
    /// The element type of queries, keys and values.
    pub dtype: DType,
    /// The element type of scores.
    pub wide: DType,
}

/// What a kernel of an attention works on at once: all rows, if of more than one sequence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AttentionBlock {
    /// Sequences.
    pub sequences: u64,
    /// Queries of every head of each.
    pub rows: u64,
}

impl AttentionSizes {
    /// From the element type and the shapes of queries, keys and values; `None` if they have not four axes each.
    pub fn new(dtype: DType, [q, k, v]: [&[u64]; 3]) -> Option<Self> {
        let ([batch, heads, rows, width], [_, groups, keys, _], [_, _, _, value_width]) = (q, k, v)
        else {
            return None;
        };
        Some(AttentionSizes {
            batch: *batch,
            heads: *heads,
            groups: *groups,
            rows: *rows,
            keys: *keys,
            width: *width,
            value_width: *value_width,
            dtype,
            wide: wide(dtype),
        })
    }

    /// From the types of queries, keys and values; `None` if they have symbols.
    pub(super) fn of(q: &TensorType, k: &TensorType, v: &TensorType) -> Option<Self> {
        let shapes = [q.known_shape()?, k.known_shape()?, v.known_shape()?];
        Self::new(q.dtype, shapes.each_ref().map(|shape| shape.as_slice()))
    }

    /// What a kernel takes at once that keeps so many matrices of scores.
    pub fn block(&self, matrices: u64) -> AttentionBlock {
        let one = matrices * self.heads * self.wide.size();
        let (scores, copies) = (one * self.keys, one * 2 * (self.width + self.value_width));
        let rows = BLOCK_BYTES / scores.max(1);
        let rows = rows.max(BLOCK_ROWS.min(MOST_BYTES / scores.max(1)));
        let rows = rows.clamp(1, self.rows.max(1));
        let together = TOGETHER_BYTES / (self.rows * (scores + copies)).max(1);
        let most = if rows < self.rows {
            1
        } else {
            self.batch.max(1)
        };
        AttentionBlock {
            sequences: together.clamp(1, most),
            rows,
        }
    }

    /// Whether a kernel reads an operand `[batch, heads, rows, width]` from a copy: one of 16 bits, one whose matrices BLAS
    /// cannot read, one of several sequences at once whose heads are not evenly apart.
    pub fn copies(&self, block: AttentionBlock, operand: &Layout) -> bool {
        let evenly = match (operand.shape.as_slice(), operand.strides.as_slice()) {
            ([_, heads, ..], [far, near, ..]) => *heads == 1 || *far == heads * near,
            _ => true,
        };
        self.dtype.is_half() || !operand.matrix_fits() || block.sequences > 1 && !evenly
    }

    /// Whether a kernel has a result `[batch, rows, heads, width]` elsewhere before it is written.
    pub fn collects(&self, block: AttentionBlock) -> bool {
        self.dtype.is_half() || block.sequences > 1
    }

    /// The longest axis of a block of scores.
    pub fn longest(&self, block: AttentionBlock) -> u64 {
        let axes = [block.sequences, self.heads, block.rows, self.keys];
        axes.into_iter().max().unwrap_or(0)
    }

    /// Bytes of the mask of a block's dropout, of the numbers up to its longest axis, and of a zero. The rest of what it is
    /// drawn in will be scores.
    pub(super) fn dropout_bytes(
        &self,
        block: AttentionBlock,
        dropout: Option<Dropout>,
    ) -> [u64; 3] {
        let (scores, _) = self.of_block(block);
        dropout.map_or([0; 3], |_| {
            let (mask, longest) = (scores * DType::Bool.size(), self.longest(block));
            [mask, longest * DType::I64.size(), self.bytes(1)]
        })
    }

    /// Bytes of numbers in the type of scores.
    pub(super) fn bytes(&self, numbers: u64) -> u64 {
        numbers * self.wide.size()
    }

    /// Scores of a block, and how many rows of heads they are.
    pub(super) fn of_block(&self, block: AttentionBlock) -> (u64, u64) {
        let rows = block.sequences * self.heads * block.rows;
        (rows * self.keys, rows)
    }

    /// Bytes of what scores are masked with: a triangle, and a block of the mask as numbers.
    pub(super) fn mask_bytes(
        &self,
        block: AttentionBlock,
        causal: bool,
        mask: Option<&TensorType>,
    ) -> [u64; 2] {
        let triangle = if causal { block.rows * block.rows } else { 0 };
        let mask = mask.and_then(|mask| part(block, mask));
        let mask = mask.map_or(0, |shape| shape.iter().product());
        [self.bytes(triangle), self.bytes(mask)]
    }
}

/// The type of scores and sums.
fn wide(dtype: DType) -> DType {
    if dtype.is_half() { DType::F32 } else { dtype }
}

/// Of the operands after queries, keys and values: which is the mask, and which the bias.
pub(super) fn extras<'a>(
    operands: &[&'a TensorType],
) -> (Option<&'a TensorType>, Option<&'a TensorType>) {
    let find = |bool| {
        let mut of_kind = operands.iter().filter(|t| (t.dtype == DType::Bool) == bool);
        of_kind.next().copied()
    };
    (find(true), find(false))
}

/// The part of a mask or a bias that belongs to a block.
pub(super) fn part(block: AttentionBlock, extra: &TensorType) -> Option<[u64; 4]> {
    let shape = extra.known_shape()?;
    let at = |from_end: usize| {
        let axis = shape.len().checked_sub(from_end);
        axis.map_or(1, |axis| shape[axis])
    };
    Some([
        at(4).min(block.sequences),
        at(3),
        at(2).min(block.rows),
        at(1),
    ])
}

impl Attention {
    /// The type of the result and of the logarithms.
    pub(super) fn check(&self, operands: &[&TensorType]) -> Result<Types, TypeError> {
        let [q, k, v, rest @ ..] = operands else {
            return Err(TypeError("expected queries, keys and values".into()));
        };
        same_dtype(&[q, k, v])?;
        float(q)?;
        let odd = || TypeError(format!("{q}, {k} and {v} do not line up"));
        let ([b, h, s, d], [kb, g, t, kd], [vb, vg, vt, dv]) =
            (q.shape.as_slice(), k.shape.as_slice(), v.shape.as_slice())
        else {
            return Err(odd());
        };
        let grouped = match (h.known(), g.known()) {
            (Some(h), Some(g)) => g > 0 && h % g == 0,
            _ => true,
        };
        if !line_up([b, b, g, t, d], [kb, vb, vg, vt, kd]) || !grouped {
            return Err(odd());
        }
        let scores: Shape = [b, h, s, t].into_iter().cloned().collect();
        let wide = wide(q.dtype);
        for (slot, extra) in rest.iter().enumerate() {
            let is_mask = extra.dtype == DType::Bool;
            if (slot == 1 || !is_mask) && (is_mask || ![q.dtype, wide].contains(&extra.dtype))
                || slot == 1 && rest[0].dtype != DType::Bool
            {
                return Err(TypeError(format!(
                    "expected a bool mask or a bias of {wide}, the mask first, found {extra}"
                )));
            }
            let shape = broadcast(&extra.shape, &scores)?;
            if shape.len() != 4 || !shape.iter().zip(&scores).all(|(a, b)| may_equal(a, b)) {
                return Err(TypeError(format!(
                    "{extra} does not broadcast to the scores of {q} and {k}"
                )));
            }
        }
        match self.window {
            Some(0) => return Err(TypeError("a window of nothing".into())),
            Some(_) if !self.causal => {
                return Err(TypeError("a window without `causal`".into()));
            }
            _ => {}
        }
        if let Some(dropout) = &self.dropout {
            dropout.check()?;
        }
        let out = q.with_shape([b, s, h, dv].into_iter().cloned());
        let sums = TensorType::new(wide, [b, h, s].into_iter().cloned());
        Ok([out, sums].into_iter().collect())
    }

    /// Whether some query may see nothing, given how many operands there are.
    pub fn may_see_nothing(&self, operands: usize) -> bool {
        operands > 3 || self.window.is_some()
    }

    /// Multiplications and additions of products as large as the scores: one for each of `widths`, the length of its sums
    /// or its rows. Of a causal one about half.
    pub(super) fn product_flops(&self, s: &AttentionSizes, widths: u64) -> u64 {
        let seen = match self.window {
            Some(window) => s.keys.min(window),
            None => s.keys,
        };
        let flops = [s.batch, s.heads, s.rows, seen, widths];
        let flops = flops.iter().fold(2u64, |n, x| n.saturating_mul(*x));
        if self.causal && self.window.is_none() {
            flops / 2
        } else {
            flops
        }
    }

    /// The scores in the type of sums, minus infinity where a query does not see.
    pub(super) fn scores(&self, p: &mut Patch<'_>, ins: &[ValueId]) -> Built {
        let (q_type, k_type) = (p.ty(ins[0]).clone(), p.ty(ins[1]).clone());
        let wide = wide(q_type.dtype);
        let q = p.cast(ins[0], wide)?;
        let k = spread(p, ins[1], &q_type.shape[1])?;
        let scores = p.matmul(q, k, false, true)?;
        let mut scores = p.scaled(scores, self.scale.0)?;
        let mut seen = None;
        for extra in &ins[3..] {
            if p.ty(*extra).dtype == DType::Bool {
                seen = Some(*extra);
            } else {
                let bias = p.cast(*extra, wide)?;
                scores = p.plus(scores, bias)?;
            }
        }
        if self.causal {
            let [rows, keys] = [&q_type.shape[2], &k_type.shape[2]];
            let causal = self.before(p, rows, keys)?;
            seen = Some(match seen {
                Some(mask) => p.binary(BinaryKind::And, mask, causal)?,
                None => causal,
            });
        }
        match seen {
            Some(seen) => {
                let never = p.scalar(wide, f64::NEG_INFINITY)?;
                p.select(seen, scores, never)
            }
            None => Ok(scores),
        }
    }

    /// Which keys are neither after a query nor out of its window.
    fn before(&self, p: &mut Patch<'_>, rows: &Dim, keys: &Dim) -> Built {
        let counter = |p: &mut Patch<'_>, len: &Dim| {
            let iota = Iota {
                dtype: DType::I64,
                start: 0.into(),
                step: 1,
                len: len.clone(),
            };
            p.add1(iota.into(), &[])
        };
        let row = counter(p, rows)?;
        let row = p.reshape(row, [rows.clone(), Dim::Known(1)])?;
        let key = counter(p, keys)?;
        let causal = p.binary(BinaryKind::Le, key, row)?;
        let Some(window) = self.window else {
            return Ok(causal);
        };
        let window = p.scalar(DType::I64, window as f64)?;
        let first = p.minus(row, window)?;
        let near = p.binary(BinaryKind::Gt, key, first)?;
        p.binary(BinaryKind::And, causal, near)
    }

    fn build(&self, p: &mut Patch<'_>, ins: &[ValueId]) -> Result<Results, PatchError> {
        let q_type = p.ty(ins[0]).clone();
        let scores = self.scores(p, ins)?;
        let most = p.reduce(ReduceKind::Max, scores, [3], true)?;
        let centred = p.minus(scores, most)?;
        let weights = p.unary(UnaryKind::Exp, centred)?;
        let sum = p.reduce(ReduceKind::Sum, weights, [3], true)?;
        let kept = match self.dropout {
            Some(dropout) => p.add(dropout.into(), &[weights])?[0],
            None => weights,
        };
        let v = spread(p, ins[2], &q_type.shape[1])?;
        let out = p.matmul(kept, v, false, false)?;
        let mut out = p.over(out, sum)?;
        let log = p.unary(UnaryKind::Log, sum)?;
        let mut sums = p.plus(most, log)?;
        if self.may_see_nothing(ins.len()) {
            let unseen = p.scalar_like(most, UNSEEN)?;
            let blind = p.binary(BinaryKind::Le, most, unseen)?;
            let (zero, infinity) = (
                p.scalar_like(out, 0.0)?,
                p.scalar_like(sums, f64::INFINITY)?,
            );
            out = p.select(blind, zero, out)?;
            sums = p.select(blind, infinity, sums)?;
        }
        let out = p.transpose(out, [0, 2, 1, 3])?;
        let out = p.cast(out, q_type.dtype)?;
        let shape: Shape = q_type.shape[..3].iter().cloned().collect();
        let sums = p.reshape(sums, shape)?;
        Ok([out, sums].into_iter().collect())
    }
}

/// Keys or values in the type of scores, one head of them for each query head.
pub(super) fn spread(p: &mut Patch<'_>, x: ValueId, heads: &Dim) -> Built {
    let x = {
        let dtype = wide(p.ty(x).dtype);
        p.cast(x, dtype)?
    };
    let shape = p.ty(x).shape.clone();
    let [b, groups, t, d] = shape.as_slice() else {
        return Ok(x);
    };
    let Some(share) = heads.exact_div(groups).filter(|n| !n.is(1)) else {
        return Ok(x);
    };
    let x = p.unsqueeze(x, 2)?;
    let each: Shape = [b, groups, &share, t, d].into_iter().cloned().collect();
    let x = p.expand(x, &each)?;
    p.reshape(x, [b, heads, t, d].into_iter().cloned())
}

impl Operator for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn attrs(&self) -> Attrs {
        let attrs = Attrs::default()
            .with("scale", self.scale)
            .flag("causal", self.causal);
        let attrs = match self.window {
            Some(window) => attrs.with("window", window),
            None => attrs,
        };
        match self.dropout {
            Some(Dropout { ratio, seed }) => attrs.with("dropout", ratio).with("seed", seed),
            None => attrs,
        }
    }

    fn arity(&self) -> (usize, usize) {
        (3, 5)
    }

    fn infer(&self, operands: &[&TensorType]) -> Result<Types, TypeError> {
        self.check(operands)
    }

    fn bind(&self, _: &Bindings) -> Option<Op> {
        Some((*self).into())
    }

    /// Needs the operands, the result and the logarithms, and never the scores.
    fn gradient(&self, g: &mut Gradient<'_, '_>) -> Result<(), GradientError> {
        let operands = g.graph().def(g.result(0)).operands.clone();
        let bias = (3..operands.len()).find(|slot| g.ty(operands[*slot]).dtype.is_float());
        let bias = bias.filter(|slot| g.wants(*slot));
        let mut ins = vec![g.dy()?];
        ins.extend(&operands[..3]);
        ins.extend([g.result(0), g.result(1)]);
        ins.extend(&operands[3..]);
        let grad = AttentionGrad {
            of: *self,
            bias: bias.is_some(),
        };
        let grads = g.add(grad.into(), &ins)?;
        for slot in 0..3 {
            let heads_first = g.transpose(grads[slot], [0, 2, 1, 3])?;
            g.give(slot, heads_first)?;
        }
        if let Some(slot) = bias {
            g.give(slot, grads[3])?;
        }
        Ok(())
    }

    /// The scores of a block, for each of its rows the largest score and weight and whether it sees anything, what scores
    /// are masked with and who survives dropout; copies of operands that are not read as they are, and a result that is not
    /// written as it is made.
    fn scratch(&self, operands: &[(&TensorType, &Layout)], _: &[&TensorType]) -> u64 {
        let types: Vec<&TensorType> = operands.iter().map(|(ty, _)| *ty).collect();
        let Some(s) = AttentionSizes::of(types[0], types[1], types[2]) else {
            return 0;
        };
        let (mask, _) = extras(&types[3..]);
        let block = s.block(1);
        let (scores, rows) = s.of_block(block);
        let blind = self.may_see_nothing(operands.len());
        let when = |on: bool, numbers: u64| if on { s.bytes(numbers) } else { 0 };
        let copy = |slot: usize, numbers: u64| when(s.copies(block, operands[slot].1), numbers);
        let keys = block.sequences * s.groups * s.keys;
        let own = [
            s.bytes(scores),
            s.bytes(rows),
            s.bytes(rows),
            when(blind, rows),
            when(blind, 1),
        ];
        let copies = [
            copy(0, rows * s.width),
            copy(1, keys * s.width),
            copy(2, keys * s.value_width),
            when(s.collects(block), rows * s.value_width),
        ];
        let masks = s.mask_bytes(block, self.causal, mask);
        let dropped = s.dropout_bytes(block, self.dropout);
        pieces(own.into_iter().chain(masks).chain(dropped).chain(copies))
    }

    fn flops(&self, operands: &[&TensorType], _: &[&TensorType]) -> u64 {
        let sizes = AttentionSizes::of(operands[0], operands[1], operands[2]);
        sizes.map_or(0, |s| self.product_flops(&s, s.width + s.value_width))
    }

    fn decompose(&self, p: &mut Patch<'_>, ins: &[ValueId]) -> Option<Result<Results, PatchError>> {
        Some(self.build(p, ins))
    }
}

/// The attributes of an attention, which its gradient has too.
fn read(a: &mut AttrReader<'_>) -> Result<Attention, String> {
    let window = match a.int_or("window", 0)? {
        0 => None,
        n => Some(u64::try_from(n).map_err(|_| format!("bad window {n}"))?),
    };
    let dropout = match a.float_or("dropout", 0.0)? {
        Scalar(0.0) => None,
        ratio => Some(Dropout {
            ratio,
            seed: a.int("seed")?,
        }),
    };
    Ok(Attention {
        scale: a.float("scale")?,
        causal: a.flag("causal"),
        window,
        dropout,
    })
}

pub(super) fn parse(name: &str, a: &mut AttrReader<'_>) -> Option<Result<Op, String>> {
    match name {
        "attention" => Some(read(a).map(Into::into)),
        "attention_grad" => Some(read(a).map(|of| {
            let bias = a.flag("bias");
            AttentionGrad { of, bias }.into()
        })),
        _ => None,
    }
}
