//! Gradient rules against finite differences, op by op.

#[path = "../common/decompose.rs"]
mod decompose;
mod elementwise;
mod harness;
#[path = "../common/mnemonics.rs"]
mod mnemonics;
#[path = "../common/rng.rs"]
mod rng;
mod structured;
mod variants;

use elementwise::{Coverage, ELEMENTWISE};
use harness::{Case, close, evaluate};
use lorafa_ir::OutputKind;
use lorafa_ir::grad::GradientError;
use lorafa_ir::interp::Array;
use mnemonics::MNEMONICS;
use std::collections::BTreeSet;
use structured::STRUCTURED;
use variants::{VARIANTS, variant};

fn table() -> impl Iterator<Item = &'static (&'static str, Coverage)> {
    ELEMENTWISE.iter().chain(STRUCTURED)
}

#[test]
fn every_op_is_in_the_table() {
    let listed: Vec<&str> = table().map(|(name, _)| *name).collect();
    assert_eq!(listed, MNEMONICS);
    let mut reached = BTreeSet::from([0]); // `param`, which is no op in the text form.
    for (name, coverage) in table() {
        match coverage {
            Coverage::Cases(cases) => {
                let case = Case::new(name, cases[0]);
                reached.insert(variant(&case.graph.op(case.op).kind));
            }
            Coverage::Refuses(_, case) => {
                let case = Case::new(name, case);
                reached.insert(variant(&case.graph.op(case.op).kind));
            }
            Coverage::Elsewhere(why) => {
                assert!(["param", "dropout_mask"].contains(name), "{why}")
            }
        }
    }
    let mask = harness::parse_op("dropout_mask", "{ratio=0.5, seed=1, shape=[2]}");
    reached.insert(variant(&mask));
    assert_eq!(reached, (0..VARIANTS).collect());
}

#[test]
fn rules_agree_with_finite_differences() {
    for (name, coverage) in table() {
        if let Coverage::Cases(cases) = coverage {
            for case in *cases {
                Case::new(name, case).check(&format!("{name} {case}"));
            }
        }
    }
}

#[test]
fn decompositions_agree_with_the_reference() {
    let mut compared = BTreeSet::new();
    for (name, coverage) in table() {
        let Coverage::Cases(cases) = coverage else {
            continue;
        };
        for text in *cases {
            let mut case = Case::new(name, text);
            let op = case.graph.op(case.op).clone();
            let operands: Option<Vec<_>> = op.operands.iter().map(|v| case.values.get(v)).collect();
            let types: Vec<_> = op.results.iter().map(|v| case.graph.ty(*v)).collect();
            let Some(Ok(expected)) = operands.map(|operands| op.kind.eval(&operands, &types))
            else {
                continue;
            };
            let mut patch = case.graph.patch("case");
            for (slot, result) in op.results.iter().enumerate() {
                patch.output(format!("y{slot}"), *result, OutputKind::Value);
            }
            if op
                .kind
                .decompose(&mut case.graph.clone().patch("try"), &op.operands)
                .is_some()
            {
                compared.insert(*name);
            }
            let found = evaluate(case.graph, &case.values);
            for (slot, expected) in expected.iter().enumerate() {
                let found = &found[&format!("y{slot}")];
                close(&found.data, &expected.data, &format!("{name} {text}"));
            }
        }
    }
    let expected = ["gated", "matmul", "rms_norm", "rotary", "silu"];
    assert_eq!(compared.into_iter().collect::<Vec<_>>(), expected);
}

#[test]
fn ops_without_a_rule_say_so() {
    for (name, coverage) in table() {
        if let Coverage::Refuses(why, text) = coverage {
            let mut case = Case::new(name, text);
            let dy = case.add_dy();
            let refusal = case.gradient(dy, &[true; 6]);
            assert_eq!(
                refusal,
                Err(GradientError::NotDifferentiable),
                "{name}: {why}"
            );
        }
    }
}

#[test]
fn rules_refuse_what_they_do_not_cover() {
    for (name, text, message) in [
        (
            "slice",
            "f64[5] {axes=[0:0:2:2]}",
            "`slice` has a gradient only for step 1",
        ),
        (
            "pad",
            "f64[5] {before=[-1], after=[0], value=0.0}",
            "`pad` that cuts has no gradient rule",
        ),
        (
            "gather_nd",
            "f64[2,3], i64[2,1]=(0,1) {batch_dims=1}",
            "`gather_nd` has a gradient only without batch axes",
        ),
        (
            "pow",
            "+f64[2], f64[2]",
            "`pow` has a gradient only for a constant exponent",
        ),
        (
            "pow",
            "+f64[2], ~f64[]",
            "`pow` has a gradient only for a constant exponent",
        ),
    ] {
        let mut case = Case::new(name, text);
        let dy = case.add_dy();
        let wants = case.wants.clone();
        let refusal = case.gradient(dy, &wants).unwrap_err();
        assert_eq!(refusal.to_string(), message);
    }
}

