//! Plans are run: random steps, in an arena of bytes, against the same step with memory for everything.

mod arena;
mod common;
#[path = "patterns/mod.rs"]
mod patterns;
mod steps;

use arena::{Met, Values};
use lorafa_ir::Graph;
use lorafa_plan::{Plan, PlanDisplay, check, plan};
use proptest::prelude::*;

/// Plans and runs a step; the error has all that is needed to understand it.
fn runs(graph: &Graph, params: &Values) -> Result<(Plan, Met), String> {
    graph
        .verify()
        .map_err(|error| format!("{error}\n{graph}"))?;
    let plan = plan(graph).map_err(|error| format!("{error}\n{graph}"))?;
    let context = |error: String| format!("{error}\n{graph}\n{}", PlanDisplay(graph, &plan));
    check(plan.problem(), plan.layout()).map_err(|error| context(error.to_string()))?;
    let expected = arena::run(graph, params).map_err(|error| context(error.to_string()))?;
    let met = arena::simulate(graph, &plan, &expected).map_err(context)?;
    Ok((plan, met))
}

proptest! {
    #![proptest_config(patterns::config(800))]

    #[test]
    fn nothing_is_clobbered_before_its_last_read(seed: u64, count in 0..60_usize) {
        let (graph, params) = steps::step(seed, count);
        let (plan, _) = runs(&graph, &params).map_err(TestCaseError::fail)?;
        let report = plan.report(&graph, seed);
        prop_assert_eq!(report.breakdown.total(), report.peak_bytes);
        let saved: u64 = report.saved.iter().map(|saved| saved.bytes).sum();
        prop_assert_eq!(saved, report.breakdown[lorafa_plan::Category::SavedActivations]);
    }
}

#[test]
fn random_steps_have_all_that_can_go_wrong() {
    let mut all = Met::default();
    let mut kinds = std::collections::BTreeSet::new();
    for seed in 0..300 {
        let (graph, params) = steps::step(seed, 60);
        let (_, met) = runs(&graph, &params).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        all.views += met.views;
        all.in_place += met.in_place;
        all.in_part += met.in_part;
        all.joined += met.joined;
        all.updates += met.updates;
        all.scratch += met.scratch;
        kinds.extend(graph.ops().map(|op| op.kind.name()));
    }
    assert!(
        all.views > 2000 && all.in_place > 1000 && all.updates > 500 && all.scratch > 50,
        "{all:?}"
    );
    assert!(all.joined > 1000 && all.in_part > 100, "{all:?}");
    assert!(kinds.len() > 40, "{kinds:?}");
}
