//! Calls of functions that the exporter wrote for ops: each is the op again.
//!
//! A function of our domain says in words which op it is. It is believed if it is, node by node, what is
//! written for that op and the types that the file states of the call's operands; any other function is what its
//! nodes are.

use super::error::Fail;
use super::node::Node;
use super::{Importer, declared};
use crate::export::functions::{Call, DOMAIN, written};
use crate::proto::{FunctionProto, GraphProto, NodeProto, ValueInfoProto};
use lorafa_ir::TensorType;
use lorafa_ir::ops::Transpose;
use lorafa_ir::text::parse_op;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

/// As many matrices are tried as given transposed.
const MAX_MATRICES: usize = 3;

/// A function's name, the types of a call's operands, and the slots of those that are matrices of the file.
type Known<'m> = (&'m str, Vec<TensorType>, Vec<usize>);

/// What a file states of the values that its nodes read, and which calls are ops.
pub(super) struct Fused<'m> {
    types: BTreeMap<&'m str, TensorType>,
    /// The weights of the file: only these are given transposed.
    weights: BTreeMap<&'m str, TensorType>,
    known: HashMap<Known<'m>, Option<Rc<Call>>>,
}

impl<'m> Fused<'m> {
    pub(super) fn new(graph: &'m GraphProto) -> Self {
        let stated = |info: &'m ValueInfoProto| {
            let ty = declared(info.r#type.as_ref())?.ok()?;
            Some((info.name(), ty))
        };
        let infos = graph.value_info.iter().chain(&graph.input);
        let weights = graph.initializer.iter().filter_map(|tensor| {
            let dtype = crate::dtype::from_onnx(tensor.data_type())?;
            let dims = tensor.dims.iter().map(|n| (*n).into());
            Some((tensor.name(), TensorType::new(dtype, dims)))
        });
        Fused {
            types: infos.chain(&graph.output).filter_map(stated).collect(),
            weights: weights.collect(),
            known: HashMap::new(),
        }
    }

    /// The op that a call of a function is.
    pub(super) fn op(&mut self, node: &NodeProto, function: &'m FunctionProto) -> Option<Rc<Call>> {
        let plain = function.overload().is_empty() && node.attribute.is_empty();
        if function.domain() != DOMAIN || !plain {
            return None;
        }
        let ty = |name: &String| {
            let weight = self.weights.get(name.as_str());
            weight.or_else(|| self.types.get(name.as_str())).cloned()
        };
        let operands: Vec<TensorType> = node.input.iter().map(ty).collect::<Option<_>>()?;
        let outputs = node.output.len() == function.output.len();
        if !outputs || node.output.iter().any(String::is_empty) {
            return None;
        }
        let matrix = |(slot, ty): (usize, &TensorType)| {
            let weight = self.weights.contains_key(node.input[slot].as_str());
            (weight && ty.rank() == 2).then_some(slot)
        };
        let matrices = operands.iter().enumerate().filter_map(matrix);
        let matrices: Vec<usize> = matrices.take(MAX_MATRICES).collect();
        let known = self.known.entry((function.name(), operands, matrices));
        let call = known.or_insert_with_key(|(_, operands, matrices)| {
            recognized(function, operands, matrices).map(Rc::new)
        });
        call.clone()
    }
}

/// The call of an op for which a function is written.
fn recognized(
    function: &FunctionProto,
    operands: &[TensorType],
    matrices: &[usize],
) -> Option<Call> {
    let kind = parse_op(function.doc_string()).ok()?;
    let slot = |output: &String| output.strip_prefix("out_")?.parse().ok();
    let results: Vec<usize> = function.output.iter().map(slot).collect::<Option<_>>()?;
    let opset = function.opset_import.first()?.version();
    (0..1 << matrices.len()).find_map(|transposed: usize| {
        let mut call = Call {
            kind: kind.clone(),
            operands: operands.iter().map(|ty| (ty.clone(), false)).collect(),
            results: results.clone(),
        };
        for (bit, slot) in matrices.iter().enumerate() {
            if transposed >> bit & 1 == 1 {
                let (ty, transposed) = &mut call.operands[*slot];
                ty.shape.reverse();
                *transposed = true;
            }
        }
        let mut written = written(&call, opset).ok()?;
        written.name.clone_from(&function.name);
        (written == *function).then_some(call)
    })
}

impl<'m> Importer<'m, '_> {
    /// Builds the op that a call is.
    pub(super) fn fused(&mut self, node: &Node<'m>, call: &Call) -> Result<(), Fail> {
        let mut operands = Vec::new();
        for (slot, (ty, transposed)) in call.operands.iter().enumerate() {
            let mut value = self.value(node.required(slot)?)?;
            if *transposed {
                let swap = Transpose {
                    perm: [1, 0].into_iter().collect(),
                };
                value = self.patch.add1(swap.into(), &[value])?;
            }
            let found = self.patch.ty(value);
            if found != ty {
                let name = node.required(slot)?;
                return Err(format!("`{name}` is {found}, and the file states {ty}").into());
            }
            operands.push(value);
        }
        let results = self.patch.add(call.kind.clone(), &operands)?;
        for (output, slot) in call.results.iter().enumerate() {
            self.define(node.required_output(output)?, results[*slot]);
        }
        Ok(())
    }
}
