//! The main job: from a model file to three training steps, each with its plan.

use crate::args::{InitArg, MethodArg, TrainingArgs};
use crate::artifacts::origin;
use crate::dims::{self, Dims};
use crate::error::Error;
use crate::optimizer::OptimizerArg;
use lorafa_ir::ops::Role;
use lorafa_ir::{Adapter, Bindings, DType, Graph, ValueId};
use lorafa_onnx::file::ModelFile;
use lorafa_onnx::import::import;
use lorafa_passes::attach_loss::{self, LossKind};
use lorafa_passes::attach_optimizer::OptimizerOptions;
use lorafa_passes::convert_precision::main_dtype;
use lorafa_passes::freeze_lora_a::Certificate;
use lorafa_passes::inject_lora::InjectOptions;
use lorafa_passes::pass::{Method, Options};
use lorafa_passes::rematerialize::Rematerialized;
use lorafa_passes::targets::{Patterns, Targets};
use lorafa_passes::{Manager, PassCx, registry};
use lorafa_plan::{ALIGN, Plan};
use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread;

/// A training step with its memory plan.
#[derive(Debug)]
pub struct Step {
    /// What it trains.
    pub method: Method,
    /// Forward, backward and update.
    pub graph: Graph,
    /// Where every byte of it lives.
    pub plan: Plan,
    /// Forward and backward, whose results are the gradients: what is written, and runs without a plan.
    pub gradients: Graph,
    /// What its backward pass computes again instead of keeping it.
    pub recomputed: Option<Rematerialized>,
}

/// A model compiled for every method that it allows.
#[derive(Debug)]
pub struct Compiled {
    /// What the dimensions were bound to.
    pub dims: Dims,
    /// The steps, in the order of [`Method::ALL`]: full fine-tuning alone if that was asked for and
    /// there are no adapters; of a training graph those that its gradients are for.
    pub steps: Vec<Step>,
    /// The loss, in words.
    pub loss: String,
    /// Whether the gradients are the model's own: no adapters can be added to it.
    pub given: bool,
    /// What LoRA-FA proved about every adapter, if there is such a step.
    pub certificate: Option<Certificate>,
    /// What the user should know though nothing is wrong.
    pub warnings: Vec<String>,
    /// What the passes did or did not do.
    pub notes: Vec<String>,
}

impl Compiled {
    /// The step of a method.
    pub fn step(&self, method: Method) -> Option<&Step> {
        self.steps.iter().find(|step| step.method == method)
    }

    /// The element type of most bytes of weights.
    pub fn dtype(&self) -> Option<DType> {
        self.steps.last().and_then(|step| main_dtype(&step.graph))
    }

    /// What LoRA needs in the backward pass and LoRA-FA does not, largest first.
    pub fn released(&self) -> Vec<Released> {
        let (Some(lora), Some(lora_fa)) = (self.step(Method::Lora), self.step(Method::LoraFa))
        else {
            return Vec::new();
        };
        let needed: BTreeSet<ValueId> = lora_fa.needed().map(|(id, _)| id).collect();
        let mut released: Vec<Released> = lora
            .needed()
            .filter(|(id, _)| !needed.contains(id))
            .filter_map(|(id, recomputed)| Released::new(&lora.graph, id, recomputed))
            .collect();
        released.sort_by_key(|released| Reverse(released.bytes));
        released
    }
}

impl Step {
    /// What the backward pass reads of the forward pass, and whether it computes it again.
    fn needed(&self) -> impl Iterator<Item = (ValueId, bool)> {
        let saved = self.plan.all_saved(&self.graph).into_iter();
        let again = self.recomputed.iter().flat_map(|again| &again.values);
        saved
            .map(|saved| (saved.id, false))
            .chain(again.map(|id| (*id, true)))
    }
}

/// A value that LoRA needs in the backward pass and LoRA-FA does not.
#[derive(Debug)]
pub struct Released {
    /// The value, in LoRA's step.
    pub id: ValueId,
    /// Its name in the imported model, or its number.
    pub value: String,
    /// The module of the op that makes it; empty if unknown.
    pub module: Arc<str>,
    /// The mnemonic of that op.
    pub kind: &'static str,
    /// Size in bytes, rounded as the plan does.
    pub bytes: u64,
    /// Whether LoRA computes it again; it keeps it otherwise.
    pub recomputed: bool,
}

