//! Fused ops as model-local functions: one node where the op stands, and a body of standard
//! operators that any runtime can run instead.
//!
//! A body is the op's own decomposition, made for the types of its operands; ops whose bodies come
//! out the same share one function. It knows of no shape but through its constants. A function's
//! `doc_string` is the op as text: the importer makes the op of the call again, if the body is still
//! the one that is written for that op ([`written`]).

use super::lower::lower;
use super::ops;
use super::proto::tensor;
use super::{ExportError, ExportOptions};
use crate::external::ExternalStore;
use crate::proto::{FunctionProto, GraphProto, NodeProto, OperatorSetIdProto, TensorProto};
use lorafa_ir::ops::{Param, Role};
use lorafa_ir::{Graph, Op, OpData, OpId, OutputKind, TensorType};
use prost::Message;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// The domain of the functions, at version 1.
pub(crate) const DOMAIN: &str = "ai.lorafa";

/// An op, the types of its operands, each with whether it is given transposed, and the slots of the
/// results that are read: onnx.checker wants a call to have all of its function's.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Call {
    pub(crate) kind: Op,
    pub(crate) operands: Vec<(TensorType, bool)>,
    pub(crate) results: Vec<usize>,
}

impl Call {
    fn new(graph: &Graph, op: &OpData, options: &ExportOptions<'_>) -> Self {
        let operand = |v: &_| {
            let param = graph.param(*v);
            let held = param.and_then(|p| options.held_transposed(p));
            (graph.ty(*v).clone(), held.is_some())
        };
        let read = |slot: &usize| *slot == 0 || graph.is_used(op.results[*slot]);
        Call {
            kind: op.kind.clone(),
            operands: op.operands.iter().map(operand).collect(),
            results: (0..op.results.len()).filter(read).collect(),
        }
    }
}

/// The functions of a file.
#[derive(Default)]
pub(super) struct Functions {
    protos: Vec<FunctionProto>,
    /// Names by what is called so.
    by_body: BTreeMap<Vec<u8>, String>,
    /// How many functions there are of a mnemonic.
    counts: BTreeMap<&'static str, usize>,
    /// Only looked up, so that its order is none of the file's.
    by_call: HashMap<Call, String>,
    /// The functions that ops call, and the results that these give.
    by_op: BTreeMap<OpId, (String, Vec<usize>)>,
}

impl Functions {
    /// Makes an op that ONNX lacks a call of a function, which is written now if it is new.
    pub(super) fn outline(
        &mut self,
        graph: &Graph,
        op: &OpData,
        options: &ExportOptions<'_>,
    ) -> Result<(), ExportError> {
        let call = Call::new(graph, op, options);
        let results = call.results.clone();
        let name = match self.by_call.get(&call) {
            Some(name) => name.clone(),
            None => {
                let function = function(&call, options)?;
                let name = self.name(call.kind.name(), function);
                self.by_call.insert(call, name.clone());
                name
            }
        };
        self.by_op.insert(op.id, (name, results));
        Ok(())
    }

    /// The function that an op calls, and the slots of the results that it gives.
    pub(super) fn of(&self, op: OpId) -> Option<(&str, &[usize])> {
        let (name, results) = self.by_op.get(&op)?;
        Some((name, results))
    }

    /// The functions in the order of their first calls.
    pub(super) fn into_protos(self) -> Vec<FunctionProto> {
        self.protos
    }

    /// The name of this function: that of the equal one there is, or a new one.
    fn name(&mut self, mnemonic: &'static str, mut function: FunctionProto) -> String {
        let key = function.encode_to_vec();
        if let Some(name) = self.by_body.get(&key) {
            return name.clone();
        }
        let count = self.counts.entry(mnemonic).or_default();
        *count += 1;
        let name = match *count {
            1 => mnemonic.to_string(),
            n => format!("{mnemonic}_{n}"),
        };
        function.name = Some(name.clone());
        self.protos.push(function);
        self.by_body.insert(key, name.clone());
        name
    }
}

/// The op's decomposition as a graph of standard operators, whose inputs are the operands.
fn body(call: &Call, options: &ExportOptions<'_>) -> Result<GraphProto, ExportError> {
    let failed = |error| ExportError::Lower {
        line: format!("{}{}", call.kind.name(), call.kind.attrs()),
        error,
    };
    let mut graph = Graph::new("");
    let mut patch = graph.patch("outline");
    let mut operands = Vec::new();
    for (slot, (ty, transposed)) in call.operands.iter().enumerate() {
        let mut param = Param::runtime(format!("in_{slot}"), Role::Input, ty.clone());
        param.stored.transposed = *transposed;
        let param = patch.add1(Op::Param(Box::new(param)), &[]);
        operands.push(param.map_err(failed)?);
    }
    let results = patch.add(call.kind.clone(), &operands).map_err(failed)?;
    for slot in &call.results {
        patch.output(format!("out_{slot}"), results[*slot], OutputKind::Value);
    }
    let functions = Functions::default();
    let lowered = lower(&graph, &mut |_, _| Ok(false))?;
    ops::write_all(&lowered, options, &functions)
}

/// The function as it is written for an opset, but for its name.
///
/// # Errors
///
/// An op that does not go with these operands.
pub(crate) fn written(call: &Call, opset: i64) -> Result<FunctionProto, ExportError> {
    let options = ExportOptions {
        store: &ExternalStore::new(Path::new("")),
        embed_weights: false,
        trained_inputs: false,
        opset,
    };
    function(call, &options)
}

/// The function, still without a name. Functions have no initializers: its constants are nodes.
fn function(call: &Call, options: &ExportOptions<'_>) -> Result<FunctionProto, ExportError> {
    let body = body(call, options)?;
    let constants = body.initializer.into_iter().map(constant);
    Ok(FunctionProto {
        domain: Some(DOMAIN.into()),
        doc_string: Some(format!("{}{}", call.kind.name(), call.kind.attrs())),
        input: body.input.iter().map(|i| i.name().to_string()).collect(),
        output: body.output.iter().map(|o| o.name().to_string()).collect(),
        node: constants.chain(body.node).collect(),
        opset_import: vec![OperatorSetIdProto {
            domain: Some(String::new()),
            version: Some(options.opset),
        }],
        ..FunctionProto::default()
    })
}

fn constant(mut value: TensorProto) -> NodeProto {
    let name = value.name.take().unwrap_or_default();
    NodeProto {
        name: Some(name.clone()),
        op_type: Some("Constant".into()),
        output: vec![name],
        attribute: vec![tensor("value", value)],
        ..NodeProto::default()
    }
}
