//! Parts of a step: micro-steps and evaluation.
#![cfg(feature = "torch")]

use lorafa_exec::{ExecError, Mode, OpenDevice, Program};
use lorafa_ir::DType;
use lorafa_onnx::dtype::{decode, encode};
use std::sync::Arc;

/// A fill of the backward region that the forward pass reads, dropout in place, a gradient, an update.
const STEP: &str = "graph @step {
    param %x : f32[64,16] input
    param %w : f32[16,16] trained
    param %m : f32[16,16] optstate
    param %v : f32[16,16] optstate
    param %step : i64[] input
    param %lr : f32[] input
  backward:
    v9 = fill {dtype=f32, shape=[], value=2} : f32[]
  forward:
    v0 = exp %x : f32[64,16]
    v1, v2 = dropout v0 {ratio=0.5, seed=5} : f32[64,16], bool[64,16]
    v3 = matmul v1, %w : f32[64,16]
    v4 = mul v3, v9 : f32[64,16]
    v5 = reduce_sum v4 {axes=[0,1]} : f32[]
  backward:
    v6 = expand v9 {shape=[64,16]} : f32[64,16]
    v7 = matmul v1, v6 {trans_a} : f32[16,16]
  update:
    v10, v11, v12 = adamw %w, v7, %m, %v, %step, %lr : f32[16,16], f32[16,16], f32[16,16]
    out \"loss\" = v5 loss
    out \"grad::w\" = v7 gradient %w
  }";

fn program(text: &str, mode: Mode) -> Program {
    let graph = Arc::new(lorafa_ir::text::parse(text).unwrap());
    let plan = lorafa_plan::plan(&graph).unwrap();
    Program::compile(graph, &plan, mode, OpenDevice::CPU).unwrap()
}

fn start(mode: Mode) -> Program {
    let mut program = program(STEP, mode);
    let numbers = |n: usize| encode(DType::F32, (0..n).map(|i| (i % 5) as f64 / 4.0 - 0.5));
    program.write("x", &numbers(64 * 16)).unwrap();
    program.write("w", &numbers(16 * 16)).unwrap();
    program.write("step", &1i64.to_le_bytes()).unwrap();
    program.write("lr", &0.1f32.to_le_bytes()).unwrap();
    program
}

fn state(program: &Program) -> Vec<Vec<u8>> {
    let names = program.params();
    names.map(|name| program.param(name).unwrap().1).collect()
}

fn loss(program: &Program) -> f64 {
    decode(DType::F32, &program.output("loss").unwrap().1)[0]
}

#[test]
fn a_micro_step_leaves_parameters_and_computes_the_gradients_of_a_step() {
    for mode in [Mode::Arena, Mode::Separate] {
        let (mut whole, mut micro) = (start(mode), start(mode));
        let before = state(&micro);
        whole.step().unwrap();
        micro.micro_step().unwrap();
        for name in ["loss", "grad::w"] {
            assert_eq!(whole.output(name).unwrap(), micro.output(name).unwrap());
        }
        assert_eq!(state(&micro), before);
        assert_ne!(state(&whole), before);
        // The next has other masks, as the next step would have.
        assert_eq!(micro.steps(), 1);
        let first = micro.output("grad::w").unwrap();
        micro.micro_step().unwrap();
        assert_ne!(micro.output("grad::w").unwrap(), first);
        micro.set_steps(0);
        micro.micro_step().unwrap();
        assert_eq!(micro.output("grad::w").unwrap(), first);
    }
}

#[test]
fn evaluation_computes_the_loss_without_dropout_and_changes_nothing() {
    for mode in [Mode::Arena, Mode::Separate] {
        let mut program = start(mode);
        let before = state(&program);
        program.evaluate().unwrap();
        let x = |i: usize| (f64::from((i % 5) as u32) / 4.0 - 0.5).exp();
        let w = |i: usize| f64::from((i % 5) as u32) / 4.0 - 0.5;
        let mut expected = 0.0;
        for row in 0..64 {
            for k in 0..16 {
                for column in 0..16 {
                    expected += 2.0 * x(row * 16 + k) * w(k * 16 + column);
                }
            }
        }
        let found = loss(&program);
        assert!(
            (found - expected).abs() < 1e-5 * expected.abs(),
            "{found} {expected}"
        );
        assert_eq!((program.steps(), state(&program)), (0, before));

        // Between steps it makes no difference to them.
        let mut other = start(mode);
        for evaluates in [true, false] {
            program.step().unwrap();
            if evaluates {
                program.evaluate().unwrap();
            }
            other.step().unwrap();
        }
        assert_eq!(state(&program), state(&other));
        assert_eq!(loss(&program), loss(&other));
        assert_ne!(loss(&program), found);
    }
}

#[test]
fn evaluation_refuses_to_update() {
    let text = "graph @step {
        param %w : f32[2] trained
        param %g : f32[2] input
        param %m : f32[2] optstate
        param %v : f32[2] optstate
        param %step : i64[] input
        param %lr : f32[] input
        v0, v1, v2 = adamw %w, %g, %m, %v, %step, %lr : f32[2], f32[2], f32[2]
        v3 = exp v0 : f32[2]
        out \"y\" = v3
      }";
    let error = program(text, Mode::Arena).evaluate().unwrap_err();
    assert!(matches!(error, ExecError::Unsupported { .. }), "{error}");
    assert!(error.to_string().contains("adamw"), "{error}");
}

#[test]
fn a_mask_that_is_drawn_again_is_the_same_in_every_step() {
    let text = "graph @masks {
        param %x : f32[64,16] input
        v0, v1 = dropout %x {ratio=0.5, seed=5} : f32[64,16], bool[64,16]
      backward:
        v2 = dropout_mask {ratio=0.5, seed=5, shape=[64,16]} : bool[64,16]
        v3 = dropout_mask {ratio=0.5, seed=6, shape=[64,16]} : bool[64,16]
        out \"drawn\" = v1
        out \"again\" = v2
        out \"other\" = v3
      }";
    let mut program = program(text, Mode::Arena);
    let mut before = Vec::new();
    for _ in 0..3 {
        program.step().unwrap();
        let [drawn, again, other] =
            ["drawn", "again", "other"].map(|name| program.output(name).unwrap().1);
        assert_eq!(drawn, again);
        assert!(drawn != other && drawn != before);
        before = drawn;
    }
}
