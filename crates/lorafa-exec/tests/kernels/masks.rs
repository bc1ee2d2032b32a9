//! Masks of more elements than are drawn at once, and of rows that are not full, against who survives.

use std::sync::Arc;

use lorafa_exec::{Mode, OpenDevice, Program};
use lorafa_ir::ops::{DrawnMask, Dropout, Scalar};
use lorafa_ir::text::parse;
use lorafa_plan::plan;

fn check(of: Dropout, shape: &[u64], steps: &[u64]) {
    let attrs = format!("ratio={}, seed={}", of.ratio, of.seed);
    let axes: Vec<String> = shape.iter().map(u64::to_string).collect();
    let axes = axes.join(",");
    let text = format!(
        "graph @mask {{
           param %x : f32[{axes}] input
           v0, v1 = dropout %x {{{attrs}}} : f32[{axes}], bool[{axes}]
           v2 = dropout_mask {{{attrs}, shape=[{axes}]}} : bool[{axes}]
           out \"y\" = v0
           out \"mask\" = v1
           out \"again\" = v2
         }}"
    );
    let graph = Arc::new(parse(&text).unwrap());
    let plan = plan(&graph).unwrap();
    let mut program = Program::compile(graph, &plan, Mode::Arena, OpenDevice::CPU).unwrap();
    let places = 0..shape.iter().product();
    for step in steps {
        program.set_steps(*step);
        program.step_traced().unwrap().check().unwrap();
        let survivors = of.survivors(*step);
        let mask = places.clone().map(|place| u8::from(survivors.has(place)));
        let mask: Vec<u8> = mask.collect();
        for name in ["mask", "again"] {
            let found = program.output(name).unwrap().1;
            assert!(found == mask, "{name} of {shape:?}, {of:?}, step {step}");
        }
    }
}

#[test]
fn large_masks_hold_who_survives() {
    let DrawnMask { row, at_once } = DrawnMask::new(u64::MAX);
    for (seed, shape) in [
        vec![],
        vec![1],
        vec![row - 1],
        vec![row],
        vec![row + 1],
        vec![3, row, 7],
        vec![at_once - 1],
        vec![at_once],
        vec![1, at_once + 1],
        vec![5, at_once / 2, 1],
        vec![at_once + row - 1, 3],
        vec![8 * at_once + 2 * row + 3],
    ]
    .iter()
    .enumerate()
    {
        let of = |ratio| Dropout {
            ratio: Scalar(ratio),
            seed: seed as i64 - 5,
        };
        check(of(0.25), shape, &[0, 1, u64::MAX - 1]);
        check(of(0.999), shape, &[7]);
        check(of(0.0), shape, &[7]);
    }
}
