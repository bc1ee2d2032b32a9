//! Views against the reference semantics: a base buffer whose elements are their own positions is
//! evaluated through chains of ops; a view must read the same positions.

#[path = "common/rng.rs"]
mod rng;

use lorafa_ir::interp::{Array, for_each_index};
use lorafa_ir::layout::Layout;
use lorafa_ir::ops::{Expand, Reshape, Slice, SliceAxis, Transpose};
use lorafa_ir::{DType, Op, TensorType};
use rng::Rng;

/// Positions in the base buffer, in row-major order of the value.
type Positions = Array;

fn ty(shape: &[usize]) -> TensorType {
    TensorType::new(DType::F32, shape.iter().map(|d| (*d as i64).into()))
}

/// A buffer of its own for each element.
fn base(shape: &[usize]) -> (Positions, Layout) {
    let mut next = -1.0;
    let positions = Array::from_fn(&ty(shape), |_| {
        next += 1.0;
        next
    });
    (positions.unwrap(), Layout::contiguous(&ty(shape)).unwrap())
}

/// The positions that a layout reads.
fn read(layout: &Layout) -> Vec<f64> {
    let shape: Vec<usize> = layout.shape.iter().map(|d| *d as usize).collect();
    let mut positions = Vec::new();
    for_each_index(&shape, |index| {
        let steps = index.iter().zip(&layout.strides);
        let at = steps.fold(layout.offset, |at, (i, stride)| at + *i as u64 * stride);
        positions.push(at as f64);
    });
    positions
}

/// Whether some offset and strides, none of them negative, give these positions.
fn is_strided(value: &Positions) -> bool {
    let unit = |axis: usize| {
        let mut index = vec![0; value.shape.len()];
        index[axis] = usize::from(value.shape[axis] > 1);
        value.at(&index) - value.data[0]
    };
    let strides: Vec<f64> = (0..value.shape.len()).map(unit).collect();
    let mut strided = strides.iter().all(|s| *s >= 0.0);
    for_each_index(&value.shape, |index| {
        let steps = index.iter().zip(&strides);
        let at = steps.fold(value.data[0], |at, (i, stride)| at + *i as f64 * stride);
        strided &= at == value.at(index);
    });
    strided
}

fn random_shape(rng: &mut Rng) -> Vec<usize> {
    let sizes = [1, 1, 2, 2, 3, 4, 6, 0];
    let known = if rng.below(12) == 0 { 8 } else { 7 };
    (0..rng.below(5)).map(|_| sizes[rng.below(known)]).collect()
}

/// Dimensions with the same product: neighbours merge, dimensions split, units come and go.
fn reshaped(shape: &[usize], rng: &mut Rng) -> Vec<usize> {
    let mut shape = shape.to_vec();
    for _ in 0..1 + rng.below(3) {
        let at = rng.below(shape.len() + 1);
        match rng.below(4) {
            0 => shape.insert(at, 1),
            1 if at < shape.len() && shape[at] == 1 => {
                shape.remove(at);
            }
            2 if at + 1 < shape.len() => {
                let inner = shape.remove(at + 1);
                shape[at] *= inner;
            }
            3 if at < shape.len() => {
                let part = [2, 3, 6][rng.below(3)];
                if shape[at].is_multiple_of(part) && shape[at] > 0 {
                    shape[at] /= part;
                    shape.insert(at + rng.below(2), part);
                }
            }
            _ => {}
        }
    }
    shape
}

