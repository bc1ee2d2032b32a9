//! ONNX graph → IR graph.
//!
//! Functions are put where they are called (`functions`), but for those that the exporter wrote for ops, which are these
//! ops again (`fused`). One node becomes one or a few core ops (`ops/`), shapes computed by nodes become attributes
//! (`known`), and weights get their PyTorch names back (`names`). Weights are not read: a
//! model whose weights are not there imports all the same.

mod context;
mod error;
mod functions;
mod fused;
mod known;
mod names;
mod node;
mod ops;
mod outputs;
mod signature;

pub use error::{ImportError, NodePlace};

use crate::file::ModelFile;
use crate::proto::{TypeProto, ValueInfoProto, tensor_shape_proto, type_proto};
use context::Importer;
use error::Fail;
use lorafa_ir::ops::{Param, Role};
use lorafa_ir::optimizer::STATE;
use lorafa_ir::{Dim, Graph, Shape, TensorType};
use node::Node;
use signature::Signature;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

/// The first opset whose operators the importer knows in full: axes became inputs with it.
const LEAST_OPSET: i64 = 13;

/// Builds the IR graph of a model.
pub fn import(model: &ModelFile) -> Result<Graph, ImportError> {
    let proto = model.graph();
    let opset = model.opset("").unwrap_or(0);
    if opset < LEAST_OPSET {
        return Err(ImportError::OldOpset {
            found: opset,
            least: LEAST_OPSET,
        });
    }
    outputs::refuse_accumulators(model)?;
    let signature = Signature::read(model);
    let mut graph = Graph::new(proto.name());
    let program = functions::inline(model)?;
    let mut importer = Importer::new(&mut graph, model, &program, &signature);
    importer.check_initializers()?;
    importer.inputs()?;
    for index in order(&importer)? {
        let node = importer.node(index);
        importer.import(&node)?;
    }
    importer.outputs()?;
    names::recover(&mut graph, &signature, model.proto().producer_name());
    Ok(graph)
}

/// Nodes in an order in which each comes after what it reads; the file's own if it is one.
fn order(importer: &Importer<'_, '_>) -> Result<Vec<usize>, ImportError> {
    let nodes = &importer.program.nodes;
    let mut producer: BTreeMap<&str, usize> = BTreeMap::new();
    for (i, (node, _)) in nodes.iter().enumerate() {
        for output in node.output.iter().filter(|o| !o.is_empty()) {
            if let Some(first) = producer.insert(output, i) {
                return Err(ImportError::Duplicate {
                    name: output.clone(),
                    first: importer.node(first).place().to_string(),
                    second: importer.node(i).place().to_string(),
                });
            }
            if let Some(first) = importer.source(output) {
                return Err(ImportError::Duplicate {
                    name: output.clone(),
                    first: first.into(),
                    second: importer.node(i).place().to_string(),
                });
            }
        }
    }
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
    let mut missing = vec![0usize; nodes.len()];
    for (i, (node, _)) in nodes.iter().enumerate() {
        for input in node.input.iter().filter(|n| !n.is_empty()) {
            match producer.get(input.as_str()) {
                Some(p) => {
                    readers[*p].push(i);
                    missing[i] += 1;
                }
                None if importer.source(input).is_some() => {}
                None => {
                    let place = importer.node(i).place();
                    return Err(ImportError::MissingInput {
                        place,
                        input: input.clone(),
                    });
                }
            }
        }
    }
    let mut ready: BinaryHeap<Reverse<usize>> = (0..nodes.len())
        .filter(|i| missing[*i] == 0)
        .map(Reverse)
        .collect();
    let mut order = Vec::with_capacity(nodes.len());
    while let Some(Reverse(i)) = ready.pop() {
        order.push(i);
        for reader in &readers[i] {
            missing[*reader] -= 1;
            if missing[*reader] == 0 {
                ready.push(Reverse(*reader));
            }
        }
    }
    match missing.iter().position(|m| *m > 0) {
        Some(i) => Err(ImportError::Cycle {
            place: importer.node(i).place(),
        }),
        None => Ok(order),
    }
}

