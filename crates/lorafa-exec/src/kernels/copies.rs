//! Ops that only move elements, where their result is no view: `cast`, `reshape`, `slice`, `pad`, `concat`, ….

use lorafa_ir::interp::for_each_index;
use lorafa_ir::ops::{Pad, Slice};

use super::{Cx, Emitted};
use crate::error::KernelError;
use crate::view::View;

/// `cast`, `expand` and `transpose`: the operand as the result's shape has it.
pub(super) fn copy(cx: &mut Cx<'_>) -> Emitted {
    cx.copy(&cx.outs[0], &cx.ins[0])
}

/// The result is row-major, so it is the one that takes the other's shape.
pub(super) fn reshape(cx: &mut Cx<'_>) -> Emitted {
    let (x, out) = (&cx.ins[0], &cx.outs[0]);
    let out = out.reshaped(x.shape())?;
    cx.copy(&out, x)
}

/// libtorch has no negative strides: places on axes that are walked backwards are copied one by one.
pub(super) fn slice(op: &Slice, cx: &mut Cx<'_>) -> Emitted {
    let (mut x, out) = (cx.ins[0].clone(), &cx.outs[0]);
    let mut backwards = Vec::new();
    for axis in &op.axes {
        let (Some(start), Some(len)) = (axis.start.known(), axis.len.known()) else {
            return Err(KernelError::Unsupported("a slice with symbols".into()));
        };
        let (start, len) = (start.max(0).unsigned_abs(), len.max(0).unsigned_abs());
        if len == 0 {
            return Ok(());
        }
        let step = axis.step.unsigned_abs();
        if axis.step > 0 {
            x = x.narrow(axis.axis, start, len);
            x.layout.strides[axis.axis] *= step;
        } else {
            // From the last element that is wanted up.
            x = x.narrow(axis.axis, start - (len - 1) * step, len);
            x.layout.strides[axis.axis] *= step;
            backwards.push((axis.axis, len));
        }
    }
    let lengths: Vec<usize> = backwards.iter().map(|(_, len)| *len as usize).collect();
    let mut done = Ok(());
    for_each_index(&lengths, |index| {
        let (mut from, mut to) = (x.clone(), out.clone());
        for ((axis, len), i) in backwards.iter().zip(index) {
            to = to.narrow(*axis, *i as u64, 1);
            from = from.narrow(*axis, len - 1 - *i as u64, 1);
        }
        if done.is_ok() {
            done = cx.copy(&to, &from);
        }
    });
    done
}

/// Negative amounts cut.
pub(super) fn pad(op: &Pad, cx: &mut Cx<'_>) -> Emitted {
    let (mut x, mut out) = (cx.ins[0].clone(), cx.outs[0].clone());
    cx.fill(&out, out.dtype.round(op.value.0))?;
    for (axis, before) in op.before.iter().enumerate() {
        let before = before.known().unwrap_or(0);
        let (from, to) = ((-before).max(0), before.max(0));
        let room = (out.shape()[axis] as i64 - to).min(x.shape()[axis] as i64 - from);
        if room <= 0 {
            return Ok(());
        }
        let [from, to, room] = [from, to, room].map(i64::unsigned_abs);
        x = x.narrow(axis, from, room);
        out = out.narrow(axis, to, room);
    }
    cx.copy(&out, &x)
}

pub(super) fn concat(axis: usize, cx: &mut Cx<'_>) -> Emitted {
    let out: &View = &cx.outs[0];
    let mut from = 0;
    for x in cx.ins {
        let len = x.shape()[axis];
        cx.copy(&out.narrow(axis, from, len), x)?;
        from += len;
    }
    Ok(())
}
