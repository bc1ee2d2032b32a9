//! `scatter_elements` and `scatter_nd`, into the operand where the plan lets the result take its place.

use lorafa_ir::DType;
use lorafa_ir::ops::ScatterElements;

use super::indices::{flat, positions};
use super::{Cx, Emitted, In};

pub(super) fn scatter_elements(op: ScatterElements, cx: &mut Cx<'_>) -> Emitted {
    let (data, indices, updates, out) = (&cx.ins[0], &cx.ins[1], &cx.ins[2], &cx.outs[0]);
    let elements = positions(indices, data.shape()[op.axis], cx)?;
    let wide = op.add && out.dtype.is_half();
    let (to, updates) = if wide {
        let to = cx.copied(data, DType::F32)?;
        (to, cx.copied(updates, DType::F32)?)
    } else {
        cx.copy(out, data)?;
        (out.clone(), updates.clone())
    };
    if updates.elements() > 0 && op.add {
        let axis = In::Int(op.axis as i64);
        let args = [(&to).into(), axis, (&elements).into(), (&updates).into()];
        cx.call("scatter_add_", "", &args)?;
    } else if updates.elements() > 0 {
        cx.put(&to, op.axis, &elements, &updates)?;
    }
    if wide { cx.copy(out, &to) } else { Ok(()) }
}

pub(super) fn scatter_nd(add: bool, cx: &mut Cx<'_>) -> Emitted {
    let (data, indices, updates, out) = (&cx.ins[0], &cx.ins[1], &cx.ins[2], &cx.outs[0]);
    let depth = indices.shape()[indices.rank() - 1] as usize;
    let (indexed, rest) = data.shape().split_at(depth);
    let rows = flat(indices, indexed, cx)?;
    let shape = [&[rows.elements()], rest].concat();
    let updates = match updates.reshape(&shape) {
        Some(updates) => updates,
        None => cx.row_major(updates)?.reshaped(&shape)?,
    };
    cx.copy(out, data)?;
    let to = out.reshaped(&[&[indexed.iter().product()], rest].concat())?;
    if add {
        return cx.add_rows(&to, &rows, &updates);
    }
    if updates.elements() == 0 {
        return Ok(());
    }
    let args = [(&to).into(), In::Int(0), (&rows).into(), (&updates).into()];
    cx.call("index_copy_", "", &args)
}
