//! The file under construction: nodes, initializers and their names.

use super::functions::{DOMAIN, Functions};
use super::names::Names;
use super::proto::{dims, info};
use super::weights::Weights;
use super::{ExportError, ExportOptions};
use crate::dtype::{self, to_onnx};
use crate::proto::{AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto};
use crate::tensor::{self, TensorPayload};
use bytes::Bytes;
use lorafa_ir::ops::{Constant, Literal};
use lorafa_ir::text::OpDisplay;
use lorafa_ir::{DType, Graph, Op, OpData, TensorType, ValueId};
use std::collections::BTreeMap;

/// Data type, dimensions and elements of a constant.
type Content = (i32, Vec<i64>, Bytes);

/// An export under way.
pub(super) struct Writer<'a> {
    pub(super) graph: &'a Graph,
    pub(super) options: &'a ExportOptions<'a>,
    pub(super) names: Names,
    pub(super) weights: Weights,
    functions: &'a Functions,
    nodes: Vec<NodeProto>,
    infos: Vec<ValueInfoProto>,
    constants: Vec<TensorProto>,
    by_content: BTreeMap<Content, String>,
    /// Results of nodes without attributes, by operator and inputs.
    shared: BTreeMap<(&'static str, Vec<String>), String>,
    module: String,
    label: String,
    helpers: usize,
}

impl<'a> Writer<'a> {
    pub(super) fn new(
        graph: &'a Graph,
        options: &'a ExportOptions<'a>,
        functions: &'a Functions,
    ) -> Result<Self, ExportError> {
        Ok(Writer {
            graph,
            options,
            names: Names::new(graph)?,
            weights: Weights::default(),
            functions,
            nodes: Vec::new(),
            infos: Vec::new(),
            constants: Vec::new(),
            by_content: BTreeMap::new(),
            shared: BTreeMap::new(),
            module: String::new(),
            label: String::new(),
            helpers: 0,
        })
    }

    /// The nodes that follow belong to `op`.
    pub(super) fn enter(&mut self, op: &OpData) {
        self.module = match &*op.site.module {
            "" => String::new(),
            module => format!("/{module}/"),
        };
        self.label = format!("{}_{}", op.kind.name(), op.id.index());
        self.helpers = 0;
    }

    /// The error that `op` cannot be written.
    pub(super) fn refuse(&self, op: &OpData, why: impl Into<String>) -> ExportError {
        ExportError::Op {
            line: OpDisplay(self.graph, op.id).to_string(),
            why: why.into(),
        }
    }

    /// The name under which a value is read. Weights and constants are written when first read.
    pub(super) fn read(&mut self, value: ValueId) -> Result<String, ExportError> {
        match &self.graph.def(value).kind {
            Op::Param(param) => self.weight(value, param),
            Op::Constant(constant) => self.literal(constant),
            _ => Ok(self.names.of(value).unwrap_or_default().to_string()),
        }
    }

    /// The names of all of an op's operands.
    pub(super) fn operands(&mut self, op: &OpData) -> Result<Vec<String>, ExportError> {
        op.operands.iter().map(|v| self.read(*v)).collect()
    }

    /// Writes the node that defines the op's results, those that nothing reads left out.
    pub(super) fn node(
        &mut self,
        op: &OpData,
        onnx: &str,
        inputs: Vec<String>,
        attributes: Vec<AttributeProto>,
    ) {
        let outputs = self.results(op, |w, slot, value| slot == 0 || w.graph.is_used(value));
        let name = format!("{}{}", self.module, self.label);
        self.push(name, onnx, inputs, outputs, attributes);
    }

    /// Writes the call of the function that the op is.
    pub(super) fn call(&mut self, op: &OpData) -> Result<(), ExportError> {
        let Some((function, given)) = self.functions.of(op.id) else {
            return Err(self.refuse(op, "ONNX has no operator for it"));
        };
        let mut input = Vec::new();
        for value in &op.operands {
            input.push(match self.transposed_weight(*value) {
                Some(name) => name?,
                None => self.read(*value)?,
            });
        }
        let mut output = self.results(op, |_, slot, _| given.contains(&slot));
        output.retain(|name| !name.is_empty());
        self.nodes.push(NodeProto {
            name: Some(format!("{}{}", self.module, self.label)),
            op_type: Some(function.into()),
            domain: Some(DOMAIN.into()),
            input,
            output,
            ..NodeProto::default()
        });
        Ok(())
    }

    /// Writes the node of an opaque op, with all of its results.
    pub(super) fn opaque(&mut self, op: &OpData, mut node: NodeProto) {
        node.name = Some(format!("{}{}", self.module, self.label));
        node.output = self.results(op, |_, _, _| true);
        self.nodes.push(node);
    }

    /// The names of the op's results, empty where one is left out.
    fn results(
        &mut self,
        op: &OpData,
        keep: impl Fn(&Self, usize, ValueId) -> bool,
    ) -> Vec<String> {
        let mut outputs = Vec::new();
        for (slot, value) in op.results.iter().enumerate() {
            let mut name = String::new();
            if keep(self, slot, *value) {
                name = self.names.of(*value).unwrap_or_default().to_string();
                self.describe(&name, self.graph.ty(*value));
            }
            outputs.push(name);
        }
        while outputs.last().is_some_and(String::is_empty) {
            outputs.pop();
        }
        outputs
    }

