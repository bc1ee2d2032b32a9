//! IR graph → ONNX graph.
//!
//! `lower` turns what ONNX lacks into what it has, and `ops` writes each op that is left as
//! one node or a few. What is written is standard: the default domain at one opset whose operators
//! mean the same in every later opset up to 23, plus the domains of nodes that were carried along.
//!
//! | in the graph | in the file |
//! |---|---|
//! | a parameter given at run time | a graph input |
//! | any other parameter that is read | an initializer, or an external one where the source keeps it |
//! | a trained parameter, if asked for | an initializer and a graph input of the same name |
//! | a constant | an initializer, one for all constants that are equal |
//! | an op | a node called `/{module}/{mnemonic}_{number}`, helper nodes `….1`, `….2` |
//! | an output | a graph output, behind an `Identity` if its value has another name already |
//!
//! The same graph gives the same bytes, whatever the machine, path or time.

mod error;
mod init;
mod lower;
mod names;
mod ops;
mod proto;
pub mod weights;
mod writer;

pub use error::ExportError;

use crate::external::ExternalStore;
use crate::proto::{GraphProto, ModelProto, OperatorSetIdProto};
use lorafa_ir::text::OpDisplay;
use lorafa_ir::{Graph, Op};
use std::collections::BTreeMap;
use writer::Writer;

/// The opset whose operators are written. `Gelu` came with it.
const OPSET: i64 = 20;

/// The IR version that onnx 1.16 wrote: older runtimes read it, and nothing here needs a newer one.
const IR_VERSION: i64 = 10;

/// What the graph does not say about the file.
#[derive(Clone, Copy, Debug)]
pub struct ExportOptions<'a> {
    /// Folder of the source model: external references are relative to it.
    pub store: &'a ExternalStore,
    /// Put weights that were external into the file.
    pub embed_weights: bool,
    /// Make trained parameters graph inputs whose defaults are their first values, so that a caller
    /// can feed what the last step gave. One that another file holds transposed or in another type
    /// has no default.
    pub trained_inputs: bool,
}

/// The graph as an ONNX model.
///
/// Every symbol must be bound to a number. References to external weights are kept as they are,
/// so the model belongs into the folder of its source unless the weights are embedded.
///
/// # Errors
///
/// [`ExportError`], which names the op or the parameter. A graph that does not verify is one.
pub fn export(graph: &Graph, options: &ExportOptions<'_>) -> Result<ModelProto, ExportError> {
    graph.verify().map_err(ExportError::Invalid)?;
    check_bound(graph)?;
    let lowered = lower::lower(graph)?;
    let mut writer = Writer::new(&lowered, options)?;
    for id in lowered.order() {
        let op = lowered.op(id);
        writer.enter(op);
        ops::write(&mut writer, op)?;
    }
    writer.outputs()?;
    Ok(ModelProto {
        ir_version: Some(IR_VERSION),
        opset_import: opsets(&lowered),
        producer_name: Some("lorafa-opt".into()),
        producer_version: Some(env!("CARGO_PKG_VERSION").into()),
        graph: Some(GraphProto {
            // onnx.checker refuses a graph without a name.
            name: Some(match &*graph.name {
                "" => "graph".into(),
                name => name.into(),
            }),
            ..writer.finish()
        }),
        ..ModelProto::default()
    })
}

fn check_bound(graph: &Graph) -> Result<(), ExportError> {
    for op in graph.ops() {
        let symbolic = |v: &&_| graph.ty(**v).known_shape().is_none();
        if let Some(value) = op.results.iter().find(symbolic) {
            return Err(ExportError::Symbolic {
                line: OpDisplay(graph, op.id).to_string(),
                ty: graph.ty(*value).clone(),
            });
        }
    }
    Ok(())
}

/// The default domain first, then those of the nodes that were carried along, by name.
fn opsets(graph: &Graph) -> Vec<OperatorSetIdProto> {
    let mut versions = BTreeMap::from([(String::new(), OPSET)]);
    for op in graph.ops() {
        if let Op::Onnx(node) = &op.kind {
            let version = versions.entry(ops::domain(node).into()).or_insert(1);
            *version = node.opset.max(*version);
        }
    }
    let import = |(domain, version)| OperatorSetIdProto {
        domain: Some(domain),
        version: Some(version),
    };
    versions.into_iter().map(import).collect()
}
