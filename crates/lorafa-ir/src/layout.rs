//! Strided layouts: which ops cost nothing because their result is a view.

use crate::dtype::DType;
use crate::graph::Graph;
use crate::ids::ValueId;
use crate::types::TensorType;
use smallvec::SmallVec;

/// Bytes that every piece of an op's scratch begins on a multiple of: what CPU kernels ask for.
pub const SCRATCH_ALIGN: u64 = 64;

/// Bytes of scratch for pieces of these sizes.
pub fn pieces(bytes: impl IntoIterator<Item = u64>) -> u64 {
    let rounded = bytes.into_iter().map(|n| n.next_multiple_of(SCRATCH_ALIGN));
    rounded.sum()
}

/// Bytes of scratch for the rows that a kernel works on at once, where one row is not more.
const ROWS_AT_ONCE: u64 = 4 << 20;

/// How many of `rows` a kernel works on at once that needs `bytes` of scratch for each.
pub fn rows_at_once(rows: u64, bytes: u64) -> u64 {
    (ROWS_AT_ONCE / bytes.max(1)).clamp(1, rows.max(1))
}

/// How a kernel goes through what it needs as row-major f32 and that lies otherwise: libtorch's would copy all of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Blocks {
    /// How many rows there are: elements, if they lie in order, places on the first axis otherwise.
    pub rows: u64,
    /// Elements of one row.
    pub width: u64,
    /// Rows at a time; at least one.
    pub at_once: u64,
}

impl Blocks {
    /// The blocks of what lies like this.
    pub fn of(layout: &Layout) -> Blocks {
        let elements: u64 = layout.shape.iter().product();
        let (rows, width) = match layout.shape.first() {
            Some(rows) if !layout.is_contiguous() => (*rows, elements / rows.max(&1)),
            _ => (elements, 1),
        };
        let at_once = rows_at_once(rows, width * DType::F32.size());
        Blocks {
            rows,
            width,
            at_once,
        }
    }

    /// Bytes of a block as f32.
    pub fn bytes(&self) -> u64 {
        self.rows.min(self.at_once) * self.width * DType::F32.size()
    }
}

/// Numbers, one per axis.
pub type Axes = SmallVec<[u64; 4]>;

/// How a value lies in the buffer that holds it, in elements. A stride of zero repeats.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Dimensions.
    pub shape: Axes,
    /// Distance between neighbours along each axis.
    pub strides: Axes,
    /// The first element.
    pub offset: u64,
}

impl Layout {
    /// The row-major layout of a type; `None` if it has symbols.
    pub fn contiguous(ty: &TensorType) -> Option<Layout> {
        let shape = ty.known_shape()?;
        let mut strides = Axes::from_elem(1, shape.len());
        for i in (1..shape.len()).rev() {
            strides[i - 1] = strides[i] * shape[i].max(1);
        }
        Some(Layout {
            shape,
            strides,
            offset: 0,
        })
    }

    /// Whether elements lie in row-major order without gaps.
    pub fn is_contiguous(&self) -> bool {
        if self.shape.contains(&0) {
            return true;
        }
        let mut expected = 1;
        for (dim, stride) in self.shape.iter().zip(&self.strides).rev() {
            if *dim != 1 && *stride != expected {
                return false;
            }
            expected *= dim;
        }
        true
    }

    /// The same elements with the axes in another order.
    pub fn permuted(&self, order: &[usize]) -> Layout {
        Layout {
            shape: order.iter().map(|axis| self.shape[*axis]).collect(),
            strides: order.iter().map(|axis| self.strides[*axis]).collect(),
            offset: self.offset,
        }
    }

