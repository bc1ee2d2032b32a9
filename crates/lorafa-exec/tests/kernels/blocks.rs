//! Updates of parameters that are gone through by blocks, against the same ones row by row.

use std::sync::Arc;

use lorafa_exec::{Mode, OpenDevice, Program};
use lorafa_ir::DType;
use lorafa_ir::text::parse;
use lorafa_onnx::dtype::{decode, encode};
use lorafa_plan::plan;

/// A block has 2^20 elements.
const ROWS: usize = 5;
const COLUMNS: usize = 640_000;

/// An update of `rows` rows, by a gradient that lies in order or transposed.
fn update(rows: usize, ty: &str, form: &str, transposed: bool) -> String {
    let (p, m) = (
        format!("{ty}[{rows},{COLUMNS}]"),
        format!("f32[{rows},{COLUMNS}]"),
    );
    let (grad, view) = if transposed {
        let view = format!("v0 = transpose %g {{perm=[1,0]}} : {p}");
        (format!("{ty}[{COLUMNS},{rows}]"), view)
    } else {
        (
            p.clone(),
            format!("v0 = reshape %g {{shape=[{rows},{COLUMNS}]}} : {p}"),
        )
    };
    format!(
        "graph @update {{
           param %p : {p} trained
           param %g : {grad} input
           param %m : {m} optstate
           param %v : {m} optstate
           param %step : i64[] optstate
           param %lr : f32[] optstate
           {view}
           v1, v2, v3 = adamw %p, v0, %m, %v, %step, %lr {{form={form}, weight_decay=0.1}} : {p}, {m}, {m}
         }}"
    )
}

/// Parameter and moments after the update of these rows of a whole one.
fn updated(from: usize, rows: usize, ty: DType, form: &str, transposed: bool) -> [Vec<f64>; 3] {
    let text = update(rows, &ty.to_string(), form, transposed);
    let graph = Arc::new(parse(&text).unwrap());
    let plan = plan(&graph).unwrap();
    let mut program = Program::compile(graph, &plan, Mode::Arena, OpenDevice::CPU).unwrap();
    let at = |row: usize, column: usize| ((from + row) * COLUMNS + column) as f64;
    let wave =
        |step: f64| (0..rows * COLUMNS).map(move |i| (at(i / COLUMNS, i % COLUMNS) * step).sin());
    program.write("p", &encode(ty, wave(0.37))).unwrap();
    program
        .write("m", &encode(DType::F32, wave(0.011)))
        .unwrap();
    let squares = wave(0.7).map(|x| x * x);
    program.write("v", &encode(DType::F32, squares)).unwrap();
    let gradient = |i: usize| match transposed {
        true => at(i % rows, i / rows),
        false => at(i / COLUMNS, i % COLUMNS),
    };
    let gradient = (0..rows * COLUMNS).map(|i| (gradient(i) * 0.23).cos());
    program.write("g", &encode(ty, gradient)).unwrap();
    program.write("step", &3i64.to_le_bytes()).unwrap();
    program.write("lr", &0.25f32.to_le_bytes()).unwrap();
    let trace = program.step_traced().unwrap();
    assert_eq!(trace.allocations, []);
    assert_eq!(trace.measured, plan.arena_bytes());
    ["p", "m", "v"].map(|name| {
        let (ty, bytes) = program.param(name).unwrap();
        decode(ty.dtype, &bytes)
    })
}

#[test]
fn an_update_by_blocks_is_the_update() {
    for (ty, form, transposed) in [
        (DType::BF16, "torch", false),
        (DType::F32, "torch", true),
        (DType::F16, "peft", false),
        (DType::BF16, "peft", true),
    ] {
        let whole = updated(0, ROWS, ty, form, transposed);
        for row in 0..ROWS {
            let one = updated(row, 1, ty, form, transposed);
            for (whole, one) in whole.iter().zip(&one) {
                let whole = &whole[row * COLUMNS..(row + 1) * COLUMNS];
                assert!(whole == one, "{ty} {form} {transposed} {row}");
            }
        }
    }
}
