//! The model's outputs, and which of them is the loss.

use super::context::Importer;
use super::error::ImportError;
use crate::file::ModelFile;
use lorafa_ir::ops::Op;
use lorafa_ir::optimizer::is_optimizers;
use lorafa_ir::outputs::gradient_of;
use lorafa_ir::{Graph, OutputKind, ValueId};
use std::collections::BTreeSet;

/// The name that Hugging Face gives the loss.
const LOSS: &str = "loss";

/// Refuses a model whose gradients go into accumulators, as onnxruntime-training's do.
pub(super) fn refuse_accumulators(model: &ModelFile) -> Result<(), ImportError> {
    let mut outputs = model.graph().output.iter().map(|o| o.name());
    match outputs.find(|name| name.ends_with(".accumulation.out")) {
        Some(output) => Err(ImportError::Accumulators {
            output: output.into(),
        }),
        None => Ok(()),
    }
}

impl Importer<'_, '_> {
    /// Declares the outputs.
    pub(super) fn outputs(&mut self) -> Result<(), ImportError> {
        let outputs = &self.model.graph().output;
        if outputs.is_empty() {
            return Err(ImportError::NoOutput);
        }
        let mut values = Vec::new();
        for output in outputs {
            let name = output.name();
            let value = self.value(name);
            let value = value.map_err(|_| ImportError::MissingOutput { name: name.into() })?;
            values.push((name, value));
        }
        let results: Vec<(&str, ValueId)> = values
            .iter()
            .filter(|(name, _)| gradient_of(name).is_none() && !is_optimizers(name))
            .copied()
            .collect();
        let loss = loss(self.patch.graph(), &results)?;
        for (name, value) in values {
            let kind = if loss == Some(name) {
                OutputKind::Loss
            } else {
                OutputKind::Value
            };
            self.patch.output(name, value, kind);
        }
        Ok(())
    }
}

/// The scalar that is the loss: the one so named, or else the one that comes of a cross-entropy, or
/// whose name says so where nothing could be logits, or that is all the model gives beside gradients.
fn loss<'n>(graph: &Graph, outputs: &[(&'n str, ValueId)]) -> Result<Option<&'n str>, ImportError> {
    let scalars = outputs.iter().filter(|(_, value)| {
        let ty = graph.ty(*value);
        ty.dtype.is_float() && ty.elements() == Some(1) && ty.rank() <= 1
    });
    let scalars: Vec<(&str, ValueId)> = scalars.copied().collect();
    if let Some((name, _)) = scalars.iter().find(|(name, _)| *name == LOSS) {
        return Ok(Some(name));
    }
    let rules: [&Rule<'_>; 3] = [
        &|_, value| is_cross_entropy(graph, value),
        // Next to logits a scalar may be an auxiliary loss.
        &|name, _| name.contains(LOSS) && !outputs.iter().any(|(_, v)| graph.ty(*v).rank() > 1),
        &|_, _| outputs.len() == 1,
    ];
    for rule in rules {
        let hits = scalars.iter().filter(|(name, value)| rule(name, *value));
        let found: Vec<&str> = hits.map(|(name, _)| *name).collect();
        match found.as_slice() {
            [] => {}
            [loss] => return Ok(Some(loss)),
            several => {
                let names = several.iter().map(ToString::to_string).collect();
                return Err(ImportError::Losses { names });
            }
        }
    }
    Ok(None)
}

/// Whether an output of this name and value is the loss.
type Rule<'r> = dyn Fn(&str, ValueId) -> bool + 'r;

/// Whether a cross-entropy leads to a value.
fn is_cross_entropy(graph: &Graph, value: ValueId) -> bool {
    let mut seen = BTreeSet::new();
    let mut queue = vec![value];
    while let Some(value) = queue.pop() {
        let op = graph.def(value);
        if matches!(op.kind, Op::CrossEntropy(_)) {
            return true;
        }
        if seen.insert(op.id) {
            queue.extend(&op.operands);
        }
    }
    false
}
