//! What the user is told: live ranges, categories, sums, what is saved and for whom.

mod common;

use common::{Planned, planned};
use lorafa_plan::{ALIGN, Breakdown, Category, MethodReport};

/// One adapted linear layer and its step; `a` is the role of A.
fn adapted(a: &str) -> Planned {
    let (grad, next) = match a {
        "trained" => (
            "v12 = matmul v8, %b : f32[64,2] @q_proj of v2
             v13 = matmul v12, v0 {trans_a} : f32[2,8] @q_proj of v1",
            "out \"grad::a\" = v13 gradient %q_proj.lora_A.weight",
        ),
        _ => ("", ""),
    };
    let lines = format!(
        "param %x : f32[64,8] input
         param %w : f32[8,8] frozen
         param %q_proj.lora_A.weight : f32[2,8] {a}
         param %b : f32[8,2] trained
         param %b.m : f32[8,2] optstate
         param %b.v : f32[8,2] optstate
         param %step : i64[] input
         param %lr : f32[] input
         v20 = sin %x : f32[64,8] @norm
         v0 = cos v20 : f32[64,8] @norm
         v1 = matmul v0, %q_proj.lora_A.weight {{trans_b}} : f32[64,2] @q_proj
         v2 = matmul v1, %b {{trans_b}} : f32[64,8] @q_proj
         v3 = constant {{dtype=f32, value=2.0}} : f32[]
         v4 = mul v2, v3 : f32[64,8] @q_proj
         v5 = matmul v0, %w {{trans_b}} : f32[64,8] @q_proj
         v6 = add v5, v4 : f32[64,8] @q_proj
         v7 = reduce_mean v6 {{axes=[0,1]}} : f32[]
         backward:
         v14 = fill {{dtype=f32, shape=[64,8], value=0.25}} : f32[64,8] of v7
         v8 = mul v14, v3 : f32[64,8] @q_proj of v4
         v15 = transpose v1 {{perm=[1,0]}} : f32[2,64] @q_proj of v2
         v16 = matmul v15, v8 : f32[2,8] @q_proj of v2
         v9 = transpose v16 {{perm=[1,0]}} : f32[8,2] @q_proj of v2
         {grad}
         update:
         v10, v11, v17 = adamw %b, v9, %b.m, %b.v, %step, %lr : f32[8,2], f32[8,2], f32[8,2] of %b
         out \"loss\" = v7 loss
         out \"grad::b\" = v9 gradient %b
         {next}
         out \"next::b\" = v10 updated %b
         out \"next::m\" = v11 updated %b.m
         out \"next::v\" = v17 updated %b.v
         adapter \"q_proj\" {{a=%q_proj.lora_A.weight, b=%b, rank=2, scale=2.0, x=v0, xa=v1}}"
    );
    planned(&lines)
}

#[test]
fn freezing_a_shortens_the_life_of_x() {
    let range = |p: &Planned, name: &str| {
        let line = p.text();
        let line = line
            .lines()
            .find(|line| line.split(' ').any(|word| word == name));
        line.expect("a line").to_string()
    };
    let (lora, lora_fa) = (adapted("trained"), adapted("frozen"));
    assert_eq!(
        range(&lora, "v0"),
        "v20 > v0 [0,15) 2048 B @0x1800 temporaries > saved_activations"
    );
    assert_eq!(
        range(&lora_fa, "v0"),
        "v20 > v0 [0,6) 2048 B @0x2a00 temporaries"
    );
}

