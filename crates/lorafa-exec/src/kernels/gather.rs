//! `gather`, its gradient, `gather_elements` and `gather_nd`.

use lorafa_ir::interp::for_each_index;

use super::indices::{flat, positions};
use super::{Cx, Emitted, In};
use crate::view::View;

pub(super) fn gather(axis: usize, cx: &mut Cx<'_>) -> Emitted {
    let (data, indices, out) = (&cx.ins[0], &cx.ins[1], &cx.outs[0]);
    let rows = positions(indices, data.shape()[axis], cx)?;
    let rows = rows.reshaped(&[rows.elements()])?;
    // Along the first axis libtorch copies row by row, whatever the strides.
    let data = if axis == 0 {
        data.clone()
    } else {
        cx.row_major(data)?
    };
    let mut shape = data.shape().to_vec();
    shape[axis] = rows.elements();
    rows_of(&data, axis, &rows, &out.reshaped(&shape)?, cx)
}

fn rows_of(data: &View, axis: usize, rows: &View, out: &View, cx: &mut Cx<'_>) -> Emitted {
    if out.elements() == 0 {
        return Ok(());
    }
    let args = [data.into(), In::Int(axis as i64), rows.into(), out.into()];
    cx.call("index_select", "out", &args)
}

pub(super) fn gather_grad(cx: &mut Cx<'_>) -> Emitted {
    let (indices, dy, out) = (&cx.ins[0], &cx.ins[1], &cx.outs[0]);
    let rows = positions(indices, out.shape()[0], cx)?;
    add_rows(&rows, dy, out, cx)
}

/// `out` set to zero, and each row of `dy` added at its position.
fn add_rows(rows: &View, dy: &View, out: &View, cx: &mut Cx<'_>) -> Emitted {
    let count = rows.elements();
    let mut shape = vec![count];
    shape.extend(&out.shape()[1..]);
    let dy = match dy.reshape(&shape) {
        Some(dy) => dy,
        None => cx.row_major(dy)?.reshaped(&shape)?,
    };
    let rows = rows.reshaped(&[count])?;
    cx.fill(out, 0.0)?;
    cx.add_rows(out, &rows, &dy)
}

pub(super) fn gather_elements(axis: usize, cx: &mut Cx<'_>) -> Emitted {
    let (data, indices, out) = (&cx.ins[0], &cx.ins[1], &cx.outs[0]);
    let elements = positions(indices, data.shape()[axis], cx)?;
    if out.elements() == 0 {
        return Ok(());
    }
    cx.pick(data, axis, &elements, out)
}

/// One `index_select` for each place on the batch axes, of the indexed axes as one.
pub(super) fn gather_nd(batch_dims: usize, cx: &mut Cx<'_>) -> Emitted {
    let (data, indices, out) = (&cx.ins[0], &cx.ins[1], &cx.outs[0]);
    let depth = indices.shape()[indices.rank() - 1] as usize;
    let indexed = &data.shape()[batch_dims..batch_dims + depth];
    let rest = &data.shape()[batch_dims + depth..];
    let batch = &data.shape()[..batch_dims];

    let rows = flat(indices, indexed, cx)?;
    let merged = [batch, &[indexed.iter().product()], rest].concat();
    let data = match data.reshape(&merged) {
        Some(data) => data,
        None => cx.row_major(data)?.reshaped(&merged)?,
    };
    let per_batch: u64 = indices.shape()[batch_dims..indices.rank() - 1]
        .iter()
        .product();
    let rows = rows.reshaped(&[batch, &[per_batch]].concat())?;
    let out = out.reshaped(&[batch, &[per_batch], rest].concat())?;
    let places: Vec<usize> = batch.iter().map(|n| *n as usize).collect();
    let mut done = Ok(());
    for_each_index(&places, |index| {
        let at = |x: &View| index.iter().fold(x.clone(), |x, i| x.select(0, *i as u64));
        if done.is_ok() {
            done = rows_of(&at(&data), 0, &at(&rows), &at(&out), cx);
        }
    });
    done
}
