//! Matrices that the exporter's optimizer made of parameters, and says so.
//!
//! ```text
//! - param %permute_2 : f32[64,8] constant
//! - param %permute_140 : f32[8,64] constant
//!   param %m.lora_A.weight : f32[8,64] frozen
//! + v0 = transpose %m.lora_A.weight {perm=[1,0]}
//! ```
//!
//! A joint graph reads a weight and its transpose, and folding makes two tensors of what trains as one. It says of no
//! op to which module that belongs; where a module is known, `unfold` goes by that, because the optimizer names one parameter
//! only of several whose matrices it merged.

use super::{add, beginning, by_name, module, params, remove_unused};
use crate::import::signature::Signature;
use lorafa_ir::ops::{Param, Role, Transpose};
use lorafa_ir::outputs::{gradient_of, is_named};
use lorafa_ir::{Graph, Shape, ValueId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Makes what was folded read the parameter that it was made of.
///
/// Without that parameter the first of its matrices tells what it is: the transpose, as products read the weights of
/// PyTorch's linear layers, unless the gradient has its very shape.
pub(super) fn restore(graph: &mut Graph, signature: &Signature) {
    let mut named = by_name(graph);
    let gradients: BTreeMap<String, Shape> = graph
        .outputs()
        .iter()
        .filter_map(|o| {
            Some((
                gradient_of(&o.name)?.into(),
                graph.ty(o.value).shape.clone(),
            ))
        })
        .collect();
    for (value, matrix) in params(graph) {
        let Some(name) = signature.folded.get(&*matrix.name) else {
            continue;
        };
        let float = matrix.ty.dtype.is_float() && matrix.ty.rank() == 2;
        let uses = graph.uses(value);
        let placed = uses.iter().any(|u| !module(graph, u.op).is_empty());
        if matrix.role != Role::Constant || !float || placed {
            continue;
        }
        let name: Arc<str> = name.as_str().into();
        let param = match named.get(&name) {
            Some(param) => *param,
            None => {
                let of_this = |(of, _): &(&String, &Shape)| is_named(&name, of);
                let gradient = gradients.iter().find(of_this).map(|(_, shape)| shape);
                let as_it_is = gradient.is_some_and(|shape| *shape == matrix.ty.shape)
                    && matrix.ty.shape[0] != matrix.ty.shape[1];
                let mut param = if as_it_is {
                    matrix.clone()
                } else {
                    swapped(&matrix)
                };
                (param.name, param.role) = (name.clone(), Role::Frozen);
                let Some(param) = add(graph, param) else {
                    continue;
                };
                named.insert(name, param);
                param
            }
        };
        read_instead(graph, value, param, &matrix);
    }
}

/// The transpose of a matrix, in the same bytes.
pub(super) fn swapped(matrix: &Param) -> Param {
    let mut param = matrix.clone();
    let [rows, columns] = [0, 1].map(|axis| matrix.ty.shape[axis].clone());
    param.ty = matrix.ty.with_shape([columns, rows]);
    param.stored.transposed = !matrix.stored.transposed;
    param
}

/// Makes what reads a matrix read a parameter, if one is the other or its transpose. Weights in other files are not read:
/// there, the shape tells, if it can.
fn read_instead(graph: &mut Graph, value: ValueId, param: ValueId, matrix: &Param) {
    let Some(of) = graph.param(param).cloned() else {
        return;
    };
    let decides = of.ty.shape[0] != of.ty.shape[1];
    let is_equal = |matrix: &Param| of.same_elements(matrix).unwrap_or(decides);
    let mut patch = graph.patch("unfold-transpose");
    let instead = if is_equal(matrix) {
        Ok(param)
    } else if is_equal(&swapped(matrix)) {
        let perm = [1, 0].into_iter().collect();
        patch.at_site(beginning());
        patch.add1(Transpose { perm }.into(), &[param])
    } else {
        return;
    };
    // The types are those that were compared.
    if let Ok(instead) = instead
        && patch.replace(value, instead).is_ok()
    {
        remove_unused(graph, value);
    }
}