#[test]
fn a_plan_prints_one_line_a_buffer() {
    assert_eq!(
        adapted("frozen").text(),
        "arena 12800 B: 6144 B persistent, 6656 B reused, at least 6656 B at 5\n\
         %x 2048 B @0x000 temporaries\n\
         %w 256 B @0x800 frozen_weights\n\
         %q_proj.lora_A.weight 64 B @0xa00 adapters\n\
         %b 64 B @0xc00 adapters\n\
         %b.m 64 B @0xe00 optimizer_state\n\
         %b.v 64 B @0x1000 optimizer_state\n\
         %step 8 B @0x1200 temporaries\n\
         %lr 4 B @0x1400 temporaries\n\
         v3 4 B @0x1600 frozen_weights\n\
         v20 > v0 [0,6) 2048 B @0x2a00 temporaries\n\
         v1 [2,12) 512 B @0x1800 saved_activations\n\
         v2 > v4 [3,7) 2048 B @0x2200 temporaries\n\
         v5 > v6 [5,8) 2048 B @0x1a00 temporaries\n\
         v7 [7,14) 4 B @0x3000 temporaries\n\
         scratch of v7 [7,8) 64 B @0x2e00 workspace\n\
         v14 > v8 [8,12) 2048 B @0x2800 temporaries\n\
         v16 [11,14) 64 B @0x2600 gradients\n\
         scratch of v10 [13,14) 128 B @0x2e00 workspace\n"
    );
}

#[test]
fn everything_that_is_saved_is_listed_with_its_readers() {
    let saved = |p: &Planned| -> Vec<String> {
        let all = p.plan.all_saved(&p.graph);
        all.iter()
            .map(|saved| {
                let by = saved.by.iter().map(|by| format!("{}@{}", by.op, by.module));
                format!(
                    "{} {} @{} {} B by {}",
                    saved.kind,
                    saved.value,
                    saved.module,
                    saved.bytes,
                    by.collect::<Vec<_>>().join(" ")
                )
            })
            .collect()
    };
    let xa = "matmul v1 @q_proj 512 B by matmul@q_proj";
    assert_eq!(
        saved(&adapted("trained")),
        ["cos v0 @norm 2048 B by matmul@q_proj", xa]
    );
    assert_eq!(saved(&adapted("frozen")), [xa]);
}

fn sums(report: &MethodReport) {
    assert_eq!(report.breakdown.total(), report.peak_bytes);
    let saved: u64 = report.saved.iter().map(|saved| saved.bytes).sum();
    assert_eq!(saved, report.breakdown[Category::SavedActivations]);
    assert_eq!(
        report.peak_bytes - report.lower_bound_bytes,
        report.fragmentation_bytes
    );
}

#[test]
fn every_byte_belongs_to_one_category() {
    for role in ["trained", "frozen"] {
        let p = adapted(role);
        for reserve in [0, 1000] {
            let report = p.plan.report(&p.graph, reserve);
            sums(&report);
            assert_eq!(report.arena_bytes + reserve, report.peak_bytes);
            let b = report.breakdown;
            assert_eq!(b[Category::FrozenWeights], 512 + 512, "w and the constant");
            assert_eq!(b[Category::Adapters], 2 * 512);
            assert_eq!(b[Category::OptimizerState], 2 * 512);
            assert_eq!(b[Category::RuntimeReserve], reserve);
            let trained = if role == "trained" { 32 } else { 16 };
            assert_eq!(report.trainable_params, trained);
        }
    }
}

#[test]
fn the_peak_names_its_op_and_what_is_saved_there() {
    let p = planned(
        "param %x : f32[64,8] input
         param %labels : i64[64] input
         param %w : f32[512,8] trained
         v0 = tanh %x : f32[64,8] @trunk
         v1 = matmul v0, %w {trans_b} : f32[64,512] @head
         v2 = cross_entropy v1, %labels : f32[] @loss
         v3 = constant {dtype=f32, value=1.0} : f32[]
         backward:
         v4 = cross_entropy_grad v3, v1, %labels : f32[64,512] @loss of v2
         v5 = matmul v4, v0 {trans_a} : f32[512,8] @head of v1
         out \"loss\" = v2 loss
         out \"grad::w\" = v5 gradient %w",
    );
    let report = p.plan.report(&p.graph, 0);
    sums(&report);
    assert_eq!(report.peak_op, "cross_entropy v2");
    assert_eq!(&*report.peak_module, "loss");
    let logits = 64 * 512 * 4;
    // Log-probabilities, and the number of labels that count.
    assert_eq!(report.breakdown[Category::Workspace], logits + ALIGN);
    let saved: Vec<_> = report
        .saved
        .iter()
        .map(|s| (s.value.as_str(), s.bytes, s.by[0].op))
        .collect();
    assert_eq!(
        saved,
        [("v1", logits, "cross_entropy_grad"), ("v0", 2048, "matmul")]
    );
    // The gradient of the logits is written over them.
    assert!(p.share("v1", "v4"));
}