impl<'m> Importer<'m, '_> {
    fn node(&self, index: usize) -> Node<'m> {
        let (proto, opset) = &self.program.nodes[index];
        Node {
            proto,
            seq: index as i64,
            opset: *opset,
        }
    }

    /// Declares graph inputs that are no initializers.
    fn inputs(&mut self) -> Result<(), ImportError> {
        let mut seen = BTreeMap::new();
        for input in &self.model.graph().input {
            let name = input.name();
            if seen.insert(name, ()).is_some() {
                let (first, second) = ("an input".into(), "an input".into());
                return Err(ImportError::Duplicate {
                    name: name.into(),
                    first,
                    second,
                });
            }
            if self.is_initializer(name) {
                continue;
            }
            let ty = input_type(input)?;
            // As steps are written that have an optimizer.
            let role = match name.starts_with(STATE) {
                true => Role::OptState,
                false => Role::Input,
            };
            self.define_input(name, Param::runtime(name, role, ty));
        }
        Ok(())
    }

    fn import(&mut self, node: &Node<'m>) -> Result<(), ImportError> {
        let result = self.dispatch(node);
        result.map_err(|fail| match fail {
            Fail::Why(why) => ImportError::Node {
                place: node.place(),
                why,
            },
            Fail::Weight(error) => ImportError::Weight {
                place: node.place().to_string(),
                error,
            },
            Fail::Unknown => ImportError::UnknownOp {
                place: node.place(),
            },
        })
    }
}

/// The type that a value is declared with, if that is a tensor of a supported element type.
pub(super) fn declared(ty: Option<&TypeProto>) -> Option<Result<TensorType, String>> {
    let Some(type_proto::Value::TensorType(tensor)) = ty?.value.as_ref() else {
        return None;
    };
    let dtype = crate::dtype::from_onnx(tensor.elem_type())?;
    let dims = tensor
        .shape
        .as_ref()?
        .dim
        .iter()
        .map(|dim| match &dim.value {
            Some(tensor_shape_proto::dimension::Value::DimValue(n)) if *n >= 0 => {
                Ok(Dim::Known(*n))
            }
            Some(tensor_shape_proto::dimension::Value::DimValue(n)) => {
                Err(format!("dimension {n} is negative"))
            }
            Some(tensor_shape_proto::dimension::Value::DimParam(name)) => Ok(symbol(name)),
            None => {
                Err("a dimension has neither a number nor a name; name it when exporting".into())
            }
        });
    let shape: Result<Shape, String> = dims.collect();
    Some(shape.map(|shape| TensorType { dtype, shape }))
}

/// What an exporter wrote as a dimension's name: an expression, or a symbol of its own.
fn symbol(name: &str) -> Dim {
    let word = || -> String {
        let plain = |c: char| if c.is_alphanumeric() { c } else { '_' };
        name.chars().map(plain).collect()
    };
    // Exporters put blanks around their minus, people join words with it.
    let is_word = |part: &str| part.starts_with(char::is_alphabetic) && !part.contains(' ');
    if name.contains('-') && name.split('-').all(is_word) {
        return Dim::sym(&word());
    }
    name.parse().unwrap_or_else(|_| Dim::sym(&word()))
}

fn input_type(input: &ValueInfoProto) -> Result<TensorType, ImportError> {
    let name = input.name().to_string();
    match declared(input.r#type.as_ref()) {
        Some(Ok(ty)) => match ty.check() {
            Ok(()) => Ok(ty),
            Err(error) => Err(ImportError::Dim {
                name,
                why: error.to_string(),
            }),
        },
        Some(Err(why)) => Err(ImportError::Dim { name, why }),
        None => {
            let found = match input.r#type.as_ref().and_then(|t| t.value.as_ref()) {
                Some(type_proto::Value::TensorType(t)) if t.shape.is_none() => {
                    return Err(ImportError::Dim {
                        name,
                        why: "it has no shape".into(),
                    });
                }
                Some(type_proto::Value::TensorType(t)) => {
                    crate::tensor::data_type_name(t.elem_type())
                }
                Some(_) => "something else than a tensor".into(),
                None => "no type".into(),
            };
            Err(ImportError::Type {
                what: "input",
                name,
                found,
            })
        }
    }
}
