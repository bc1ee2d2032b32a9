//! `pack-frozen`: products of one input with frozen matrices become one product.
//!
//! ```text
//! + v0 = concat %w, %a {axis=0, joined}       : f32[10,8]
//! + v1 = matmul %x, v0 {trans_b}              : f32[4,10]
//! - v2 = matmul %x, %w {trans_b}              : f32[4,8]
//! - v3 = matmul %x, %a {trans_b}              : f32[4,2]
//! + v2 = slice v1 {axes=[1:0:8:1]}            : f32[4,8]
//! + v3 = slice v1 {axes=[1:8:2:1]}            : f32[4,2]
//!   v4 = matmul v3, %b, v2                    : f32[4,8]
//!   …
//! - v7 = matmul v6, %a                        : f32[4,8]
//! - v8 = matmul %dy, %w, v7                   : f32[4,8]
//! + v7 = concat %dy, v6 {axis=1, joined}      : f32[4,10]
//! + v8 = matmul v7, v0                        : f32[4,8]
//! ```
//!
//! Only LoRA-FA can pack A with the layer's weight: A is frozen there. Projections that share their input are one group,
//! with all their adapters. The matrices lie side by side from the start, results are strided parts of one, and gradients
//! are made where the product of the backward pass reads them.
//!
//! Results that lie in one storage are kept as long as the longest of them. So only those are computed at once that the
//! backward pass needs anyway, or all, if those that it needs are little and copied out (`groups`). What would raise the
//! peak of the step that `attach-optimizer` makes of the graph is left out, of all groups that are alike. Runs on request:
//! on a CPU it is no faster where matrices are large.

mod apply;
mod groups;

use crate::pass::{Changed, Pass, PassCx, PassError, PassKind, in_module, layer_pattern};
use crate::rematerialize::step;
use apply::pack;
use groups::{Group, find};
use lorafa_ir::Graph;

/// See the module.
pub struct PackFrozen;

/// Which products of a group are packed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Choice {
    forward: bool,
    backward: Backward,
}

/// Which products of the gradients of a group's results.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
enum Backward {
    /// None.
    #[default]
    Apart,
    /// Those with adapters.
    Adapters,
    /// All.
    All,
}

impl Pass for PackFrozen {
    fn name(&self) -> &'static str {
        "pack-frozen"
    }

    fn kind(&self) -> PassKind {
        PassKind::Equivalence
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<Changed, PassError> {
        if !cx.options.pack_frozen {
            cx.note("not asked for");
            return Ok(Changed::No);
        }
        let mut lowest = match step(graph, &cx.options) {
            Ok((_, peak)) => peak.bytes,
            Err(why) => {
                cx.note(format_args!("there is no peak to keep: {why}"));
                return Ok(Changed::No);
            }
        };
        let groups = find(graph);
        let mut chosen = vec![Choice::default(); groups.len()];
        let mut packed = None;
        for alike in alike(&groups) {
            let group = &groups[alike[0]];
            let wishes = wishes(group);
            if wishes.is_empty() {
                note(cx, graph, group, alike.len(), APART);
            }
            for wish in wishes {
                let mut trial = chosen.clone();
                alike.iter().for_each(|index| trial[*index].add(wish));
                if trial == chosen {
                    continue;
                }
                let edited = pack(graph, &groups, &trial)?;
                let (count, of) = wish.of(group);
                let refused = match step(&edited, &cx.options) {
                    Ok((_, peak)) if peak.bytes <= lowest => {
                        (lowest, chosen, packed) = (peak.bytes, trial, Some(edited));
                        String::new()
                    }
                    Ok((_, peak)) => {
                        format!(" would raise the peak by {} bytes", peak.bytes - lowest)
                    }
                    Err(why) => format!(" cannot be planned: {why}"),
                };
                note(
                    cx,
                    graph,
                    group,
                    alike.len(),
                    &format!("{count} {of} as one{refused}"),
                );
            }
        }
        if groups.is_empty() {
            cx.note("no frozen matrices share their input");
        }
        let Some(packed) = packed else {
            return Ok(Changed::No);
        };
        *graph = packed;
        Ok(Changed::Yes)
    }
}

impl Choice {
    /// Packs more: what is wished, too.
    fn add(&mut self, wish: Choice) {
        self.forward |= wish.forward;
        self.backward = self.backward.max(wish.backward);
    }

    /// How many products of a group are meant, and which.
    fn of(self, group: &Group) -> (usize, &'static str) {
        match self.backward {
            Backward::Apart => (group.forward.len(), "in the forward pass"),
            Backward::Adapters => (group.adapters.len(), "of the adapters' gradients"),
            Backward::All => (group.members.len(), "of their gradients"),
        }
    }
}

/// The groups in lists of those that are alike, in the order of their first.
fn alike(groups: &[Group]) -> Vec<Vec<usize>> {
    let mut lists: Vec<Vec<usize>> = Vec::new();
    for (index, group) in groups.iter().enumerate() {
        match lists.iter_mut().find(|list| groups[list[0]].is_like(group)) {
            Some(list) => list.push(index),
            None => lists.push(vec![index]),
        }
    }
    lists
}

/// What can be tried on a group, in order; the gradients of adapters alone if those of all cannot be.
fn wishes(group: &Group) -> Vec<Choice> {
    let backward = |backward| Choice {
        forward: false,
        backward,
    };
    let mut wishes = Vec::new();
    if !group.forward.is_empty() {
        let backward = Backward::Apart;
        wishes.push(Choice {
            forward: true,
            backward,
        });
    }
    if group.backward.is_some() {
        wishes.push(backward(Backward::All));
        if group.adapters.len() > 1 {
            wishes.push(backward(Backward::Adapters));
        }
    }
    wishes
}

/// Why there is nothing to try.
const APART: &str = "some results are kept and others go, and those kept are too much to be copied";

fn note(cx: &mut PassCx, graph: &Graph, group: &Group, count: usize, what: &str) {
    let module = &graph.op(group.members[0].op).site.module;
    let (of, place) = (group.members.len(), in_module(&layer_pattern(module)));
    cx.note(format_args!(
        "{of} products of one input{place}, {count} times: {what}"
    ));
}
