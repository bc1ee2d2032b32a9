//! `fuse-activations`: activation functions that exporters spell out, and gates, as one op each.
//!
//! ```text
//! - v1 = sigmoid v0             : f32[2,8]
//! - v2 = mul v0, v1             : f32[2,8]
//! - v4 = mul v2, v3             : f32[2,8]
//! + v4 = gated v0, v3 {act=silu}: f32[2,8]
//! ```
//!
//! SiLU is `x·sigmoid(x)`; GELU `x/2·(1 + erf(x/√2))`, or with Hendrycks and Gimpel's tanh in place
//! of erf, as GPT-2 has it. An activation that only multiplies another tensor is a gate, whose
//! gradient computes the activation again instead of keeping it.

use crate::matching::{binary, each_op, either, is_number, read_once, unary, with_number};
use crate::pass::{Changed, Pass, PassCx, PassError, PassKind};
use lorafa_ir::ops::{Activation, ActivationKind, BinaryKind, Gated, Op, UnaryKind};
use lorafa_ir::{Graph, OpId, PatchError, ValueId};
use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_PI, SQRT_2};

/// See the module.
pub struct FuseActivations;

impl Pass for FuseActivations {
    fn name(&self) -> &'static str {
        "fuse-activations"
    }

    fn kind(&self) -> PassKind {
        PassKind::Equivalence
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<Changed, PassError> {
        let (mut activations, mut gates) = (0, 0);
        each_op(graph, |graph, id| {
            activations += usize::from(fuse_activation(graph, id)?);
            Ok::<(), PatchError>(())
        })?;
        each_op(graph, |graph, id| {
            gates += usize::from(fuse_gate(graph, id)?);
            Ok::<(), PatchError>(())
        })?;
        if activations > 0 {
            cx.note(format_args!("{activations} activations became one op each"));
        }
        if gates > 0 {
            cx.note(format_args!("{gates} gates became one op each"));
        }
        Ok(Changed::from_count(activations + gates))
    }
}

fn fuse_activation(graph: &mut Graph, id: OpId) -> Result<bool, PatchError> {
    let y = graph.op(id).results[0];
    let found = silu(graph, y)
        .map(|x| (ActivationKind::Silu, x))
        .or_else(|| gelu(graph, y));
    let Some((kind, x)) = found.filter(|(_, x)| graph.ty(*x) == graph.ty(y)) else {
        return Ok(false);
    };
    let mut patch = graph.patch("fuse-activation");
    let fused = patch.at(id).add1(Activation(kind).into(), &[x])?;
    patch.replace(y, fused)?;
    patch.remove(id)?;
    Ok(true)
}

/// `x·sigmoid(x)`.
fn silu(graph: &Graph, value: ValueId) -> Option<ValueId> {
    either(graph, value, BinaryKind::Mul)
        .find_map(|(x, factor)| (of(graph, factor, ActivationKind::Sigmoid)? == x).then_some(x))
}

/// The operand of an activation.
fn of(graph: &Graph, value: ValueId, kind: ActivationKind) -> Option<ValueId> {
    let op = graph.def(value);
    (op.kind == Op::Activation(Activation(kind))).then(|| op.operands[0])
}

/// `x·(1 + e)/2` in any order, where `e` is close to `erf(x/√2)`.
fn gelu(graph: &Graph, value: ValueId) -> Option<(ActivationKind, ValueId)> {
    let (half, product) = match halved(graph, value) {
        Some(product) => (true, product),
        None => (false, value),
    };
    either(graph, product, BinaryKind::Mul).find_map(|(l, r)| {
        let (x, factor) = if half {
            (l, r)
        } else if let Some(x) = halved(graph, l) {
            (x, r)
        } else {
            (l, halved(graph, r)?)
        };
        let e = with_number(graph, factor, BinaryKind::Add, 1.0)?;
        let kind = if is_erf(graph, e, x) {
            ActivationKind::Gelu
        } else if is_tanh(graph, e, x) {
            ActivationKind::GeluTanh
        } else {
            return None;
        };
        Some((kind, x))
    })
}

/// What a value is half of.
fn halved(graph: &Graph, value: ValueId) -> Option<ValueId> {
    with_number(graph, value, BinaryKind::Mul, 0.5).or_else(|| {
        let [x, two] = binary(graph, value, BinaryKind::Div)?;
        is_number(graph, two, 2.0).then_some(x)
    })
}

/// `erf(x/√2)`.
fn is_erf(graph: &Graph, value: ValueId, x: ValueId) -> bool {
    let Some(z) = unary(graph, value, UnaryKind::Erf) else {
        return false;
    };
    let scaled = with_number(graph, z, BinaryKind::Mul, FRAC_1_SQRT_2) == Some(x);
    let divided = binary(graph, z, BinaryKind::Div)
        .is_some_and(|[l, r]| l == x && is_number(graph, r, SQRT_2));
    scaled || divided
}

/// `tanh(√(2/π)·(x + 0.044715·x³))`.
fn is_tanh(graph: &Graph, value: ValueId, x: ValueId) -> bool {
    let bent = of(graph, value, ActivationKind::Tanh)
        .and_then(|z| with_number(graph, z, BinaryKind::Mul, FRAC_2_PI.sqrt()));
    let Some(bent) = bent else {
        return false;
    };
    let cube = either(graph, bent, BinaryKind::Add)
        .find_map(|(l, r)| (l == x).then_some(r))
        .and_then(|r| with_number(graph, r, BinaryKind::Mul, 0.044715));
    cube.is_some_and(|cube| is_cube(graph, cube, x))
}

/// `x³`, as a power or as products.
fn is_cube(graph: &Graph, value: ValueId, x: ValueId) -> bool {
    if let Some([base, three]) = binary(graph, value, BinaryKind::Pow) {
        return base == x && is_number(graph, three, 3.0);
    }
    either(graph, value, BinaryKind::Mul).any(|(l, r)| {
        let square = match binary(graph, r, BinaryKind::Pow) {
            Some([base, two]) => base == x && is_number(graph, two, 2.0),
            None => binary(graph, r, BinaryKind::Mul) == Some([x, x]),
        };
        l == x && square
    })
}

/// An activation times another tensor. One that something else reads, too, is there anyway.
fn fuse_gate(graph: &mut Graph, id: OpId) -> Result<bool, PatchError> {
    let y = graph.op(id).results[0];
    let found = either(graph, y, BinaryKind::Mul).find_map(|(act, up)| {
        let def = graph.def(act);
        let Op::Activation(Activation(kind)) = def.kind else {
            return None;
        };
        let same = graph.ty(act) == graph.ty(up) && act != up;
        let gates = kind.gates() && same && read_once(graph, def);
        gates.then(|| (kind, def.operands[0], up))
    });
    let Some((kind, gate, up)) = found else {
        return Ok(false);
    };
    let mut patch = graph.patch("fuse-gate");
    let fused = patch.at(id).add1(Gated(kind).into(), &[gate, up])?;
    patch.replace(y, fused)?;
    patch.remove(id)?;
    Ok(true)
}
