//! Equality saturation: all that some rules make of an expression at once, and the cheapest of it.
//!
//! [`language`] has the terms, [`rules`] what is equal, [`read`] makes terms of a graph, [`extract`] chooses among what
//! saturation found, and [`write`] puts the choice in the graph. Limits are counts, so that what comes out
//! does not depend on the machine.

pub(crate) mod extract;
pub(crate) mod language;
pub(crate) mod read;
pub(crate) mod rules;
pub(crate) mod write;

#[cfg(test)]
mod tests;

use egg::{Id, Runner, SimpleScheduler};
use extract::Cost;
use language::{Terms, Types};
use std::time::Duration;

/// Most rounds of all rules.
const ROUNDS: usize = 12;

/// Most terms; what was found until then counts.
const TERMS: usize = 4_000;

/// Applies the rules until they find nothing new.
pub(crate) fn saturate(terms: Terms) -> Terms {
    let runner = Runner::<_, _, ()>::new(Types::default())
        .with_egraph(terms)
        .with_scheduler(SimpleScheduler)
        .with_iter_limit(ROUNDS)
        .with_node_limit(TERMS)
        .with_time_limit(Duration::MAX);
    runner.run(rules::all()).egraph
}

/// A cheaper spelling of a term.
pub(crate) struct Simplified {
    /// What to build.
    pub(crate) plan: write::Plan,
    /// What the term costs as it is.
    pub(crate) before: Cost,
    /// The rules that lead from one to the other.
    pub(crate) rules: Vec<String>,
}

/// The cheapest spelling of a term, if that is cheaper than the term itself.
pub(crate) fn simplify(terms: Terms, root: Id) -> Option<Simplified> {
    let found = terms.id_to_expr(root);
    let before = write::cost(&terms, &found);
    let mut terms = saturate(terms);
    let plan = write::Plan::of(&terms, root)?;
    if plan.cost >= before {
        return None;
    }
    let chosen = plan.expression(&terms)?;
    let rules = rules::chain(&mut terms, &found, &chosen);
    Some(Simplified {
        plan,
        before,
        rules,
    })
}
