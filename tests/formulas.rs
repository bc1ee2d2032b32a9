//! What a step keeps for its backward pass, against the formulas of what fused kernels need: bytes a token a layer, 16-bit.
//!
//! `d` hidden, `f` feed-forward and `k` key/value width, `h` heads, `r` rank:
//!
//! | term | bytes |
//! |---|---|
//! | inputs of both norms, and a statistic of each | `4d + 8` |
//! | attention: queries, keys, values, output, and a row's log-sum-exp | `4d + 4k + 4h` |
//! | gate and up | `4f` |
//! | LoRA-FA and LoRA: `x·A` of seven adapters | `14r` |
//! | LoRA: `x` of q, k and v, of gate and up, and of down; full fine-tuning keeps the same | `4d + 2f` |
//!
//! `x` of o is attention's output. Eager kernels keep more: a norm its normalized operand, a gated activation silu(gate)
//! and the product for itself.

mod common;

use common::{Model, examples, options};
use lorafa_ir::DType;
use lorafa_passes::pass::{Method, Options};
use lorafa_passes::{Manager, PassCx};
use lorafa_plan::plan;
use std::collections::BTreeMap;

const SEQ: u64 = 32;
const BATCH: u64 = 16;

/// Bytes a token that ops of the last layer make and the backward pass reads, by the op that makes them.
fn kept(model: &Model, method: Method) -> BTreeMap<&'static str, u64> {
    let mut options = options(model, method);
    for size in options.bindings.values_mut() {
        *size = if *size == 2 { BATCH as i64 } else { SEQ as i64 };
    }
    let options = Options {
        dtype: Some(DType::BF16),
        ..options
    };
    let mut graph = model.graph.clone();
    Manager::new().build(&mut graph, &mut PassCx::new(options)).unwrap();
    let plan = plan(&graph).unwrap();
    let mut kept = BTreeMap::new();
    for saved in plan.all_saved(&graph) {
        if saved.module.contains("layers.1") {
            println!("{} {} {}", saved.module, saved.kind, saved.bytes / (BATCH * SEQ));
            *kept.entry(saved.kind).or_default() += saved.bytes / (BATCH * SEQ);
        }
    }
    kept
}

#[test]
fn llama_keeps_what_the_formula_says() {
    for model in examples() {
        if model.name.contains("llama") {
        for (m, n) in Method::ALL { println!("{} {n} {:?}", model.name, kept(&model, m)); }
        }
    }
    panic!();
}
