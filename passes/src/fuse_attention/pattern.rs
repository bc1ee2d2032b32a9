//! Finds attention around a softmax.

use super::heads::{self, Heads};
use super::mask::{self, Mask};
use super::uniform;
use crate::matching::{MAX_STEPS, only_use, plain_product, scaled};
use lorafa_ir::ops::{Binary, BinaryKind, Dropout, MatMul, Op, Select, Softmax, Unary, UnaryKind};
use lorafa_ir::{Graph, OpData, OpId, TensorType, ValueId};

/// Ops that are looked at behind one summand of the scores: a bound for hostile input.
const MAX_OPS: usize = 64;

/// An attention as the graph spells it.
pub(super) struct Pattern {
    /// `[batch, heads, rows, width]`.
    pub queries: ValueId,
    pub keys: Heads,
    pub values: Heads,
    pub scale: f64,
    pub mask: Mask,
    pub dropout: Option<Dropout>,
    /// What the op's result replaces, `[batch, heads, rows, value width]`.
    pub result: ValueId,
}

/// Why a softmax is no attention, or not one that can be fused.
type Why = &'static str;

/// The attention whose weights a softmax gives.
pub(super) fn find(graph: &Graph, softmax: OpId) -> Result<Pattern, Why> {
    let op = graph.op(softmax);
    let Op::Softmax(Softmax { axis, log: false }) = op.kind else {
        return Err("it is no softmax");
    };
    let weights = op.results[0];
    if graph.ty(weights).rank() != 4 || axis != 3 {
        return Err("it is not over the last of four axes");
    }
    let Weighted {
        result,
        values,
        dropout,
    } = weighted(graph, weights)?;
    let scores = logits(graph, op.operands[0])?;
    let (queries, keys, scale) = product(graph, &scores)?;

    let q = graph.ty(queries).clone();
    let mut mask = Mask::default();
    let rows_and_keys = graph.ty(weights).shape[2..].to_vec();
    let [Some(rows), Some(count)] = [0, 1].map(|axis: usize| rows_and_keys[axis].known()) else {
        return Err("its sizes are symbolic");
    };
    for (condition, negated) in scores.conditions {
        mask.require(graph, condition, negated, (rows, count));
    }
    for addend in scores.addends {
        mask.add(graph, addend, (rows, count));
    }
    mask.finish();

    let (keys, values) = heads::shared(graph, keys, values);
    let types = [&q, &keys.ty(graph), &values.ty(graph), graph.ty(result)];
    if types.iter().any(|ty| ty.rank() != 4) {
        return Err("queries, keys and values have not four axes each");
    }
    if types.iter().any(|ty| ty.dtype != q.dtype) {
        return Err("queries, keys and values are of different types");
    }
    if !lines_up(&q, types[1], types[2]) {
        return Err("queries, keys and values broadcast");
    }
    Ok(Pattern {
        queries,
        keys,
        values,
        scale,
        mask,
        dropout,
        result,
    })
}

fn lines_up(q: &TensorType, k: &TensorType, v: &TensorType) -> bool {
    let whole = |a: Option<i64>, b: Option<i64>| match (a, b) {
        (Some(a), Some(b)) => b > 0 && a % b == 0,
        _ => false,
    };
    q.shape[0] == k.shape[0]
        && k.shape[..3] == v.shape[..3]
        && q.shape[3] == k.shape[3]
        && whole(q.shape[1].known(), k.shape[1].known())
}

/// The one op that reads a value.
fn reader(graph: &Graph, value: ValueId) -> Result<&OpData, Why> {
    let one = only_use(graph, value).ok_or("more than one op reads its scores or weights")?;
    Ok(graph.op(one.op))
}

/// What the weights lead to.
struct Weighted {
    /// The product with the values.
    result: ValueId,
    values: Heads,
    dropout: Option<Dropout>,
}

/// From the weights down to the product with the values.
fn weighted(graph: &Graph, mut weights: ValueId) -> Result<Weighted, Why> {
    let mut dropout = None;
    for _ in 0..MAX_OPS {
        if let Some(guarded) = guarded(graph, weights) {
            weights = guarded;
            continue;
        }
        let op = reader(graph, weights)?;
        match op.kind {
            Op::Cast(cast) if cast.to.is_float() => weights = op.results[0],
            Op::Dropout(_) if dropout.is_some() => return Err("its weights are dropped twice"),
            Op::Dropout(_) if graph.is_used(op.results[1]) => {
                return Err("who survives its dropout is read");
            }
            Op::Dropout(of) => {
                dropout = Some(of);
                weights = op.results[0];
            }
            Op::MatMul(_) if op.operands[0] == weights => {
                let product = plain_product(op).filter(|product| !product.trans_a);
                let product = product.ok_or("its weights are scaled or turned")?;
                let values = op.operands[1];
                let values = if product.trans_b {
                    heads::turned(graph, values)
                } else {
                    heads::plain(graph, values)
                };
                return Ok(Weighted {
                    result: op.results[0],
                    values,
                    dropout,
                });
            }
            _ => break,
        }
    }
    Err("no product with values reads its weights")
}