#[test]
fn json_has_the_agreed_keys() {
    let p = adapted("trained");
    let json = serde_json::to_value(p.plan.report(&p.graph, 3)).expect("a report is JSON");
    for key in [
        "trainable_params",
        "peak_bytes",
        "lower_bound_bytes",
        "arena_bytes",
    ] {
        assert!(json[key].is_u64(), "{key}");
    }
    assert!(json["peak_op"].is_string() && json["peak_module"].is_string());
    let text = serde_json::to_string(&Breakdown::default()).expect("a breakdown is JSON");
    assert_eq!(
        text,
        r#"{"frozen_weights":0,"adapters":0,"gradients":0,"optimizer_state":0,"saved_activations":0,"temporaries":0,"workspace":0,"runtime_reserve":0}"#
    );
    assert_eq!(json["breakdown"]["runtime_reserve"], 3);
    let saved = &json["saved"][0];
    assert_eq!(saved["value"], "v0");
    assert_eq!(saved["module"], "norm");
    assert_eq!(saved["kind"], "cos");
    assert_eq!(saved["bytes"], 2048);
    assert_eq!(saved["by"][0]["op"], "matmul");
    assert!(saved.get("id").is_none());
}

#[test]
fn a_base_weight_stays_one_when_it_is_trained() {
    let p = planned(
        "param %w : f32[8,8] trained
         param %table : f32[8,8] constant
         param %l.lora_B.weight : f32[8,8] frozen
         param %l.lora_B.weight.exp_avg : f32[8,8] optstate",
    );
    let b = p.plan.report(&p.graph, 0).breakdown;
    assert_eq!(b[Category::FrozenWeights], 1024);
    assert_eq!(b[Category::Adapters], 512);
    assert_eq!(b[Category::OptimizerState], 512);
}

/// Gradients go as soon as they are added; the sums stay, and are gradients.
#[test]
fn accumulators_are_gradients_that_stay() {
    let planned = planned(
        "param %x : bf16[64,8] input
         param %b : bf16[8,8] trained
         param %sum : f32[8,8] optstate
         param %keep : f32[] optstate
         param %weight : f32[] optstate
         param %m : f32[8,8] optstate
         param %v : f32[8,8] optstate
         param %step : i64[] optstate
         param %lr : f32[] optstate
         v0 = matmul %x, %b : bf16[64,8]
         v1 = reduce_sum v0 {axes=[0,1]} : bf16[]
         backward:
         v2 = fill {dtype=bf16, shape=[64,8], value=1.0} : bf16[64,8] of v1
         v3 = matmul %x, v2 {trans_a} : bf16[8,8] of v0
         v4 = accumulate %sum, v3, %keep, %weight : f32[8,8]
         update:
         v5, v6, v7 = adamw %b, v4, %m, %v, %step, %lr : bf16[8,8], f32[8,8], f32[8,8]
         out \"loss\" = v1 loss
         out \"grad::b\" = v4 gradient %b
         out \"sum\" = v4 updated %sum
         out \"next::b\" = v5 updated %b
         out \"next::m\" = v6 updated %m
         out \"next::v\" = v7 updated %v",
    );
    let gradient = planned.plan.place(planned.value("v3")).expect("a place");
    let live = &planned.plan.live_range(gradient.storage).positions;
    assert_eq!(live.end, live.start + 2, "it dies where it is added");
    let report = planned.plan.report(&planned.graph, 0);
    assert_eq!(report.breakdown[Category::Gradients], ALIGN);
    assert_eq!(report.breakdown.total(), report.peak_bytes);
}
