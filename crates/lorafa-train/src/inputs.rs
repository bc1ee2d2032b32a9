//! What a step reads of the data: its inputs, and what the numbers in them may be.

use lorafa_data::{InputSpec, Spec, Task};
use lorafa_ir::ops::{GatherElements, LinearCrossEntropy, LinearCrossEntropyGrad, Role};
use lorafa_ir::{Graph, Op, TensorType, ValueId};
use std::collections::BTreeSet;

use crate::error::TrainError;

/// Inputs that hold token ids.
const IDS: [&str; 2] = ["input_ids", "decoder_input_ids"];

/// What data a step takes, for a task or, if the model came with a loss of its own, what looks like one.
///
/// That is read off the labels: one a sequence is a classification of sequences; as many classes as tokens is a language
/// model, with a decoder of its own a sequence-to-sequence model; anything else is a classification of tokens.
///
/// # Errors
/// A step without labels, or with a dimension that is no number.
pub fn spec(graph: &Graph, task: Option<Task>) -> Result<Spec, TrainError> {
    let mut inputs = Vec::new();
    for (_, param) in graph.params().filter(|(_, p)| p.role == Role::Input) {
        let shape = param.ty.known_shape().ok_or_else(|| TrainError::Step {
            why: format!(
                "the input `{}` : {} has no fixed shape",
                param.name, param.ty
            ),
        })?;
        inputs.push(InputSpec {
            name: param.name.to_string(),
            shape: shape.to_vec(),
        });
    }
    let labels = inputs.iter().find(|input| input.name == "labels");
    let labels = labels.ok_or_else(|| TrainError::Step {
        why: "it reads no input called `labels`, so that there is nothing to learn from".into(),
    })?;
    let batch = labels.shape.first().copied().unwrap_or(1);
    let (vocab, classes) = (vocabulary(graph), classes(graph));
    let task = task.unwrap_or_else(|| match labels.shape.len() {
        0 | 1 => Task::SeqCls,
        _ if has_decoder(graph) => Task::Seq2Seq,
        _ if classes.is_some() && classes == vocab => Task::CausalLm,
        _ => Task::TokenCls,
    });
    Ok(Spec {
        task,
        batch,
        inputs,
        vocab,
        classes,
    })
}

fn has_decoder(graph: &Graph) -> bool {
    let decoder = |(_, p): (ValueId, &lorafa_ir::ops::Param)| &*p.name == "decoder_input_ids";
    let inside = |part: &str| {
        let within = |module: &str| module.split('.').any(|name| name == part);
        graph.ops().any(|op| within(&op.site.module))
    };
    graph.params().any(decoder) || inside("encoder") && inside("decoder")
}

/// How many token ids the model knows: the fewest rows of a table in which it looks them up.
fn vocabulary(graph: &Graph) -> Option<u64> {
    let ids = |(_, p): &(ValueId, &lorafa_ir::ops::Param)| IDS.contains(&&*p.name);
    let mut pending: Vec<ValueId> = graph.params().filter(ids).map(|(value, _)| value).collect();
    let mut seen: BTreeSet<ValueId> = pending.iter().copied().collect();
    let mut fewest: Option<u64> = None;
    while let Some(value) = pending.pop() {
        for at in graph.uses(value) {
            let op = graph.op(at.op);
            match &op.kind {
                Op::Gather(gather) if at.slot == 1 => {
                    let table = graph.ty(op.operands[0]);
                    let rows = table
                        .known_shape()
                        .and_then(|s| s.get(gather.axis).copied());
                    fewest = fewest.into_iter().chain(rows).min();
                }
                // What moves ids and leaves them what they are.
                Op::Cast(_)
                | Op::Reshape(_)
                | Op::Slice(_)
                | Op::Concat(_)
                | Op::Pad(_)
                | Op::Expand(_)
                | Op::Transpose(_) => {
                    pending.extend(op.results.iter().filter(|result| seen.insert(**result)));
                }
                _ => {}
            }
        }
    }
    fewest
}

/// How many classes the loss tells apart.
fn classes(graph: &Graph) -> Option<u64> {
    graph.ops().find_map(|op| match op.kind {
        Op::CrossEntropy(_) => graph.ty(op.operands[0]).known_shape()?.get(1).copied(),
        Op::LinearCrossEntropy(LinearCrossEntropy { trans_b, .. })
        | Op::LinearCrossEntropyGrad(LinearCrossEntropyGrad {
            of: LinearCrossEntropy { trans_b, .. },
            ..
        }) => {
            let weight = graph.ty(op.operands[1]).known_shape()?;
            weight.get(usize::from(!trans_b)).copied()
        }
        // A cross-entropy as PyTorch's joint graphs spell it.
        Op::GatherElements(GatherElements { axis }) => {
            let x = op.operands[0];
            let log = matches!(&graph.def(x).kind, Op::Softmax(softmax) if softmax.log);
            let shape = graph.ty(x).known_shape().filter(|_| log)?;
            shape.get(axis).copied()
        }
        _ => None,
    })
}

/// A column of data as an input of this type takes it.
#[must_use]
pub fn encode(ty: &TensorType, column: &[i64]) -> Vec<u8> {
    if ty.dtype == lorafa_ir::DType::I64 {
        return column.iter().flat_map(|n| n.to_le_bytes()).collect();
    }
    lorafa_onnx::dtype::encode(ty.dtype, column.iter().map(|n| *n as f64))
}

/// Made-up data of the right form, for measuring: no padding, ids and classes all over their ranges.
#[must_use]
pub fn synthetic(spec: &Spec) -> Vec<(String, Vec<i64>)> {
    // Fibonacci hashing: spreads consecutive numbers over the range.
    let spread = |i: usize, below: u64| {
        let hash = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        (hash % below.max(1)) as i64
    };
    let columns = spec.inputs.iter().map(|input| {
        let count = input.shape.iter().product::<u64>() as usize;
        let width = input.shape.last().copied().unwrap_or(1).max(1) as usize;
        let below = match input.name.as_str() {
            "labels" => spec.classes,
            name if IDS.contains(&name) => spec.vocab,
            _ => None,
        };
        let number = |i: usize| match (below, input.name.as_str()) {
            (Some(below), _) => spread(i, below),
            (None, "position_ids") => (i % width) as i64,
            (None, name) => i64::from(name.contains("mask")),
        };
        (input.name.clone(), (0..count).map(number).collect())
    });
    columns.collect()
}
