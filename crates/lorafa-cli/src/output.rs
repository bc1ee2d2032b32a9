//! The written files: all of them, or none.

use crate::args::{CompileArgs, TrainingArgs};
use crate::compile::{Step, with_optimizer};
use crate::error::Error;
use crate::say;
use lorafa_ir::ops::Data;
use lorafa_onnx::export::{ExportOptions, export};
use lorafa_onnx::external::ExternalStore;
use lorafa_onnx::file::ModelFile;
use lorafa_onnx::write::Staged;
use serde::Serialize;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The files to write, still under other names.
#[derive(Debug)]
pub struct Output {
    staged: Vec<Staged>,
    path: Option<PathBuf>,
}

/// Makes the files that `args` ask for: the model, and the JSON report unless it is for standard
/// output.
///
/// # Errors
///
/// A step that ONNX cannot express, weights that cannot be read, a path that takes no file or holds
/// what the job reads.
pub fn prepare(
    args: &CompileArgs,
    training: &TrainingArgs,
    model: &ModelFile,
    step: &Step,
    json: Option<&str>,
) -> Result<Output, Error> {
    let json_path = args.json.as_deref().filter(|path| *path != Path::new("-"));
    let path = args.output.clone();
    let path = path.unwrap_or_else(|| model.path().with_extension("lorafa.onnx"));
    let path = (!args.no_write).then_some(path);
    refuse_to_overwrite(model, path.as_deref(), json_path)?;

    let mut staged = Vec::new();
    if let (Some(path), Some(text)) = (json_path, json) {
        staged.push(Staged::new(path, text.as_bytes())?);
    }
    if let Some(path) = &path {
        staged.push(stage_model(args, training, model, step, path)?);
    }
    Ok(Output { staged, path })
}

/// Gives figures as JSON where that is wanted, `-` being standard output in place of the text, and as text.
///
/// # Errors
///
/// Neither can be written.
pub fn figures(
    json: Option<&Path>,
    figures: &impl Serialize,
    text: &str,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let line = || serde_json::to_string(figures).unwrap_or_default() + "\n";
    match json {
        Some(path) if path == Path::new("-") => return say(out, &line()),
        Some(path) => Staged::new(path, line().as_bytes())?.commit()?,
        None => {}
    }
    say(out, text)
}

fn stage_model(
    args: &CompileArgs,
    training: &TrainingArgs,
    model: &ModelFile,
    step: &Step,
    path: &Path,
) -> Result<Staged, Error> {
    let attached;
    let step = if args.with_optimizer {
        attached = with_optimizer(step, training)?;
        &attached
    } else {
        &step.gradients
    };
    let is_external = |data: &Data| matches!(data, Data::External(_));
    let external = step
        .params()
        .any(|(_, param)| is_external(&param.stored.data));
    if !args.embed_weights && external && folder(path) != folder(model.path()) {
        return Err(Error::Args(format!(
            "{}: the model's weights are in files next to it, and a written model refers to such \
             files in its own folder: write it next to the model, or give --embed-weights",
            path.display()
        )));
    }
    let store = ExternalStore::new(model.folder());
    let options = ExportOptions {
        store: &store,
        embed_weights: args.embed_weights,
        trained_inputs: args.with_optimizer,
        opset: model.opset("").unwrap_or_default(),
    };
    Ok(Staged::model(path, &export(step, &options)?)?)
}

impl Output {
    /// Where the model goes, if it is written.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Gives the files their names.
    ///
    /// # Errors
    ///
    /// As [`Staged::commit`].
    pub fn commit(self) -> Result<(), Error> {
        for staged in self.staged {
            staged.commit()?;
        }
        Ok(())
    }
}

/// Refuses outputs in the place of what is read, and two in one place.
fn refuse_to_overwrite(
    model: &ModelFile,
    output: Option<&Path>,
    json: Option<&Path>,
) -> Result<(), Error> {
    let mut taken = vec![(real(model.path()), "the model")];
    let weights = model.external_files().into_iter();
    taken.extend(weights.map(|location| (real(&model.folder().join(location)), "the weights")));
    for path in [output, json].into_iter().flatten() {
        let own = real(path);
        if let Some((_, what)) = taken.iter().find(|(path, _)| *path == own) {
            let path = path.display();
            return Err(Error::Args(format!(
                "{path}: this is {what}; write to another file"
            )));
        }
        taken.push((own, "the written model"));
    }
    Ok(())
}

/// A path with links followed, as far as it exists.
fn real(path: &Path) -> PathBuf {
    let canonical = path.canonicalize().ok();
    let named = || Some(folder(path).join(path.file_name()?));
    canonical.or_else(named).unwrap_or_else(|| path.to_owned())
}

/// The folder that a file is in, links followed.
fn folder(path: &Path) -> PathBuf {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    parent.canonicalize().unwrap_or_else(|_| parent.to_owned())
}
