//! The example models and PyTorch's answers for them.

use crate::numbers::{Tensors, read};
use lorafa_ir::ops::{Param, Role};
use lorafa_ir::{Bindings, Graph, ValueId};
use lorafa_onnx::file::ModelFile;
use lorafa_onnx::import::import;
use lorafa_passes::attach_optimizer::OptimizerOptions;
use lorafa_passes::inject_lora::InjectOptions;
use lorafa_passes::pass::{Method, Options};
use lorafa_passes::{Manager, PassCx, PassKind, registry};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

pub const METHODS: [Method; 3] = [Method::Full, Method::Lora, Method::LoraFa];

/// A model as its file's name has it: `FAMILY-…-(lora|plain)-…-(fp32|bf16…)-(eval|train)-…`.
pub struct Model {
    pub name: String,
    pub folder: PathBuf,
    pub graph: Graph,
}

/// Every model of `examples/` and of the folder that `LORAFA_EXTRA_MODELS` names, by name.
pub fn all() -> Vec<Model> {
    let extra = std::env::var_os("LORAFA_EXTRA_MODELS").map(PathBuf::from);
    let folders = std::iter::once(examples()).chain(extra);
    folders.flat_map(|folder| within(&folder, "")).collect()
}

/// The models of `examples/` that have their gradients in them, those of LoRA.
pub fn joint() -> Vec<Model> {
    within(&examples(), "joint")
}

/// The training graphs of onnxruntime-training in `examples/`, each with the folder of its artifacts: those of LoRA, and those
/// that it makes with A frozen.
pub fn ort() -> Vec<(Model, PathBuf)> {
    let folder = examples().join("ort");
    let entries = std::fs::read_dir(&folder).unwrap();
    let paths = entries.map(|e| e.unwrap().path());
    let mut paths: Vec<PathBuf> = paths.filter(|p| p.is_dir()).collect();
    paths.sort();
    let load = |path: PathBuf| {
        let model = Model {
            name: path.file_name().unwrap().to_string_lossy().into_owned(),
            folder: folder.clone(),
            graph: import(&ModelFile::open(path.join("training_model.onnx")).unwrap()).unwrap(),
        };
        (model, path)
    };
    paths.into_iter().map(load).collect()
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples")
}

/// The models of a folder within the one that has the answers.
fn within(folder: &Path, part: &str) -> Vec<Model> {
    let entries = std::fs::read_dir(folder.join(part)).unwrap();
    let paths = entries.map(|e| e.unwrap().path());
    let mut paths: Vec<PathBuf> = paths
        .filter(|p| p.extension().is_some_and(|e| e == "onnx"))
        .collect();
    paths.sort();
    let load = |path: PathBuf| Model {
        name: path.file_stem().unwrap().to_string_lossy().into_owned(),
        folder: folder.to_owned(),
        graph: import(&ModelFile::open(&path).unwrap()).unwrap(),
    };
    paths.into_iter().map(load).collect()
}

impl Model {
    fn has(&self, part: &str) -> bool {
        self.name.split('-').any(|p| p == part)
    }

    pub fn family(&self) -> &str {
        self.name.split('-').next().unwrap()
    }

    /// Whether PyTorch's answers are in its numbers: fp32, and nothing random.
    pub fn is_comparable(&self) -> bool {
        self.has("fp32") && self.has("eval")
    }

    fn kind(&self, method: Method) -> &'static str {
        match method {
            _ if self.has("lora") => "lora",
            Method::Full => "plain",
            Method::Lora | Method::LoraFa => "inject",
        }
    }

    /// The methods that a training graph is for.
    pub fn methods(&self) -> &'static [Method] {
        match self.has("fa") {
            true => &METHODS[2..],
            false => &METHODS[1..],
        }
    }

    /// PyTorch's answers for a method; onnxruntime's, if it made the model.
    pub fn answers(&self, method: Method) -> Option<Tensors> {
        let kind = self.kind(method);
        let variants = ["zeroB", "nomask"].into_iter().filter(|v| self.has(v));
        let variant: String = variants.map(|v| format!("-{v}")).collect();
        let ranks = ["", "-r8"].into_iter();
        let mut files = ranks.map(|rank| {
            let file = format!(
                "{}-{kind}{rank}{variant}.expected.safetensors",
                self.family()
            );
            self.folder.join(file)
        });
        files.find_map(|file| read(&file))
    }

    /// The answers, or those for a model with the same inputs.
    pub fn any_answers(&self, method: Method) -> Tensors {
        let answers = self.answers(method);
        let other = || {
            let kinds = ["lora", "lora-r8", "plain"];
            kinds.iter().find_map(|kind| {
                let file = format!("{}-{kind}.expected.safetensors", self.family());
                let mut tensors = read(&self.folder.join(file))?;
                tensors.retain(|name, _| name.starts_with("input::"));
                Some(tensors)
            })
        };
        answers.or_else(other).unwrap()
    }

    /// PyTorch's name of a parameter: without a wrapper that was exported, and the first of tied names.
    pub fn canonical(&self, name: &str) -> String {
        let wrapper = match (self.has("ts"), self.has("joint")) {
            (true, _) => "model.",
            (_, true) => "m.",
            _ => "",
        };
        let name = name.strip_prefix(wrapper).unwrap_or(name);
        let tied: &[&str] = match self.family() {
            "gpt2" => &["transformer.wte.weight", "lm_head.weight"],
            "t5" => &[
                "shared.weight",
                "encoder.embed_tokens.weight",
                "decoder.embed_tokens.weight",
                "lm_head.weight",
            ],
            _ => &[],
        };
        let (prefix, rest) = match name.strip_prefix("base_model.model.") {
            Some(rest) => ("base_model.model.", rest),
            None => ("", name),
        };
        match tied {
            [first, others @ ..] if others.contains(&rest) => format!("{prefix}{first}"),
            _ => name.to_string(),
        }
    }
}

