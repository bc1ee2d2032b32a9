//! `lorafa-opt train`: from a model, data and weights to a trained adapter.

use crate::args::{DataArgs, DecayArg, HeldOut, ResumeArg, TrainArgs};
use crate::artifacts;
use crate::compile::{self, Single};
use crate::error::Error;
use crate::machine;
use crate::metrics::Metrics;
use crate::units::{bytes, count};
use crate::watch::Watch;
use crate::weights;
use crate::{file_name, say};
use lorafa_data::{Dataset, EvalSize, Form, Options, Sampler, Spec, Task, Tokenizer};
use lorafa_exec::{Mode, Program};
use lorafa_ir::Graph;
use lorafa_onnx::external::ExternalStore;
use lorafa_passes::attach_loss::LossKind;
use lorafa_train::{
    Checkpoints, Decay, Identity, Outcome, Schedule, Settings, State, TrainError, Trainer, digest,
    inputs, trained_values, weights_digest,
};
use lorafa_weights::merge::MAX_SHARD_BYTES;
use lorafa_weights::{Values, merge, peft, side_files};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Folders of results in the `--save` folder.
const ADAPTER: &str = "adapter";
const MERGED: &str = "model";

/// Trains, and says what came of it.
///
/// # Errors
///
/// [`Error`]; [`Error::Interrupted`] after Ctrl-C, when a checkpoint has been written. Checkpoints that were written
/// stay whatever happens.
pub fn train(args: &TrainArgs, out: &mut dyn Write) -> Result<(), Error> {
    let opened = artifacts::open(&args.model, &args.training)?;
    let (model, training) = (&opened.model, &opened.training);
    let mut single = compile::single(model, training)?;
    let spec = inputs::spec(&single.step.graph, single.loss.map(task))?;
    let checkpoints = Checkpoints::new(&args.save, args.keep as usize, args.keep_best);
    let latest = checkpoints.latest()?;
    refuse_to_mix(args, latest.as_deref())?;

    // Before the weights are bound: it is of what the flags make of the model, not of where weights lie.
    let step_digest = digest(&single.step.graph);
    let store = ExternalStore::new(model.folder());
    let checkpoint = opened.checkpoint.as_deref();
    let bound = weights::bind(
        &mut single.step.graph,
        &args.machine.weights,
        checkpoint,
        &store,
    )?;
    check_results(args, &single.step.graph, &store)?;
    let device = machine::open(&args.machine.device)?;
    machine::check_fits(&args.machine, device, model, training, &single)?;
    let (train, eval) = data(&args.data, &spec, args.training.seed)?;
    let plan = &single.step.plan;
    let shuffle = !args.data.no_shuffle;
    let identity = Identity {
        step: describe(args, &single),
        graph: step_digest,
        weights: weights_digest(&single.step.graph, &store)?,
        arena: plan.arena_bytes(),
        data: train.digest(),
        seed: args.training.seed,
        shuffled: shuffle,
        accumulate: accumulate(args),
    };
    let batch = spec.batch as usize;
    let sampler = Sampler::new(train.len(), batch, args.training.seed, shuffle)?;
    let settings = settings(args, &sampler);
    let state = latest
        .as_ref()
        .map(|path| checkpoints.state(path, &identity));
    let state = state.transpose()?;
    let _claimed = checkpoints.claim()?;
    if checkpoints.latest()? != latest {
        // Another run has written there in the meantime.
        return Err(TrainError::InUse(args.save.clone()).into());
    }
    say(out, &opening(args, &single, &train, eval.as_ref(), bound))?;

    let graph = Arc::new(single.step.graph.clone());
    let mut program = Program::compile(graph.clone(), plan, Mode::Arena, device)?;
    program.load(&store)?;
    lorafa_exec::write_inverses(&mut program)?;
    if let Some(path) = &latest {
        checkpoints.restore(path, &graph, &mut program)?;
    }
    let going_on = going_on(latest.as_deref(), state.as_ref(), &settings);
    say(out, &going_on)?;
    let mut progress = state.map(|state| state.progress).unwrap_or_default();
    if args.keep_best
        && let Some(best) = progress.best
        && !checkpoints.path(best.updates).exists()
    {
        progress.best = None;
        let updates = best.updates;
        let gone = format!(
            "warning: the checkpoint of update {updates}, whose evaluation loss is the lowest, was not kept: --keep-best \
             counts from here\n"
        );
        say(out, &gone)?;
    }
    let metrics = Metrics::open(&args.save, &progress)?;
    let (total, done) = (settings.schedule.total, progress.updates);
    let mut watch = Watch::new(metrics, total, done, args.run.log_every, plan.arena_bytes());
    let mut trainer = Trainer {
        graph: &graph,
        program: &mut program,
        train: &train,
        eval: eval.as_ref(),
        batch,
        sampler,
        settings: &settings,
        store: &store,
        checkpoints: &checkpoints,
        identity: &identity,
        first_step: first_step(args.training.seed),
        info: info(args, spec.task),
    };
    let outcome = trainer.run(&mut progress, &mut watch);
    watch.finish();
    if outcome? == Outcome::Stopped {
        return Err(Error::Interrupted(format!(
            "stopped and saved; the same command with --resume goes on in {}",
            args.save.display()
        )));
    }
    if let Some(best) = progress.best {
        let path = checkpoints.path(best.updates);
        let (updates, loss) = (best.updates, best.loss);
        say(
            out,
            &format!("the lowest evaluation loss is {loss:.4}, at update {updates}\n"),
        )?;
        if args.load_best_at_end {
            checkpoints.restore(&path, &graph, &mut program)?;
            say(out, &format!("what is written is of {}\n", path.display()))?;
        }
    }
    save(args, spec.task, &graph, &program, &store, out)
}

