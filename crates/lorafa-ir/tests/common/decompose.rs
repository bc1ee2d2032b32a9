//! Composite ops replaced by simpler ones, as the reference interpreter needs them.

use lorafa_ir::{Graph, OpId};

/// Replaces every op that has a decomposition until none is left.
pub fn decompose(graph: &mut Graph) {
    loop {
        let mut changed = false;
        let ids: Vec<OpId> = graph.ops().map(|op| op.id).collect();
        for id in ids {
            let op = graph.op(id).clone();
            let mut patch = graph.patch("decompose");
            patch.at(id);
            let Some(new) = op.kind.decompose(&mut patch, &op.operands) else {
                continue;
            };
            let new = new.unwrap_or_else(|e| panic!("{}: {e}", op.kind.name()));
            assert_eq!(op.results.len(), new.len(), "results of {}", op.kind.name());
            for (old, new) in op.results.iter().zip(new) {
                patch.replace(*old, new).unwrap();
            }
            patch.remove(id).unwrap();
            changed = true;
        }
        if !changed {
            return;
        }
    }
}