/// `select (is_nan x), 0, x`, if nothing else reads `x`.
fn guarded(graph: &Graph, x: ValueId) -> Option<ValueId> {
    let uses = graph.uses(x);
    let select = uses.iter().map(|reader| graph.op(reader.op)).find(|op| {
        let nan = |condition: ValueId| {
            let op = graph.def(condition);
            op.kind == Op::Unary(Unary(UnaryKind::IsNan)) && op.operands[0] == x
        };
        op.kind == Op::Select(Select)
            && op.operands[2] == x
            && nan(op.operands[0])
            && uniform(graph, op.operands[1]) == Some(0.0)
    })?;
    (uses.len() == 2 && !graph.is_output(x)).then_some(select.results[0])
}

/// What leads from the first product to the softmax.
struct Logits {
    /// The product of queries and keys.
    product: OpId,
    scale: f64,
    addends: Vec<ValueId>,
    /// What a query sees, each with whether it is the other way round.
    conditions: Vec<(ValueId, bool)>,
}

fn logits(graph: &Graph, mut at: ValueId) -> Result<Logits, Why> {
    let shape = graph.ty(at).shape.clone();
    let (mut scale, mut addends, mut conditions) = (1.0, Vec::new(), Vec::new());
    for _ in 0..MAX_OPS {
        let op = graph.def(at);
        reader(graph, at)?;
        if graph.ty(at).shape != shape {
            return Err("its scores broadcast");
        }
        match op.kind {
            Op::MatMul(_) => {
                return Ok(Logits {
                    product: op.id,
                    scale,
                    addends,
                    conditions,
                });
            }
            Op::Cast(_) => at = op.operands[0],
            Op::Binary(Binary(BinaryKind::Mul | BinaryKind::Div)) => {
                let (x, factor) = scaled(graph, at).ok_or("its scores are scaled one by one")?;
                at = x;
                scale *= factor;
            }
            Op::Binary(Binary(BinaryKind::Add)) => {
                if scale != 1.0 {
                    return Err("its mask is scaled");
                }
                let [a, b] = [op.operands[0], op.operands[1]];
                let (scores, addend) = if leads(graph, a) { (a, b) } else { (b, a) };
                addends.push(addend);
                at = scores;
            }
            Op::Select(_) => {
                let [condition, a, b] = [op.operands[0], op.operands[1], op.operands[2]];
                let (scores, negated) = if mask::never(graph, b) {
                    (a, false)
                } else if mask::never(graph, a) {
                    (b, true)
                } else {
                    return Err("it selects between scores");
                };
                conditions.push((condition, negated));
                at = scores;
            }
            _ => break,
        }
    }
    Err("no product of queries and keys leads to it")
}

/// Whether a value may be the scores: a product behind what a scaled and masked one has.
fn leads(graph: &Graph, value: ValueId) -> bool {
    let mut work = vec![value];
    for _ in 0..MAX_OPS {
        let Some(value) = work.pop() else { break };
        let op = graph.def(value);
        match &op.kind {
            Op::MatMul(_) if op.operands.iter().all(|v| graph.ty(*v).rank() == 4) => return true,
            Op::Cast(_) => work.push(op.operands[0]),
            Op::Binary(Binary(BinaryKind::Mul | BinaryKind::Div)) => {
                work.extend(scaled(graph, value).map(|(x, _)| x));
            }
            Op::Binary(Binary(BinaryKind::Add)) => work.extend(op.operands.iter().rev()),
            Op::Select(_) => work.extend(op.operands[1..].iter().rev()),
            _ => {}
        }
    }
    false
}

/// Queries, keys and the scale on any of them or on their product.
fn product(graph: &Graph, scores: &Logits) -> Result<(ValueId, Heads, f64), Why> {
    let op = graph.op(scores.product);
    let MatMul {
        trans_a, trans_b, ..
    } = plain_product(op).ok_or("its scores are more than a product of queries and keys")?;
    if trans_a {
        return Err("its queries lie transposed");
    }
    let mut scale = scores.scale;
    let mut unscaled = |mut value: ValueId| {
        for _ in 0..MAX_STEPS {
            let Some((x, factor)) = scaled(graph, value) else {
                break;
            };
            scale *= factor;
            value = x;
        }
        value
    };
    let (queries, keys) = (unscaled(op.operands[0]), unscaled(op.operands[1]));
    let keys = if trans_b {
        heads::plain(graph, keys)
    } else {
        heads::turned(graph, keys)
    };
    let under = unscaled(keys.value);
    Ok((queries, keys.on(under), scale))
}
