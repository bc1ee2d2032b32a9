//! Training graphs of onnxruntime-training: what is made of LoRA's is what their producer makes with A frozen, and gives its
//! numbers.

#[path = "../crates/lorafa-plan/tests/arena/mod.rs"]
mod arena;
mod common;

use common::{Model, folder, options, ort};
use lorafa_ir::interp::Array;
use lorafa_ir::ops::{Data, Role};
use lorafa_ir::{Graph, OutputKind};
use lorafa_onnx::dtype::decode;
use lorafa_passes::attach_optimizer::OptimizerOptions;
use lorafa_passes::freeze_lora_a::Certificate;
use lorafa_passes::pass::{Method, Options};
use lorafa_passes::{Manager, PassCx};
use lorafa_plan::{peak, plan};
use safetensors::{Dtype, SafeTensors};
use std::collections::{BTreeMap, BTreeSet};

/// The batch that onnxruntime's numbers are of.
const SIZES: [i64; 2] = [2, 12];

/// A step whose gradients are outputs, and what was proven of it.
fn compile(
    model: &Model,
    method: Method,
    disabled: &[&'static str],
) -> (Graph, Option<Certificate>) {
    compile_with(model, method, disabled, true)
}

fn compile_with(
    model: &Model,
    method: Method,
    disabled: &[&'static str],
    keep_gradients: bool,
) -> (Graph, Option<Certificate>) {
    let mut options = Options {
        disabled: disabled.iter().copied().collect(),
        optimizer: OptimizerOptions {
            keep_gradients,
            ..OptimizerOptions::default()
        },
        ..options(model, method)
    };
    for (symbol, size) in &mut options.bindings {
        *size = SIZES[usize::from(&**symbol != "batch")];
    }
    let mut graph = model.graph.clone();
    let mut cx = PassCx::new(options);
    let built = Manager::new().build(&mut graph, &mut cx);
    built.unwrap_or_else(|e| panic!("{} {}: {e}", model.name, method.name()));
    (graph, cx.certificate)
}

fn trained(graph: &Graph) -> BTreeSet<String> {
    let trained = graph.params().filter(|(_, p)| p.role == Role::Trained);
    trained.map(|(_, p)| p.name.to_string()).collect()
}

fn modules(certificate: &Certificate, released: bool) -> BTreeSet<&str> {
    let proofs = certificate.proofs.iter();
    let proofs = proofs.filter(|proof| proof.kept.is_none() == released);
    proofs.map(|proof| &*proof.module).collect()
}

/// How many tensors are saved, and their bytes.
fn saved(graph: &Graph) -> (usize, u64) {
    let saved = plan(graph).unwrap().all_saved(graph);
    (saved.len(), saved.iter().map(|s| s.bytes).sum())
}

#[test]
fn what_is_made_of_lora_is_what_its_producer_makes_with_a_frozen() {
    for (lora, frozen) in ort() {
        for disabled in [&[][..], &["rematerialize"]] {
            let what = format!("{} without {disabled:?}", lora.name);
            let (ours, certificate) = compile(&lora, Method::LoraFa, disabled);
            let (theirs, expected) = compile(&frozen, Method::LoraFa, disabled);
            let (certificate, expected) = (certificate.unwrap(), expected.unwrap());
            assert_eq!(trained(&ours), trained(&theirs), "{what}");
            for released in [true, false] {
                let [found, expected] = [&certificate, &expected].map(|c| modules(c, released));
                assert_eq!(found, expected, "{what}");
            }
            assert!(certificate.released().count() >= 8, "{what}");
            assert_eq!(saved(&ours), saved(&theirs), "{what}");
            for keep_gradients in [true, false] {
                let step = |model| compile_with(model, Method::LoraFa, disabled, keep_gradients).0;
                let [found, most] = [&lora, &frozen].map(|model| peak(&step(model)).unwrap().bytes);
                assert!(found <= most, "{what}: {found} of {most}");
            }
            let (given, _) = compile(&lora, Method::Lora, disabled);
            assert!(saved(&ours).1 < saved(&given).1, "{what}");
        }
    }
}

/// Inputs, weights and answers, by `kind::name`.
fn answers(model: &Model) -> BTreeMap<String, Vec<f64>> {
    let family = model.name.split('-').next().unwrap();
    let path = folder().join(format!("ort/{family}-lora.expected.safetensors"));
    let bytes = std::fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let numbers = tensors.iter().map(|(name, tensor)| {
        let dtype = match tensor.dtype() {
            Dtype::F32 => lorafa_ir::DType::F32,
            Dtype::I64 => lorafa_ir::DType::I64,
            other => panic!("{name} is {other:?}"),
        };
        (name.to_owned(), decode(dtype, tensor.data()))
    });
    numbers.collect()
}

/// Loss and gradients of a step by the reference semantics, which are run byte by byte in its arena, too.
fn run(graph: &Graph, answers: &BTreeMap<String, Vec<f64>>) -> BTreeMap<String, Vec<f64>> {
    let params = graph.params().map(|(value, param)| {
        let given = ["input", "param"].map(|kind| answers.get(&format!("{kind}::{}", param.name)));
        let given = given.into_iter().flatten().next().cloned();
        let data = given.unwrap_or_else(|| match &param.stored.data {
            Data::Inline(bytes) => decode(param.stored.dtype, bytes),
            _ if param.role == Role::OptState => vec![1.0; param.ty.elements().unwrap() as usize],
            _ => panic!("no values for {}", param.name),
        });
        (value, Array::new(&param.ty, data).unwrap())
    });
    let values = arena::run(graph, &params.collect()).unwrap();
    arena::simulate(graph, &plan(graph).unwrap(), &values).unwrap();
    let outputs = graph.outputs().iter().filter_map(|output| {
        let name = match output.kind {
            OutputKind::Loss => "loss",
            OutputKind::Gradient(_) => &*output.name,
            _ => return None,
        };
        Some((name.to_owned(), values[&output.value].data.clone()))
    });
    outputs.collect()
}

#[test]
fn losses_and_gradients_are_those_of_onnxruntime() {
    let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
    for (lora, frozen) in ort() {
        let answers = answers(&lora);
        let mut rewritten = Vec::new();
        for (model, method) in [
            (&lora, Method::Lora),
            (&lora, Method::LoraFa),
            (&frozen, Method::LoraFa),
        ] {
            let (graph, _) = compile(model, method, &[]);
            let found = run(&graph, &answers);
            assert_eq!(found.len(), trained(&graph).len() + 1, "{}", model.name);
            for (name, found) in &found {
                let expected = &answers[name];
                let apart: Vec<f64> = found.iter().zip(expected).map(|(a, b)| a - b).collect();
                let error = norm(&apart) / norm(expected);
                let what = format!("{} {}: {name}: {error:.1e}", model.name, method.name());
                assert!(error < 1e-6, "{what}");
            }
            if method == Method::LoraFa {
                rewritten.push(found);
            }
        }
        assert!(
            rewritten[0] == rewritten[1],
            "{}: not bit for bit",
            lora.name
        );
    }
}