/// The parameters that a method trains.
pub fn trained(method: Method, answers: &Tensors) -> BTreeSet<String> {
    let names = answers
        .keys()
        .filter_map(|name| name.strip_prefix("grad::"));
    let trained = |name: &&str| match method {
        Method::Full => true,
        Method::Lora => ["lora_A", "lora_B", "modules_to_save"]
            .iter()
            .any(|p| name.contains(p)),
        // A head that trains in full may have adapters of its own.
        Method::LoraFa => {
            let kept = ["lora_B", "modules_to_save"];
            kept.iter().any(|p| name.contains(p)) && !name.contains("lora_A")
        }
    };
    names.filter(trained).map(str::to_string).collect()
}

/// Sizes of the dimensions that these inputs have.
pub fn bindings(model: &Model, answers: &Tensors) -> Bindings {
    let mut bindings = Bindings::new();
    for (_, param) in inputs(model) {
        let batch = &answers[&format!("input::{}", param.name)];
        for (dim, size) in param.ty.shape.iter().zip(&batch.shape) {
            if let Some(symbol) = dim.as_symbol() {
                bindings.insert(symbol.clone(), *size as i64);
            }
        }
    }
    bindings
}

/// The first dimension of every input and the others, as far as they are free.
pub fn sizes(model: &Model, batch: i64, seq: i64) -> Bindings {
    let mut bindings = Bindings::new();
    for (_, param) in inputs(model) {
        for (axis, dim) in param.ty.shape.iter().enumerate() {
            if let Some(symbol) = dim.as_symbol() {
                bindings.insert(symbol.clone(), if axis == 0 { batch } else { seq });
            }
        }
    }
    bindings
}

fn inputs(model: &Model) -> impl Iterator<Item = (ValueId, &Param)> {
    model.graph.params().filter(|(_, p)| p.role == Role::Input)
}

/// Options for a method, with adapters of rank 4 where there are none.
pub fn options(model: &Model, method: Method, bindings: Bindings) -> Options {
    let plain = model.graph.params().all(|(_, p)| !p.name.contains("lora"));
    Options {
        method,
        bindings,
        inject: InjectOptions {
            rank: plain.then_some(4),
            ..InjectOptions::default()
        },
        ..Options::default()
    }
}

/// What to leave out so that no optional pass runs, and so that each runs alone, with what that is called.
pub fn alone() -> Vec<(&'static str, BTreeSet<&'static str>)> {
    let all = registry::all().into_iter();
    let optional = all.filter(|pass| pass.kind() == PassKind::Equivalence);
    let optional: Vec<&str> = optional.map(|pass| pass.name()).collect();
    let without = |kept: &'static str| {
        let others = optional.iter().filter(|name| **name != kept);
        (kept, others.copied().collect())
    };
    let kept = std::iter::once("no pass").chain(optional.iter().copied());
    kept.map(without).collect()
}

/// The training step for the batch of these answers, whose gradients are outputs.
pub fn compiled(model: &Model, method: Method, answers: &Tensors) -> Graph {
    compiled_with(model, keeping_gradients(model, method, answers))
}

/// Options for a step for the batch of these answers, whose gradients are outputs.
pub fn keeping_gradients(model: &Model, method: Method, answers: &Tensors) -> Options {
    let optimizer = OptimizerOptions {
        keep_gradients: true,
        ..OptimizerOptions::default()
    };
    Options {
        optimizer,
        ..options(model, method, bindings(model, answers))
    }
}

/// The training step with these options.
pub fn compiled_with(model: &Model, options: Options) -> Graph {
    let method = options.method;
    let mut graph = model.graph.clone();
    let mut cx = PassCx::new(options);
    let built = Manager::new().build(&mut graph, &mut cx);
    built.unwrap_or_else(|e| panic!("{} {}: {e}", model.name, method.name()));
    graph
}
