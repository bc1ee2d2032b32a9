//! A step that draws the masks of attention block by block drops what one drops that draws them whole.

use crate::models::{self, bindings, compiled_with, options};
use crate::start;

use lorafa_exec::Mode;
use lorafa_ir::{Graph, Op, OpData, Region};
use lorafa_onnx::dtype::decode;
use lorafa_passes::pass::{Method, Options};
use std::sync::Arc;

/// How many ops of the forward pass draw, whole or block by block.
fn draws(graph: &Graph) -> [usize; 2] {
    let forward = |op: &&OpData| op.site.region == Region::Forward;
    let count = |wanted: fn(&Op) -> bool| {
        let ops = graph.ops().filter(forward);
        ops.filter(|op| wanted(&op.kind)).count()
    };
    [
        count(|op| matches!(op, Op::Dropout(_))),
        count(|op| matches!(op, Op::Attention(op) if op.dropout.is_some())),
    ]
}

#[test]
fn fused_and_unfused_steps_drop_the_same() {
    let mut compared = 0;
    for model in models::all() {
        for method in [Method::Full, Method::LoraFa] {
            let answers = model.any_answers(method);
            let fused = options(&model, method, bindings(&model, &answers));
            let unfused = Options {
                disabled: ["fuse-attention"].into(),
                ..fused.clone()
            };
            let [fused, unfused] =
                [fused, unfused].map(|options| Arc::new(compiled_with(&model, options)));
            let ([whole, inside], [spelled, none]) = (draws(&fused), draws(&unfused));
            assert_eq!((whole + inside, none), (spelled, 0), "{}", model.name);
            if inside == 0 {
                continue;
            }
            compared += 1;
            let [mut fused, mut unfused] =
                [fused, unfused].map(|graph| start(&model, &graph, &answers, Mode::Arena));
            let mut losses = Vec::new();
            for _ in 0..3 {
                fused.step().unwrap();
                unfused.step().unwrap();
                let names: Vec<String> = fused.outputs().map(str::to_string).collect();
                for name in names {
                    let [a, b] = [&fused, &unfused].map(|program| {
                        let (ty, bytes) = program.output(&name).unwrap();
                        decode(ty.dtype, &bytes)
                    });
                    let most = b.iter().fold(1e-3, |most: f64, x| most.max(x.abs()));
                    let off = a.iter().zip(&b).map(|(a, b)| (a - b).abs());
                    let off = off.fold(0.0, f64::max);
                    assert!(off <= 1e-5 * most, "{} {name}: {off:e}", model.name);
                    if name == "loss" {
                        losses.push(a[0]);
                    }
                }
            }
            // Each step drops others; evaluation drops none, whichever graph it is.
            assert!(losses[0] != losses[1] && losses[1] != losses[2]);
            let evaluated = [&mut fused, &mut unfused].map(|program| {
                program.evaluate().unwrap();
                let (ty, bytes) = program.output("loss").unwrap();
                decode(ty.dtype, &bytes)[0]
            });
            assert!((evaluated[0] - evaluated[1]).abs() < 1e-5, "{evaluated:?}");
            assert!(losses.iter().all(|loss| (loss - evaluated[0]).abs() > 1e-5));
        }
    }
    assert!(compared > 0);
}
