//! `differentiate`: adds the backward pass.
//!
//! ```text
//! - param %b : f32[4,2] frozen
//! + param %b : f32[4,2] trained
//!   v1 = matmul v0, %b {trans_b}     : f32[3,4]
//!   …
//! + backward:
//! + v9 = matmul v8, v0 {trans_a}     : f32[4,2] of v1
//! - out "logits" = v1
//! + out "grad::b" = v9 gradient %b
//! ```
//!
//! Reverse mode: ops are visited in reverse schedule order, each one's gradient rule turns the
//! gradients of its results into those of the operands that a trained parameter leads to, and
//! gradients that meet are added at once, so that only their sum stays live. What a rule reads of
//! the forward pass becomes a saved activation.
//!
//! The method says what trains: every float weight for `full`; for `lora` and `lora-fa` the
//! adapters and what PEFT calls `modules_to_save`. A training step has no use for the model's own
//! results, so outputs other than the loss, which is called `loss` from here on, go.

use crate::pass::{Changed, Method, Pass, PassCx, PassError, PassKind, in_module};
use lorafa_ir::grad::Gradient;
use lorafa_ir::ops::{LinearCrossEntropy, Op, Role};
use lorafa_ir::outputs::GRADIENT;
use lorafa_ir::text::OpDisplay;
use lorafa_ir::{
    Graph, OpData, OpId, OutputKind, Patch, PatchError, Region, Site, ValueId, ValueMap,
};
use std::collections::BTreeSet;

/// The loss output of a training step.
const LOSS: &str = "loss";

/// See the module.
pub struct Differentiate;

impl Pass for Differentiate {
    fn name(&self) -> &'static str {
        "differentiate"
    }

    fn kind(&self) -> PassKind {
        PassKind::Extends
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<Changed, PassError> {
        part_losses(&mut graph.patch("part-losses"))?;
        let Some(loss) = graph.loss().map(|o| o.value) else {
            return Err(PassError::Refused(
                "the model has no loss to differentiate".into(),
            ));
        };
        if graph.ops().any(|op| op.site.region != Region::Forward) {
            return Err(PassError::Refused(
                "the model has a backward pass already".into(),
            ));
        }
        let trained = mark_trained(graph, cx)?;
        let mut patch = graph.patch("differentiate");
        keep_loss(&mut patch, loss);
        let gradients = backward(&mut patch, loss, &trained)?;
        let mut without = Vec::new();
        for param in trained {
            let Some(name) = patch.graph().param(param).map(|p| p.name.clone()) else {
                continue;
            };
            match gradients.get(param) {
                Some(gradient) => {
                    let output = format!("{GRADIENT}{name}");
                    patch.output(output, *gradient, OutputKind::Gradient(param));
                }
                None => without.push(name),
            }
        }
        for name in without {
            cx.note(format_args!(
                "the loss does not depend on {name}, which gets no gradient"
            ));
        }
        Ok(Changed::Yes)
    }
}

/// Whether a method trains the weight of this name, which is of no adapter that the graph knows.
pub(crate) fn trains(method: Method, name: &str) -> bool {
    method == Method::Full || name.contains(".lora_") || name.contains(".modules_to_save.")
}

/// Gives every weight its role and returns the trained ones, in the model's order.
fn mark_trained(graph: &mut Graph, cx: &mut PassCx) -> Result<Vec<ValueId>, PassError> {
    let adapters: BTreeSet<ValueId> = graph.adapters().iter().flat_map(|a| [a.a, a.b]).collect();
    let method = cx.options.method;
    let trains = |value: ValueId, name: &str| adapters.contains(&value) || trains(method, name);
    let weights: Vec<(ValueId, bool)> = graph
        .params()
        .filter(|(_, p)| p.is_weight() && p.ty.dtype.is_float())
        .map(|(value, p)| (value, trains(value, &p.name)))
        .collect();
    let mut patch = graph.patch("mark-trained");
    for (value, trained) in &weights {
        patch.set_role(
            *value,
            if *trained {
                Role::Trained
            } else {
                Role::Frozen
            },
        );
    }
    let trained: Vec<ValueId> = weights
        .iter()
        .filter(|(_, t)| *t)
        .map(|(v, _)| *v)
        .collect();
    cx.note(format_args!(
        "{} of {} weights train",
        trained.len(),
        weights.len()
    ));
    if trained.is_empty() {
        let refusal = "nothing to train: the model has no weights of a float type";
        return Err(PassError::Refused(refusal.into()));
    }
    Ok(trained)
}

