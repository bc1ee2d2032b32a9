//! IR graph → ONNX graph.
//!
//! `lower` turns what ONNX lacks into what it has, and `ops` writes each op that is left as
//! one node or a few. Fused ops stay whole: as the standard operator where the opset has it, as a
//! call of a function with a body of standard operators otherwise (`functions`). What is written is
//! standard: the default domain, whose operators mean the same in every later opset up to 23, plus
//! the domains of nodes that were carried along.
//!
//! | in the graph | in the file |
//! |---|---|
//! | a parameter given at run time | a graph input |
//! | any other parameter that is read | an initializer, or an external one where the source keeps it |
//! | a trained parameter, if asked for | an initializer and a graph input of the same name |
//! | a constant | an initializer, one for all constants that are equal |
//! | a fused op | as an op, of a function in the domain `ai.lorafa` that ops alike share |
//! | an op | a node called `/{module}/{mnemonic}_{number}`, helper nodes `….1`, `….2` |
//! | an output | a graph output, behind an `Identity` if its value has another name already |
//!
//! The same graph gives the same bytes, whatever the machine, path or time.

mod error;
pub(crate) mod functions;
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
use functions::Functions;
use lorafa_ir::ops::{Data, External, Param, Role};
use lorafa_ir::text::OpDisplay;
use lorafa_ir::{Graph, Op};
use std::collections::BTreeMap;

/// Who says to have written the file.
pub(crate) const PRODUCER: &str = "lorafa-opt";

/// The least opset that is written. `Gelu` came with it.
const LEAST_OPSET: i64 = 20;

/// The newest one. `Attention`, `RMSNormalization` and `RotaryEmbedding` came with it.
const NEWEST_OPSET: i64 = 23;

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
    /// The newest opset that whoever runs the file knows: the source model's. At least 20 is written,
    /// and at most 23.
    pub opset: i64,
}

impl ExportOptions<'_> {
    /// Whether a parameter is a graph input.
    fn is_input(&self, param: &Param) -> bool {
        let trained = self.trained_inputs && param.role == Role::Trained;
        trained || param.stored.data == Data::Runtime
    }

    /// Where a parameter's values are, if they stay in another file.
    fn elsewhere<'p>(&self, param: &'p Param) -> Option<&'p External> {
        match &param.stored.data {
            Data::External(external) if !self.embed_weights => Some(external),
            _ => None,
        }
    }

    /// Whether a parameter is an input without a default: it is trained, to be fed, and another file
    /// holds it in a form that an initializer of its name cannot have.
    fn is_fed(&self, param: &Param) -> bool {
        let other_form = param.stored.transposed || param.stored.dtype != param.ty.dtype;
        self.is_input(param) && other_form && self.elsewhere(param).is_some()
    }

    /// Where the values of a parameter are whose transpose another file holds.
    fn held_transposed<'p>(&self, param: &'p Param) -> Option<&'p External> {
        let external = self.elsewhere(param);
        external.filter(|_| param.stored.transposed && !self.is_fed(param))
    }
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
    let mut opsets = opsets(graph, options);
    let options = &ExportOptions {
        opset: opsets.get("").copied().unwrap_or(LEAST_OPSET),
        ..*options
    };
    let mut functions = Functions::default();
    let lowered = lower::lower(graph, &mut |graph, op| {
        if !ops::has_operator(graph, op, options.opset) {
            functions.outline(graph, op, options)?;
        }
        Ok(true)
    })?;
    let body = ops::write_all(&lowered, options, &functions)?;
    let functions = functions.into_protos();
    if !functions.is_empty() {
        opsets.entry(functions::DOMAIN.into()).or_insert(1);
    }
    let import = |(domain, version)| OperatorSetIdProto {
        domain: Some(domain),
        version: Some(version),
    };
    Ok(ModelProto {
        ir_version: Some(IR_VERSION),
        opset_import: opsets.into_iter().map(import).collect(),
        producer_name: Some(PRODUCER.into()),
        producer_version: Some(env!("CARGO_PKG_VERSION").into()),
        graph: Some(GraphProto {
            // onnx.checker refuses a graph without a name.
            name: Some(match &*graph.name {
                "" => "graph".into(),
                name => name.into(),
            }),
            ..body
        }),
        functions,
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

/// The opsets of the default domain and of those of the nodes that are carried along.
fn opsets(graph: &Graph, options: &ExportOptions<'_>) -> BTreeMap<String, i64> {
    let default = options.opset.clamp(LEAST_OPSET, NEWEST_OPSET);
    let mut versions = BTreeMap::from([(String::new(), default)]);
    for op in graph.ops() {
        if let Op::Onnx(node) = &op.kind {
            let version = versions.entry(ops::domain(node).into()).or_insert(1);
            *version = node.opset.max(*version);
        }
    }
    versions
}
