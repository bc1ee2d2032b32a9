//! The example models, imported.

use lorafa_ir::interp::Array;
use lorafa_ir::ops::{Data, Param, Role};
use lorafa_ir::{Bindings, Graph, Output, OutputKind, ValueId};
use lorafa_onnx::dtype::decode;
use lorafa_onnx::file::ModelFile;
use lorafa_onnx::import::import;
use lorafa_passes::inject_lora::InjectOptions;
use lorafa_passes::pass::{Method, Options};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// An imported model.
pub struct Model {
    /// Its file's name without the extension.
    pub name: String,
    /// The graph as imported.
    pub graph: Graph,
}

/// Every model of `examples/` and of the folder that `LORAFA_EXTRA_MODELS` names, by name.
pub fn examples() -> Vec<Model> {
    let extra = std::env::var_os("LORAFA_EXTRA_MODELS").map(PathBuf::from);
    within(std::iter::once(folder()).chain(extra))
}

/// The models of `examples/` that have LoRA's gradients in them.
#[allow(dead_code)]
pub fn joint() -> Vec<Model> {
    within(std::iter::once(folder().join("joint")))
}

fn folder() -> PathBuf {
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

/// Numbers of a size that keeps a tiny model finite.
#[allow(dead_code)]
pub fn numbers(mut state: u64) -> impl FnMut(&Param) -> f64 {
    let mut uniform = move || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 40) as f64 / (1u64 << 24) as f64
    };
    move |param: &Param| {
        let u = uniform();
        match param.role {
            _ if param.name.contains("mask") || param.name.contains("step") => 1.0,
            _ if !param.ty.dtype.is_float() => (2.0 * u).floor(),
            Role::Constant => u,
            Role::OptState => 0.01 * u,
            _ => 0.4 * u - 0.2,
        }
    }
}

/// What a graph reads: constants as they are, and numbers for anything else that follow from the name that `name` gives it.
#[allow(dead_code)]
pub fn values(graph: &Graph, name: impl Fn(&Param) -> String) -> BTreeMap<ValueId, Array> {
    let values = graph.params().map(|(value, param)| {
        let array = match &param.stored.data {
            Data::Inline(bytes) if param.role == Role::Constant => {
                Array::new(&param.ty, decode(param.stored.dtype, bytes))
            }
            _ => {
                let mix = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
                let mut numbers = numbers(name(param).bytes().fold(1, mix));
                Array::from_fn(&param.ty, |_| numbers(param))
            }
        };
        (value, array.unwrap())
    });
    values.collect()
}

/// The outputs that training is about.
#[allow(dead_code)]
pub fn loss_and_gradients(graph: &Graph) -> impl Iterator<Item = &Output> {
    let outputs = graph.outputs().iter();
    outputs.filter(|o| matches!(o.kind, OutputKind::Gradient(_) | OutputKind::Loss))
}
