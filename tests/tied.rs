//! Adapters that share their A: what comes out computes the gradients that went in, and says why A trains on.

use lorafa_ir::interp::{self, Array};
use lorafa_ir::ops::Role;
use lorafa_ir::{Graph, OutputKind, text};
use lorafa_passes::eliminate_dead_code::EliminateDeadCode;
use lorafa_passes::pass::{Method, Options};
use lorafa_passes::{Manager, PassCx, registry};
use std::collections::BTreeMap;
use std::path::Path;

const A: &str = "q.lora_A.default.weight";

fn fixture(name: &str) -> Graph {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/passes/find-lora");
    text::parse(&std::fs::read_to_string(folder.join(name)).unwrap()).unwrap()
}

/// A graph with the gradients of a method, as the command makes it.
fn compiled(mut graph: Graph, method: Method) -> (Graph, PassCx) {
    let mut cx = PassCx::new(Options {
        method,
        ..Options::default()
    });
    let mut manager = Manager::new();
    manager.run(registry::PREPARE, &mut graph, &mut cx).unwrap();
    for stage in registry::differentiation(&graph, method) {
        manager.run(stage, &mut graph, &mut cx).unwrap();
    }
    (graph, cx)
}

/// What a graph gives beside the loss, for inputs and weights that only their names and places decide.
fn outputs(graph: &Graph) -> BTreeMap<String, Vec<f64>> {
    let mut graph = graph.clone();
    let mut patch = graph.patch("no-loss");
    patch.retain_outputs(|output| &*output.name != "loss");
    let mut cx = PassCx::new(Options::default());
    let clean = Manager::new().run(&[&EliminateDeadCode], &mut graph, &mut cx);
    clean.unwrap();
    let inputs = graph.params().map(|(value, param)| {
        let seed: usize = param.name.bytes().map(usize::from).sum();
        let number = |at: usize| ((seed * 31 + at * 17) % 23) as f64 / 23.0 - 0.4;
        let mut at = 0;
        let array = Array::from_fn(&param.ty, |_| {
            at += 1;
            match param.ty.dtype.is_float() {
                true => number(at),
                false => (at % 4) as f64,
            }
        });
        (value, array.unwrap())
    });
    let values = interp::run(&graph, &inputs.collect()).unwrap();
    let outputs = graph.outputs().iter();
    let found = outputs.map(|o| (o.name.to_string(), values[&o.value].data.to_vec()));
    found.collect()
}

#[test]
fn a_training_graph_keeps_its_gradients() {
    let before = outputs(&fixture("tied_training.lir"));
    for method in [Method::Lora, Method::LoraFa] {
        let (graph, cx) = compiled(fixture("tied_training.lir"), method);
        let after = outputs(&graph);
        assert_eq!(after.len(), 3);
        for (name, numbers) in &after {
            let pairs = numbers.iter().zip(&before[name]);
            assert!(pairs.clone().all(|(l, r)| (l - r).abs() < 1e-9), "{name}");
        }
        let adapters = graph.adapters();
        assert_eq!(adapters.len(), 2);
        // Both products read the matrix that trains.
        for adapter in adapters {
            assert_eq!(adapter.a, adapters[0].a);
            assert!(graph.def(adapter.xa).operands.contains(&adapter.a));
            assert_eq!(graph.role(adapter.a), Some(Role::Trained));
        }
        if method == Method::LoraFa {
            left_alone(&cx);
        }
    }
}

#[test]
fn a_forward_graph_has_one_gradient_of_the_one_matrix() {
    for method in [Method::Lora, Method::LoraFa] {
        let (graph, cx) = compiled(fixture("tied.lir"), method);
        let mut outputs = graph.outputs().iter();
        let of_a = outputs.any(|o| match o.kind {
            OutputKind::Gradient(param) => &*graph.param(param).unwrap().name == A,
            _ => false,
        });
        assert!(of_a);
        assert_eq!(graph.adapters()[0].a, graph.adapters()[1].a);
        if method == Method::LoraFa {
            left_alone(&cx);
        }
    }
}

fn left_alone(cx: &PassCx) {
    let certificate = cx.certificate.as_ref().unwrap();
    assert_eq!(certificate.proofs.len(), 2);
    for proof in &certificate.proofs {
        let keeper = proof.kept.as_ref().unwrap();
        assert!(keeper.reason.contains("its A is tied"), "{}", keeper.reason);
    }
}
