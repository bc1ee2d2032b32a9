//! `find-lora`: recognises LoRA adapters by their structure.
//!
//! ```text
//!   v0 = matmul %x, %w {trans_b}  : f32[4,8] @q_proj
//!   v1 = matmul %x, %a {trans_b}  : f32[4,2] @q_proj.lora_A.default
//!   v2 = matmul v1, %b {trans_b}  : f32[4,8] @q_proj.lora_B.default
//!   v3 = constant {value=2.0}     : f32[]
//!   v4 = mul v2, v3               : f32[4,8] @q_proj
//!   v5 = add v0, v4               : f32[4,8] @q_proj
//! + adapter "q_proj" {a=%a, b=%b, rank=2, scale=2.0, x=%x, xa=v1}
//! ```
//!
//! Exporters rename weights, so names count only where structure leaves a doubt. What counts is
//! that both summands come of the same input, one through a weight, the other through two whose
//! inner dimension is smaller than the outer ones. Casts, reshapes, dropout and scalings may stand
//! anywhere between. A and B without PyTorch's names get them.
//!
//! A matrix that adapters of two modules read was merged by the exporter, or tied by the model. In forward graphs, what is the same
//! number everywhere was merged, and a B whose numbers are not known. All else is tied. In training graphs all are parted, and
//! `find-gradients` ties those again that have one gradient.
//!
//! DoRA is refused: its scale depends on the weights, which these graphs do not train.

mod pattern;

pub(crate) use pattern::weight;

use crate::pass::{Changed, Pass, PassCx, PassError, PassKind};
use lorafa_ir::ops::{Binary, BinaryKind, Op, Param, Role, Scalar};
use lorafa_ir::{Adapter, Graph, OpId, Patch, Region, ValueId};
use pattern::{Match, Weight};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// See the module.
pub struct FindLora;

impl Pass for FindLora {
    fn name(&self) -> &'static str {
        "find-lora"
    }

    fn kind(&self) -> PassKind {
        PassKind::Extends
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<Changed, PassError> {
        refuse_dora(graph)?;
        let matches = pattern::matches(graph);
        refuse_unknown_form(graph, &matches)?;
        note_names(graph, &matches, cx);
        if cx.options.replace_adapters {
            return remove(graph, &matches, cx);
        }
        refuse_other_rank(graph, &matches, cx)?;
        record(graph, matches, cx)
    }
}

/// The adapted module: that of the sum, or within it what A is named after.
fn module(graph: &Graph, hit: &Match) -> Arc<str> {
    let name = graph.param(hit.a.param).map_or("", |p| &*p.name);
    let owner = |path: &str| path.split(".lora_").next().unwrap_or(path).to_owned();
    // The sum may be part of the product with B, and B's module that of another adapter whose B is equal.
    let module = of_b(&graph.op(hit.add).site.module);
    let (module, of_a) = (owner(module), owner(name));
    let within = of_a
        .strip_prefix(&module)
        .is_some_and(|rest| module.is_empty() || rest.starts_with('.'));
    let named = name.contains(".lora_") || module.is_empty();
    if within && named { of_a } else { module }.into()
}

/// The module whose B is in this one, where TorchScript calls that `default_1`.
fn of_b(module: &str) -> &str {
    let inner = module.rsplit_once('.');
    let adapter = inner.filter(|(_, name)| name.starts_with("default"));
    adapter.map_or(module, |(owner, _)| owner)
}

fn refuse_dora(graph: &Graph) -> Result<(), PassError> {
    let magnitude = graph
        .params()
        .find(|(_, p)| p.name.contains("lora_magnitude_vector"));
    let found = match magnitude {
        Some((_, p)) => Some(p.name.to_string()),
        None => weight_norm(graph).map(|op| format!("{op}{}", place(graph, op))),
    };
    match found {
        Some(found) => Err(PassError::Refused(format!(
            "the model uses DoRA ({found}), which normalises W + B·A and has no LoRA-FA form: \
             export it with `use_dora=False`"
        ))),
        None => Ok(()),
    }
}

fn place(graph: &Graph, op: OpId) -> String {
    crate::pass::in_module(&graph.op(op).site.module)
}

