//! Nodes that were carried along.

use super::{ExportError, Writer};
use crate::proto::NodeProto;
use lorafa_ir::OpData;
use lorafa_ir::ops::OnnxOp;
use prost::Message;

/// The domain as it is written: the default one has two spellings.
pub(in crate::export) fn domain(node: &OnnxOp) -> &str {
    match &*node.domain {
        "ai.onnx" => "",
        domain => domain,
    }
}

/// Writes the node as it was read.
pub(super) fn opaque(w: &mut Writer<'_>, op: &OpData, node: &OnnxOp) -> Result<(), ExportError> {
    let decoded = NodeProto::decode(node.attributes.clone())
        .map_err(|error| w.refuse(op, format!("its attributes are no protobuf: {error}")))?;
    let mut given = w.operands(op)?.into_iter();
    let input = node.inputs.iter().map(|is_given| {
        let name = if *is_given { given.next() } else { None };
        name.unwrap_or_default()
    });
    let input = input.collect();
    let domain = match domain(node) {
        "" => None,
        domain => Some(domain.to_string()),
    };
    let node = NodeProto {
        op_type: Some(node.op.to_string()),
        domain,
        input,
        attribute: decoded.attribute,
        ..NodeProto::default()
    };
    w.opaque(op, node);
    Ok(())
}
