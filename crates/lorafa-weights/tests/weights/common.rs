//! The example models, and what they give with the weights that a test binds.

use crate::decompose::decompose;
use bytes::Bytes;
use lorafa_ir::interp::{self, Array};
use lorafa_ir::ops::Role;
use lorafa_ir::{Bindings, DType, Graph, text};
use lorafa_onnx::dtype::decode;
use lorafa_onnx::export::weights;
use lorafa_onnx::external::ExternalStore;
use lorafa_onnx::file::ModelFile;
use lorafa_onnx::import::import;
use lorafa_passes::pass::{Method, Options};
use lorafa_passes::registry::PREPARE;
use lorafa_passes::{Manager, PassCx};
use lorafa_weights::Values;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// An example with adapters, one of the same architecture without, in fp32 and eval mode.
pub const PAIRS: [(&str, &str, &str); 4] = [
    (
        "llama",
        "llama-tiny-lora-r4-dynamo-opt-sdpa-fp32-eval-logits-dyn",
        "llama-tiny-plain-dynamo-noopt-sdpa-fp32-eval-logits-dyn",
    ),
    (
        "gpt2",
        "gpt2-tiny-lora-r4-dynamo-opt-sdpa-fp32-eval-loss-dyn",
        "gpt2-tiny-plain-dynamo-noopt-sdpa-fp32-eval-logits-static",
    ),
    (
        "roberta",
        "roberta-tiny-lora-r4-dynamo-opt-sdpa-fp32-eval-loss-dyn",
        "roberta-tiny-plain-dynamo-opt-sdpa-fp32-eval-logits-dyn",
    ),
    (
        "t5",
        "t5-tiny-lora-r4-dynamo-noopt-sdpa-fp32-eval-loss-dyn",
        "t5-tiny-plain-dynamo-opt-eager-fp32-eval-logits-dyn",
    ),
];

pub fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples")
}

/// A store for the values of examples, which are all in the files.
pub fn store() -> ExternalStore {
    ExternalStore::new(examples())
}

/// The values that the graph says.
pub fn given(store: &ExternalStore) -> Values<'_> {
    Values {
        store,
        trained: None,
    }
}

/// An example for a batch of 2 and 8 positions (6 of the target), its adapters found.
pub fn example(name: &str) -> (Graph, Options) {
    let file = ModelFile::open(examples().join(format!("{name}.onnx"))).unwrap();
    let mut graph = import(&file).unwrap();
    let mut bindings = Bindings::new();
    for (_, param) in graph.params().filter(|(_, p)| p.role == Role::Input) {
        let target = matches!(&*param.name, "decoder_input_ids" | "labels") && name.contains("t5");
        for (axis, dim) in param.ty.shape.iter().enumerate() {
            if let Some(symbol) = dim.as_symbol() {
                let positions = if target { 6 } else { 8 };
                bindings.insert(symbol.clone(), if axis == 0 { 2 } else { positions });
            }
        }
    }
    let options = Options {
        method: Method::Lora,
        bindings,
        ..Options::default()
    };
    let mut cx = PassCx::new(options.clone());
    let done = Manager::new().run(PREPARE, &mut graph, &mut cx);
    done.unwrap_or_else(|e| panic!("{name}: {e}"));
    (graph, options)
}

/// A graph from text.
pub fn parse(text: &str) -> Graph {
    text::parse(text).unwrap()
}

/// What PyTorch says of a family: inputs and answers.
pub fn expected(family: &str, kind: &str) -> BTreeMap<String, Array> {
    let path = examples().join(format!("{family}-{kind}.expected.safetensors"));
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let arrays = file.iter().map(|(name, view)| {
        let dtype = match view.dtype() {
            safetensors::Dtype::F32 => DType::F32,
            safetensors::Dtype::I64 => DType::I64,
            other => panic!("{name} is {other:?}"),
        };
        let array = Array {
            dtype,
            shape: view.shape().to_vec(),
            data: decode(dtype, view.data()),
        };
        (name.to_string(), array)
    });
    arrays.collect()
}

/// The output called `logits`, or the first.
pub fn logits(graph: &Graph, expected: &BTreeMap<String, Array>) -> Array {
    let mut graph = graph.clone();
    decompose(&mut graph);
    let store = store();
    let params = graph.params().map(|(value, param)| {
        let array = match expected.get(&format!("input::{}", param.name)) {
            Some(input) => input.clone(),
            None => {
                let bytes = weights::values(param, &store).unwrap();
                Array::new(&param.ty, decode(param.ty.dtype, &bytes)).unwrap()
            }
        };
        (value, array)
    });
    let values = interp::run(&graph, &params.collect()).unwrap();
    let named = graph.outputs().iter().find(|o| &*o.name == "logits");
    values[&named.unwrap_or(&graph.outputs()[0]).value].clone()
}

/// The largest difference between two arrays of one shape.
pub fn difference(a: &Array, b: &Array) -> f64 {
    assert_eq!(a.shape, b.shape);
    let pairs = a.data.iter().zip(&b.data);
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// A tensor to be written.
pub type Given = (DType, Vec<usize>, Bytes);

/// f32 numbers as a tensor.
pub fn f32s(shape: &[usize], numbers: impl IntoIterator<Item = f32>) -> Given {
    let bytes: Vec<u8> = numbers.into_iter().flat_map(f32::to_le_bytes).collect();
    (DType::F32, shape.to_vec(), bytes.into())
}

/// Writes a safetensors file with the crate of that name.
pub fn write(path: &Path, tensors: &BTreeMap<String, Given>) {
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        let dtype = match dtype {
            DType::F32 => safetensors::Dtype::F32,
            DType::BF16 => safetensors::Dtype::BF16,
            DType::F16 => safetensors::Dtype::F16,
            DType::U8 => safetensors::Dtype::U8,
            DType::I32 => safetensors::Dtype::I32,
            other => panic!("{other}"),
        };
        let view = safetensors::tensor::TensorView::new(dtype, shape.clone(), bytes).unwrap();
        (name.clone(), view)
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// The weights of a graph, without adapters, by the names of the model itself.
pub fn weights_of(graph: &Graph) -> BTreeMap<String, Given> {
    let store = store();
    let params = graph.params().map(|(_, p)| p);
    let weights = params.filter(|p| p.is_weight() && !p.name.contains("lora_"));
    let tensors = weights.map(|param| {
        let shape = param.ty.known_shape().unwrap();
        let shape = shape.iter().map(|n| *n as usize).collect();
        let bytes = weights::values(param, &store).unwrap();
        let name = lorafa_weights::names::plain(&param.name);
        (name, (param.ty.dtype, shape, bytes))
    });
    tensors.collect()
}