impl Released {
    /// `None` for what only the backward pass makes.
    fn new(graph: &Graph, id: ValueId, recomputed: bool) -> Option<Self> {
        let value = graph.get_value(id)?;
        let op = graph.op(value.op);
        let name = value.name.as_ref();
        Some(Released {
            id,
            value: name.map_or_else(|| id.to_string(), |name| name.to_string()),
            module: op.site.module.clone(),
            kind: op.kind.name(),
            bytes: value.ty.bytes()?.next_multiple_of(ALIGN),
            recomputed,
        })
    }
}

/// Compiles a model for every method.
///
/// # Errors
///
/// What [`import`], a pass or the planner refuses; flags that contradict each other or the model.
pub fn compile(model: &ModelFile, args: &TrainingArgs) -> Result<Compiled, Error> {
    let mut compiled = methods(model, args)?;
    compiled.warnings.splice(0..0, origin(model, args));
    Ok(compiled)
}

fn methods(model: &ModelFile, args: &TrainingArgs) -> Result<Compiled, Error> {
    let (graph, dims, mut cx) = prepared(model, args)?;
    let mut notes = noted("all methods", &mut cx);
    let none = graph.adapters().is_empty() && args.lora.rank.is_none();
    let alone = none && args.method == MethodArg::Full;
    refuse_flags_of_injection(&graph, args, alone)?;
    let loss = describe_loss(&graph, args);
    if graph.has_gradients() {
        return given(graph, dims, cx, loss, notes);
    }
    if alone {
        let (step, more) = full(graph, cx.options)?;
        notes.extend(more);
        let (steps, certificate) = (vec![step], None);
        return Ok(Compiled {
            dims,
            steps,
            loss,
            given: false,
            certificate,
            warnings: Vec::new(),
            notes,
        });
    }

    // The two branches share nothing but the prepared graph.
    let (options, prepared) = (&cx.options, &graph);
    let (full, adapted) = thread::scope(|scope| {
        let full = scope.spawn(|| full(prepared.clone(), options.clone()));
        let adapted = adapted(prepared.clone(), options.clone());
        (
            full.join().unwrap_or_else(|panic| resume_unwind(panic)),
            adapted,
        )
    });
    // What is wrong with adapters is said first, whichever branch was faster.
    let adapted = adapted?;
    let (full, more) = full?;
    notes.extend(more);
    notes.extend(adapted.notes);
    Ok(Compiled {
        dims,
        steps: vec![full, adapted.lora, adapted.lora_fa],
        loss,
        given: false,
        certificate: adapted.certificate,
        warnings: adapted.warnings,
        notes,
    })
}

/// The graph that all methods share, what its dimensions were bound to, and what its passes noted.
fn prepared(model: &ModelFile, args: &TrainingArgs) -> Result<(Graph, Dims, PassCx), Error> {
    let mut graph = import(model)?;
    let dims = dims::resolve(&graph, args).map_err(Error::Args)?;
    let mut cx = PassCx::new(options(args, &dims)?);
    run(registry::PREPARE, &mut graph, &mut cx)?;
    for stage in registry::shared(&graph) {
        run(stage, &mut graph, &mut cx)?;
    }
    Ok((graph, dims, cx))
}

