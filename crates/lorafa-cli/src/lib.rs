//! The `lorafa-opt` command, as a library so that tests and benchmarks can call it.
//!
//! | module | what it owns |
//! |---|---|
//! | [`args`], [`optimizer`] | the command line |
//! | [`artifacts`] | what a model's path names: a file, or a folder of onnxruntime-training |
//! | [`dims`] | numbers for symbolic dimensions, from flags and defaults |
//! | [`compile`] | the main job: model file → three training steps with plans |
//! | [`fit`] | the largest step that fits into some memory |
//! | [`output`] | the written files |
//! | [`report`], [`json`] | the report, for people and for programs |
//! | `train`, `bench`, `check` | what runs a step, with the feature `torch`; `machine` and `weights` are what they begin with |
//! | `watch`, `metrics` | what is seen of a run: the progress bar and the log |
//!
//! Nothing but this crate prints.

pub mod args;
pub mod artifacts;
#[cfg(feature = "torch")]
mod bench;
#[cfg(feature = "torch")]
mod check;
pub mod compile;
pub mod dims;
pub mod error;
pub mod fit;
pub mod json;
#[cfg(feature = "torch")]
mod machine;
#[cfg(feature = "torch")]
mod metrics;
pub mod optimizer;
pub mod output;
pub mod report;
#[cfg(feature = "torch")]
mod train;
pub mod units;
#[cfg(feature = "torch")]
mod watch;
#[cfg(feature = "torch")]
mod weights;

pub use error::Error;

use args::{Cli, Command, CompileArgs, DumpArgs};
use artifacts::Opened;
use fit::Fit;
use lorafa_passes::pass::Method;
use lorafa_plan::MethodReport;
use std::io::{ErrorKind, Write};
use std::path::Path;

/// What to do about a command that takes libtorch.
#[cfg(not(feature = "torch"))]
const WITHOUT_TORCH: &str = "this lorafa-opt was built without libtorch, which `train`, `bench` and `check` run on. In a clone of the \
                             project: export LIBTORCH=\"$(crates/lorafa-exec/setup.sh)\" (545 MB, once), then \
                             cargo install --path crates/lorafa-cli --features torch";

/// Does what the command line asks for; what is for standard output goes to `out`.
///
/// # Errors
///
/// [`Error`], whose message is for standard error. Nothing was written to any file then, but for what `train` says that it
/// saves.
pub fn run(cli: &Cli, out: &mut dyn Write) -> Result<(), Error> {
    match (&cli.command, &cli.compile.model) {
        (Some(Command::Dump(args)), _) => dump(args, out),
        #[cfg(feature = "torch")]
        (Some(Command::Train(args)), _) => train::train(args, out),
        #[cfg(feature = "torch")]
        (Some(Command::Bench(args)), _) => bench::bench(args, out),
        #[cfg(feature = "torch")]
        (Some(Command::Check(args)), _) => check::check(args, out),
        #[cfg(not(feature = "torch"))]
        (Some(Command::Train(_) | Command::Bench(_) | Command::Check(_)), _) => {
            Err(Error::Args(WITHOUT_TORCH.into()))
        }
        (None, Some(model)) => main_job(model, &cli.compile, out),
        (None, None) => Err(Error::Args("give a model; see --help".into())),
    }
}

fn dump(args: &DumpArgs, out: &mut dyn Write) -> Result<(), Error> {
    let Opened {
        model, training, ..
    } = artifacts::open(&args.model, &args.training)?;
    let graph = compile::graph_after(&model, &training, args.after.as_deref())?;
    Ok(write!(out, "{graph}")?)
}

fn main_job(path: &Path, args: &CompileArgs, out: &mut dyn Write) -> Result<(), Error> {
    let json_out = args.json.as_deref() == Some(Path::new("-"));
    if json_out && args.explain {
        return Err(Error::Args(
            "--explain: standard output holds the JSON report".into(),
        ));
    }
    if args.with_optimizer && args.training.optimizer.accumulate > 1 {
        return Err(Error::Args(
            "--with-optimizer: a written model updates parameters every time that it runs, so it \
             cannot accumulate gradients first: leave out --accumulate, or write gradients alone and \
             sum them"
                .into(),
        ));
    }
    let Opened {
        model, training, ..
    } = artifacts::open(path, &args.training)?;
    let compiled = compile::compile(&model, &training)?;
    let method = Method::from(training.method);
    let step = compiled.step(method);
    let step =
        step.ok_or_else(|| Error::Args(format!("there is no step for {}", method.name())))?;

    let reports: Vec<MethodReport> = compiled
        .steps
        .iter()
        .map(|s| s.plan.report(&s.graph, args.reserve))
        .collect();
    let fit = args
        .budget
        .map(|budget| Fit::of(budget, args.reserve, &model, &training))
        .transpose()?;
    let name = file_name(path);
    let json = args
        .json
        .as_ref()
        .map(|_| json::json(&name, &compiled, &reports, fit.as_ref()));
    let output = output::prepare(args, &training, &model, step, json.as_deref())?;

    let mut text = match json {
        Some(json) if json_out => json,
        _ => report::text(&name, &compiled, &reports),
    };
    if args.explain {
        text.push_str("\nwhat the passes did\n");
        compiled
            .notes
            .iter()
            .for_each(|note| text.push_str(&format!("  {note}\n")));
    }
    if let Some(fit) = &fit {
        let answer = format!("{} {}", method.name(), fit.text());
        if !fit.fits {
            say(out, &text)?;
            return Err(Error::DoesNotFit(answer));
        }
        if !json_out {
            text.push_str(&format!("\n{answer}\n"));
        }
    }
    // Said before it is done: where it cannot be said, nothing is written.
    say(out, &text)?;
    let written = output.path().map(Path::to_owned);
    output.commit()?;
    match written {
        Some(path) if !json_out => say(
            out,
            &format!("\nwrote {} ({})\n", path.display(), method.name()),
        ),
        _ => Ok(()),
    }
}

/// Prints. Whoever closed our output has seen enough of it, and wants the files all the same.
fn say(out: &mut dyn Write, text: &str) -> Result<(), Error> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// The model as the report calls it: its file's name, so that the report does not depend on where
/// the model lies.
fn file_name(path: &Path) -> String {
    path.file_name()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}