/// A reduction of `W + B·A`, as DoRA computes it: its operand depends on weights only, and a sum
/// of a weight and a product on the way.
fn weight_norm(graph: &Graph) -> Option<OpId> {
    let mut fixed: BTreeSet<ValueId> = BTreeSet::new();
    let mut products: BTreeSet<ValueId> = BTreeSet::new();
    let mut merged: BTreeSet<ValueId> = BTreeSet::new();
    for id in graph.order() {
        let op = graph.op(id);
        let known = match &op.kind {
            Op::Param(p) => p.role != Role::Input,
            _ => op.operands.iter().all(|v| fixed.contains(v)),
        };
        if !known {
            continue;
        }
        fixed.extend(&op.results);
        let reads = |set: &BTreeSet<ValueId>| op.operands.iter().any(|v| set.contains(v));
        match &op.kind {
            Op::MatMul(_) => products.extend(&op.results),
            Op::Binary(Binary(kind)) if reads(&products) => {
                let weight = (0..2).any(|slot| pattern::weight(graph, op, slot).is_some());
                let sum = *kind == BinaryKind::Add && weight;
                let set = if sum { &mut merged } else { &mut products };
                set.extend(&op.results);
            }
            Op::Reduce(_) if reads(&merged) => return Some(id),
            _ if reads(&merged) => merged.extend(&op.results),
            Op::Cast(_) | Op::Transpose(_) if reads(&products) => products.extend(&op.results),
            _ => {}
        }
    }
    None
}

/// Says where names and structure disagree.
fn note_names(graph: &Graph, matches: &[Match], cx: &mut PassCx) {
    for hit in matches.iter().filter(|hit| hit.swapped_names) {
        let module = module(graph, hit);
        cx.note(format_args!(
            "{module}: A and B are named the other way round; structure decides"
        ));
    }
    for (_, param) in graph.params() {
        if param.name.contains("lora_embedding_A") {
            cx.note(format_args!(
                "{} adapts an embedding: it trains, in LoRA-FA too",
                param.name
            ));
        }
    }
}

/// An adapter that is not recognised would train on in LoRA-FA, and nothing would vouch for it.
fn refuse_unknown_form(graph: &Graph, matches: &[Match]) -> Result<(), PassError> {
    let used: BTreeSet<ValueId> = matches
        .iter()
        .flat_map(|hit| [hit.a.param, hit.b.param])
        .collect();
    let is_adapter = |name: &str| name.contains("lora_A") || name.contains("lora_B");
    // What exporters merged has another name in each pass; `find-gradients` looks at the other one.
    let backward = |value: ValueId| {
        let uses = graph.uses(value);
        let mut regions = uses.iter().map(|u| graph.op(u.op).site.region);
        !uses.is_empty() && regions.all(|region| region != Region::Forward)
    };
    let unknown: Vec<&str> = graph
        .params()
        .filter(|(value, p)| is_adapter(&p.name) && !used.contains(value) && !backward(*value))
        .map(|(_, p)| &*p.name)
        .collect();
    let Some(first) = unknown.first() else {
        return Ok(());
    };
    let more = match unknown.len() - 1 {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    Err(PassError::Refused(format!(
        "{first}{more} belongs to no adapter of the known form `x·W + scale·(x·A)·B`: export the \
         model without merging or changing its adapters"
    )))
}

fn refuse_other_rank(graph: &Graph, matches: &[Match], cx: &PassCx) -> Result<(), PassError> {
    let Some(asked) = cx.options.inject.rank else {
        return Ok(());
    };
    match matches.iter().find(|hit| hit.rank != asked) {
        Some(hit) => Err(PassError::Refused(format!(
            "the model has adapters of rank {found} ({module}), not {asked}: keep them with \
             `--rank {found}`, or inject new ones with `--replace-adapters`",
            found = hit.rank,
            module = module(graph, hit),
        ))),
        None => Ok(()),
    }
}

fn record(graph: &mut Graph, matches: Vec<Match>, cx: &mut PassCx) -> Result<Changed, PassError> {
    let named = |(value, p): (ValueId, &Param)| (p.name.clone(), value);
    let mut known = Known {
        names: graph.params().map(named).collect(),
        owners: BTreeMap::new(),
        readers: BTreeSet::new(),
        training: graph.ops().any(|op| op.site.region == Region::Backward),
    };
    let mut patch = graph.patch("find-lora");
    for hit in matches {
        let (xa, b) = (hit.xa, hit.b.param);
        let mut adapters = patch.graph().adapters().iter();
        if adapters.any(|there| there.xa == xa && there.b == b) {
            continue;
        }
        let module = module(patch.graph(), &hit);
        let mut own = |patch: &mut Patch<'_>, weight: &Weight, which: &str| {
            let name: Arc<str> = format!("{module}.lora_{which}.default.weight").into();
            let param = known.owned(patch, weight, (which, &name), &module, cx)?;
            rename(patch, param, name, &mut known.names);
            Ok::<ValueId, PassError>(param)
        };
        let (a, b) = (own(&mut patch, &hit.a, "A")?, own(&mut patch, &hit.b, "B")?);
        let (x, scale, rank) = (hit.x, Scalar(hit.scale), hit.rank);
        patch.adapter(Adapter {
            module,
            x,
            a,
            b,
            xa,
            scale,
            rank,
        });
    }
    let changes = patch.changes();
    cx.note(format_args!("{} adapters", graph.adapters().len()));
    Ok(Changed::from_count(changes))
}