/// A training graph, compiled for the methods that its gradients allow: as it is, and with every adapter's A frozen.
fn given(
    graph: Graph,
    dims: Dims,
    cx: PassCx,
    loss: String,
    mut notes: Vec<String>,
) -> Result<Compiled, Error> {
    let trains_a = |a: &Adapter| graph.role(a.a) == Some(Role::Trained);
    let methods: &[Method] = match graph.adapters() {
        _ if cx.options.method == Method::Full => &[Method::Full],
        [] => &[Method::Full],
        adapters if adapters.iter().any(trains_a) => &[Method::Lora, Method::LoraFa],
        _ => &[Method::LoraFa],
    };
    let (mut steps, mut certificate) = (Vec::new(), None);
    for method in methods {
        let mut graph = graph.clone();
        let mut cx = PassCx::new(Options {
            method: *method,
            ..cx.options.clone()
        });
        for stage in registry::differentiation(&graph, *method) {
            run(stage, &mut graph, &mut cx)?;
        }
        steps.push(step(graph, &mut cx)?);
        notes.extend(noted(method.name(), &mut cx));
        certificate = cx.certificate;
    }
    Ok(Compiled {
        dims,
        steps,
        loss,
        given: true,
        certificate,
        warnings: cx.warnings,
        notes,
    })
}

/// An imported training graph, bound, with whose its gradients are.
///
/// # Errors
///
/// What a pass refuses.
pub fn given_gradients(mut graph: Graph, bindings: Bindings) -> Result<Graph, Error> {
    let mut cx = PassCx::new(Options {
        bindings,
        ..Options::default()
    });
    // Which method a graph's gradients are for, its adapters say, which all passes but the last find.
    let (find_adapters, find_gradients) = registry::PREPARE.split_at(registry::PREPARE.len() - 1);
    run(find_adapters, &mut graph, &mut cx)?;
    if graph.adapters().is_empty() {
        cx.options.method = Method::Full;
    }
    run(find_gradients, &mut graph, &mut cx)?;
    Ok(graph)
}

/// A training graph that computes our own gradients beside its own, in f64, with a plan to run it by.
///
/// # Errors
///
/// A graph without gradients, or one that cannot be differentiated.
pub fn with_own_gradients(mut graph: Graph) -> Result<(Graph, Plan), Error> {
    let mut cx = PassCx::new(Options::default());
    run(registry::COMPARE, &mut graph, &mut cx)?;
    let plan = lorafa_plan::plan(&graph)?;
    Ok((graph, plan))
}

/// A model compiled for one method.
#[derive(Debug)]
pub struct Single {
    /// What the dimensions were bound to.
    pub dims: Dims,
    /// The step.
    pub step: Step,
    /// The loss that was attached; none if it is the model's own.
    pub loss: Option<LossKind>,
    /// The loss, in words.
    pub loss_in_words: String,
    /// What the user should know though nothing is wrong.
    pub warnings: Vec<String>,
}

/// Compiles a model for the method that `args` name.
///
/// # Errors
///
/// As [`compile`], and a rank where no adapter is trained.
pub fn single(model: &ModelFile, args: &TrainingArgs) -> Result<Single, Error> {
    let (mut graph, dims, mut cx) = prepared(model, args)?;
    let without = graph.adapters().is_empty();
    if without && args.method == MethodArg::Full && args.lora.rank.is_some() {
        return Err(Error::Args(
            "--rank is for adapters, and --method full trains the weights themselves: leave one out"
                .into(),
        ));
    }
    refuse_flags_of_injection(&graph, args, without && args.lora.rank.is_none())?;
    let (loss, loss_in_words) = (attached(&graph, args), describe_loss(&graph, args));
    cx.warnings.splice(0..0, origin(model, args));
    for stage in registry::differentiation(&graph, cx.options.method) {
        run(stage, &mut graph, &mut cx)?;
    }
    Ok(Single {
        dims,
        step: step(graph, &mut cx)?,
        loss,
        loss_in_words,
        warnings: cx.warnings,
    })
}

/// The element type of most bytes of weights, as the report prints it.
pub fn dtype(graph: &Graph) -> Option<String> {
    main_dtype(graph).map(|dtype| dtype.to_string())
}

/// The model's own loss, or the one that will be attached.
fn describe_loss(graph: &Graph, args: &TrainingArgs) -> String {
    match (graph.loss(), attached(graph, args)) {
        (Some(loss), _) => format!("the model's output {}", loss.name),
        (None, Some(kind)) => format!("{kind}, attached"),
        (None, None) => "none".to_owned(),
    }
}

