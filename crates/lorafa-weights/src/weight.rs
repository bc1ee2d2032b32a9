//! The weights of linear layers.

use crate::names::plain;
use lorafa_ir::ops::{Op, Param};
use lorafa_ir::{Graph, Region, ValueId};

/// How a linear layer's weight lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Layout {
    /// `[out, in]`: `torch.nn.Linear`.
    OutIn,
    /// `[in, out]`: GPT-2's `Conv1D`.
    InOut,
}

/// The weight of the linear layer at a path.
pub(crate) fn of<'g>(graph: &'g Graph, module: &str) -> Option<(ValueId, &'g Param)> {
    let name = format!("{module}.weight");
    let mut weights = graph.params().filter(|(_, p)| p.is_weight());
    weights.find(|(_, p)| plain(&p.name) == name)
}

/// How the weight of the layer at a path lies, if forward products that read it agree.
pub(crate) fn layout(graph: &Graph, module: &str) -> Option<Layout> {
    let (value, _) = of(graph, module)?;
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

/// Whether an op other than a product reads a value: the weight is an embedding, too.
pub(crate) fn is_looked_up(graph: &Graph, value: ValueId) -> bool {
    let mut uses = graph.uses(value).into_iter();
    uses.any(|u| matches!(graph.op(u.op).kind, Op::Gather(_)))
}
