//! `freeze-lora-a`: LoRA becomes LoRA-FA.
//!
//! ```text
//! - param %a : f32[2,8] trained
//! + param %a : f32[2,8] frozen
//!   v1 = matmul %x, %a {trans_b}       : f32[4,2]
//!   …
//!   v7 = matmul v6, v1 {trans_a}       : f32[8,2] of v2
//! - v8 = matmul v6, %b                 : f32[4,2] of v2
//! - v9 = matmul v8, %x {trans_a}       : f32[2,8] of v1
//!   out "grad::b" = v7 gradient %b
//! - out "grad::a" = v9 gradient %a
//! ```
//!
//! A keeps its value, so its gradient goes, and with it the one reason to keep the layer's input; the
//! optimizer, which comes later, gives it no moments. What is left of `x` is a matter of the graph, not of this pass: it
//! ends with a [`Certificate`] that looks for every backward op that still reads the memory of an
//! adapter's `x`. This is no equality: training takes another path.
//!
//! An A that something else reads in the forward pass, too, is left alone: it trains on, and the certificate says so.

use crate::eliminate_dead_code::live_ops;
use crate::matching::MAX_STEPS;
use crate::pass::{Changed, Pass, PassCx, PassError, PassKind, in_module};
use lorafa_ir::layout::Views;
use lorafa_ir::ops::{Op, Role};
use lorafa_ir::text::ValueDisplay;
use lorafa_ir::{Adapter, Graph, OpData, OpId, OutputKind, Region, ValueId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// See the module.
pub struct FreezeLoraA;

impl Pass for FreezeLoraA {
    fn name(&self) -> &'static str {
        "freeze-lora-a"
    }

    fn kind(&self) -> PassKind {
        PassKind::ChangesTraining
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<Changed, PassError> {
        let (own, tied): (Vec<&Adapter>, Vec<&Adapter>) = graph
            .adapters()
            .iter()
            .filter(|adapter| graph.role(adapter.a) == Some(Role::Trained))
            .partition(|adapter| other_reader(graph, adapter).is_none());
        let of = |adapters: Vec<&Adapter>| adapters.into_iter().map(|a| a.a).collect();
        let (frozen, tied): (BTreeSet<ValueId>, BTreeSet<ValueId>) = (of(own), of(tied));
        if graph.adapters().is_empty() {
            return Err(PassError::Refused(
                "the model has no adapters to freeze".into(),
            ));
        }
        let mut patch = graph.patch("freeze-lora-a");
        patch.retain_outputs(|o| match o.kind {
            OutputKind::Gradient(param) => !frozen.contains(&param),
            OutputKind::Updated(_) | OutputKind::Loss | OutputKind::Value => true,
        });
        for a in &frozen {
            patch.set_role(*a, Role::Frozen);
        }
        let changes = patch.changes();
        for a in &tied {
            cx.note(format_args!(
                "{} is tied and trains on",
                ValueDisplay(graph, *a)
            ));
        }
        let certificate = certify(graph);
        cx.note(format_args!(
            "{} of {} adapters release x",
            certificate.released().count(),
            certificate.proofs.len()
        ));
        cx.certificate = Some(certificate);
        Ok(Changed::from_count(changes))
    }
}

/// What the graph says about every adapter's input, after A was frozen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// One entry an adapter, in the model's order.
    pub proofs: Vec<Proof>,
}

/// What becomes of one adapter's input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// The adapted module.
    pub module: Arc<str>,
    /// The value that the product with A reads.
    pub x: ValueId,
    /// The value in whose memory `x` is: `x` itself, or what it is a view of.
    pub root: ValueId,
    /// The size of that value in bytes.
    pub bytes: u64,
    /// What still reads that memory in the backward pass; `None` if nothing does.
    pub kept: Option<Keeper>,
}

/// Why an adapter's input is still there in the backward pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keeper {
    /// The forward op whose gradient reads it, and its module.
    pub by: String,
    /// What that gradient needs.
    pub reason: String,
}

impl Certificate {
    /// The adapters whose input is not kept for the backward pass.
    pub fn released(&self) -> impl Iterator<Item = &Proof> {
        self.proofs.iter().filter(|p| p.kept.is_none())
    }

    /// The tensors that are no longer kept, each once, with their sizes in bytes: adapters of one
    /// layer's projections share theirs.
    pub fn released_tensors(&self) -> BTreeMap<ValueId, u64> {
        self.released().map(|p| (p.root, p.bytes)).collect()
    }
}