/// The loss that will be attached, if the model has none.
fn attached(graph: &Graph, args: &TrainingArgs) -> Option<LossKind> {
    if graph.loss().is_some() {
        return None;
    }
    let logits = attach_loss::logits(graph);
    let chosen = logits.and_then(|(_, logits)| attach_loss::choose(graph, logits));
    args.loss.map(LossKind::from).or(chosen)
}

/// Refuses flags that would be without effect: they are about adapters that are injected.
fn refuse_flags_of_injection(graph: &Graph, args: &TrainingArgs, alone: bool) -> Result<(), Error> {
    let lora = &args.lora;
    // Adapters that are there may follow or keep apart when the model goes to 16 bits.
    let narrows = lorafa_passes::convert_precision::narrows(graph, args.dtype);
    let given = [
        ("--alpha", lora.alpha.is_some()),
        ("--rslora", lora.rslora),
        ("--init-a", lora.init_a.is_some()),
        ("--lora-dropout", lora.lora_dropout.is_some()),
        ("--targets", lora.targets.is_some()),
        ("--exclude", lora.exclude.is_some()),
        ("--layers", !lora.layers.is_empty()),
        ("--rank-pattern", !lora.rank_pattern.is_empty()),
        ("--alpha-pattern", !lora.alpha_pattern.is_empty()),
        (
            "--adapter-dtype",
            lora.adapter_dtype.is_some() && (alone || !narrows),
        ),
    ];
    let Some((flag, _)) = given.iter().find(|(_, given)| *given) else {
        return Ok(());
    };
    let refusal = match graph.adapters().len() {
        0 if alone => format!("{flag} is for adapters, and there are none: give --rank, too"),
        0 => return Ok(()),
        n => format!(
            "{flag} is for adapters that are injected, and the model has {n}: leave it out, or give \
             --replace-adapters"
        ),
    };
    Err(Error::Args(refusal))
}

/// The step that trains every weight.
fn full(mut graph: Graph, options: Options) -> Result<(Step, Vec<String>), Error> {
    let mut cx = PassCx::new(Options {
        method: Method::Full,
        ..options
    });
    run(registry::TRAIN, &mut graph, &mut cx)?;
    let step = step(graph, &mut cx)?;
    Ok((step, noted("full", &mut cx)))
}

/// The steps that train adapters.
struct Adapted {
    lora: Step,
    lora_fa: Step,
    certificate: Option<Certificate>,
    warnings: Vec<String>,
    notes: Vec<String>,
}

/// LoRA's step, and LoRA-FA's made of it.
fn adapted(mut lora: Graph, options: Options) -> Result<Adapted, Error> {
    let mut cx = PassCx::new(Options {
        method: Method::Lora,
        ..options
    });
    run(registry::TRAIN, &mut lora, &mut cx)?;
    let mut notes = noted("lora and lora-fa", &mut cx);

    let mut lora_fa = lora.clone();
    let lora = step(lora, &mut cx)?;
    notes.extend(noted("lora", &mut cx));

    cx.options.method = Method::LoraFa;
    run(registry::FREEZE, &mut lora_fa, &mut cx)?;
    let lora_fa = step(lora_fa, &mut cx)?;
    notes.extend(noted("lora-fa", &mut cx));
    Ok(Adapted {
        lora,
        lora_fa,
        certificate: cx.certificate,
        warnings: cx.warnings,
        notes,
    })
}

/// What the passes noted since the last call, under the methods that they ran for.
fn noted(methods: &str, cx: &mut PassCx) -> Vec<String> {
    let notes = std::mem::take(&mut cx.notes).into_iter();
    notes.map(|note| format!("[{methods}] {note}")).collect()
}

/// Ends a graph that has gradients as the step of the method that `cx` asks for.
fn step(mut gradients: Graph, cx: &mut PassCx) -> Result<Step, Error> {
    run(registry::REFINE, &mut gradients, cx)?;
    let mut graph = gradients.clone();
    run(registry::UPDATE, &mut graph, cx)?;
    let plan = lorafa_plan::plan(&graph)?;
    Ok(Step {
        method: cx.options.method,
        graph,
        plan,
        gradients,
        recomputed: cx.rematerialized.take(),
    })
}

