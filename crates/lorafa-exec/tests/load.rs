//! Filling parameters.
#![cfg(feature = "torch")]

use lorafa_exec::{ExecError, Mode, OpenDevice, Program};
use lorafa_ir::DType;
use lorafa_onnx::dtype::decode;
use lorafa_onnx::external::ExternalStore;
use std::sync::Arc;

const STEP: &str = "graph @step {
    param %x : f32[4,8] input
    param %w : f32[8,64] frozen {digest=00000000000000ff}
    param %bias : f32[64] frozen {digest=0000000000000001}
    param %b : f32[64,64] trained {init=zeros}
    v0 = matmul %x, %w : f32[4,64]
    v1 = add v0, %bias : f32[4,64]
    v2 = matmul v1, %b : f32[4,64]
    out \"y\" = v2
  }";

fn program() -> Program {
    let graph = Arc::new(lorafa_ir::text::parse(STEP).unwrap());
    let plan = lorafa_plan::plan(&graph).unwrap();
    Program::compile(graph, &plan, Mode::Arena, OpenDevice::CPU).unwrap()
}

fn numbers(program: &Program, name: &str) -> Vec<f64> {
    decode(DType::F32, &program.param(name).unwrap().1)
}

#[test]
fn every_parameter_without_values_is_named_at_once() {
    let mut program = program();
    let error = program.load(&ExternalStore::new(".")).unwrap_err();
    let ExecError::Parameters(problems) = &error else {
        panic!("{error}");
    };
    assert_eq!(problems.len(), 2);
    let text = error.to_string();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "2 parameters could not be filled:");
    assert!(
        lines[1].contains("`w`") || lines[1].contains(" w"),
        "{text}"
    );
    assert!(lines[2].contains("bias"), "{text}");
}

#[test]
fn random_weights_are_the_same_for_the_same_seed() {
    let weights = |seed| {
        let mut program = program();
        program.load_random(&ExternalStore::new("."), seed).unwrap();
        ["w", "b", "bias", "x"].map(|name| numbers(&program, name))
    };
    let [w, b, bias, x] = weights(7);
    assert_eq!([w.clone(), b.clone(), bias.clone(), x.clone()], weights(7));
    assert_ne!(w, weights(8)[0]);
    let (n, sum) = (b.len() as f64, b.iter().sum::<f64>());
    let variance = b.iter().map(|x| x * x).sum::<f64>() / n;
    assert!((sum / n).abs() < 0.002, "{sum}");
    assert!((variance.sqrt() - 0.02).abs() < 0.002, "{variance}");
    assert!(bias.iter().all(|x| *x == 0.0));
    assert!(x.iter().all(|x| *x == 0.0));
}

#[test]
fn a_parameter_takes_its_own_number_of_bytes() {
    let error = program().write("x", &[0; 12]).unwrap_err().to_string();
    assert_eq!(error, "`x` : f32[4,8] takes 128 B, found 12 B");
    let error = program().write("z", &[]).unwrap_err().to_string();
    assert_eq!(error, "the step has no parameter `z`");
}
