//! Joined values: what a `concat {joined}` says of where its operands are made.
//!
//! ```text
//!   v1 = matmul %x, %w                     : f32[4,6]   s3, strides [8,1], from 0
//!   v2 = matmul %y, %u                     : f32[2,4]   s3, strides [1,8], from 6, through the transpose
//!   v3 = transpose v2 {perm=[1,0]}         : f32[4,2]   s3, strides [8,1], from 6
//!   v4 = concat v1, v3 {axis=1, joined}    : f32[4,8]   s3, its root
//! ```

use std::collections::BTreeMap;

use lorafa_ir::layout::Layout;
use lorafa_ir::{Graph, Op, OpData, ValueId};

/// Values that are made in a place of another's.
pub(super) struct Joins(BTreeMap<ValueId, Joined>);

/// A value that is part of another.
#[derive(Clone)]
pub(super) struct Joined {
    /// The result of the `concat`.
    pub whole: ValueId,
    /// The value's place in it.
    pub layout: Layout,
}

impl Joins {
    /// Follows the operands of every joined `concat` to where they are made. What cannot be made there is left out: it is
    /// for the walk to find that an operand lies elsewhere.
    pub(super) fn of(graph: &Graph) -> Self {
        let mut found = BTreeMap::new();
        let mut twice = Vec::new();
        for op in graph.ops() {
            for (operand, layout) in parts(graph, op).into_iter().flatten() {
                if let Some((value, layout)) = made(graph, operand, layout) {
                    let whole = op.results[0];
                    if found.insert(value, Joined { whole, layout }).is_some() {
                        twice.push(value);
                    }
                }
            }
        }
        found.retain(|value, _| !twice.contains(value));
        Joins(found)
    }

    pub(super) fn get(&self, value: ValueId) -> Option<&Joined> {
        self.0.get(&value)
    }
}

/// The operands of a joined `concat` with their places in its result; `None` for other ops, and with symbols.
pub(super) fn parts(graph: &Graph, op: &OpData) -> Option<Vec<(ValueId, Layout)>> {
    let Op::Concat(concat) = &op.kind else {
        return None;
    };
    let whole = Layout::contiguous(graph.ty(op.results[0])).filter(|_| concat.joined)?;
    let mut from = 0;
    let part = |operand: &ValueId| {
        let len = graph.ty(*operand).known_shape()?[concat.axis];
        let mut part = whole.clone();
        part.offset += from * part.strides[concat.axis];
        part.shape[concat.axis] = len;
        from += len;
        Some((*operand, part))
    };
    op.operands.iter().map(part).collect()
}

/// The value that another is a transpose or reshape of, and where it must lie for that to lie there.
fn made(graph: &Graph, mut value: ValueId, mut layout: Layout) -> Option<(ValueId, Layout)> {
    loop {
        let def = graph.def(value);
        layout = match &def.kind {
            Op::Transpose(transpose) => {
                let mut turned = layout.clone();
                for (axis, from) in transpose.perm.iter().enumerate() {
                    turned.shape[*from] = layout.shape[axis];
                    turned.strides[*from] = layout.strides[axis];
                }
                turned
            }
            Op::Reshape(_) => layout.reshape(graph.ty(def.operands[0]).known_shape()?)?,
            kind => return kind.writes_strided().then_some((value, layout)),
        };
        value = def.operands[0];
    }
}