    /// The layout of the same elements in other dimensions, if that needs no copy.
    ///
    /// Axes are grouped into the largest runs that are contiguous among themselves; a new shape is
    /// a view if each of its axes falls inside one run.
    pub fn reshape(&self, shape: Axes) -> Option<Layout> {
        if shape.iter().product::<u64>() != self.shape.iter().product() {
            return None;
        }
        if self.is_contiguous() {
            let mut strides = Axes::from_elem(1, shape.len());
            for i in (1..shape.len()).rev() {
                strides[i - 1] = strides[i] * shape[i].max(1);
            }
            return Some(Layout {
                shape,
                strides,
                offset: self.offset,
            });
        }
        let mut strides = Axes::from_elem(0, shape.len());
        let mut next = shape.len();
        let mut axis = self.shape.len();
        while axis > 0 {
            let base = self.strides[axis - 1];
            let mut run = self.shape[axis - 1];
            axis -= 1;
            while axis > 0
                && (self.shape[axis - 1] == 1 || run == 1 || self.strides[axis - 1] == run * base)
            {
                if run == 1 {
                    break;
                }
                run *= self.shape[axis - 1];
                axis -= 1;
            }
            let mut filled = 1;
            while next > 0 && (filled < run || shape[next - 1] == 1) {
                next -= 1;
                strides[next] = base * filled;
                filled *= shape[next];
            }
            if filled != run {
                return None;
            }
        }
        (next == 0).then_some(Layout {
            shape,
            strides,
            offset: self.offset,
        })
    }

    /// Whether BLAS can read the last two axes as a matrix, or as the transpose of one: neighbours along one of them
    /// are neighbours in memory, and none overlap.
    pub fn matrix_fits(&self) -> bool {
        let n = self.shape.len();
        if n < 2 || self.shape.contains(&0) {
            return true;
        }
        let (rows, cols) = (self.shape[n - 2], self.shape[n - 1]);
        let (down, along) = (self.strides[n - 2], self.strides[n - 1]);
        let lines = |len: u64, near: u64, count: u64, far: u64| {
            (len == 1 || near == 1) && (count == 1 || far >= len)
        };
        lines(cols, along, rows, down) || lines(rows, down, cols, along)
    }
}

/// Which values are views of which, in a whole graph.
#[derive(Clone, Debug)]
pub struct Views {
    roots: Vec<Option<(ValueId, Layout)>>,
}

impl Views {
    /// Follows every op whose result is a view; values with symbols are left out.
    pub fn of(graph: &Graph) -> Views {
        let mut roots: Vec<Option<(ValueId, Layout)>> = vec![None; graph.value_bound()];
        for id in graph.order() {
            let op = graph.op(id);
            let view = op.operands.first().and_then(|x| {
                let (root, layout) = roots[x.index()].as_ref()?;
                let view = op
                    .kind
                    .view((graph.ty(*x), layout), graph.ty(op.results[0]))?;
                Some((*root, view))
            });
            for (slot, result) in op.results.iter().enumerate() {
                roots[result.index()] = match &view {
                    Some(view) if slot == 0 => Some(view.clone()),
                    _ => Layout::contiguous(graph.ty(*result)).map(|layout| (*result, layout)),
                };
            }
        }
        Views { roots }
    }

    /// The value that `value` is a view of, itself if it has a buffer of its own, and how it lies
    /// in that value's buffer; `None` if its size has symbols.
    pub fn root(&self, value: ValueId) -> Option<(ValueId, &Layout)> {
        let (root, layout) = self.roots.get(value.index())?.as_ref()?;
        Some((*root, layout))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(shape: &[u64], strides: &[u64]) -> Layout {
        Layout {
            shape: shape.into(),
            strides: strides.into(),
            offset: 0,
        }
    }

    #[test]
    fn splitting_an_axis_of_a_transposed_view_is_a_view() {
        let l = layout(&[2, 4, 8, 16], &[512, 16, 64, 1]);
        assert_eq!(
            l.reshape([2, 4, 8, 4, 4].as_slice().into())
                .map(|l| l.strides.to_vec()),
            Some(vec![512, 16, 64, 4, 1])
        );
    }

    #[test]
    fn merging_transposed_heads_needs_a_copy() {
        let l = layout(&[2, 8, 4, 16], &[512, 16, 128, 1]);
        assert_eq!(l.reshape([2, 8, 64].as_slice().into()), None);
    }

    #[test]
    fn merging_a_repeated_axis_needs_a_copy() {
        let l = layout(&[2, 2, 3, 16], &[32, 16, 0, 1]);
        assert_eq!(l.reshape([2, 6, 16].as_slice().into()), None);
    }

    #[test]
    fn units_come_and_go_freely() {
        let l = layout(&[4, 1, 8], &[1, 7, 4]);
        let r = l.reshape([1, 4, 8, 1].as_slice().into()).unwrap();
        assert_eq!((r.strides[1], r.strides[2]), (1, 4));
    }
}
