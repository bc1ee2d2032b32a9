//! `dropout` in training mode, and its gradient.
//!
//! Masks are drawn by counting: an element's fate depends on the op's seed, the step's number and the element's place,
//! and on nothing that ran before. A step that is run again drops the same elements, and so does a part of a mask that is
//! drawn by itself. The reference semantics are those of step 0.

use super::attrs::{AttrReader, Attrs};
use super::{Op, Operator, Scalar, Types, float, one};
use crate::dim::Bindings;
use crate::dtype::DType;
use crate::grad::{Gradient, GradientError};
use crate::ids::ValueId;
use crate::interp::{Array, EvalError};
use crate::layout::{Layout, pieces};
use crate::patch::{Patch, PatchError, Results};
use crate::types::{Shape, TensorType, TypeError};

/// `dropout v1 {ratio=0.05, seed=3}` gives the scaled survivors and the mask of who survived.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Dropout {
    /// The share of elements set to zero.
    pub ratio: Scalar,
    /// Tells dropouts apart: two with equal seeds drop the same elements.
    pub seed: i64,
}

/// Who survives a dropout in one step: those whose counter, mixed, is at least a number, both as signed ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Survivors {
    stream: u64,
    least: i64,
}

/// SplitMix64 up to its last shift, which changes no upper bits.
fn mix(z: u64) -> u64 {
    let round = |z: u64, (shift, factor): (u32, u64)| (z ^ (z >> shift)).wrapping_mul(factor);
    Survivors::ROUNDS.into_iter().fold(z, round)
}

impl Survivors {
    /// SplitMix64: what its counter goes on by.
    pub const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

    /// SplitMix64's two rounds: by how much a number is shifted before it is xored with itself, and the factor after that.
    pub const ROUNDS: [(u32, u64); 2] = [(30, 0xbf58_476d_1ce4_e5b9), (27, 0x94d0_49bb_1331_11eb)];

    /// The counter at a place of the row-major operand, before it is mixed.
    pub fn counter(&self, place: u64) -> u64 {
        self.stream.wrapping_add(Self::GAMMA.wrapping_mul(place))
    }

    /// The least mixed number that survives.
    pub fn least(&self) -> i64 {
        self.least
    }

    /// Whether the element at a place of the row-major operand survives.
    pub fn has(&self, place: u64) -> bool {
        mix(self.counter(place)) as i64 >= self.least
    }

    /// The mask of an operand of a type's shape.
    fn mask(&self, ty: &TensorType) -> Result<Array, EvalError> {
        let places = 0..ty.elements().unwrap_or(0);
        let mask = places.map(|place| f64::from(u8::from(self.has(place))));
        Array::new(ty, mask.collect())
    }
}

/// How a kernel draws a whole mask: rows of some elements, and so many elements at once that numbers of 64 bits for them stay in
/// a CPU's cache and take little beside the mask's operand, if that is large.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DrawnMask {
    /// Elements of a row, and the most rows at once.
    pub row: u64,
    /// Elements at once.
    pub at_once: u64,
}

impl DrawnMask {
    /// Of so many elements.
    pub fn new(elements: u64) -> Self {
        const ROW: u64 = 512;
        DrawnMask {
            row: elements.min(ROW),
            at_once: (elements / 8).clamp(64 * ROW, ROW * ROW).min(elements),
        }
    }

    /// Bytes of the numbers up to the length of a row, and of two for each element at once.
    fn bytes(&self) -> [u64; 2] {
        [self.row, 2 * self.at_once].map(|numbers| numbers * DType::I64.size())
    }
}

fn factor(ratio: Scalar) -> f64 {
    1.0 / (1.0 - ratio.0)
}

impl Dropout {
    /// Who survives in a step.
    pub fn survivors(&self, step: u64) -> Survivors {
        let own = |z: u64| {
            let z = mix(z.wrapping_add(Survivors::GAMMA));
            z ^ (z >> 31)
        };
        let numbers = self.ratio.0 * 2f64.powi(64);
        Survivors {
            stream: own(own(self.seed as u64) ^ step),
            least: i64::MIN.wrapping_add(numbers as u64 as i64),
        }
    }

    /// What survivors are multiplied by.
    pub fn factor(&self) -> f64 {
        factor(self.ratio)
    }

    pub(super) fn check(&self) -> Result<(), TypeError> {
        if (0.0..1.0).contains(&self.ratio.0) {
            return Ok(());
        }
        Err(TypeError(format!("ratio {} is not in [0, 1)", self.ratio)))
    }
}

