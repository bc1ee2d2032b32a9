//! `cumsum`.

use lorafa_ir::ops::CumSum;

use super::{Cx, Emitted, In};

pub(super) fn cumsum(op: CumSum, cx: &mut Cx<'_>) -> Emitted {
    let (x, out, axis) = (&cx.ins[0], &cx.outs[0], op.axis);
    let n = x.shape()[axis];
    if x.elements() == 0 {
        return Ok(());
    }
    let skipped = u64::from(op.exclusive);
    if !op.reverse {
        // Sums of what comes before are the sums one place further on.
        let (x, to) = (
            x.narrow(axis, 0, n - skipped),
            out.narrow(axis, skipped, n - skipped),
        );
        if op.exclusive {
            cx.fill(&out.narrow(axis, 0, 1), 0.0)?;
        }
        if n == skipped {
            return Ok(());
        }
        let args = [(&x).into(), In::Int(axis as i64), In::None, (&to).into()];
        return cx.call("cumsum", "out", &args);
    }
    // From the end, place by place: libtorch has no sum that runs backwards.
    let at = |i: u64| out.narrow(axis, i, 1);
    if op.exclusive {
        cx.fill(&at(n - 1), 0.0)?;
    } else {
        cx.copy(&at(n - 1), &x.narrow(axis, n - 1, 1))?;
    }
    for i in (0..n - 1).rev() {
        let next = x.narrow(axis, i + skipped, 1);
        cx.add(&at(i + 1), &next, In::Int(1), &at(i))?;
    }
    Ok(())
}
