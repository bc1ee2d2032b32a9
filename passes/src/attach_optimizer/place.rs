//! Where updates stand in the schedule.

use super::Trained;
use lorafa_ir::layout::Views;
use lorafa_ir::{Graph, Region, ValueId};
use std::collections::BTreeMap;

/// After the whole backward pass.
pub(super) const LAST: i64 = i64::MAX;

/// Finds from which place on gradients are there, and what reads parameters has run.
pub(super) fn find(graph: &Graph, trained: &mut [Trained]) {
    let views = Views::of(graph);
    let root = |value: ValueId| views.root(value).map_or(value, |(root, _)| root);
    let at_first = |value: ValueId| (value, i64::MIN);
    let mut made: BTreeMap<ValueId, i64> = trained.iter().map(|t| at_first(t.gradient)).collect();
    let mut read: BTreeMap<ValueId, i64> = trained.iter().map(|t| at_first(t.param)).collect();
    // The largest place up to an op: who stands there comes after all of that, whatever else waited for its operands.
    let mut place = i64::MIN;
    for id in graph.order() {
        let op = graph.op(id);
        if op.site.region == Region::Backward {
            place = place.max(op.site.seq);
        }
        for operand in &op.operands {
            read.entry(root(*operand)).and_modify(|at| *at = place);
        }
        for result in &op.results {
            made.entry(*result).and_modify(|at| *at = place);
        }
    }
    for one in trained {
        one.made = made[&one.gradient];
        one.read = read[&one.param];
    }
}
