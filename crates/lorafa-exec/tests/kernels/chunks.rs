//! A projection and its loss of more rows than are taken at once, against the ops that it stands for.

use std::sync::Arc;

use lorafa_exec::{Mode, OpenDevice, Program};
use lorafa_ir::DType;
use lorafa_ir::text::parse;
use lorafa_onnx::dtype::{decode, encode};
use lorafa_plan::plan;

/// 64 MiB of logits are 508 rows of these, fewer than are always taken.
const CLASSES: usize = 33_000;
const ROWS: usize = 1_100;

fn graph(ty: &str, loss: &str) -> String {
    format!(
        "graph @loss {{
           param %x : {ty}[{ROWS},4] input
           param %w : {ty}[4,{CLASSES}] frozen
           param %labels : i64[{ROWS}] input
           {loss}
           out \"dx\" = v1
           out \"loss\" = v2
           out \"dw\" = v3
         }}"
    )
}

fn fused(ty: &str) -> String {
    let results = format!("{ty}[{ROWS},4], f32[], {ty}[4,{CLASSES}]");
    graph(
        ty,
        &format!("v1, v2, v3 = linear_cross_entropy_grad %x, %w, %labels {{weight}} : {results}"),
    )
}

fn primitive(ty: &str) -> String {
    let (wide, loss) = (format!("f32[{ROWS},{CLASSES}]"), "cross_entropy");
    graph(
        ty,
        &format!(
            "v4 = matmul %x, %w : {ty}[{ROWS},{CLASSES}]
             v5 = cast v4 {{to=f32}} : {wide}
             v2 = {loss} v5, %labels : f32[]
             v6 = constant {{dtype=f32, value=1.0}} : f32[]
             v7 = {loss}_grad v6, v5, %labels : {wide}
             v8 = cast v7 {{to={ty}}} : {ty}[{ROWS},{CLASSES}]
             v1 = matmul v8, %w {{trans_b}} : {ty}[{ROWS},4]
             v3 = matmul %x, v8 {{trans_a}} : {ty}[4,{CLASSES}]"
        ),
    )
}

fn compile(text: &str, ty: DType) -> Program {
    let graph = Arc::new(parse(text).unwrap());
    let plan = plan(&graph).unwrap();
    let mut program = Program::compile(graph, &plan, Mode::Arena, OpenDevice::CPU).unwrap();
    let wave = |n: usize, step: f64| (0..n).map(move |i| (i as f64 * step).sin());
    let numbers = [("x", wave(ROWS * 4, 0.7)), ("w", wave(4 * CLASSES, 0.3))];
    for (name, numbers) in numbers {
        program.write(name, &encode(ty, numbers)).unwrap();
    }
    // Of every third row the label does not count.
    let labels = (0..ROWS).map(|i| if i % 3 == 2 { -100.0 } else { (i * 29) as f64 });
    let labels = encode(DType::I64, labels);
    program.write("labels", &labels).unwrap();
    program
}

fn output(program: &Program, name: &str) -> Vec<f64> {
    let (ty, bytes) = program.output(name).unwrap();
    decode(ty.dtype, &bytes)
}

#[test]
fn a_chunked_loss_is_the_loss() {
    for (dtype, name, tolerance) in [(DType::F32, "f32", 1e-5), (DType::BF16, "bf16", 1e-2)] {
        let [mut fused, mut primitive] =
            [fused(name), primitive(name)].map(|text| compile(&text, dtype));
        assert!(fused.memory_bytes() < primitive.memory_bytes());
        primitive.step().unwrap();
        fused.evaluate().unwrap();
        let evaluated = output(&fused, "loss");
        fused.step().unwrap();
        fused.step_traced().unwrap().check().unwrap();
        assert_eq!(output(&fused, "loss"), evaluated);
        for output_name in ["loss", "dx", "dw"] {
            let (a, b) = (output(&fused, output_name), output(&primitive, output_name));
            let largest = b.iter().fold(0.0f64, |most, x| most.max(x.abs()));
            let off = a.iter().zip(&b).map(|(a, b)| (a - b).abs());
            let off = off.fold(0.0, f64::max) / largest;
            assert!(off < tolerance, "{name} {output_name}: {off:e}");
        }
    }
}