/// From where a run goes on, and what of the schedule is not what it was.
fn going_on(latest: Option<&Path>, state: Option<&State>, settings: &Settings) -> String {
    let (Some(path), Some(state)) = (latest, state) else {
        return String::new();
    };
    let (path, updates) = (path.display(), state.progress.updates);
    let mut text = format!("going on from {path}, update {updates}\n");
    let differs = settings.schedule.differs(&state.schedule);
    if !differs.is_empty() {
        let differs = differs.join("; ");
        text.push_str(&format!("warning: the schedule differs: {differs}\n"));
    }
    text
}

/// What dropout's count of steps begins with: far from that of other seeds, and zero for seed 0.
fn first_step(seed: u64) -> u64 {
    // Fibonacci hashing.
    seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Makes sure before the first step that what is trained can be written.
fn check_results(args: &TrainArgs, graph: &Graph, store: &ExternalStore) -> Result<(), Error> {
    let adapted = !graph.adapters().is_empty();
    if adapted {
        peft::check(args.save.join(ADAPTER), graph)?;
    }
    if args.merge || !adapted {
        let values = Values {
            store,
            trained: None,
        };
        merge::check(args.save.join(MERGED), graph, values)?;
    }
    Ok(())
}

/// The files that go with a whole model: of the folders of weights and tokenizer.
fn beside(args: &TrainArgs) -> Vec<PathBuf> {
    let folder = |path: &Option<PathBuf>| {
        let path = path.clone()?;
        match path.is_dir() {
            true => Some(path),
            false => path.parent().map(Path::to_owned),
        }
    };
    let weights = folder(&args.machine.weights.weights);
    let tokenizer = folder(&args.data.tokenizer);
    side_files::of(weights.as_deref(), tokenizer.as_deref())
}

/// Refuses to mix a new run with an old one's checkpoints, and to go on where there are none.
fn refuse_to_mix(args: &TrainArgs, latest: Option<&Path>) -> Result<(), Error> {
    match (latest, args.resume) {
        (Some(latest), None) => Err(Error::Args(format!(
            "{} is a checkpoint of another run: go on with it with --resume, or choose another --save folder",
            latest.display()
        ))),
        (None, Some(ResumeArg::Last)) => Err(Error::Args(format!(
            "--resume: there is no checkpoint in {}; --resume=auto begins",
            args.save.display()
        ))),
        _ => Ok(()),
    }
}

fn data(args: &DataArgs, spec: &Spec, seed: u64) -> Result<(Dataset, Option<Dataset>), Error> {
    let mut tokenizer = args.tokenizer.as_ref().map(Tokenizer::open).transpose()?;
    if let Some(date) = &args.date {
        let date = date
            .parse()
            .map_err(|error| Error::Args(format!("--date {date}: {error}")))?;
        tokenizer = tokenizer.map(|tokenizer| tokenizer.with_date(date));
    }
    let options = Options {
        pack: args.pack,
        skip_bad: args.skip_bad,
        form: args.form.as_deref().map(form).transpose()?,
    };
    let load = |files| Dataset::load(files, spec, tokenizer.as_ref(), &options);
    let train = load(&args.data)?;
    if !args.eval_data.is_empty() {
        let eval = load(&args.eval_data)?;
        return Ok((train, Some(eval)));
    }
    let size = match args.eval_split {
        None => return Ok((train, None)),
        Some(HeldOut::Count(count)) => EvalSize::Count(count),
        Some(HeldOut::Share(share)) => EvalSize::Fraction(share),
    };
    let (train, eval) = train.split(size, seed)?;
    Ok((train, Some(eval)))
}

fn form(name: &str) -> Result<Form, Error> {
    let form = Form::ALL.into_iter().find(|form| form.name() == name);
    form.ok_or_else(|| {
        let names = Form::ALL.map(Form::name).join(", ");
        Error::Args(format!("--form {name}: expected one of {names}"))
    })
}

/// What is known before the first step.
fn opening(
    args: &TrainArgs,
    single: &Single,
    train: &Dataset,
    eval: Option<&Dataset>,
    bound: Option<String>,
) -> String {
    let memory = bytes(single.step.plan.arena_bytes());
    let device = &args.machine.device;
    let mut text = format!(
        "{}\nloss: {}\n",
        describe(args, single),
        single.loss_in_words
    );
    text.push_str(&format!(
        "memory: {memory} on {device}, all of it planned\n"
    ));
    let lines = bound.iter().flat_map(|bound| bound.lines());
    lines.for_each(|line| text.push_str(&format!("weights: {line}\n")));
    for (what, data) in [("data", Some(train)), ("evaluation", eval)] {
        if let Some(data) = data {
            text.push_str(&about(what, data));
        }
    }
    let warnings = single.warnings.iter();
    warnings.for_each(|warning| text.push_str(&format!("warning: {warning}\n")));
    text
}

fn about(what: &str, data: &Dataset) -> String {
    let summary = data.summary();
    let mut text = format!(
        "{what}: {} examples in {} rows, {} tokens, of which {} are trained\n",
        count(summary.examples),
        count(summary.rows),
        count(summary.tokens),
        count(summary.trained_tokens),
    );
    let counts = [
        (summary.truncated, "are cut to the step's length"),
        (
            summary.dropped,
            "have nothing left to train and are left out",
        ),
        (
            summary.skipped,
            "cannot be used and are left out (--skip-bad)",
        ),
    ];
    for (n, what) in counts.iter().filter(|(n, _)| *n > 0) {
        text.push_str(&format!("  {} {what}\n", count(*n)));
    }
    for skipped in &summary.skipped_at {
        let (path, place) = (skipped.path.display(), skipped.place);
        text.push_str(&format!("  {path}{place}: {}\n", skipped.error));
    }
    let warnings = summary.warnings.iter();
    warnings.for_each(|warning| text.push_str(&format!("  {warning}\n")));
    text
}

/// The step in one line, by which a checkpoint tells runs apart.
fn describe(args: &TrainArgs, single: &Single) -> String {
    let mut parts = vec![file_name(&args.model), single.step.method.name().to_owned()];
    parts.extend(compile::dtype(&single.step.graph));
    let dims = [("batch", single.dims.batch), ("seq", single.dims.seq)];
    let dims = dims
        .into_iter()
        .filter_map(|(name, n)| Some(format!("{name} {}", n?)));
    parts.extend(dims);
    parts.join(" · ")
}

fn accumulate(args: &TrainArgs) -> u64 {
    u64::from(args.training.optimizer.accumulate)
}

fn settings(args: &TrainArgs, sampler: &Sampler) -> Settings {
    let accumulate = accumulate(args);
    let an_epoch = sampler.batches_per_epoch().div_ceil(accumulate);
    let by_epochs = args
        .run
        .epochs
        .map(|epochs| epochs.saturating_mul(an_epoch));
    let total = match (by_epochs, args.run.max_steps) {
        (Some(by_epochs), Some(most)) => by_epochs.min(most),
        (given, most) => given.or(most).unwrap_or(an_epoch),
    };
    Settings {
        schedule: Schedule {
            decay: match args.run.schedule {
                DecayArg::Constant => Decay::Constant,
                DecayArg::Linear => Decay::Linear,
                DecayArg::Cosine => Decay::Cosine,
            },
            lr: args.run.lr,
            warmup: args.run.warmup,
            total,
        },
        accumulate,
        eval_every: args.data.eval_every,
        save_every: args.save_every,
        patience: args.data.patience,
        check: args.machine.check(),
    }
}

/// What data a loss takes.
pub(crate) fn task(loss: LossKind) -> Task {
    match loss {
        LossKind::CausalLm => Task::CausalLm,
        LossKind::SeqCls => Task::SeqCls,
        LossKind::TokenCls => Task::TokenCls,
        LossKind::Seq2Seq => Task::Seq2Seq,
    }
}

/// What adapters say of themselves.
fn info(args: &TrainArgs, task: Task) -> peft::Info<'_> {
    let weights = args
        .machine
        .weights
        .weights
        .as_deref()
        .and_then(Path::to_str);
    peft::Info {
        base_model: args.base_model.as_deref().or(weights),
        loss: Some(match task {
            Task::CausalLm => LossKind::CausalLm,
            Task::SeqCls => LossKind::SeqCls,
            Task::TokenCls => LossKind::TokenCls,
            Task::Seq2Seq => LossKind::Seq2Seq,
        }),
        rslora: args.training.lora.rslora,
    }
}

/// Writes the adapter, and the whole model if that was asked for or is what was trained.
fn save(
    args: &TrainArgs,
    task: Task,
    graph: &Graph,
    program: &Program,
    store: &ExternalStore,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let trained = trained_values(graph, program);
    let values = Values {
        store,
        trained: Some(&trained),
    };
    let adapted = !graph.adapters().is_empty();
    if adapted {
        let path = args.save.join(ADAPTER);
        peft::write(&path, graph, values, info(args, task))?;
        say(
            out,
            &format!("wrote {}, which PEFT loads\n", path.display()),
        )?;
    }
    if args.merge || !adapted {
        let path = args.save.join(MERGED);
        merge::write(&path, graph, values, MAX_SHARD_BYTES, &beside(args))?;
        let lacks = match path.join("config.json").exists() {
            true => "",
            false => {
                "; no config.json was found beside --weights or --tokenizer, which from_pretrained needs"
            }
        };
        let path = path.display();
        say(out, &format!("wrote {path}, the whole model{lacks}\n"))?;
    }
    Ok(())
}
