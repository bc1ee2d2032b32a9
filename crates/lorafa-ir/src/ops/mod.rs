//! The core ops, one family a file.
//!
//! A family's file holds all there is to know about it: its spelling, type rule, gradient rule,
//! memory behaviour, cost and reference semantics, as one [`Operator`] implementation. To add an
//! op, write its file, then add it to [`Op`], to `as_operator` and to `PARSERS` below.

mod accumulate;
mod activation;
mod adamw;
mod attention;
mod attention_grad;
pub mod attrs;
mod binary;
mod cast;
mod concat;
mod cross_entropy;
mod cumsum;
mod dropout;
mod gated;
mod gather;
mod gather_nd;
mod layer_norm;
mod linear_cross_entropy;
mod matmul;
mod onnx;
mod param;
mod reduce;
mod reshape;
mod rms_norm;
mod rotary;
mod scatter;
mod select;
mod slice;
mod softmax;
mod source;
mod transpose;
mod unary;

pub use accumulate::Accumulate;
pub use activation::{Activation, ActivationGrad, ActivationKind};
pub use adamw::{AdamW, AdamWForm};
pub use attention::{Attention, AttentionBlock, AttentionSizes, UNSEEN};
pub use attention_grad::AttentionGrad;
pub use binary::{Binary, BinaryKind};
pub use cast::Cast;
pub use concat::Concat;
pub use cross_entropy::{CrossEntropy, CrossEntropyGrad};
pub use cumsum::CumSum;
pub use dropout::{DrawnMask, Dropout, DropoutGrad, DropoutMask, Survivors};
pub use gated::{Gated, GatedGrad};
pub use gather::{Gather, GatherElements, GatherGrad};
pub use gather_nd::GatherNd;
pub use layer_norm::{LayerNorm, LayerNormGrad};
pub use linear_cross_entropy::{
    LinearCrossEntropy, LinearCrossEntropyGrad, LinearCrossEntropySizes,
};
pub use matmul::MatMul;
pub use onnx::OnnxOp;
pub use param::{Data, External, Init, Param, Role, Stored, is_path};
pub use reduce::{Reduce, ReduceKind};
pub use reshape::{Expand, Reshape};
pub use rms_norm::{RmsNorm, RmsNormGrad};
pub use rotary::Rotary;
pub use scatter::{ScatterElements, ScatterNd};
pub use select::Select;
pub use slice::{Pad, Slice, SliceAxis};
pub use softmax::{Softmax, SoftmaxGrad};
pub use source::{Constant, DimValue, Fill, Iota, Literal};
pub use transpose::Transpose;
pub use unary::{Unary, UnaryKind};

use crate::dim::Bindings;
use crate::dtype::DType;
use crate::grad::{Gradient, GradientError};
use crate::ids::ValueId;
use crate::interp::{Array, EvalError};
use crate::layout::Layout;
use crate::patch::{Patch, PatchError, Results};
use crate::types::{TensorType, TypeError};
use attrs::{AttrReader, Attrs};
use smallvec::SmallVec;
use std::fmt;

/// The types of an op's results.
pub type Types = SmallVec<[TensorType; 2]>;

/// A float attribute, compared and hashed by its bits.
#[derive(Clone, Copy)]
pub struct Scalar(pub f64);

impl PartialEq for Scalar {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}

impl Eq for Scalar {}

impl std::hash::Hash for Scalar {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.to_bits().hash(state);
    }
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl fmt::Debug for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Everything about an op.
pub trait Operator {
    /// The mnemonic in the text form.
    fn name(&self) -> &'static str;

    /// The attributes in the text form, those at their default left out.
    fn attrs(&self) -> Attrs {
        Attrs::default()
    }

    /// The type rule: types of the results from those of the operands.
    ///
    /// It is only called with as many operands as [`Operator::arity`] allows.
    fn infer(&self, operands: &[&TensorType]) -> Result<Types, TypeError>;

    /// The least and the largest number of operands.
    fn arity(&self) -> (usize, usize);

    /// The op with numbers in for symbols; `None` where that is impossible.
    fn bind(&self, bindings: &Bindings) -> Option<Op>;

    /// The gradient rule: from the gradients of the results, those of the operands.
    ///
    /// Every forward value that the rule reads becomes a saved activation, so which one it reads
    /// (an operand, a result, or neither) is what the memory report is about.
    fn gradient(&self, _: &mut Gradient<'_, '_>) -> Result<(), GradientError> {
        Err(GradientError::NotDifferentiable)
    }

    /// Where the result is a view of operand 0: its layout, given the operand's.
    fn view(&self, _operand: (&TensorType, &Layout), _result: &TensorType) -> Option<Layout> {
        None
    }

