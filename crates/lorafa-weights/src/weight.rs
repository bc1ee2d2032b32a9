//! The weights of linear layers.

use crate::names::plain;
use lorafa_ir::ops::{Op, Param};
use lorafa_ir::{Graph, Region, ValueId};
use std::collections::BTreeMap;

/// How a linear layer's weight lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Layout {
    /// `[out, in]`: `torch.nn.Linear`.
    OutIn,
    /// `[in, out]`: GPT-2's `Conv1D`.
    InOut,
}

/// The weights of a graph by their paths in the model itself.
pub(crate) struct Weights<'g> {
    graph: &'g Graph,
    by_path: BTreeMap<String, (ValueId, &'g Param)>,
}

impl<'g> Weights<'g> {
    pub(crate) fn new(graph: &'g Graph) -> Self {
        let mut by_path = BTreeMap::new();
        for (value, param) in graph.params().filter(|(_, p)| p.is_weight()) {
            by_path.entry(plain(&param.name)).or_insert((value, param));
        }
        Weights { graph, by_path }
    }

    /// The weight of the linear layer at a path, and how it lies, if forward products that read it agree.
    pub(crate) fn of(&self, module: &str) -> Option<(ValueId, &'g Param, Option<Layout>)> {
        let (value, param) = *self.by_path.get(&format!("{module}.weight"))?;
        Some((value, param, layout(self.graph, value)))
    }
}

fn layout(graph: &Graph, value: ValueId) -> Option<Layout> {
    let products = graph.uses(value).into_iter().filter(|u| u.slot == 1);
    let forward = products.map(|u| graph.op(u.op));
    let forward = forward.filter(|op| op.site.region == Region::Forward);
    let mut layouts =
        forward
            .filter_map(|op| op.kind.product())
            .map(|product| match product.trans_b {
                true => Layout::OutIn,
                false => Layout::InOut,
            });
    let first = layouts.next()?;
    layouts.all(|other| other == first).then_some(first)
}

/// Whether a lookup reads a weight: it is an embedding, too.
pub(crate) fn is_looked_up(graph: &Graph, value: ValueId) -> bool {
    let mut uses = graph.uses(value).into_iter();
    uses.any(|u| matches!(graph.op(u.op).kind, Op::Gather(_)))
}
