//! `gated` and its gradient: SwiGLU, GeGLU and ReGLU.

use super::attrs::{AttrReader, Attrs};
use super::{Activation, ActivationGrad, ActivationKind, Op, Operator, Types, float, one};
use crate::dim::Bindings;
use crate::grad::{Gradient, GradientError};
use crate::ids::ValueId;
use crate::interp::{Array, EvalError};
use crate::patch::{Patch, PatchError, Results};
use crate::types::{TensorType, TypeError, line_up};

/// `gated gate, up {act=silu}`: `silu(gate)·up`, SwiGLU; with `gelu` or `gelu_tanh` GeGLU, with
/// `relu` ReGLU. `silu(gate)` is rounded before it is multiplied, as if it were an op of its own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Gated(pub ActivationKind);

/// Refuses activations whose slope does not follow from their operand, and operands that differ.
fn check(kind: ActivationKind, operands: &[&TensorType]) -> Result<(), TypeError> {
    if !kind.gates() {
        let name = Activation(kind).name();
        return Err(TypeError(format!("`{name}` gates nothing")));
    }
    super::same_dtype(operands)?;
    float(operands[0])?;
    match operands
        .iter()
        .find(|x| !line_up(&x.shape, &operands[0].shape))
    {
        Some(x) => Err(TypeError(format!("shapes differ: {} and {x}", operands[0]))),
        None => Ok(()),
    }
}

impl Operator for Gated {
    fn name(&self) -> &'static str {
        "gated"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().with("act", Activation(self.0).name())
    }

    fn arity(&self) -> (usize, usize) {
        (2, 2)
    }

    fn infer(&self, operands: &[&TensorType]) -> Result<Types, TypeError> {
        check(self.0, operands)?;
        Ok(one(operands[0].clone()))
    }

    fn bind(&self, _: &Bindings) -> Option<Op> {
        Some((*self).into())
    }

    fn writes_strided(&self) -> bool {
        true
    }

    /// Needs the operands: the activation is computed again.
    fn gradient(&self, g: &mut Gradient<'_, '_>) -> Result<(), GradientError> {
        let dy = g.dy()?;
        let ins = [dy, g.operand(0), g.operand(1)];
        let grads = g.add(GatedGrad(self.0).into(), &ins)?;
        g.give(0, grads[0])?;
        Ok(g.give(1, grads[1])?)
    }

    /// The kernel writes the activation before it reads `up`.
    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }

    fn flops(&self, operands: &[&TensorType], _: &[&TensorType]) -> u64 {
        9 * operands[0].elements().unwrap_or(0)
    }

    fn eval(&self, operands: &[&Array], results: &[&TensorType]) -> Result<Vec<Array>, EvalError> {
        let mut act = Activation(self.0).eval(&operands[..1], results)?;
        for array in &mut act {
            let up = operands[1].data.iter();
            array.data.iter_mut().zip(up).for_each(|(y, up)| *y *= up);
        }
        Ok(act)
    }

    fn decompose(&self, p: &mut Patch<'_>, ins: &[ValueId]) -> Option<Result<Results, PatchError>> {
        let act = p.add1(Activation(self.0).into(), &ins[..1]);
        let y = act.and_then(|act| p.times(act, ins[1]));
        Some(y.map(|y| [y].into_iter().collect()))
    }
}

/// `gated_grad dy, gate, up {act=silu}` gives the gradients of gate and up.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct GatedGrad(pub ActivationKind);

impl Operator for GatedGrad {
    fn name(&self) -> &'static str {
        "gated_grad"
    }

    fn attrs(&self) -> Attrs {
        Attrs::default().with("act", Activation(self.0).name())
    }

    fn arity(&self) -> (usize, usize) {
        (3, 3)
    }

    fn infer(&self, operands: &[&TensorType]) -> Result<Types, TypeError> {
        check(self.0, operands)?;
        Ok([operands[0].clone(), operands[0].clone()]
            .into_iter()
            .collect())
    }

    fn bind(&self, _: &Bindings) -> Option<Op> {
        Some((*self).into())
    }

    fn writes_strided(&self) -> bool {
        true
    }

    /// The kernel writes `dy·up`, then the gate's gradient there, then the activation, then `up`'s gradient there.
    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 2), (1, 1)]
    }

    fn flops(&self, operands: &[&TensorType], _: &[&TensorType]) -> u64 {
        18 * operands[0].elements().unwrap_or(0)
    }

    fn decompose(&self, p: &mut Patch<'_>, ins: &[ValueId]) -> Option<Result<Results, PatchError>> {
        Some(self.build(p, ins[0], ins[1], ins[2]))
    }
}

impl GatedGrad {
    fn build(
        &self,
        p: &mut Patch<'_>,
        dy: ValueId,
        gate: ValueId,
        up: ValueId,
    ) -> Result<Results, PatchError> {
        let act = p.add1(Activation(self.0).into(), &[gate])?;
        let d_up = p.times(dy, act)?;
        let d_act = p.times(dy, up)?;
        let saved = if self.0.saves_result() { act } else { gate };
        let d_gate = ActivationGrad(self.0).build(p, d_act, saved)?;
        Ok([d_gate, d_up].into_iter().collect())
    }
}

pub(super) fn parse(name: &str, a: &mut AttrReader<'_>) -> Option<Result<Op, String>> {
    let gradient = match name {
        "gated" => false,
        "gated_grad" => true,
        _ => return None,
    };
    Some(a.name("act").and_then(|act| {
        let kind = ActivationKind::parse(&act)
            .filter(|kind| kind.gates())
            .ok_or_else(|| {
                format!("attribute `act`: expected silu, gelu, gelu_tanh or relu, found `{act}`")
            })?;
        Ok(if gradient {
            GatedGrad(kind).into()
        } else {
            Gated(kind).into()
        })
    }))
}
