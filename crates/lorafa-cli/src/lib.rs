//! The `lorafa-opt` command, as a library so that tests and benchmarks can call it.
//!
//! | module | what it owns |
//! |---|---|
//! | [`args`] | the command line |
//! | [`dims`] | numbers for symbolic dimensions, from flags and defaults |
//! | [`compile`] | the main job: model file → three training steps with plans |
//! | [`output`] | the written files |
//! | [`report`], [`json`] | the report, for people and for programs |
//!
//! Nothing but this crate prints.

pub mod args;
pub mod compile;
pub mod dims;
pub mod error;
pub mod json;
pub mod output;
pub mod report;
pub mod units;

pub use error::Error;

use args::{Cli, Command, CompileArgs, DumpArgs};
use lorafa_onnx::file::ModelFile;
use lorafa_passes::pass::Method;
use std::io::Write;
use std::path::Path;

/// Does what the command line asks for; what is for standard output goes to `out`.
///
/// # Errors
///
/// [`Error`], whose message is for standard error. Nothing was written to any file then.
pub fn run(cli: &Cli, out: &mut dyn Write) -> Result<(), Error> {
    match (&cli.command, &cli.compile.model) {
        (Some(Command::Dump(args)), _) => dump(args, out),
        (None, Some(model)) => main_job(model, &cli.compile, out),
        (None, None) => Err(Error::Args("give a model; see --help".into())),
    }
}

fn dump(args: &DumpArgs, out: &mut dyn Write) -> Result<(), Error> {
    let model = ModelFile::open(&args.model)?;
    let graph = compile::graph_after(&model, &args.training, args.after.as_deref())?;
    Ok(write!(out, "{graph}")?)
}

fn main_job(path: &Path, args: &CompileArgs, out: &mut dyn Write) -> Result<(), Error> {
    let model = ModelFile::open(path)?;
    let compiled = compile::compile(&model, &args.training)?;
    let method = Method::from(args.training.method);
    let mut written = output::prepare(args, &model, &compiled.step(method).graph)?;

    let reports = compiled
        .steps
        .each_ref()
        .map(|s| s.plan.report(&s.graph, args.reserve));
    let name = file_name(path);
    let json = args
        .json
        .as_deref()
        .map(|path| (path, json::json(&name, &compiled, &reports)));
    written.commit(json.as_ref().map(|(path, text)| (*path, text.as_str())))?;

    if let Some((path, text)) = &json
        && *path == Path::new("-")
    {
        return Ok(out.write_all(text.as_bytes())?);
    }
    out.write_all(report::text(&name, &compiled, &reports).as_bytes())?;
    if args.explain {
        writeln!(out, "\nwhat the passes did")?;
        for note in &compiled.notes {
            writeln!(out, "  {note}")?;
        }
    }
    if let Some(path) = written.path() {
        writeln!(out, "\nwrote {} ({})", path.display(), method.name())?;
    }
    Ok(())
}

/// The model as the report calls it: its file's name, so that the report does not depend on where
/// the model lies.
fn file_name(path: &Path) -> String {
    path.file_name()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}
