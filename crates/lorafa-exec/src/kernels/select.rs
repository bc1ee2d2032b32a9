//! `select`.

use super::{Cx, Emitted};

pub(super) fn select(cx: &mut Cx<'_>) -> Emitted {
    let args = [&cx.ins[0], &cx.ins[1], &cx.ins[2], &cx.outs[0]];
    cx.call("where", "self_out", &args.map(Into::into))
}
