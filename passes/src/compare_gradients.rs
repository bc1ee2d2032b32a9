//! `compare-gradients`: puts gradients of our own beside those of a training graph, in f64.
//!
//! ```text
//! - param %b : f32[4,2] trained
//! + param %b : f64[4,2] trained {stored=f32}
//!   …
//! + v11 = matmul v10, v0 {trans_a}  : f64[4,2] of v1
//!   out "grad::b" = v7 gradient %b
//! + out "own::b" = v11
//! ```
//!
//! Both are of one forward pass: what the loss needs is differentiated anew, for the parameters that have a gradient. In f64
//! rounding is far below what a wrong formula changes, and finite differences mean something.

use crate::convert_precision::widen;
use crate::differentiate::{backward, part_losses};
use crate::pass::{Changed, Pass, PassCx, PassError, PassKind};
use lorafa_ir::{Graph, OutputKind, ValueId};
use std::sync::Arc;

/// What precedes a parameter's name in the name of our gradient's output.
pub const OWN: &str = "own::";

/// See the module.
pub struct CompareGradients;

impl Pass for CompareGradients {
    fn name(&self) -> &'static str {
        "compare-gradients"
    }

    fn kind(&self) -> PassKind {
        PassKind::Extends
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<Changed, PassError> {
        let outputs = graph.outputs().iter();
        let trained: Vec<ValueId> = outputs
            .filter_map(|output| match output.kind {
                OutputKind::Gradient(param) => Some(param),
                _ => None,
            })
            .collect();
        if trained.is_empty() {
            return Err(PassError::Refused(
                "the model is a forward graph: it has no gradients to compare. Give a training graph, whose outputs are \
                 the loss and `grad::<parameter>`"
                    .into(),
            ));
        }
        let mut patch = graph.patch("compare-gradients");
        // They tell of layers' inputs by values, which may change now, and nothing asks any more.
        patch.retain_adapters(|_| false);
        widen(&mut patch)?;
        part_losses(&mut patch)?;
        let Some(loss) = patch.graph().loss().map(|loss| loss.value) else {
            return Err(PassError::Refused("the model has no loss".into()));
        };
        let gradients = backward(&mut patch, loss, &trained)?;
        let mut without = Vec::new();
        for param in trained {
            let name = patch.graph().param(param).map(|p| p.name.clone());
            let name: Arc<str> = name.unwrap_or_default();
            match gradients.get(param) {
                Some(gradient) => {
                    patch.output(format!("{OWN}{name}"), *gradient, OutputKind::Value);
                }
                None => without.push(name),
            }
        }
        for name in without {
            cx.note(format_args!("the loss does not depend on {name}"));
        }
        Ok(Changed::Yes)
    }
}
