//! A node as handlers see it.

use super::error::{Fail, NodePlace};
use crate::proto::{AttributeProto, NodeProto, TensorProto};
use std::borrow::Cow;

/// Key under which PyTorch's exporter keeps the module scopes of a node.
const SCOPES: &str = "pkg.torch.onnx.name_scopes";

/// A node of the model with typed access to its attributes.
#[derive(Clone, Copy)]
pub(super) struct Node<'m> {
    pub(super) proto: &'m NodeProto,
    /// Place in the schedule.
    pub(super) seq: i64,
    /// Version of the opset that defines the node.
    pub(super) opset: i64,
}

impl<'m> Node<'m> {
    pub(super) fn op(&self) -> &'m str {
        self.proto.op_type()
    }

    /// The name of an input, unless it is left out.
    pub(super) fn input(&self, slot: usize) -> Option<&'m str> {
        self.proto
            .input
            .get(slot)
            .map(String::as_str)
            .filter(|name| !name.is_empty())
    }

    /// The name of an input that must be there.
    pub(super) fn required(&self, slot: usize) -> Result<&'m str, Fail> {
        self.input(slot)
            .ok_or_else(|| Fail::Why(format!("input {slot} is missing")))
    }

    /// The name of an output, unless it is left out.
    pub(super) fn output(&self, slot: usize) -> Option<&'m str> {
        self.proto
            .output
            .get(slot)
            .map(String::as_str)
            .filter(|name| !name.is_empty())
    }

    /// The name of an output that must be there.
    pub(super) fn required_output(&self, slot: usize) -> Result<&'m str, Fail> {
        self.output(slot)
            .ok_or_else(|| Fail::Why(format!("output {slot} is missing")))
    }

    fn attr(&self, name: &str) -> Option<&'m AttributeProto> {
        self.proto.attribute.iter().find(|a| a.name() == name)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.attr(name).is_some()
    }

    pub(super) fn int(&self, name: &str, default: i64) -> i64 {
        self.attr(name).map_or(default, AttributeProto::i)
    }

    pub(super) fn float(&self, name: &str, default: f32) -> f32 {
        self.attr(name).map_or(default, AttributeProto::f)
    }

    pub(super) fn string(&self, name: &str, default: &'m str) -> Cow<'m, str> {
        match self.attr(name) {
            Some(a) => String::from_utf8_lossy(a.s()),
            None => Cow::Borrowed(default),
        }
    }

    pub(super) fn ints(&self, name: &str) -> Option<&'m [i64]> {
        self.attr(name).map(|a| a.ints.as_slice())
    }

    pub(super) fn floats(&self, name: &str) -> Option<&'m [f32]> {
        self.attr(name).map(|a| a.floats.as_slice())
    }

    pub(super) fn tensor(&self, name: &str) -> Option<&'m TensorProto> {
        self.attr(name).and_then(|a| a.t.as_ref())
    }

    /// Where errors say the node is.
    pub(super) fn place(&self) -> Box<NodePlace> {
        let name = match self.proto.name() {
            "" => self.proto.output.first().map_or("", String::as_str),
            name => name,
        };
        let op = match self.proto.domain() {
            "" | "ai.onnx" => self.op().to_string(),
            domain => format!("{domain}::{}", self.op()),
        };
        let module = module(self.proto);
        Box::new(NodePlace {
            node: name.into(),
            op,
            opset: self.opset,
            module,
        })
    }
}

/// The module path of a node: from the exporter's metadata, or from the legacy exporter's node
/// names (`/model/layers.0/self_attn/q_proj/MatMul`).
pub(super) fn module(node: &NodeProto) -> String {
    let scopes = node.metadata_props.iter().find(|p| p.key() == SCOPES);
    if let Some(scopes) = scopes {
        // A Python list of strings: the scopes from the root down, then the operation.
        let items: Vec<&str> = scopes.value().split('\'').skip(1).step_by(2).collect();
        let path = items.len().checked_sub(2).and_then(|i| items.get(i));
        return path
            .filter(|p| !p.starts_with('_'))
            .map_or(String::new(), ToString::to_string);
    }
    let Some(path) = node.name().strip_prefix('/') else {
        return String::new();
    };
    path.rsplit_once('/')
        .map_or(String::new(), |(module, _)| module.replace('/', "."))
}