/// Parameters by name.
type Names = BTreeMap<Arc<str>, ValueId>;

/// What is known of adapters' matrices.
struct Known {
    names: Names,
    /// The module of the first adapter that a matrix was found in.
    owners: BTreeMap<ValueId, Arc<str>>,
    /// The operands that adapters read their matrices with.
    readers: BTreeSet<(OpId, usize)>,
    /// Whether the graph has a backward pass.
    training: bool,
}

impl Known {
    /// The adapter's own parameter: exporters store equal tensors once, but they train apart. It is the one of its name that
    /// the backward pass reads, or a copy.
    fn owned(
        &mut self,
        patch: &mut Patch<'_>,
        weight: &Weight,
        (which, name): (&str, &Arc<str>),
        module: &Arc<str>,
        cx: &mut PassCx,
    ) -> Result<ValueId, PassError> {
        let owner = self.owners.entry(weight.param);
        let owner = owner.or_insert_with(|| module.clone()).clone();
        let first = self.readers.insert((weight.reader, weight.slot));
        if owner == *module {
            return Ok(weight.param);
        }
        let graph = patch.graph();
        let Some(param) = graph.param(weight.param).cloned() else {
            return Ok(weight.param);
        };
        let taken = self.names.get(name).copied();
        let equal = |value: &ValueId| {
            let there = graph.param(*value);
            there.is_some_and(|there| there.same_elements(&param) == Some(true))
        };
        let own = taken.filter(|value| equal(value) && !self.owners.contains_key(value));
        // Some exporters merge whatever is equal, as B is before it trains.
        let merged = self.training || param.is_uniform().unwrap_or(which == "B");
        let free = own.is_some() || taken.is_none() && merged;
        if !(weight.direct && first && free) {
            cx.note(format_args!(
                "{module} and {owner} share {} and train it together",
                param.name
            ));
            return Ok(weight.param);
        }
        let own = match own {
            Some(own) => own,
            None => {
                cx.note(format_args!(
                    "{module} has its own copy of {}, which {owner} reads, too",
                    param.name
                ));
                let mut copy = param;
                copy.name = name.clone();
                let op = graph.value(weight.param).op;
                patch.at(op).add1(Op::Param(Box::new(copy)), &[])?
            }
        };
        self.names.insert(name.clone(), own);
        patch.set_operand(weight.reader, weight.slot, own);
        self.owners.insert(own, module.clone());
        Ok(own)
    }
}

/// Gives a parameter PyTorch's name unless it has one or the name is taken.
fn rename(patch: &mut Patch<'_>, param: ValueId, name: Arc<str>, names: &mut Names) {
    let named = patch
        .graph()
        .param(param)
        .is_some_and(|p| p.name.contains("lora_"));
    if !named && !names.contains_key(&name) {
        names.insert(name.clone(), param);
        patch.name(param, Some(name.clone()));
        patch.update_param(param, |p| p.name = name);
    }
}

/// Takes the adapters out: what read the sum reads the layer.
fn remove(graph: &mut Graph, matches: &[Match], cx: &mut PassCx) -> Result<Changed, PassError> {
    let mut patch = graph.patch("find-lora");
    patch.retain_adapters(|_| false);
    for hit in matches.iter().rev() {
        // An adapter that nothing reads may have gone with another.
        let Some(op) = patch.graph().get_op(hit.add) else {
            continue;
        };
        let sum = op.results[0];
        patch.replace(sum, hit.base)?;
        sweep(&mut patch, hit.add)?;
    }
    let changes = patch.changes();
    cx.note(format_args!("{} adapters removed", matches.len()));
    Ok(Changed::from_count(changes))
}

/// Removes an op that nothing reads, then its operands; inputs stay.
fn sweep(patch: &mut Patch<'_>, op: OpId) -> Result<(), PassError> {
    let mut queue = vec![op];
    while let Some(id) = queue.pop() {
        let graph = patch.graph();
        let Some(op) = graph.get_op(id) else {
            continue;
        };
        let input = matches!(&op.kind, Op::Param(p) if p.role == Role::Input);
        if input || op.results.iter().any(|v| graph.is_used(*v)) {
            continue;
        }
        queue.extend(op.operands.iter().map(|v| graph.value(*v).op));
        patch.remove(id)?;
    }
    Ok(())
}
