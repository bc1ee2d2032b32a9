//! `linear_cross_entropy`: the output projection and the loss, some rows of logits at a time.

use super::attrs::{AttrReader, Attrs};
use super::cross_entropy::targets_pieces;
use super::{CrossEntropy, CrossEntropyGrad, Op, Operator, Types, float, index, one, same_dtype};
use crate::build::Built;
use crate::dim::Bindings;
use crate::dtype::DType;
use crate::grad::{Gradient, GradientError};
use crate::ids::ValueId;
use crate::layout::{Layout, pieces};
use crate::patch::{Patch, PatchError, Results};
use crate::types::{TensorType, TypeError, line_up};

/// `linear_cross_entropy x, w, labels {ignore_index=-100, trans_b}`: [`CrossEntropy`] of the logits `x·w`, which never exist as
/// a whole.
///
/// `x` is `[rows, width]`, `w` is `[width, classes]`, or `[classes, width]` with `trans_b`, labels are `[rows]`. Logits of
/// 16-bit operands are rounded to their type; the loss is taken of them in f32, and is f32.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct LinearCrossEntropy {
    /// The label that does not count.
    pub ignore_index: i64,
    /// Swap the axes of the weight.
    pub trans_b: bool,
}

/// Bytes of logits, in the type of the loss, that a kernel has at once.
const CHUNK_BYTES: u64 = 64 << 20;

/// Rows that a kernel has at once though they take more: with fewer, a GPU reads the weight for longer than it multiplies.
const CHUNK_ROWS: u64 = 512;

/// The sizes of a projection and its loss in numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinearCrossEntropySizes {
    /// Rows of `x`.
    pub rows: u64,
    /// Rows that a kernel takes at once.
    pub chunk: u64,
    /// Elements of a row of `x`.
    pub width: u64,
    /// Elements of a row of logits.
    pub classes: u64,
    /// The element type of `x` and `w`.
    pub dtype: DType,
    /// The element type of the loss.
    pub wide: DType,
}

impl LinearCrossEntropySizes {
    /// From the element type and the shapes of `x` and `w`; `None` if they have not two axes each.
    pub fn new(dtype: DType, [x, w]: [&[u64]; 2], trans_b: bool) -> Option<Self> {
        let ([rows, width], [first, last]) = (x, w) else {
            return None;
        };
        let classes = if trans_b { *first } else { *last };
        let wide = dtype.arithmetic();
        let most = (CHUNK_BYTES / (classes * wide.size()).max(1)).max(CHUNK_ROWS);
        let chunks = rows.div_ceil(most).max(1);
        Some(LinearCrossEntropySizes {
            rows: *rows,
            chunk: rows.div_ceil(chunks),
            width: *width,
            classes,
            dtype,
            wide,
        })
    }

    /// Whether the weight's gradient is summed in scratch, in the type of the loss: its own is too narrow for a sum over
    /// chunks.
    pub fn sums_apart(&self) -> bool {
        self.dtype != self.wide && self.chunk < self.rows
    }
}

impl LinearCrossEntropy {
    fn check(&self, operands: &[&TensorType]) -> Result<TensorType, TypeError> {
        let [x, w, labels] = operands else {
            return Err(TypeError("expected rows, a weight and labels".into()));
        };
        same_dtype(&[x, w])?;
        float(x)?;
        index(labels)?;
        let odd = || {
            TypeError(format!(
                "expected [rows,width], a weight and [rows], found {x}, {w} and {labels}"
            ))
        };
        let ([rows, width], [first, last], [labelled]) = (
            x.shape.as_slice(),
            w.shape.as_slice(),
            labels.shape.as_slice(),
        ) else {
            return Err(odd());
        };
        let inner = if self.trans_b { last } else { first };
        if !line_up([rows, width], [labelled, inner]) {
            return Err(odd());
        }
        Ok(TensorType::scalar(x.dtype.arithmetic()))
    }

    fn sizes(&self, x: &TensorType, w: &TensorType) -> Option<LinearCrossEntropySizes> {
        let (rows, weight) = (x.known_shape()?, w.known_shape()?);
        LinearCrossEntropySizes::new(x.dtype, [&rows, &weight], self.trans_b)
    }