impl Operator for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default()
            .with("ratio", self.ratio)
            .with("seed", self.seed)
    }

    fn arity(&self) -> (usize, usize) {
        (1, 1)
    }

    fn infer(&self, operands: &[&TensorType]) -> Result<Types, TypeError> {
        float(operands[0])?;
        self.check()?;
        Ok([operands[0].clone(), operands[0].with_dtype(DType::Bool)]
            .into_iter()
            .collect())
    }

    fn bind(&self, _: &Bindings) -> Option<Op> {
        Some((*self).into())
    }

    fn eval(&self, x: &[&Array], results: &[&TensorType]) -> Result<Vec<Array>, EvalError> {
        let mask = self.survivors(0).mask(results[1])?;
        let survivors = x[0].data.iter().zip(&mask.data);
        let survivors =
            survivors.map(|(x, kept)| if *kept == 0.0 { 0.0 } else { x * self.factor() });
        Ok(vec![Array::new(results[0], survivors.collect())?, mask])
    }

    /// Needs the mask.
    fn gradient(&self, g: &mut Gradient<'_, '_>) -> Result<(), GradientError> {
        let ins = [g.dy()?, g.result(1)];
        let dx = g.add1(DropoutGrad { ratio: self.ratio }.into(), &ins)?;
        Ok(g.give(0, dx)?)
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    /// What the mask is drawn in, and a number.
    fn scratch(&self, operands: &[(&TensorType, &Layout)], _: &[&TensorType]) -> u64 {
        let x = operands[0].0;
        let drawn = DrawnMask::new(x.elements().unwrap_or(0));
        pieces(drawn.bytes().into_iter().chain([x.dtype.size()]))
    }
}

/// `dropout_mask {ratio=0.05, seed=3, shape=[2,seq]}`: the mask of [`Dropout`] with this ratio and seed on an operand of this
/// shape, drawn again.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct DropoutMask {
    /// Whose mask it is.
    pub of: Dropout,
    /// Its shape.
    pub shape: Shape,
}

impl Operator for DropoutMask {
    fn name(&self) -> &'static str {
        "dropout_mask"
    }

    fn attrs(&self) -> Attrs {
        self.of.attrs().dims("shape", &self.shape)
    }

    fn arity(&self) -> (usize, usize) {
        (0, 0)
    }

    fn infer(&self, _: &[&TensorType]) -> Result<Types, TypeError> {
        self.of.check()?;
        Ok(one(TensorType::new(
            DType::Bool,
            self.shape.iter().cloned(),
        )))
    }

    fn bind(&self, bindings: &Bindings) -> Option<Op> {
        let shape = self.shape.iter().map(|dim| dim.bind(bindings));
        let shape = shape.collect::<Option<Shape>>()?;
        Some(DropoutMask { of: self.of, shape }.into())
    }

    fn eval(&self, _: &[&Array], results: &[&TensorType]) -> Result<Vec<Array>, EvalError> {
        Ok(vec![self.of.survivors(0).mask(results[0])?])
    }

    /// What it is drawn in.
    fn scratch(&self, _: &[(&TensorType, &Layout)], results: &[&TensorType]) -> u64 {
        pieces(DrawnMask::new(results[0].elements().unwrap_or(0)).bytes())
    }
}

/// `dropout_grad dy, mask {ratio=0.05}`: `dy·mask/(1-ratio)`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DropoutGrad {
    /// The share of elements that were set to zero.
    pub ratio: Scalar,
}

impl DropoutGrad {
    /// What survivors are multiplied by.
    pub fn factor(&self) -> f64 {
        factor(self.ratio)
    }
}

impl Operator for DropoutGrad {
    fn name(&self) -> &'static str {
        "dropout_grad"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().with("ratio", self.ratio)
    }

    fn arity(&self) -> (usize, usize) {
        (2, 2)
    }

    fn infer(&self, operands: &[&TensorType]) -> Result<Types, TypeError> {
        float(operands[0])?;
        if *operands[1] != operands[0].with_dtype(DType::Bool) {
            let (dy, mask) = (operands[0], operands[1]);
            return Err(TypeError(format!("{mask} is no mask of {dy}")));
        }
        Ok(one(operands[0].clone()))
    }

    fn bind(&self, _: &Bindings) -> Option<Op> {
        Some((*self).into())
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    fn eval(&self, x: &[&Array], results: &[&TensorType]) -> Result<Vec<Array>, EvalError> {
        let survivors = x[0].data.iter().zip(&x[1].data);
        let survivors = survivors.map(|(dy, kept)| dy * kept * self.factor());
        Ok(vec![Array::new(results[0], survivors.collect())?])
    }

    fn decompose(&self, p: &mut Patch<'_>, ins: &[ValueId]) -> Option<Result<Results, PatchError>> {
        Some((|| {
            let dtype = p.ty(ins[0]).dtype;
            let mask = p.cast(ins[1], dtype)?;
            let mask = p.scaled(mask, self.factor())?;
            Ok([p.times(ins[0], mask)?].into_iter().collect())
        })())
    }

    /// A number.
    fn scratch(&self, operands: &[(&TensorType, &Layout)], _: &[&TensorType]) -> u64 {
        pieces([operands[0].0.dtype.size()])
    }
}

pub(super) fn parse(name: &str, a: &mut AttrReader<'_>) -> Option<Result<Op, String>> {
    let dropout = |a: &mut AttrReader<'_>| -> Result<Dropout, String> {
        let (ratio, seed) = (a.float("ratio")?, a.int("seed")?);
        Ok(Dropout { ratio, seed })
    };
    match name {
        "dropout" => Some(dropout(a).map(Into::into)),
        "dropout_mask" => Some(dropout(a).and_then(|of| {
            let shape = a.dims("shape")?;
            Ok(DropoutMask { of, shape }.into())
        })),
        "dropout_grad" => Some(a.float("ratio").map(|ratio| DropoutGrad { ratio }.into())),
        _ => None,
    }
}
