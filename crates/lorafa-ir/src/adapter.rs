//! LoRA adapters.

use crate::ids::ValueId;
use crate::ops::Scalar;
use std::sync::Arc;

/// One LoRA adapter: `y = base(x) + scale·(x·A)·B`.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// The adapted module, `model.layers.0.self_attn.q_proj`.
    pub module: Arc<str>,
    /// The adapted layer's input as A reads it.
    pub x: ValueId,
    /// The parameter A, `[rank, in]` in PyTorch's layout.
    pub a: ValueId,
    /// The parameter B, `[out, rank]` in PyTorch's layout.
    pub b: ValueId,
    /// The product `x·A`.
    pub xa: ValueId,
    /// The factor on `(x·A)·B`.
    pub scale: Scalar,
    /// The width of `x·A`.
    pub rank: u64,
}

impl Adapter {
    pub(crate) fn values_mut(&mut self) -> [&mut ValueId; 4] {
        [&mut self.x, &mut self.a, &mut self.b, &mut self.xa]
    }

    /// The values that the adapter names, with the name of each.
    pub fn values(&self) -> [(&'static str, ValueId); 4] {
        [("x", self.x), ("a", self.a), ("b", self.b), ("xa", self.xa)]
    }
}
