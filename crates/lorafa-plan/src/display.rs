//! A plan as text: one line a buffer.

use std::fmt;

use lorafa_ir::Graph;
use lorafa_ir::text::ValueDisplay;

use crate::in_place::Content;
use crate::plan::Plan;
use crate::storage::StorageKind;

/// Prints a plan of a graph: parameters and constants by offset, then buffers in the order they come to life.
///
/// ```text
/// arena 3072 B: 1024 B persistent, 2048 B reused, at least 2048 B at 1
/// %x 128 B @0x000 temporaries
/// %w 256 B @0x200 frozen_weights
/// v0 [0,3) 128 B @0x400 saved_activations
/// v1 > v2 [1,4) 128 B @0x600 temporaries > gradients
/// scratch of v1 [1,2) 64 B @0x800 workspace
/// ```
///
/// `v1 > v2` is a buffer that v2 takes over in place. A view has no line. Sizes are not rounded; offsets count from the
/// start of the arena.
#[derive(Clone, Copy)]
pub struct PlanDisplay<'p>(pub &'p Graph, pub &'p Plan);

impl fmt::Display for PlanDisplay<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PlanDisplay(graph, plan) = *self;
        let (bound, arena) = (plan.lower_bound(), plan.arena_bytes());
        let persistent = plan.persistent_bytes();
        let reused = arena - persistent;
        write!(f, "arena {arena} B: {persistent} B persistent, ")?;
        let (bytes, at) = (bound.bytes, bound.position);
        writeln!(f, "{reused} B reused, at least {bytes} B at {at}")?;
        for (id, storage) in plan.storages().iter() {
            if storage.kind != StorageKind::Transient {
                let value = ValueDisplay(graph, storage.root);
                let (bytes, offset) = (storage.bytes, plan.offset(id));
                writeln!(f, "{value} {bytes} B @{offset:#05x} {}", plan.category(id))?;
            }
        }
        for buffer in plan.buffers() {
            match buffer.content {
                Content::Storages(turns) => {
                    let root = |turn| ValueDisplay(graph, plan.storages().get(turn).root);
                    join(f, turns.iter().map(|turn| root(*turn)))?;
                }
                Content::Scratch { position, .. } => {
                    let op = plan.op(*position).and_then(|op| graph.get_op(op));
                    f.write_str("scratch of ")?;
                    join(f, op.and_then(|op| op.results.first()))?;
                }
            }
            let (live, bytes, offset) = (&buffer.live, buffer.bytes, buffer.offset);
            write!(
                f,
                " [{},{}) {bytes} B @{offset:#05x} ",
                live.start, live.end
            )?;
            match buffer.content {
                Content::Storages(turns) => {
                    let mut names: Vec<_> = turns.iter().map(|turn| plan.category(*turn)).collect();
                    names.dedup();
                    join(f, names)?;
                }
                Content::Scratch { .. } => f.write_str("workspace")?,
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// Prints items with ` > ` in between.
fn join(
    f: &mut fmt::Formatter<'_>,
    items: impl IntoIterator<Item = impl fmt::Display>,
) -> fmt::Result {
    for (index, item) in items.into_iter().enumerate() {
        write!(f, "{}{item}", if index > 0 { " > " } else { "" })?;
    }
    Ok(())
}