fn random_op(shape: &[usize], rng: &mut Rng) -> Op {
    let dims = |shape: &[usize]| shape.iter().map(|d| (*d as i64).into()).collect();
    match rng.below(4) {
        0 => {
            let mut perm: Vec<usize> = (0..shape.len()).collect();
            for i in (1..perm.len()).rev() {
                perm.swap(i, rng.below(i + 1));
            }
            Transpose { perm: perm.into() }.into()
        }
        1 => {
            let mut wide: Vec<usize> = shape.to_vec();
            for dim in wide.iter_mut().filter(|d| **d == 1) {
                *dim = 1 + rng.below(3);
            }
            if rng.below(2) == 0 {
                wide.insert(0, 1 + rng.below(2));
            }
            Expand { shape: dims(&wide) }.into()
        }
        2 => {
            let axes = shape.iter().enumerate().filter(|(_, n)| **n > 0);
            let mut parts: Vec<SliceAxis> = axes
                .map(|(axis, n)| {
                    let (start, step) = (rng.below(*n), [1_i64, 1, 2, 3, -1][rng.below(5)]);
                    let room = if step > 0 { *n - 1 - start } else { start };
                    let len = rng.below(room / step.unsigned_abs() as usize + 2);
                    SliceAxis {
                        axis,
                        start: (start as i64).into(),
                        len: (len as i64).into(),
                        step,
                    }
                })
                .collect();
            parts.retain(|part| rng.below(2) == 0 && !part.len.is(0) || rng.below(20) == 0);
            Slice {
                axes: parts.into_iter().collect(),
            }
            .into()
        }
        _ => Reshape {
            shape: dims(&reshaped(shape, rng)),
        }
        .into(),
    }
}

/// Whether the op may copy where strides could do: only backwards, which they cannot.
fn backwards(op: &Op) -> bool {
    matches!(op, Op::Slice(slice) if slice.axes.iter().any(|a| a.step < 0))
}

#[test]
fn a_view_reads_what_the_op_gives() {
    let mut views = 0;
    let mut copies = 0;
    for seed in 0..4000 {
        let mut rng = Rng(seed);
        let (mut value, mut layout) = base(&random_shape(&mut rng));
        for _ in 0..6 {
            let operand = ty(&value.shape);
            let op = random_op(&value.shape, &mut rng);
            let types = op.infer_checked(&[&operand]).unwrap();
            let next = op.eval(&[&value], &[&types[0]]).unwrap().remove(0);
            if next.data.len() > 1000 {
                break;
            }
            let label = || {
                format!(
                    "seed {seed}: {}{} of {operand} {layout:?}",
                    op.name(),
                    op.attrs()
                )
            };
            match op.view((&operand, &layout), &types[0]) {
                Some(view) => {
                    views += 1;
                    let shape: Vec<usize> = view.shape.iter().map(|d| *d as usize).collect();
                    assert_eq!(
                        (&shape, &read(&view)),
                        (&next.shape, &next.data),
                        "{}",
                        label()
                    );
                    check_layout(&view, &next, &label());
                    (value, layout) = (next, view);
                }
                None => {
                    copies += 1;
                    let needless = !backwards(&op) && (next.data.is_empty() || is_strided(&next));
                    assert!(!needless, "{} needs no copy", label());
                    (value, layout) = base(&next.shape);
                }
            }
        }
    }
    assert!(
        views > 10_000 && copies > 200,
        "{views} views, {copies} copies"
    );
}

/// What a layout says of itself, against the positions.
fn check_layout(layout: &Layout, value: &Positions, label: &str) {
    let first = value.data.first().copied().unwrap_or(0.0);
    let ascending = value.data.iter().enumerate();
    let contiguous = ascending
        .map(|(i, at)| (first + i as f64, at))
        .all(|(i, at)| i == *at);
    assert_eq!(layout.is_contiguous(), contiguous, "{label}: contiguous");
    assert_eq!(
        layout.matrix_fits(),
        matrix_fits(value),
        "{label}: matrix of {layout:?}"
    );
}

/// Whether the first matrix has lines of neighbours along one axis, none of which begins before the last one ends.
fn matrix_fits(value: &Positions) -> bool {
    let [.., rows, cols] = value.shape[..] else {
        return true;
    };
    let at = |row: usize, col: usize| value.data[row * cols + col];
    let lines = |count: usize, len: usize, at: &dyn Fn(usize, usize) -> f64| {
        (1..len).all(|i| at(0, i) == at(0, i - 1) + 1.0)
            && (1..count).all(|i| at(i, 0) >= at(i - 1, len - 1) + 1.0)
    };
    value.data.is_empty() || lines(rows, cols, &at) || lines(cols, rows, &|i, j| at(j, i))
}

#[test]
fn symbols_have_no_layout() {
    let symbolic = TensorType::new(DType::F32, ["n".parse().unwrap()]);
    assert_eq!(Layout::contiguous(&symbolic), None);
}
