//! What a graph gives.

use crate::ids::{ValueId, ValueMap};
use std::sync::Arc;

/// What precedes a parameter's name in the name of its gradient's output.
pub const GRADIENT: &str = "grad::";

/// The parameter whose gradient an output is by its name: `grad::w`, as PyTorch's joint graphs are exported and as we
/// write them, or `w_grad`, as onnxruntime-training has it.
pub fn gradient_of(output: &str) -> Option<&str> {
    let named = output
        .strip_prefix(GRADIENT)
        .or_else(|| output.strip_suffix("_grad"));
    named.filter(|name| !name.is_empty())
}

/// Whether a parameter goes by this name, perhaps within modules that wrap the one it was named in.
pub fn is_named(param: &str, name: &str) -> bool {
    param
        .strip_suffix(name)
        .is_some_and(|wrapper| wrapper.is_empty() || wrapper.ends_with('.'))
}

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

    /// Says what the outputs are, in order.
    pub(crate) fn classify(&mut self, mut kind: impl FnMut(&Output) -> OutputKind) {
        for output in &mut self.list {
            output.kind = kind(output);
        }
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
