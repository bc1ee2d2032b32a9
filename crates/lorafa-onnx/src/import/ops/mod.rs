//! ONNX operators, one family a file: what each becomes in the core set.

mod attention;
mod elementwise;
mod index;
mod linear;
mod loss;
mod norm;
mod reduce;
mod sequence;
mod shape;

use super::context::Importer;
use super::error::Fail;
use super::known::{self, Known};
use super::node::Node;
use lorafa_ir::ops::{OnnxOp, Op};
use lorafa_ir::{Dim, ValueId};
use prost::Message;

/// Builds one node.
pub(super) type Handler = for<'m> fn(&mut Importer<'m, '_>, &Node<'m>) -> Result<(), Fail>;

const FAMILIES: &[&[(&str, Handler)]] = &[
    elementwise::OPS,
    shape::OPS,
    index::OPS,
    linear::OPS,
    reduce::OPS,
    norm::OPS,
    attention::OPS,
    loss::OPS,
    sequence::OPS,
];

impl<'m> Importer<'m, '_> {
    /// Builds one node: as integers if it is arithmetic on known ones, by its operator's handler
    /// otherwise.
    pub(super) fn dispatch(&mut self, node: &Node<'m>) -> Result<(), Fail> {
        self.enter(node);
        if let Some(call) = self.program.ops.get(&(node.seq as usize)) {
            return self.fused(node, call);
        }
        let standard = matches!(node.proto.domain(), "" | "ai.onnx");
        let handler = FAMILIES
            .iter()
            .flat_map(|family| family.iter())
            .find(|(op, _)| standard && *op == node.op());
        let Some((_, handler)) = handler else {
            return self.opaque(node);
        };
        if node.proto.input.len() <= MAX_EVALUATED {
            let mut ins = Vec::new();
            for slot in 0..node.proto.input.len() {
                ins.push(match node.input(slot) {
                    Some(name) => self.known(name)?,
                    None => None,
                });
            }
            if let (Some(known), Some(name)) = (known::evaluate(node, &ins)?, node.output(0)) {
                self.define_known(name, known, None);
                return Ok(());
            }
        }
        handler(self, node)
    }

    /// The value of an input that must be there.
    fn input(&mut self, node: &Node<'m>, slot: usize) -> Result<ValueId, Fail> {
        self.value(node.required(slot)?)
    }

    /// Binds the node's first output, and refuses others that are read.
    fn result(&mut self, node: &Node<'m>, value: ValueId) -> Result<(), Fail> {
        if let Some(name) = node.output(0) {
            self.define(name, value);
        }
        Ok(())
    }

    /// Known integers of an input that must be known.
    fn integers(&mut self, node: &Node<'m>, slot: usize, what: &str) -> Result<Vec<Dim>, Fail> {
        let name = node.required(slot)?;
        let known: Option<Known> = self.known(name)?;
        let known = known.ok_or_else(|| format!("its {what} is not known before the step runs"))?;
        Ok(known.values)
    }

    /// As [`Self::integers`], without symbols.
    fn numbers(&mut self, node: &Node<'m>, slot: usize, what: &str) -> Result<Vec<i64>, Fail> {
        let dims = self.integers(node, slot, what)?;
        let numbers: Option<Vec<i64>> = dims.iter().map(Dim::known).collect();
        numbers.ok_or_else(|| format!("its {what} depends on symbolic dimensions").into())
    }

    /// Carries a node outside the core set along, if the model says what its results are.
    fn opaque(&mut self, node: &Node<'m>) -> Result<(), Fail> {
        let mut results = Vec::new();
        for output in &node.proto.output {
            let infos = self
                .model
                .graph()
                .value_info
                .iter()
                .chain(&self.model.graph().output)
                .chain(&self.program.infos);
            let info = infos
                .clone()
                .find(|v| v.name() == output)
                .ok_or(Fail::Unknown)?;
            let ty = super::declared(info.r#type.as_ref()).ok_or(Fail::Unknown)?;
            results.push(ty.map_err(|_| Fail::Unknown)?);
        }
        if node
            .proto
            .attribute
            .iter()
            .any(|a| a.g.is_some() || !a.graphs.is_empty())
        {
            return Err(Fail::Unknown);
        }
        let inputs = node.proto.input.iter().map(|i| !i.is_empty()).collect();
        let attributes = crate::proto::NodeProto {
            attribute: node.proto.attribute.clone(),
            ..Default::default()
        };
        let op = OnnxOp {
            op: node.op().into(),
            domain: node.proto.domain().into(),
            opset: node.opset,
            attributes: attributes.encode_to_vec().into(),
            inputs,
            results,
        };
        let operands: Vec<ValueId> = (0..node.proto.input.len())
            .filter(|slot| node.input(*slot).is_some())
            .map(|slot| self.input(node, slot))
            .collect::<Result<_, _>>()?;
        let values = self.patch.add(Op::Onnx(Box::new(op)), &operands)?;
        for (slot, value) in values.into_iter().enumerate() {
            if let Some(name) = node.output(slot) {
                self.define(name, value);
            }
        }
        Ok(())
    }
}

/// Concats of shapes are short; one of many inputs joins data.
const MAX_EVALUATED: usize = 16;
