//! `onnx`: a node outside the core set, carried along as it is.

use super::attrs::{AttrReader, Attrs};
use super::{Op, Operator, Types};
use crate::dim::Bindings;
use crate::text::parse_type;
use crate::types::{TensorType, TypeError};
use bytes::Bytes;
use std::fmt::Write;
use std::sync::Arc;

/// `onnx v1 {op="NonZero", opset=20, results=[i64[1,n]]}`: it can be written again, but has no
/// gradient.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct OnnxOp {
    /// Operator type.
    pub op: Arc<str>,
    /// Domain; empty for ai.onnx.
    pub domain: Arc<str>,
    /// The opset version that defines its meaning.
    pub opset: i64,
    /// The node's attributes, as protobuf.
    pub attributes: Bytes,
    /// For each input of the node, whether it is given.
    pub inputs: Vec<bool>,
    /// The types of its outputs, as the model states them.
    pub results: Vec<TensorType>,
}

impl Operator for Box<OnnxOp> {
    fn name(&self) -> &'static str {
        "onnx"
    }

    fn attrs(&self) -> Attrs {
        let mut hex = String::new();
        for byte in &self.attributes {
            // Writing to a string cannot fail.
            let _ = write!(hex, "{byte:02x}");
        }
        let given: Vec<u8> = self.inputs.iter().map(|i| u8::from(*i)).collect();
        Attrs::default()
            .with("op", format_args!("{:?}", self.op))
            .with("domain", format_args!("{:?}", self.domain))
            .with("opset", self.opset)
            .with("attributes", format_args!("\"{hex}\""))
            .list("inputs", given)
            .list("results", &self.results)
    }

    fn arity(&self) -> (usize, usize) {
        let n = self.inputs.iter().filter(|i| **i).count();
        (n, n)
    }

    fn infer(&self, _: &[&TensorType]) -> Result<Types, TypeError> {
        Ok(self.results.iter().cloned().collect())
    }

    fn bind(&self, bindings: &Bindings) -> Option<Op> {
        let results: Option<Vec<_>> = self.results.iter().map(|t| t.bind(bindings)).collect();
        Some(Op::Onnx(Box::new(OnnxOp {
            results: results?,
            ..(**self).clone()
        })))
    }
}

pub(super) fn parse(name: &str, a: &mut AttrReader<'_>) -> Option<Result<Op, String>> {
    (name == "onnx").then(|| {
        let hex = a.name("attributes")?;
        let digits = hex.as_bytes().chunks(2).map(|pair| {
            let pair = std::str::from_utf8(pair).map_err(|_| "bad hex".to_string())?;
            u8::from_str_radix(pair, 16).map_err(|_| format!("bad hex `{pair}`"))
        });
        let attributes: Vec<u8> = digits.collect::<Result<_, _>>()?;
        let given: Vec<u8> = a.list("inputs")?;
        let results = a.items("results")?.into_iter().map(parse_type);
        Ok(Op::Onnx(Box::new(OnnxOp {
            op: a.name("op")?.into(),
            domain: a.name("domain")?.into(),
            opset: a.int("opset")?,
            attributes: attributes.into(),
            inputs: given.into_iter().map(|i| i != 0).collect(),
            results: results.collect::<Result<_, _>>()?,
        })))
    })
}
