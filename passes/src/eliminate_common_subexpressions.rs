//! `eliminate-common-subexpressions`: computes equal things once.
//!
//! ```text
//!   v0 = exp %x    : f32[4]
//! - v1 = exp %x    : f32[4]
//! - v2 = add v0, v1
//! + v2 = add v0, v0
//! ```
//!
//! Two ops are equal if their kind, attributes and operands are. They are merged within a region
//! only: merging a backward op with a forward one would save a value that the backward pass means
//! to compute again. Small constants are no activations and merge across regions. Dropout draws
//! anew each time and is left alone.

use crate::pass::{Changed, Pass, PassCx, PassError, PassKind};
use lorafa_ir::ops::Op;
use lorafa_ir::{Graph, OpData, OpId, Region, ValueId};
use smallvec::SmallVec;
use std::collections::HashMap;

/// See the module.
pub struct EliminateCommonSubexpressions;

type Key = (Option<Region>, Op, SmallVec<[ValueId; 4]>);

/// Whether a backward pass that somebody else wrote means to compute an op as often as it does.
fn is_meant(graph: &Graph, op: &OpData) -> bool {
    let given = op.site.region == Region::Backward && op.site.of.is_none();
    let view = matches!(
        op.kind,
        Op::Reshape(_) | Op::Transpose(_) | Op::Expand(_) | Op::Slice(_)
    );
    let float = |value: &ValueId| graph.ty(*value).dtype.is_float();
    given && !view && !op.operands.is_empty() && op.results.iter().any(float)
}

impl Pass for EliminateCommonSubexpressions {
    fn name(&self) -> &'static str {
        "eliminate-common-subexpressions"
    }

    fn kind(&self) -> PassKind {
        PassKind::Equivalence
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<Changed, PassError> {
        // Only looked up, never iterated: its order cannot reach the output.
        let mut first: HashMap<Key, OpId> = HashMap::new();
        let mut merged = 0;
        for id in graph.order() {
            let op = graph.op(id);
            let draws = matches!(op.kind, Op::Param(_) | Op::Dropout(_) | Op::Onnx(_));
            if draws || is_meant(graph, op) {
                continue;
            }
            let constant = matches!(op.kind, Op::Constant(_));
            let region = (!constant).then_some(op.site.region);
            let key = (region, op.kind.clone(), op.operands.clone());
            let Some(&twin) = first.get(&key) else {
                first.insert(key, id);
                continue;
            };
            let results = op.results.clone();
            let twins = graph.op(twin).results.clone();
            let mut patch = graph.patch("eliminate-common-subexpressions");
            for (result, twin) in results.iter().zip(&twins) {
                patch.replace(*result, *twin)?;
            }
            patch.remove(id)?;
            merged += 1;
        }
        if merged > 0 {
            cx.note(format_args!("merged {merged} ops"));
        }
        Ok(Changed::from_count(merged))
    }
}
