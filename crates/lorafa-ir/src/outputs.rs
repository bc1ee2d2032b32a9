//! What a graph gives.

use crate::ids::{ValueId, ValueMap};
use std::sync::Arc;

/// What an output of the graph is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OutputKind {
    /// A result of the model itself, such as logits.
    Value,
    /// The scalar loss.
    Loss,
    /// The gradient of this parameter.
    Gradient(ValueId),
    /// The next value of this parameter or optimizer state.
    Updated(ValueId),
}

/// A named output of the graph.
#[derive(Clone, Debug)]
pub struct Output {
    /// Its name in the written model.
    pub name: Arc<str>,
    /// The value.
    pub value: ValueId,
    /// What it is.
    pub kind: OutputKind,
}

/// The outputs of a graph in order, and how many of them each value is.
#[derive(Clone, Debug)]
pub(crate) struct Outputs {
    list: Vec<Output>,
    counts: ValueMap<u32>,
}

impl Default for Outputs {
    fn default() -> Self {
        Outputs {
            list: Vec::new(),
            counts: ValueMap::new(0),
        }
    }
}

impl Outputs {
    pub(crate) fn as_slice(&self) -> &[Output] {
        &self.list
    }

    /// Whether an output is `value`.
    pub(crate) fn contains(&self, value: ValueId) -> bool {
        *self.counts.get(value) > 0
    }

    pub(crate) fn push(&mut self, output: Output) {
        *self.counts.get_mut(output.value) += 1;
        self.list.push(output);
    }

    /// Keeps the outputs for which `keep` answers yes.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&Output) -> bool) {
        let counts = &mut self.counts;
        self.list.retain(|output| {
            let kept = keep(output);
            if !kept {
                *counts.get_mut(output.value) -= 1;
            }
            kept
        });
    }

    /// Makes outputs that are `old` be `new`.
    pub(crate) fn retarget(&mut self, old: ValueId, new: ValueId) {
        if !self.contains(old) {
            return;
        }
        for output in self.list.iter_mut().filter(|o| o.value == old) {
            output.value = new;
        }
        let moved = std::mem::take(self.counts.get_mut(old));
        *self.counts.get_mut(new) += moved;
    }
}