    /// Operands that results may overwrite, if they die here and have a result's size, as `(result, operand)`. Each result takes
    /// the first that it can, whatever others take: no operand is named for two of them.
    fn in_place(&self) -> &'static [(usize, usize)] {
        &[]
    }

    /// Whether the kernel writes its results wherever their elements lie, with the same scratch; otherwise they are row-major.
    fn writes_strided(&self) -> bool {
        false
    }

    /// Results that always overwrite an operand, as `(result, operand)`: optimizer updates, accumulators.
    fn updates(&self) -> &'static [(usize, usize)] {
        &[]
    }

    /// Bytes of private scratch while the op runs: [`pieces`](crate::layout::pieces), as many as its kernel takes.
    fn scratch(&self, _operands: &[(&TensorType, &Layout)], _results: &[&TensorType]) -> u64 {
        0
    }

    /// Floating-point operations of one execution.
    fn flops(&self, _operands: &[&TensorType], results: &[&TensorType]) -> u64 {
        results.first().and_then(|r| r.elements()).unwrap_or(0)
    }

    /// Reference semantics, in f64. Ops with a decomposition need none of their own.
    fn eval(
        &self,
        _operands: &[&Array],
        _results: &[&TensorType],
    ) -> Result<Vec<Array>, EvalError> {
        Err(EvalError::new(format!(
            "`{}` has no reference semantics",
            self.name()
        )))
    }

    /// Builds the same results out of simpler ops, for formats that lack this one.
    fn decompose(
        &self,
        _patch: &mut Patch<'_>,
        _operands: &[ValueId],
    ) -> Option<Result<Results, PatchError>> {
        None
    }
}