    /// Logits of some rows in the type of the loss, and in the operands' if that is another; what is read of each row, and
    /// zero in its place; what the labels say; copies of operands that BLAS cannot read.
    fn pieces(&self, operands: &[(&TensorType, &Layout)]) -> Vec<u64> {
        let [x, w, labels] = [operands[0], operands[1], operands[2]];
        let Some(s) = self.sizes(x.0, w.0) else {
            return Vec::new();
        };
        let logits = s.chunk * s.classes;
        let half = s.dtype != s.wide;
        let copied = |(ty, layout): (&TensorType, &Layout)| match layout.matrix_fits() {
            true => 0,
            false => ty.bytes().unwrap_or(0),
        };
        let mut pieces = vec![
            logits * s.wide.size(),
            if half { logits * s.dtype.size() } else { 0 },
            s.chunk * s.wide.size(),
            s.wide.size(),
        ];
        pieces.extend(targets_pieces(labels.0, s.wide));
        pieces.extend([copied(x), copied(w)]);
        pieces
    }

    fn product_flops(&self, x: &TensorType, w: &TensorType) -> u64 {
        let sizes = self.sizes(x, w);
        sizes.map_or(0, |s| {
            (2 * s.rows).saturating_mul(s.width.saturating_mul(s.classes))
        })
    }

    /// Logits in the type of the loss.
    fn logits(&self, p: &mut Patch<'_>, ins: &[ValueId]) -> Built {
        let logits = p.matmul(ins[0], ins[1], false, self.trans_b)?;
        let wide = p.ty(logits).dtype.arithmetic();
        p.cast(logits, wide)
    }

    fn loss(&self) -> CrossEntropy {
        CrossEntropy {
            ignore_index: self.ignore_index,
        }
    }
}

impl Operator for LinearCrossEntropy {
    fn name(&self) -> &'static str {
        "linear_cross_entropy"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default()
            .unless("ignore_index", self.ignore_index, -100)
            .flag("trans_b", self.trans_b)
    }

    fn arity(&self) -> (usize, usize) {
        (3, 3)
    }

    fn infer(&self, operands: &[&TensorType]) -> Result<Types, TypeError> {
        Ok(one(self.check(operands)?))
    }

    fn bind(&self, _: &Bindings) -> Option<Op> {
        Some((*self).into())
    }

    /// Keeps nothing but the gradient itself, up to its factor: it is computed with the loss, while the logits are there.
    fn gradient(&self, g: &mut Gradient<'_, '_>) -> Result<(), GradientError> {
        let d_loss = g.dy()?;
        let kind = LinearCrossEntropyGrad {
            of: *self,
            weight: g.wants(1),
        };
        let ins = [0, 1, 2].map(|slot| g.operand(slot));
        let made = g.in_forward(|p| p.add(kind.into(), &ins))?;
        let loss = g.result(0);
        g.replace(loss, made[1])?;
        for (slot, grad) in [(0, made[0])]
            .into_iter()
            .chain(made.get(2).map(|d| (1, *d)))
        {
            let scaled = if is_one(g, d_loss) {
                grad
            } else {
                let dtype = g.ty(grad).dtype;
                let factor = g.cast(d_loss, dtype)?;
                g.times(grad, factor)?
            };
            g.give(slot, scaled)?;
        }
        Ok(())
    }

    fn scratch(&self, operands: &[(&TensorType, &Layout)], _: &[&TensorType]) -> u64 {
        pieces(self.pieces(operands))
    }

    fn flops(&self, operands: &[&TensorType], _: &[&TensorType]) -> u64 {
        self.product_flops(operands[0], operands[1])
    }

    fn decompose(&self, p: &mut Patch<'_>, ins: &[ValueId]) -> Option<Result<Results, PatchError>> {
        let logits = self.logits(p, ins);
        let loss = logits.and_then(|logits| self.loss().build(p, logits, ins[2]));
        Some(loss.map(|loss| [loss].into_iter().collect()))
    }
}

