//! `fuse-attention`: one op for what exporters spell with a dozen.
//!
//! ```text
//! - v4 = mul v0, v3                               : f32[2,4,16,8]
//! - v5 = mul v2, v3                               : f32[2,4,8,16]
//! - v6 = matmul v4, v5                            : f32[2,4,16,16]
//! - v7 = select %mask, v8, v9                     : f32[2,1,16,16]
//! - v10 = add v6, v7                              : f32[2,4,16,16]
//! - v11 = softmax v10 {axis=3}                    : f32[2,4,16,16]
//! - v12 = matmul v11, v1                          : f32[2,4,16,8]
//! + v12, v13 = attention v0, v14, v1, %padding {causal, scale=0.35}
//! ```
//!
//! The weights of attention are as large as all pairs of positions; the op's gradient rule keeps a logarithm for each row
//! in their place. Heads that share keys and values read them where they lie, and what of a mask is a comparison of
//! positions becomes a flag, so that what is left of it is no larger than the padding.
//!
//! Weights that are dropped at random are drawn block by block inside the op, from the seed of the dropout that they had.
//!
//! A query that sees no key gives zero, as PyTorch's own attention does and its exporters mean. Where they mask with the
//! least finite number, the graph gives the mean of all values instead; such a query is padding, and nothing but padding
//! depends on it.

mod affine;
mod heads;
mod mask;
mod pattern;

use crate::matching::{MAX_STEPS, is_zero};
use crate::pass::{Changed, Pass, PassCx, PassError, PassKind};
use lorafa_ir::ops::{Attention, Op, Scalar, Transpose};
use lorafa_ir::text::OpDisplay;
use lorafa_ir::{Graph, OpId, Patch, PatchError, ValueId};
use pattern::Pattern;

/// See the module.
pub struct FuseAttention;

impl Pass for FuseAttention {
    fn name(&self) -> &'static str {
        "fuse-attention"
    }

    fn kind(&self) -> PassKind {
        PassKind::Equivalence
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<Changed, PassError> {
        let mut fused = 0;
        for id in graph.order() {
            let Op::Softmax(softmax) = graph.op(id).kind else {
                continue;
            };
            if softmax.log {
                continue;
            }
            match pattern::find(graph, id) {
                Ok(found) => {
                    let line = fuse(graph, &found)?;
                    cx.note(line);
                    fused += 1;
                }
                Err(why) => {
                    let line = OpDisplay(graph, id).to_string();
                    cx.note(format_args!("left `{line}` alone: {why}"));
                }
            }
        }
        Ok(Changed::from_count(fused))
    }
}

/// Builds the op, makes everything read it, and says what it is.
fn fuse(graph: &mut Graph, found: &Pattern) -> Result<String, PatchError> {
    let mut patch = graph.patch("fuse-attention");
    let product = patch.graph().value(found.result).op;
    patch.at(product);
    let mut operands = vec![
        found.queries,
        found.keys.build(&mut patch)?,
        found.values.build(&mut patch)?,
    ];
    operands.extend(found.mask.condition(&mut patch)?);
    operands.extend(found.mask.bias(&mut patch, found.queries)?);
    let op = Attention {
        scale: Scalar(found.scale),
        causal: found.mask.causal,
        window: found.mask.window.map(|(window, _)| window),
        dropout: found.dropout,
    };
    let results = patch.add(op.into(), &operands)?;
    let op = patch.graph().value(results[0]).op;
    let line = format!("built `{}`", OpDisplay(patch.graph(), op));
    for reader in readers_by_rows(patch.graph(), found.result) {
        let old = patch.graph().op(reader).results[0];
        patch.replace(old, results[0])?;
    }
    if patch.graph().is_used(found.result) {
        let heads_first = patch.transpose(results[0], [0, 2, 1, 3])?;
        patch.replace(found.result, heads_first)?;
    }
    Ok(line)
}

/// The transposes that put rows before heads, as the op gives them.
fn readers_by_rows(graph: &Graph, value: ValueId) -> Vec<OpId> {
    let readers = graph.uses(value).into_iter().map(|reader| reader.op);
    let swaps = |id: &OpId| match &graph.op(*id).kind {
        Op::Transpose(Transpose { perm }) => perm.as_slice() == [0, 2, 1, 3],
        _ => false,
    };
    readers.filter(swaps).collect()
}

/// The number that a value is everywhere, if it is known.
fn uniform(graph: &Graph, value: ValueId) -> Option<f64> {
    match &graph.def(value).kind {
        Op::Constant(constant) => constant.as_f64(),
        Op::Fill(fill) => Some(fill.value.0),
        Op::Param(param) => is_zero(param).then_some(0.0),
        _ => None,
    }
}

/// Behind what only repeats elements.
fn through_expand(graph: &Graph, mut value: ValueId) -> ValueId {
    for _ in 0..MAX_STEPS {
        match graph.def(value).kind {
            Op::Expand(_) => value = graph.def(value).operands[0],
            _ => break,
        }
    }
    value
}

/// The patch type that builders take.
type Edit<'a, 'g> = &'a mut Patch<'g>;
