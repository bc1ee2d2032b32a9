//! Equality saturation: all that some rules make of an expression at once, and the cheapest of it.
//!
//! [`language`] has the terms, [`rules`] what is equal, [`read`] makes terms of a graph, [`extract`] chooses among what
//! saturation found, what to keep first (`keep`), and [`write`] puts the choice in the graph. Limits are counts, so that what comes out
//! does not depend on the machine.

pub(crate) mod extract;
mod keep;
pub(crate) mod language;
pub(crate) mod read;
pub(crate) mod rules;
pub(crate) mod write;

#[cfg(test)]
mod tests;

use egg::{Runner, SimpleScheduler};
use extract::Cost;
use language::{Terms, Types};
use read::Component;
use std::time::Duration;

/// Most rounds of all rules.
const ROUNDS: usize = 12;

/// Most terms for each gradient; what was found until then counts.
const TERMS: usize = 4_000;

/// Applies the rules until they find nothing new.
pub(crate) fn saturate(terms: Terms, roots: usize) -> Terms {
    let runner = Runner::<_, _, ()>::new(Types::default())
        .with_egraph(terms)
        .with_scheduler(SimpleScheduler)
        .with_iter_limit(ROUNDS)
        .with_node_limit(TERMS.saturating_mul(roots))
        .with_time_limit(Duration::MAX);
    runner.run(rules::all()).egraph
}

/// Cheaper spellings of some gradients.
pub(crate) struct Simplified {
    /// What to build.
    pub(crate) plan: write::Plan,
    /// What the gradients cost together as they are.
    pub(crate) before: Cost,
    /// Of each gradient, the rules that lead from one spelling to the other; `None` for those that stay.
    pub(crate) rules: Vec<Option<Vec<String>>>,
}

/// The cheapest spellings of a component's gradients, if together they are cheaper than the gradients as they are.
pub(crate) fn simplify(component: Component) -> Option<Simplified> {
    let Component { terms, roots, .. } = component;
    let found: Vec<_> = roots.iter().map(|root| terms.id_to_expr(*root)).collect();
    let before = write::cost(&terms, &found.iter().collect::<Vec<_>>());
    let mut terms = saturate(terms, roots.len());
    let plan = write::Plan::of(&terms, roots)?;
    if plan.found.cost >= before {
        return None;
    }
    let chosen = plan.expressions(&terms)?;
    // What costs as much as it was found stays so.
    let mut mixed: Vec<_> = chosen.iter().collect();
    for (at, found) in found.iter().enumerate() {
        let new = std::mem::replace(&mut mixed[at], found);
        if write::cost(&terms, &mixed) > plan.found.cost {
            mixed[at] = new;
        }
    }
    let stays: Vec<bool> = mixed
        .iter()
        .zip(&found)
        .map(|(m, f)| std::ptr::eq(*m, f))
        .collect();
    let rules = stays.iter().zip(found.iter().zip(&chosen));
    let rules = rules
        .map(|(stays, (found, chosen))| (!stays).then(|| rules::chain(&mut terms, found, chosen)));
    let rules = rules.collect();
    Some(Simplified {
        plan,
        before,
        rules,
    })
}
