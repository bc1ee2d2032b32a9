//! Keys and values as they were before an exporter turned and repeated them.

use super::Edit;
use lorafa_ir::build::Built;
use lorafa_ir::ops::{Expand, Op, Transpose};
use lorafa_ir::{Dim, Graph, Shape, TensorType, ValueId};
use smallvec::SmallVec;

/// `[batch, groups, keys, width]`: a value, in other dimensions or with its axes permuted.
#[derive(Clone)]
pub(super) struct Heads {
    pub value: ValueId,
    view: View,
}

#[derive(Clone)]
enum View {
    Shape(Shape),
    Perm(SmallVec<[usize; 4]>),
}

impl Heads {
    /// The same view of another value of that type.
    pub(super) fn on(self, value: ValueId) -> Heads {
        Heads { value, ..self }
    }

    pub(super) fn ty(&self, graph: &Graph) -> TensorType {
        let ty = graph.ty(self.value);
        match &self.view {
            View::Shape(shape) => ty.with_shape(shape.iter().cloned()),
            View::Perm(perm) => ty.with_shape(perm.iter().map(|axis| ty.shape[*axis].clone())),
        }
    }

    pub(super) fn build(&self, patch: Edit<'_, '_>) -> Built {
        match &self.view {
            View::Shape(shape) => patch.reshape(self.value, shape.iter().cloned()),
            View::Perm(perm) => patch.transpose(self.value, perm.iter().copied()),
        }
    }
}

/// A value as it is.
pub(super) fn plain(graph: &Graph, value: ValueId) -> Heads {
    let shape = graph.ty(value).shape.clone();
    Heads {
        value,
        view: View::Shape(shape),
    }
}

/// A value with its last two axes swapped, which undoes how it was turned if it was.
pub(super) fn turned(graph: &Graph, value: ValueId) -> Heads {
    let shape = &graph.ty(value).shape;
    let rank = shape.len();
    let swap = |perm: &mut SmallVec<[usize; 4]>| {
        if let [.., a, b] = perm.as_mut_slice() {
            std::mem::swap(a, b);
        }
    };
    let def = graph.def(value);
    if let Op::Transpose(Transpose { perm }) = &def.kind {
        let mut perm: SmallVec<[usize; 4]> = perm.iter().copied().collect();
        swap(&mut perm);
        let x = def.operands[0];
        return if perm.iter().enumerate().all(|(i, axis)| i == *axis) {
            plain(graph, x)
        } else {
            let view = View::Perm(perm);
            Heads { value: x, view }
        };
    }
    // Heads merged with the batch for the time of the turn.
    if let Op::Reshape(_) = def.kind
        && let inner = graph.def(def.operands[0])
        && let Op::Transpose(swapped) = &inner.kind
        && swapped.swaps_last_two()
        && let [leading @ .., d, t] = shape.as_slice()
        && graph
            .ty(def.operands[0])
            .shape
            .ends_with(&[d.clone(), t.clone()])
    {
        let shape: Shape = leading.iter().chain([t, d]).cloned().collect();
        let merged = graph.def(inner.operands[0]);
        let value = match merged.kind {
            Op::Reshape(_) if graph.ty(merged.operands[0]).shape == shape => merged.operands[0],
            _ => inner.operands[0],
        };
        let view = View::Shape(shape);
        return Heads { value, view };
    }
    let mut perm: SmallVec<[usize; 4]> = (0..rank).collect();
    swap(&mut perm);
    let view = View::Perm(perm);
    Heads { value, view }
}

/// Both as they were before each head was repeated for the queries that share it; as they are, if they were not.
pub(super) fn shared(graph: &Graph, keys: Heads, values: Heads) -> (Heads, Heads) {
    let groups = |x: &Heads, y: &Heads| x.ty(graph).shape.get(1) == y.ty(graph).shape.get(1);
    match (once(graph, &keys), once(graph, &values)) {
        (Some(k), Some(v)) if groups(&k, &v) => (k, v),
        _ => (keys, values),
    }
}

/// `[batch, groups, keys, width]` behind `[batch, groups·share, keys, width]`.
fn once(graph: &Graph, heads: &Heads) -> Option<Heads> {
    let View::Shape(shape) = &heads.view else {
        return None;
    };
    let behind = |mut value: ValueId| {
        while let Op::Reshape(_) = graph.def(value).kind {
            value = graph.def(value).operands[0];
        }
        value
    };
    let expand = graph.def(behind(heads.value));
    let Op::Expand(Expand { shape: wide }) = &expand.kind else {
        return None;
    };
    let narrow = &graph.ty(expand.operands[0]).shape;
    let ([b, heads, t, d], [b2, groups, share, t2, d2]) = (shape.as_slice(), wide.as_slice())
    else {
        return None;
    };
    let each = [b2, groups, &Dim::Known(1), t2, d2];
    if [b, t, d] != [b2, t2, d2] || groups.times(share) != *heads || !narrow.iter().eq(each) {
        return None;
    }
    let shape: Shape = [b, groups, t, d].into_iter().cloned().collect();
    // Not through more than the one reshape that made room for the share.
    let value = match &graph.def(expand.operands[0]).kind {
        Op::Reshape(_) => graph.def(expand.operands[0]).operands[0],
        _ => expand.operands[0],
    };
    let view = View::Shape(shape);
    Some(Heads { value, view })
}