    /// Writes a node that the op needs first; gives the name of its one result.
    pub(super) fn helper(
        &mut self,
        onnx: &str,
        inputs: Vec<String>,
        attributes: Vec<AttributeProto>,
        ty: &TensorType,
    ) -> String {
        self.helpers += 1;
        let label = format!("{}.{}", self.label, self.helpers);
        let output = self.names.fresh(&label);
        let name = format!("{}{label}", self.module);
        self.push(name, onnx, inputs, vec![output.clone()], attributes);
        self.describe(&output, ty);
        output
    }

    /// As [`Self::helper`] without attributes; one node for all ops that need the same.
    pub(super) fn shared(
        &mut self,
        onnx: &'static str,
        inputs: Vec<String>,
        ty: &TensorType,
    ) -> String {
        let key = (onnx, inputs);
        if let Some(name) = self.shared.get(&key) {
            return name.clone();
        }
        let name = self.helper(onnx, key.1.clone(), vec![], ty);
        self.shared.insert(key, name.clone());
        name
    }

    /// Writes a node of the default domain.
    pub(super) fn push(
        &mut self,
        name: String,
        onnx: &str,
        input: Vec<String>,
        output: Vec<String>,
        attribute: Vec<AttributeProto>,
    ) {
        self.nodes.push(NodeProto {
            name: Some(name),
            op_type: Some(onnx.into()),
            input,
            output,
            attribute,
            ..NodeProto::default()
        });
    }

    /// Records the type of a name that is no output, for readers that do not infer it.
    pub(super) fn describe(&mut self, name: &str, ty: &TensorType) {
        if !self.names.is_output(name) {
            self.infos.push(info(name, ty));
        }
    }

    /// A list of integers as a constant: a shape, axes, bounds.
    pub(super) fn ints(&mut self, values: &[i64]) -> Result<String, ExportError> {
        let bytes = values.iter().flat_map(|n| n.to_le_bytes()).collect();
        self.constant(DType::I64, vec![values.len() as i64], bytes)
    }

    /// An integer as a scalar constant.
    pub(super) fn int(&mut self, value: i64) -> Result<String, ExportError> {
        self.constant(DType::I64, Vec::new(), value.to_le_bytes().to_vec())
    }

    /// A number as a scalar constant.
    pub(super) fn scalar(&mut self, dtype: DType, value: f64) -> Result<String, ExportError> {
        self.constant(dtype, Vec::new(), dtype::encode(dtype, [value]))
    }

    fn literal(&mut self, constant: &Constant) -> Result<String, ExportError> {
        self.constant(
            constant.ty.dtype,
            dims(&constant.ty),
            literal_bytes(constant.ty.dtype, &constant.literal),
        )
    }

    /// The initializer with these elements: the one there is, or a new one.
    fn constant(
        &mut self,
        dtype: DType,
        dims: Vec<i64>,
        bytes: Vec<u8>,
    ) -> Result<String, ExportError> {
        let content = (to_onnx(dtype), dims, Bytes::from(bytes));
        if let Some(name) = self.by_content.get(&content) {
            return Ok(name.clone());
        }
        let name = self.names.fresh(&format!("const_{}", self.constants.len()));
        let payload = TensorPayload::Inline(content.2.clone());
        let tensor = tensor::encode(&name, content.0, &content.1, payload);
        self.constants
            .push(tensor.map_err(|error| ExportError::Weight {
                name: name.clone(),
                error: Box::new(error),
            })?);
        self.by_content.insert(content, name.clone());
        Ok(name)
    }

    /// Gives every output its name.
    pub(super) fn outputs(&mut self) -> Result<(), ExportError> {
        for (i, output) in self.graph.outputs().iter().enumerate() {
            let name = self.read(output.value)?;
            if *name != *output.name {
                let to = vec![output.name.to_string()];
                self.push(format!("output_{i}"), "Identity", vec![name], to, vec![]);
            }
        }
        Ok(())
    }

    /// The graph, without its name.
    pub(super) fn finish(self) -> GraphProto {
        let (graph, options) = (self.graph, self.options);
        let inputs = graph.params().filter(|(_, p)| options.is_input(p));
        let input = inputs.map(|(_, p)| info(&p.name, &p.ty)).collect();
        let outputs = graph.outputs().iter();
        let output = outputs.map(|o| info(&o.name, graph.ty(o.value))).collect();
        let mut initializer = self.weights.into_initializers();
        initializer.extend(self.constants);
        GraphProto {
            node: self.nodes,
            initializer,
            input,
            output,
            value_info: self.infos,
            ..GraphProto::default()
        }
    }
}

/// A constant's elements, little-endian.
pub(super) fn literal_bytes(dtype: DType, literal: &Literal) -> Vec<u8> {
    match literal {
        // Not every one of these is an f64.
        Literal::Ints(ints) if matches!(dtype, DType::I64 | DType::U64) => {
            ints.iter().flat_map(|n| n.to_le_bytes()).collect()
        }
        literal => dtype::encode(dtype, literal.to_f64()),
    }
}
