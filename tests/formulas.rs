//! What a step keeps for its backward pass, against the formulas of what fused kernels need, term by term: bytes a token a
//! layer in 16 bits, of hidden size `d`, `f` in the feed-forward part, `k` of keys and values, `h` heads and rank `r`.
//!
//! | kept | by | bytes | made by |
//! |---|---|---|---|
//! | the inputs of both norms | all | `4d` | `add`, or the `matmul` that it became part of |
//! | a statistic of each | all | `8` | `rms_norm` |
//! | rotated queries and keys | all | `2d + 2k` | `rotary` |
//! | values, gate and up | all | `2k + 4f` | `matmul` |
//! | attention's result, a row's log-sum-exp a head | all | `2d + 4h` | `attention` |
//! | `x·A` of seven adapters | LoRA, LoRA-FA | `14r` | `matmul` |
//! | `x` of q, k and v, and of gate and up | LoRA, full | `4d` | `rms_norm` |
//! | `x` of down | LoRA, full | `2f` | `gated` |
//!
//! `rematerialize` computes the last two again, and is left out. The `x` of o is attention's result. PyTorch's eager kernels keep more: a norm the f32 copy of its input and, where its
//! weight trains, its normalized one; a gated activation silu(gate), too; PEFT's f32 adapters a copy of `x` each.

mod common;

use common::{Model, examples, options};
use lorafa_ir::DType;
use lorafa_passes::pass::Method;
use lorafa_passes::{Manager, PassCx};
use lorafa_plan::plan;
use std::collections::BTreeMap;

const BATCH: i64 = 16;
const SEQ: i64 = 32;

/// Bytes a token that ops of the last layer make and the backward pass reads, by the op that makes them.
fn kept(model: &Model, method: Method) -> BTreeMap<&'static str, u64> {
    let mut options = options(model, method);
    options.dtype = Some(DType::BF16);
    // Which makes LoRA keep what LoRA-FA does.
    options.disabled.insert("rematerialize");
    for size in options.bindings.values_mut() {
        *size = if *size == 2 { BATCH } else { SEQ };
    }
    let mut graph = model.graph.clone();
    let built = Manager::new().build(&mut graph, &mut PassCx::new(options));
    built.unwrap_or_else(|e| panic!("{}: {e}", model.name));
    let mut kept = BTreeMap::new();
    for saved in plan(&graph).unwrap().all_saved(&graph) {
        if saved.module.contains("layers.1") {
            let by = if saved.kind == "add" {
                "matmul"
            } else {
                saved.kind
            };
            *kept.entry(by).or_default() += saved.bytes / (BATCH * SEQ) as u64;
        }
    }
    kept
}

#[test]
fn llama_keeps_what_the_formulas_say() {
    // Of examples/export.py.
    let (d, f, h, r) = (32, 88, 4, 4);
    for (model, k) in [
        (
            "llama-tiny-lora-r4-dynamo-noopt-sdpa-fp32-eval-loss-dyn",
            32,
        ),
        (
            "llama-tiny-plain-dynamo-noopt-sdpa-fp32-eval-logits-dyn",
            32,
        ),
        (
            "llamagqa-tiny-lora-r4-dynamo-noopt-sdpa-fp32-eval-loss-dyn",
            16,
        ),
    ] {
        let model = example(model);
        let all = [
            ("attention", 2 * d + 4 * h),
            ("matmul", 4 * d + 2 * k + 4 * f),
            ("rms_norm", 8),
            ("rotary", 2 * d + 2 * k),
        ];
        for (method, name) in Method::ALL {
            let mut expected = BTreeMap::from(all);
            let mut more = |by, bytes| *expected.entry(by).or_default() += bytes;
            // Adapters that are there stay, and train, in full fine-tuning.
            let adapters = method != Method::Full || model.name.contains("lora");
            if adapters {
                more("matmul", 14 * r);
            }
            if method != Method::LoraFa {
                more("rms_norm", 4 * d);
                more("gated", 2 * f);
            }
            let kept = kept(&model, method);
            assert_eq!(kept, expected, "{} {name}", model.name);
            if method == Method::LoraFa {
                let sum = 8 * d + 4 * k + 4 * f + 4 * h + 8 + 14 * r;
                assert_eq!(kept.values().sum::<u64>(), sum, "{}", model.name);
            }
        }
    }
}

fn example(name: &str) -> Model {
    let mut models = examples().into_iter();
    models.find(|model| model.name == name).unwrap()
}