/// Looks for what keeps each adapter's input alive, among the ops that the outputs need.
pub fn certify(graph: &Graph) -> Certificate {
    let live = live_ops(graph);
    let views = Views::of(graph);
    let root = |value: ValueId| views.root(value).map_or(value, |(root, _)| root);
    let inputs: BTreeSet<ValueId> = graph.adapters().iter().map(|a| root(a.x)).collect();
    let mut keepers: BTreeMap<ValueId, OpId> = BTreeMap::new();
    for id in graph.order() {
        let op = graph.op(id);
        if op.site.region == Region::Forward || !live[id.index()] || is_view(op, &views) {
            continue;
        }
        for operand in op.operands.iter().map(|v| root(*v)) {
            if inputs.contains(&operand) {
                keepers.entry(operand).or_insert(id);
            }
        }
    }
    let proof = |adapter: &Adapter| {
        let root = root(adapter.x);
        Proof {
            module: adapter.module.clone(),
            x: adapter.x,
            root,
            bytes: graph.ty(root).bytes().unwrap_or(0),
            kept: left_alone(graph, adapter).or_else(|| {
                let reader = keepers.get(&root)?;
                Some(keeper(graph, *reader, root, &root_of(&views)))
            }),
        }
    };
    Certificate {
        proofs: graph.adapters().iter().map(proof).collect(),
    }
}

/// What reads an adapter's A in the forward pass beside the product `x·A`, in words.
fn other_reader(graph: &Graph, adapter: &Adapter) -> Option<String> {
    let mut work = vec![adapter.a];
    while let Some(value) = work.pop() {
        for read in graph.uses(value) {
            let op = graph.op(read.op);
            match op.kind {
                _ if op.site.region != Region::Forward || op.results[0] == adapter.xa => {}
                Op::Cast(_) | Op::Transpose(_) => work.push(op.results[0]),
                _ => return Some(in_words(op)),
            }
        }
    }
    // Two layers of one input have one product with A.
    let mut others = graph.adapters().iter().filter(|other| *other != adapter);
    let other = others.find(|other| other.a == adapter.a)?;
    Some(format!("the adapter of {}", other.module))
}

fn in_words(op: &OpData) -> String {
    format!("{}{}", op.kind.name(), in_module(&op.site.module))
}

/// What an adapter says whose A is tied.
fn left_alone(graph: &Graph, adapter: &Adapter) -> Option<Keeper> {
    let other = match graph.role(adapter.a) {
        Some(Role::Trained) => other_reader(graph, adapter)?,
        _ => return None,
    };
    let a = ValueDisplay(graph, adapter.a);
    Some(Keeper {
        by: in_words(graph.def(adapter.xa)),
        reason: format!(
            "it is left alone: its A is tied, {other} reads {a}, too, and the gradient of {a} needs x"
        ),
    })
}

fn root_of(views: &Views) -> impl Fn(ValueId) -> ValueId {
    |value| views.root(value).map_or(value, |(root, _)| root)
}

/// Whether an op only gives its operand another shape: what reads its result counts.
fn is_view(op: &OpData, views: &Views) -> bool {
    matches!(views.root(op.results[0]), Some((root, _)) if root != op.results[0])
}

fn keeper(graph: &Graph, reader: OpId, x: ValueId, root: &impl Fn(ValueId) -> ValueId) -> Keeper {
    let reader = graph.op(reader);
    let Some(forward) = reader.site.of.and_then(|of| graph.get_op(of)) else {
        let by = in_words(reader);
        let reason = match gradient_of(graph, reader) {
            Some(weight) => format!(
                "the gradient of the trained weight {} needs x",
                ValueDisplay(graph, weight)
            ),
            None => "it reads x after the forward pass".into(),
        };
        return Keeper { by, reason };
    };
    let by = in_words(forward);
    let weight = forward.operands.get(1).copied().map(root);
    let trained = weight.filter(|w| graph.role(*w) == Some(Role::Trained));
    let reason = match (&forward.kind, trained) {
        (Op::MatMul(_), Some(weight)) => {
            format!(
                "the gradient of the trained weight {} needs x",
                ValueDisplay(graph, weight)
            )
        }
        _ if forward.results.iter().any(|v| root(*v) == x) => {
            "its gradient needs its result, which is x".into()
        }
        _ => "its gradient needs its operand, which is x".into(),
    };
    Keeper { by, reason }
}

/// The parameter whose gradient an op computes, but for its shape.
fn gradient_of(graph: &Graph, op: &OpData) -> Option<ValueId> {
    let mut value = *op.results.first()?;
    for _ in 0..MAX_STEPS {
        let output = graph.outputs().iter().find(|o| o.value == value);
        if let Some(OutputKind::Gradient(param)) = output.map(|o| o.kind) {
            return Some(param);
        }
        let [read] = *graph.uses(value) else {
            return None;
        };
        let reader = graph.op(read.op);
        let (Op::Cast(_) | Op::Reshape(_) | Op::Transpose(_)) = reader.kind else {
            return None;
        };
        value = reader.results[0];
    }
    None
}