#[test]
fn a_result_beside_the_first_has_no_gradient() {
    let mut case = Case::new("layer_norm", "f64[2,3], f64[3] {axis=1, eps=1e-5}");
    let mean = case.graph.op(case.op).results[1];
    let dy = case.add_dy();
    let op = case.op;
    for grads in [vec![None, Some(mean)], vec![Some(dy), Some(mean)]] {
        let mut patch = case.graph.patch("gradient");
        let wants = [true, false];
        let given = lorafa_ir::grad::Gradient::apply(&mut patch, op, &grads, &wants);
        let message = "only its first result has a gradient".to_string();
        assert_eq!(given, Err(GradientError::Unsupported(message)));
    }
}

#[test]
fn ties_are_shared() {
    for (name, text, expected) in [
        ("max", "f64[2]=(1,2), f64[2]=(1,1)", [0.5, 1.0]),
        ("min", "f64[2]=(1,2), f64[2]=(1,1)", [0.5, 0.0]),
        ("reduce_max", "f64[2]=(3,3) {axes=[0]}", [0.5, 0.5]),
        ("relu", "f64[2]=(0,1)", [0.0, 1.0]),
    ] {
        let mut case = Case::new(name, text);
        let dy = case.add_dy();
        case.values.entry(dy).and_modify(|dy| dy.data.fill(1.0));
        let grads = case.gradient(dy, &case.wants.clone()).unwrap();
        let mut patch = case.graph.patch("case");
        patch.output("dx", grads[0].unwrap(), OutputKind::Value);
        let dx = &evaluate(case.graph, &case.values)["dx"];
        close(&dx.data, &expected, name);
    }
}

/// What a formula for `p`, corrected moments and learning rate gives.
type Next = fn(f64, [f64; 2], [f64; 2], f64) -> f64;

const DECAY: f64 = 0.125;

#[test]
fn adamw_is_pytorchs() {
    adamw("torch", |p, [m, v], [c1, c2], lr| {
        p * (1.0 - lr * DECAY) - lr * (m / c1) / ((v / c2).sqrt() + 1e-2)
    });
}

#[test]
fn adamw_is_pefts() {
    adamw("peft", |p, [m, v], [c1, c2], lr| {
        let next = p - lr * c2.sqrt() / c1 * m / (v.sqrt() + 1e-2);
        next + next * (-lr * DECAY)
    });
}

fn adamw(form: &str, formula: Next) {
    let (beta1, beta2, lr, step) = (0.5, 0.75, 0.25, 3);
    let attrs =
        format!("{{beta1={beta1}, beta2={beta2}, eps=0.01, weight_decay={DECAY}, form={form}}}");
    let text = format!("f32[3], f32[3], f32[3], +f32[3], i64[]=({step}), f32[]=({lr}) {attrs}");
    let mut case = Case::new("adamw", &text);
    let operands = case.graph.op(case.op).operands.clone();
    let results = case.graph.op(case.op).results.clone();
    let mut patch = case.graph.patch("case");
    for (name, value) in ["param", "m", "v"].iter().zip(results) {
        patch.output(*name, value, OutputKind::Value);
    }
    let found = evaluate(case.graph, &case.values);
    let at = |slot: usize, i: usize| case.values[&operands[slot]].data[i];
    for i in 0..3 {
        let (param, grad) = (at(0, i), at(1, i));
        let m = beta1 * at(2, i) + (1.0 - beta1) * grad;
        let v = beta2 * at(3, i) + (1.0 - beta2) * grad * grad;
        let corrections = [beta1, beta2].map(|beta: f64| 1.0 - beta.powi(step));
        let next = formula(param, [m, v], corrections, lr);
        let row = ["param", "m", "v"].map(|name| found[name].data[i]);
        close(&row, &[next, m, v], "adamw");
    }
}

/// Three micro-batches of 3, 1 and 4 labels: what the accumulator held before the first does not matter.
#[test]
fn accumulation_gives_the_mean_over_the_large_batch() {
    let mut sum = vec![f64::NAN, f64::INFINITY];
    let gradients = [[1.0, -2.0], [0.5, 4.0], [-3.0, 0.25]];
    let counts = [3.0, 1.0, 4.0];
    for (i, (gradient, count)) in gradients.iter().zip(counts).enumerate() {
        let mut case = Case::new("accumulate", "f32[2], f32[2], f32[], f32[]");
        let op = case.graph.op(case.op).clone();
        let mut patch = case.graph.patch("case");
        patch.output("sum", op.results[0], OutputKind::Value);
        let keep = if i == 0 { 0.0 } else { 1.0 };
        let data = [sum, gradient.to_vec(), vec![keep], vec![count / 8.0]];
        for (operand, data) in op.operands.iter().zip(data) {
            case.values.get_mut(operand).unwrap().data = data;
        }
        let operands: Vec<&Array> = op.operands.iter().map(|v| &case.values[v]).collect();
        let own = op.kind.eval(&operands, &[case.graph.ty(op.results[0])]);
        let own = own.unwrap()[0].data.clone();
        sum = evaluate(case.graph, &case.values)["sum"].data.clone();
        close(&own, &sum, "its own semantics and what it decomposes into");
    }
    let mean = |i: usize| {
        let weighted = gradients.iter().zip(counts).map(|(g, n)| g[i] * n);
        weighted.sum::<f64>() / 8.0
    };
    close(&sum, &[mean(0), mean(1)], "accumulate");
}
