//! Numbers that stop being finite are found where that happens, and only there.

use crate::models::{self, compiled};
use crate::start;

use lorafa_exec::{ExecError, Mode, NonFinite, OpenDevice, Program};
use lorafa_ir::DType;
use lorafa_onnx::dtype::encode;
use lorafa_passes::pass::Method;
use std::sync::Arc;

/// No example is told that something is wrong, whatever its masks are made of, and the step is the same.
#[test]
fn sound_steps_pass() {
    for model in models::all() {
        for method in [Method::Full, Method::LoraFa] {
            let answers = model.any_answers(method);
            let graph = Arc::new(compiled(&model, method, &answers));
            let label = format!("{} {}", model.name, method.name());
            let mut plain = start(&model, &graph, &answers, Mode::Arena);
            let mut checked = start(&model, &graph, &answers, Mode::Arena);
            plain.step().unwrap();
            let done = checked.step_checked();
            done.unwrap_or_else(|error| panic!("{label}: {error}"));
            assert_eq!(checked.steps(), 1);
            for name in plain.outputs() {
                let (plain, checked) = (plain.output(name).unwrap(), checked.output(name).unwrap());
                assert_eq!(plain, checked, "{label} {name}");
            }
        }
    }
}

#[test]
fn a_weight_that_is_nan_is_named() {
    let models = models::all();
    let model = models.iter().find(|m| m.family() == "llama").unwrap();
    let method = Method::LoraFa;
    let answers = model.any_answers(method);
    let graph = Arc::new(compiled(model, method, &answers));
    let mut program = start(model, &graph, &answers, Mode::Arena);
    let names = program.params();
    let name = names.filter(|n| n.contains("layers.1.mlp")).last().unwrap();
    let name = name.to_string();
    let (ty, mut bytes) = program.param(&name).unwrap();
    let nan = encode(ty.dtype, [f64::NAN]);
    let at = bytes.len() / 2 / nan.len() * nan.len();
    bytes[at..at + nan.len()].copy_from_slice(&nan);
    program.write(&name, &bytes).unwrap();
    let error = program.step_checked().unwrap_err();
    let expected = format!("the parameter `{name}` : {ty}: NaN");
    assert_eq!(error.to_string(), expected);
    // Unless asked, nobody looks.
    program.step().unwrap();
}

/// The infinity in `v3` becomes a NaN in `v4`; the one in `v5` is left out of `v6`.
const OVERFLOW: &str = "graph @overflow {
    param %x : f16[4,8] input
    param %mask : f16[4,4] input
    param %w : f16[8,4] frozen
    v0 = matmul %x, %w : f16[4,4]
    v1 = add v0, %mask : f16[4,4]
    v2 = softmax v1 {axis=1} : f16[4,4]
    v3 = mul v0, v0 : f16[4,4]    @model.layers.0.square
    v4 = sub v3, v3 : f16[4,4]
    v5 = exp v0 : f16[4,4]
    v6 = min v5, v0 : f16[4,4]
    out \"y\" = v2
    out \"z\" = v4
    out \"w\" = v6
  }";

/// `x·w` is 8·x, the mask hides three of four, and the square passes the largest f16, 65504, from x = 32 on.
fn overflow(x: f64, w: f64, mask: f64) -> Result<(), ExecError> {
    let graph = Arc::new(lorafa_ir::text::parse(OVERFLOW).unwrap());
    let plan = lorafa_plan::plan(&graph).unwrap();
    let mut program = Program::compile(graph, &plan, Mode::Arena, OpenDevice::CPU)?;
    let masked = (0..16).map(|i| if i % 4 == 0 { 0.0 } else { mask });
    program.write("x", &encode(DType::F16, vec![x; 32]))?;
    program.write("w", &encode(DType::F16, vec![w; 32]))?;
    program.write("mask", &encode(DType::F16, masked))?;
    program.micro_step_checked()
}

#[test]
fn the_op_that_overflows_is_named_with_its_module() {
    // Masks are infinite or as good as, and none of what reads them is to blame.
    for mask in [0.0, -65504.0, f64::NEG_INFINITY] {
        overflow(31.0, 1.0, mask).unwrap();
        let error = overflow(32.0, 1.0, mask).unwrap_err();
        let expected = "v3 = mul v0, v0 : f16[4,4] @model.layers.0.square: an infinity";
        assert_eq!(error.to_string(), expected);
        assert!(matches!(
            error,
            ExecError::NotFinite {
                found: NonFinite::Infinity,
                ..
            }
        ));
    }
    let error = overflow(1.0, f64::INFINITY, 0.0).unwrap_err().to_string();
    assert_eq!(error, "the parameter `w` : f16[8,4]: an infinity");
    // No row may be hidden whole: of nothing there is no softmax. Here all of it is minus infinity.
    let error = overflow(f64::NEG_INFINITY, 1.0, 0.0)
        .unwrap_err()
        .to_string();
    assert_eq!(error, "v2 = softmax v1 {axis=1} : f16[4,4]: NaN");
}

#[test]
fn an_infinity_that_reaches_an_output_is_followed_back() {
    let text = "graph @overflow {
        param %x : f32[3] input
        v0 = exp %x : f32[3]
        v1 = reshape v0 {shape=[1,3]} : f32[1,3]
        v2 = neg v1 : f32[1,3]
        out \"y\" = v2
      }";
    let graph = Arc::new(lorafa_ir::text::parse(text).unwrap());
    let plan = lorafa_plan::plan(&graph).unwrap();
    for mode in [Mode::Arena, Mode::Separate] {
        let mut program = Program::compile(graph.clone(), &plan, mode, OpenDevice::CPU).unwrap();
        program
            .write("x", &encode(DType::F32, [88.0, -1e4, 0.0]))
            .unwrap();
        program.step_checked().unwrap();
        program
            .write("x", &encode(DType::F32, [88.0, 0.0, 89.0]))
            .unwrap();
        let error = program.step_checked().unwrap_err().to_string();
        assert_eq!(error, "v0 = exp %x : f32[3]: an infinity");
        // What comes in infinite is nobody's fault.
        program
            .write("x", &encode(DType::F32, [0.0, 0.0, f64::INFINITY]))
            .unwrap();
        program.step_checked().unwrap();
    }
}