fn run(
    passes: &[&dyn lorafa_passes::Pass],
    graph: &mut Graph,
    cx: &mut PassCx,
) -> Result<(), Error> {
    Ok(Manager::new().run(passes, graph, cx)?)
}

/// The graph after the pass `after` of the pipeline of `args.method`, or after all of them.
///
/// # Errors
///
/// As [`compile`]; also a pass that the method does not run.
pub fn graph_after(
    model: &ModelFile,
    args: &TrainingArgs,
    after: Option<&str>,
) -> Result<Graph, Error> {
    let mut graph = import(model)?;
    if after == Some("import") {
        return Ok(graph);
    }
    let dims = dims::resolve(&graph, args).map_err(Error::Args)?;
    let mut cx = PassCx::new(options(args, &dims)?);
    let mut manager = after.map_or_else(Manager::new, Manager::stopping_after);
    manager.build(&mut graph, &mut cx)?;
    match after {
        Some(pass) if !manager.stopped() && cx.options.disabled.contains(pass) => Err(Error::Args(
            format!("--after {pass}: that pass is disabled"),
        )),
        Some(pass) if !manager.stopped() => Err(Error::Args(format!(
            "--after {pass}: the method {} does not run that pass",
            cx.options.method.name()
        ))),
        _ => Ok(graph),
    }
}

/// The step with its optimizer and with the gradients of the batch, as it is written.
///
/// # Errors
///
/// As [`compile`].
pub fn with_optimizer(step: &Step, args: &TrainingArgs) -> Result<Graph, Error> {
    let mut graph = step.gradients.clone();
    let optimizer = OptimizerOptions {
        keep_gradients: true,
        ..args.optimizer.options()?
    };
    let mut cx = PassCx::new(Options {
        method: step.method,
        optimizer,
        ..Options::default()
    });
    run(registry::UPDATE, &mut graph, &mut cx)?;
    Ok(graph)
}

/// What the passes are asked for.
fn options(args: &TrainingArgs, dims: &Dims) -> Result<Options, Error> {
    let lora = &args.lora;
    let refused =
        |flag: &str, error: &dyn std::fmt::Display| Error::Args(format!("{flag}: {error}"));
    let targets = lora
        .targets
        .as_deref()
        .map_or(Ok(Targets::AllLinear), Targets::parse);
    let exclude = lora.exclude.as_deref().map(Targets::parse).transpose();
    let inject = InjectOptions {
        rank: lora.rank,
        alpha: lora.alpha,
        rslora: lora.rslora,
        init_a: lora.init_a.unwrap_or(InitArg::Kaiming).into(),
        seed: args.seed,
        targets: targets.map_err(|e| refused("--targets", &e))?,
        exclude: exclude.map_err(|e| refused("--exclude", &e))?,
        layers_to_transform: lora.layers.clone(),
        rank_pattern: Patterns::new(lora.rank_pattern.iter().map(|(k, n)| (k, *n)))
            .map_err(|e| refused("--rank-pattern", &e))?,
        alpha_pattern: Patterns::new(lora.alpha_pattern.iter().map(|(k, n)| (k, *n)))
            .map_err(|e| refused("--alpha-pattern", &e))?,
        dropout: lora.lora_dropout.unwrap_or(0.0),
        adapter_dtype: lora.adapter_dtype,
    };
    if args.optimizer.kind() == OptimizerArg::Lorafa && args.method != MethodArg::LoraFa {
        return Err(Error::Args(format!(
            "--optimizer lorafa: it needs A to stay as it is, and the method {} trains A: give \
             --method lora-fa, or --optimizer adamw",
            Method::from(args.method).name()
        )));
    }
    Ok(Options {
        method: args.method.into(),
        bindings: dims.bindings.clone(),
        dtype: args.dtype,
        loss: args.loss.map(Into::into),
        inject,
        differentiate: args.differentiate,
        replace_adapters: lora.replace_adapters,
        optimizer: args.optimizer.options()?,
        pack_frozen: args.passes.pack_frozen,
        disabled: args.passes.disabled(),
    })
}