macro_rules! ops {
    ($($(#[$doc:meta])* $variant:ident($inner:ty)),* $(,)?) => {
        /// An op with its attributes.
        #[derive(Clone, PartialEq, Eq, Hash, Debug)]
        pub enum Op {
            $($(#[$doc])* $variant($inner),)*
        }

        impl Op {
            /// The op as an [`Operator`].
            pub fn as_operator(&self) -> &(dyn Operator + 'static) {
                match self {
                    $(Op::$variant(op) => op,)*
                }
            }
        }

        $(impl From<$inner> for Op {
            fn from(op: $inner) -> Op {
                Op::$variant(op)
            }
        })*
    };
}

ops! {
    /// A parameter, input, optimizer state or large constant.
    Param(Box<Param>),
    /// A small constant.
    Constant(Constant),
    /// `0, 1, 2, …`.
    Iota(Iota),
    /// One number everywhere.
    Fill(Fill),
    /// Dimensions as data.
    DimValue(DimValue),
    /// Elementwise, one operand.
    Unary(Unary),
    /// Activation functions.
    Activation(Activation),
    /// Their gradients.
    ActivationGrad(ActivationGrad),
    /// Elementwise with broadcasting, two operands.
    Binary(Binary),
    /// `condition ? a : b`.
    Select(Select),
    /// Change of element type.
    Cast(Cast),
    /// Matrix product.
    MatMul(MatMul),
    /// Same elements, other dimensions.
    Reshape(Reshape),
    /// Broadcast to a shape.
    Expand(Expand),
    /// Permutation of axes.
    Transpose(Transpose),
    /// Part of a tensor.
    Slice(Slice),
    /// Constant padding.
    Pad(Pad),
    /// Tensors one after the other.
    Concat(Concat),
    /// Sum, mean, maximum over axes.
    Reduce(Reduce),
    /// Running sum.
    CumSum(CumSum),
    /// Rows by index.
    Gather(Gather),
    /// The gradient of `gather`: rows added by index.
    GatherGrad(GatherGrad),
    /// Elements by index along an axis.
    GatherElements(GatherElements),
    /// Slices by index vectors.
    GatherNd(GatherNd),
    /// Elements replaced or added by index along an axis.
    ScatterElements(ScatterElements),
    /// Slices replaced or added by index vectors.
    ScatterNd(ScatterNd),
    /// Softmax and log-softmax.
    Softmax(Softmax),
    /// Their gradients.
    SoftmaxGrad(SoftmaxGrad),
    /// Attention.
    Attention(Attention),
    /// Its gradient.
    AttentionGrad(AttentionGrad),
    /// Layer normalization.
    LayerNorm(LayerNorm),
    /// Its gradient.
    LayerNormGrad(LayerNormGrad),
    /// Root-mean-square normalization.
    RmsNorm(RmsNorm),
    /// Its gradient.
    RmsNormGrad(RmsNormGrad),
    /// An activation times another operand: SwiGLU and its like.
    Gated(Gated),
    /// Its gradient.
    GatedGrad(GatedGrad),
    /// Rotary position embedding.
    Rotary(Rotary),
    /// Softmax cross-entropy.
    CrossEntropy(CrossEntropy),
    /// Its gradient.
    CrossEntropyGrad(CrossEntropyGrad),
    /// A matrix product and its softmax cross-entropy.
    LinearCrossEntropy(LinearCrossEntropy),
    /// Its gradient, and the loss.
    LinearCrossEntropyGrad(LinearCrossEntropyGrad),
    /// Dropout.
    Dropout(Dropout),
    /// Its mask, drawn again.
    DropoutMask(DropoutMask),
    /// Its gradient.
    DropoutGrad(DropoutGrad),
    /// A gradient added to an accumulator.
    Accumulate(Accumulate),
    /// One AdamW step of a parameter.
    AdamW(AdamW),
    /// An ONNX node that is carried along as it is.
    Onnx(Box<OnnxOp>),
}

/// Reads an op of one family, or `None` if the mnemonic is not of that family.
type Parser = fn(&str, &mut AttrReader<'_>) -> Option<Result<Op, String>>;

const PARSERS: &[Parser] = &[
    source::parse,
    unary::parse,
    activation::parse,
    binary::parse,
    select::parse,
    cast::parse,
    matmul::parse,
    reshape::parse,
    transpose::parse,
    slice::parse,
    concat::parse,
    reduce::parse,
    cumsum::parse,
    gather::parse,
    gather_nd::parse,
    scatter::parse,
    softmax::parse,
    attention::parse,
    layer_norm::parse,
    rms_norm::parse,
    gated::parse,
    rotary::parse,
    cross_entropy::parse,
    linear_cross_entropy::parse,
    dropout::parse,
    accumulate::parse,
    adamw::parse,
    onnx::parse,
];

impl Op {
    /// The op with this mnemonic and these attributes.
    pub fn parse(name: &str, attrs: &mut AttrReader<'_>) -> Result<Op, String> {
        PARSERS
            .iter()
            .find_map(|parse| parse(name, attrs))
            .unwrap_or_else(|| Err(format!("no op is called `{name}`")))
    }

    /// The product of operands 0 and 1 that the op computes, alone or with more.
    pub fn product(&self) -> Option<MatMul> {
        match self {
            Op::MatMul(product) => Some(*product),
            Op::LinearCrossEntropy(op)
            | Op::LinearCrossEntropyGrad(LinearCrossEntropyGrad { of: op, .. }) => {
                Some(MatMul::new(false, op.trans_b))
            }
            _ => None,
        }
    }

    /// The type rule, after the number of operands was checked; refuses impossible results.
    pub fn infer_checked(&self, operands: &[&TensorType]) -> Result<Types, TypeError> {
        let (least, most) = self.arity();
        if operands.len() < least || operands.len() > most {
            let expected = match (least, most) {
                (a, b) if a == b => format!("{a}"),
                (a, usize::MAX) => format!("at least {a}"),
                (a, b) => format!("{a} to {b}"),
            };
            let error = format!("expected {expected} operands, found {}", operands.len());
            return Err(TypeError(error));
        }
        let types = self.infer(operands)?;
        types.iter().try_for_each(TensorType::check)?;
        Ok(types)
    }
}

impl std::ops::Deref for Op {
    type Target = dyn Operator;

    fn deref(&self) -> &Self::Target {
        self.as_operator()
    }
}

/// Bytes of a row-major copy of an operand that lies otherwise.
fn row_major((ty, layout): (&TensorType, &Layout)) -> u64 {
    if layout.is_contiguous() {
        0
    } else {
        ty.bytes().unwrap_or(0)
    }
}

/// Bytes of an operand's elements in another type.
fn bytes_as(dtype: DType, ty: &TensorType) -> u64 {
    ty.with_dtype(dtype).bytes().unwrap_or(0)
}

/// Pieces for indices as i64, none counted from the end.
fn positions_pieces(indices: &TensorType) -> [u64; 2] {
    let wide = bytes_as(DType::I64, indices);
    [wide, if indices.dtype == DType::I64 { 0 } else { wide }]
}

/// The one result type.
fn one(ty: TensorType) -> Types {
    let mut types = Types::new();
    types.push(ty);
    types
}

/// Resolves a possibly negative axis against a rank.
pub fn axis(axis: i64, rank: usize) -> Result<usize, TypeError> {
    let resolved = if axis < 0 {
        axis.saturating_add(rank as i64)
    } else {
        axis
    };
    match usize::try_from(resolved) {
        Ok(a) if a < rank => Ok(a),
        _ => Err(TypeError(format!(
            "axis {axis} is out of range for rank {rank}"
        ))),
    }
}

/// Refuses operands of different element types.
fn same_dtype(operands: &[&TensorType]) -> Result<(), TypeError> {
    match operands.windows(2).find(|w| w[0].dtype != w[1].dtype) {
        Some(w) => Err(TypeError(format!(
            "element types differ: {} and {}",
            w[0], w[1]
        ))),
        None => Ok(()),
    }
}

/// Refuses an operand that is not a float.
fn float(ty: &TensorType) -> Result<(), TypeError> {
    if ty.dtype.is_float() {
        Ok(())
    } else {
        Err(TypeError(format!("expected floats, found {ty}")))
    }
}

/// Refuses an operand that cannot be added to.
fn number(ty: &TensorType) -> Result<(), TypeError> {
    if ty.dtype == crate::dtype::DType::Bool {
        Err(TypeError(format!("expected numbers, found {ty}")))
    } else {
        Ok(())
    }
}

/// Refuses an operand that cannot index.
fn index(ty: &TensorType) -> Result<(), TypeError> {
    use crate::dtype::DType::{I32, I64};
    if matches!(ty.dtype, I32 | I64) {
        Ok(())
    } else {
        Err(TypeError(format!(
            "expected i32 or i64 indices, found {ty}"
        )))
    }
}