/// Whether a value is a constant one.
fn is_one(p: &Patch<'_>, value: ValueId) -> bool {
    let mut def = p.graph().def(value);
    while let Op::Reshape(_) = def.kind {
        def = p.graph().def(def.operands[0]);
    }
    matches!(&def.kind, Op::Constant(c) if c.as_f64() == Some(1.0))
}

/// `linear_cross_entropy_grad x, w, labels {weight}` gives the gradient of the loss by `x`, the loss, and, if asked, the
/// gradient by `w`: all that needs the logits, while some of them are there.
///
/// With `d = (softmax(x·w) - onehot)·share`, rounded to the operands' type, the gradients are `d·wᵀ` and `xᵀ·d`; a row's
/// share is one over the rows that count, or zero if its label does not count.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct LinearCrossEntropyGrad {
    /// The loss.
    pub of: LinearCrossEntropy,
    /// Whether the weight is trained.
    pub weight: bool,
}

impl Operator for LinearCrossEntropyGrad {
    fn name(&self) -> &'static str {
        "linear_cross_entropy_grad"
    }

    fn attrs(&self) -> Attrs {
        self.of.attrs().flag("weight", self.weight)
    }

    fn arity(&self) -> (usize, usize) {
        (3, 3)
    }

    fn infer(&self, operands: &[&TensorType]) -> Result<Types, TypeError> {
        let loss = self.of.check(operands)?;
        let mut types: Types = [operands[0].clone(), loss].into_iter().collect();
        types.extend(self.weight.then(|| operands[1].clone()));
        Ok(types)
    }

    fn bind(&self, _: &Bindings) -> Option<Op> {
        Some((*self).into())
    }

    /// Each chunk of the gradient is written after its rows were last read.
    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    /// What the loss takes; for a 16-bit weight's gradient its sum over chunks, and a chunk of rows, in f32.
    fn scratch(&self, operands: &[(&TensorType, &Layout)], _: &[&TensorType]) -> u64 {
        let mut all = self.of.pieces(operands);
        let sizes = self.of.sizes(operands[0].0, operands[1].0);
        if let Some(s) = sizes.filter(|s| self.weight && s.sums_apart()) {
            all.push(s.width * s.classes * s.wide.size());
            all.push(s.chunk * s.width * s.wide.size());
        }
        pieces(all)
    }

    fn flops(&self, operands: &[&TensorType], _: &[&TensorType]) -> u64 {
        let products = if self.weight { 3 } else { 2 };
        let one = self.of.product_flops(operands[0], operands[1]);
        one.saturating_mul(products)
    }

    fn decompose(&self, p: &mut Patch<'_>, ins: &[ValueId]) -> Option<Result<Results, PatchError>> {
        Some(self.build(p, ins))
    }
}

impl LinearCrossEntropyGrad {
    fn build(&self, p: &mut Patch<'_>, ins: &[ValueId]) -> Result<Results, PatchError> {
        let logits = self.of.logits(p, ins)?;
        let ignore_index = self.of.ignore_index;
        let loss = self.of.loss().build(p, logits, ins[2])?;
        let one = p.scalar_like(loss, 1.0)?;
        let d = CrossEntropyGrad { ignore_index }.build(p, one, logits, ins[2])?;
        let d = p.cast(d, p.ty(ins[0]).dtype)?;
        let dx = p.matmul(d, ins[1], false, !self.of.trans_b)?;
        let mut results: Results = [dx, loss].into_iter().collect();
        if self.weight {
            results.push(if self.of.trans_b {
                p.matmul(d, ins[0], true, false)?
            } else {
                p.matmul(ins[0], d, true, false)?
            });
        }
        Ok(results)
    }
}

pub(super) fn parse(name: &str, a: &mut AttrReader<'_>) -> Option<Result<Op, String>> {
    let read = |a: &mut AttrReader<'_>| {
        Ok(LinearCrossEntropy {
            ignore_index: a.int_or("ignore_index", -100)?,
            trans_b: a.flag("trans_b"),
        })
    };
    match name {
        "linear_cross_entropy" => Some(read(a).map(Into::into)),
        "linear_cross_entropy_grad" => Some(read(a).map(|of| {
            let weight = a.flag("weight");
            LinearCrossEntropyGrad { of, weight }.into()
        })),
        _ => None,
    }
}