fn keep_loss(patch: &mut Patch<'_>, loss: ValueId) {
    patch.retain_outputs(|_| false);
    patch.output(LOSS, loss, OutputKind::Loss);
}

/// Computes a loss alone where a graph computes it with its gradient, as a training graph does that we wrote: only that can be
/// differentiated.
pub(crate) fn part_losses(patch: &mut Patch<'_>) -> Result<(), PatchError> {
    let ops = patch.graph().ops();
    let joint: Vec<(OpId, LinearCrossEntropy)> = ops
        .filter_map(|op| match op.kind {
            Op::LinearCrossEntropyGrad(joint) => Some((op.id, joint.of)),
            _ => None,
        })
        .collect();
    for (id, loss) in joint {
        let op = patch.graph().op(id);
        let (operands, old) = (op.operands.clone(), op.results[1]);
        let new = patch.at(id).add1(loss.into(), &operands)?;
        patch.replace(old, new)?;
    }
    Ok(())
}

/// Builds the backward pass; afterwards the table holds the gradients of parameters. What the loss does not need, another
/// backward pass for instance, is left alone.
pub(crate) fn backward(
    patch: &mut Patch<'_>,
    loss: ValueId,
    trained: &[ValueId],
) -> Result<ValueMap<Option<ValueId>>, PassError> {
    let order = patch.graph().order();
    let needs = needs_gradient(patch.graph(), &order, trained);
    let mut gradients: ValueMap<Option<ValueId>> = ValueMap::new(None);
    if !needs.get(loss) {
        let refusal = "the loss does not depend on any trained weight";
        return Err(PassError::Refused(refusal.into()));
    }
    seed(patch, loss, &mut gradients)?;
    for id in order.into_iter().rev() {
        let op = patch.graph().op(id);
        let result_gradients: Vec<Option<ValueId>> =
            op.results.iter().map(|v| *gradients.get(*v)).collect();
        let wants: Vec<bool> = op.operands.iter().map(|v| *needs.get(*v)).collect();
        if result_gradients.iter().all(Option::is_none) || !wants.contains(&true) {
            continue;
        }
        let operands = op.operands.clone();
        patch.at_site(mirrored(patch.graph().op(id)));
        let given = Gradient::apply(patch, id, &result_gradients, &wants);
        let given = given.map_err(|error| PassError::NoGradient {
            line: OpDisplay(patch.graph(), id).to_string(),
            place: in_module(&patch.graph().op(id).site.module),
            error: Box::new(error),
        })?;
        for (operand, gradient) in operands.into_iter().zip(given) {
            accumulate(patch, &mut gradients, operand, gradient)?;
        }
    }
    Ok(gradients)
}

/// Where the gradient of an op is computed: as far from the loss as the op.
fn mirrored(op: &OpData) -> Site {
    Site {
        region: Region::Backward,
        seq: op.site.seq.saturating_neg(),
        module: op.site.module.clone(),
        of: Some(op.id),
    }
}

fn seed(
    patch: &mut Patch<'_>,
    loss: ValueId,
    gradients: &mut ValueMap<Option<ValueId>>,
) -> Result<(), PatchError> {
    let def = patch.graph().def(loss);
    patch.at_site(mirrored(def));
    let one = patch.scalar_like(loss, 1.0)?;
    let shape = patch.ty(loss).shape.clone();
    let one = patch.reshape(one, shape)?;
    gradients.set(loss, Some(one));
    Ok(())
}

/// Which values a trained parameter leads to, through floats.
fn needs_gradient(graph: &Graph, order: &[OpId], trained: &[ValueId]) -> ValueMap<bool> {
    let mut needs = ValueMap::new(false);
    trained.iter().for_each(|v| needs.set(*v, true));
    for id in order {
        let op = graph.op(*id);
        if op.operands.iter().any(|v| *needs.get(*v)) {
            let floats = op.results.iter().filter(|v| graph.ty(**v).dtype.is_float());
            floats.for_each(|v| needs.set(*v, true));
        }
    }
    needs
}

fn accumulate(
    patch: &mut Patch<'_>,
    gradients: &mut ValueMap<Option<ValueId>>,
    of: ValueId,
    gradient: Option<ValueId>,
) -> Result<(), PatchError> {
    let Some(gradient) = gradient else {
        return Ok(());
    };
    let sum = match *gradients.get(of) {
        Some(there) => patch.plus(there, gradient)?,
        None => gradient,
    };
    gradients.set(of, Some(sum));
    Ok(())
}
