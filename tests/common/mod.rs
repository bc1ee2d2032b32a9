//! The example models, imported.

use lorafa_ir::ops::Role;
use lorafa_ir::{Bindings, Graph};
use lorafa_onnx::file::ModelFile;
use lorafa_onnx::import::import;
use lorafa_passes::inject_lora::InjectOptions;
use lorafa_passes::pass::{Method, Options};
use std::path::{Path, PathBuf};

/// An imported model.
pub struct Model {
    /// Its file's name without the extension.
    pub name: String,
    /// The graph as imported.
    pub graph: Graph,
}

/// Every model of `examples/` and of the folder that `LORAFA_EXTRA_MODELS` names, by name.
#[allow(dead_code)]
pub fn examples() -> Vec<Model> {
    let extra = std::env::var_os("LORAFA_EXTRA_MODELS").map(PathBuf::from);
    within(std::iter::once(folder()).chain(extra))
}

/// The models of `examples/` that have LoRA's gradients in them.
#[allow(dead_code)]
pub fn joint() -> Vec<Model> {
    within(std::iter::once(folder().join("joint")))
}

/// The training graphs of onnxruntime-training in `examples/`, named after their folders: those of LoRA, each with
/// that which the same program makes with A frozen from the start.
#[allow(dead_code)]
pub fn ort() -> Vec<(Model, Model)> {
    let load = |name: String| {
        let file = folder().join("ort").join(&name).join("training_model.onnx");
        Model {
            name,
            ..load(&file)
        }
    };
    let families = ["gpt2", "llama", "roberta"].into_iter();
    let pair = |f| (load(format!("{f}-lora")), load(format!("{f}-lora-fa")));
    families.map(pair).collect()
}

/// Where the examples are.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")
}

fn within(folders: impl Iterator<Item = PathBuf>) -> Vec<Model> {
    let mut paths: Vec<PathBuf> = Vec::new();
    for folder in folders {
        let entries = std::fs::read_dir(folder).unwrap();
        paths.extend(
            entries
                .map(|e| e.unwrap().path())
                .filter(|p| p.extension().is_some_and(|e| e == "onnx")),
        );
    }
    paths.sort();
    paths.iter().map(|path| load(path)).collect()
}

fn load(path: &Path) -> Model {
    let file = ModelFile::open(path).unwrap();
    let name = path.file_stem().unwrap().to_string_lossy().into_owned();
    Model {
        graph: import(&file).unwrap_or_else(|e| panic!("{name}: {e}")),
        name,
    }
}

/// Options for a method: batch 2, 8 positions, adapters of rank 4 where there are none.
pub fn options(model: &Model, method: Method) -> Options {
    let mut bindings = Bindings::new();
    let inputs = model.graph.params().filter(|(_, p)| p.role == Role::Input);
    for (_, param) in inputs {
        for (axis, dim) in param.ty.shape.iter().enumerate() {
            if let Some(symbol) = dim.as_symbol() {
                bindings.insert(symbol.clone(), if axis == 0 { 2 } else { 8 });
            }
        }
    }
    let inject = InjectOptions {
        rank: model
            .graph
            .params()
            .all(|(_, p)| !p.name.contains("lora"))
            .then_some(4),
        ..InjectOptions::default()
    };
    Options {
        method,
        bindings,
        inject,
        ..Options::default()
    }
}
