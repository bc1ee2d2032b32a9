//! The written files: all of them, or none.

use crate::args::CompileArgs;
use crate::compile::without_optimizer;
use crate::error::Error;
use lorafa_ir::Graph;
use lorafa_ir::ops::Data;
use lorafa_onnx::export::{ExportOptions, export};
use lorafa_onnx::external::ExternalStore;
use lorafa_onnx::file::ModelFile;
use lorafa_onnx::write::Staged;
use std::path::{Path, PathBuf};

/// The model to write, still under another name.
#[derive(Debug)]
pub struct Output {
    staged: Option<Staged>,
    path: Option<PathBuf>,
}

/// Makes the model that `args` ask for, if they do.
///
/// # Errors
///
/// A step that ONNX cannot express, weights that cannot be read, a folder that takes no files.
pub fn prepare(args: &CompileArgs, model: &ModelFile, step: &Graph) -> Result<Output, Error> {
    if args.no_write {
        return Ok(Output {
            staged: None,
            path: None,
        });
    }
    let path = args
        .output
        .clone()
        .unwrap_or_else(|| default_path(model.path()));
    let detached;
    let step = if args.with_optimizer {
        step
    } else {
        detached = without_optimizer(step)?;
        &detached
    };
    if !args.embed_weights && has_external(step) && !same_folder(&path, model.path()) {
        return Err(Error::Args(format!(
            "{}: the model's weights are in files next to it, and a written model refers to such files in its own \
             folder: write it next to the model, or give --embed-weights",
            path.display()
        )));
    }
    let store = ExternalStore::new(model.folder());
    let options = ExportOptions {
        store: &store,
        embed_weights: args.embed_weights,
    };
    let staged = Staged::model(&path, &export(step, &options)?)?;
    Ok(Output {
        staged: Some(staged),
        path: Some(path),
    })
}

impl Output {
    /// Where the model goes, if it is written.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Gives the model its name, and writes the JSON next to it unless it is for standard output.
    ///
    /// # Errors
    ///
    /// As [`Staged::new`] and [`Staged::commit`].
    pub fn commit(&mut self, json: Option<(&Path, &str)>) -> Result<(), Error> {
        let json = json.filter(|(path, _)| *path != Path::new("-"));
        let json = json
            .map(|(path, text)| Staged::new(path, text.as_bytes()))
            .transpose()?;
        for staged in [json, self.staged.take()].into_iter().flatten() {
            staged.commit()?;
        }
        Ok(())
    }
}

/// `model.lorafa.onnx` for `model.onnx`, in the same folder.
fn default_path(model: &Path) -> PathBuf {
    model.with_extension("lorafa.onnx")
}

fn has_external(graph: &Graph) -> bool {
    graph
        .params()
        .any(|(_, param)| matches!(param.stored.data, Data::External(_)))
}

/// Whether two files are in one folder, links followed where they can be.
fn same_folder(a: &Path, b: &Path) -> bool {
    let folder = |path: &Path| {
        let parent = path
            .parent()
            .filter(|p| !p.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        parent.canonicalize().unwrap_or_else(|_| parent.to_owned())
    };
    folder(a) == folder(b)
}
