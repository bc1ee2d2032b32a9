//! Extraction: of each class of equal terms that is needed, one; the cheapest choice of all.
//!
//! What several terms share is computed once, and what several read is kept once, so the cheapest of each class by itself
//! need not be the cheapest of all. The search tries every choice, and leaves out those that cannot be cheaper
//! than the best so far.

use std::fmt;
use std::ops::Add;

/// What a choice costs. Bytes matter first, then products, then ops.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub(crate) struct Cost {
    /// Bytes that are kept for the backward pass.
    pub(crate) bytes: u64,
    /// Floating-point operations of products and sums; a factor becomes part of a product.
    pub(crate) flops: u64,
    /// Ops.
    pub(crate) ops: u64,
}

impl Cost {
    /// More than anything costs.
    pub(crate) const MOST: Cost = Cost {
        bytes: u64::MAX,
        flops: u64::MAX,
        ops: u64::MAX,
    };
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cost { bytes, flops, ops } = self;
        write!(f, "{bytes} B kept, {flops} FLOPs, {ops} ops")
    }
}

impl Add for Cost {
    type Output = Cost;

    fn add(self, other: Cost) -> Cost {
        Cost {
            bytes: self.bytes.saturating_add(other.bytes),
            flops: self.flops.saturating_add(other.flops),
            ops: self.ops.saturating_add(other.ops),
        }
    }
}

/// One term of a class.
#[derive(Clone, Default, Debug)]
pub(crate) struct Choice {
    /// What it costs by itself, beside what it keeps.
    pub(crate) flops: u64,
    /// Ops, likewise.
    pub(crate) ops: u64,
    /// What it keeps, as a place in [`Problem::bytes`]; only of what needs nothing.
    pub(crate) keeps: Option<usize>,
    /// The classes that it is made of. It costs something if there are any.
    pub(crate) needs: Vec<usize>,
}

/// Classes of equal terms, and the one to have.
#[derive(Clone, Default, Debug)]
pub(crate) struct Problem {
    /// The terms of each class.
    pub(crate) classes: Vec<Vec<Choice>>,
    /// Sizes of what can be kept.
    pub(crate) bytes: Vec<u64>,
    /// The class that is asked for.
    pub(crate) root: usize,
}

/// Of each class that is needed, the place of the term.
pub(crate) type Chosen = Vec<Option<usize>>;

/// Choices that are tried at most; what was best until then is taken.
pub(crate) const TRIES: usize = 20_000;

/// The cheapest choice; `None` if the root cannot be made of anything.
pub(crate) fn extract(problem: &Problem) -> Option<(Cost, Chosen)> {
    let bounds = bounds(problem);
    if bounds[problem.root] == Cost::MOST {
        return None;
    }
    let greedy = greedy(problem, &bounds);
    let mut search = Search {
        problem,
        least: problem.classes.iter().map(|class| least(class)).collect(),
        best: (cost(problem, &greedy), greedy),
        chosen: vec![None; problem.classes.len()],
        kept: vec![0; problem.bytes.len()],
        bounds,
        tries: TRIES,
    };
    search.go(vec![problem.root], Cost::default());
    Some(search.best)
}

/// What a term costs by itself.
fn own(problem: &Problem, choice: &Choice) -> Cost {
    Cost {
        bytes: choice.keeps.map_or(0, |kept| problem.bytes[kept]),
        flops: choice.flops,
        ops: choice.ops,
    }
}

/// What the cheapest term of a class costs by itself at least, if all that it keeps is kept anyway.
fn least(class: &[Choice]) -> Cost {
    let costs = class.iter().map(|choice| Cost {
        bytes: 0,
        flops: choice.flops,
        ops: choice.ops,
    });
    costs.min().unwrap_or(Cost::MOST)
}

/// What each class costs at least: its cheapest term, and the dearest of what that needs.
pub(super) fn bounds(problem: &Problem) -> Vec<Cost> {
    let mut bounds = vec![Cost::MOST; problem.classes.len()];
    loop {
        let mut changed = false;
        for (at, class) in problem.classes.iter().enumerate() {
            let costs = class.iter().map(|choice| bound(problem, &bounds, choice));
            if let Some(cost) = costs.min().filter(|cost| *cost < bounds[at]) {
                bounds[at] = cost;
                changed = true;
            }
        }
        if !changed {
            return bounds;
        }
    }
}

fn bound(problem: &Problem, bounds: &[Cost], choice: &Choice) -> Cost {
    let needs = choice.needs.iter().map(|class| bounds[*class]);
    match needs.max().unwrap_or_default() {
        Cost::MOST => Cost::MOST,
        needs => own(problem, choice) + needs,
    }
}

/// Of each class the term whose bound is lowest: bounds fall from a term to what it needs, so it is no cycle.
pub(super) fn greedy(problem: &Problem, bounds: &[Cost]) -> Chosen {
    let mut chosen = vec![None; problem.classes.len()];
    let mut work = vec![problem.root];
    while let Some(class) = work.pop() {
        if chosen[class].is_none() {
            let terms = problem.classes[class].iter().enumerate();
            let best = terms.min_by_key(|(_, choice)| bound(problem, bounds, choice));
            chosen[class] = best.map(|(at, _)| at);
            work.extend(best.iter().flat_map(|(_, choice)| &choice.needs));
        }
    }
    chosen
}

/// What a choice costs in all.
pub(crate) fn cost(problem: &Problem, chosen: &Chosen) -> Cost {
    let mut kept = vec![false; problem.bytes.len()];
    let taken = chosen.iter().zip(&problem.classes);
    let taken = taken.filter_map(|(at, class)| at.map(|at| &class[at]));
    taken.fold(Cost::default(), |sum, choice| {
        let mut cost = own(problem, choice);
        if let Some(at) = choice.keeps
            && std::mem::replace(&mut kept[at], true)
        {
            cost.bytes = 0;
        }
        sum + cost
    })
}

struct Search<'p> {
    problem: &'p Problem,
    /// What each class costs at least.
    bounds: Vec<Cost>,
    /// What a term of each class costs by itself at least.
    least: Vec<Cost>,
    best: (Cost, Chosen),
    chosen: Chosen,
    /// How many terms keep each of what can be kept.
    kept: Vec<usize>,
    tries: usize,
}

impl Search<'_> {
    /// Chooses a term of each open class, where the terms chosen so far cost so much.
    fn go(&mut self, mut open: Vec<usize>, cost: Cost) {
        let Some(class) = open.pop() else {
            if cost < self.best.0 {
                self.best = (cost, self.chosen.clone());
            }
            return;
        };
        let problem = self.problem;
        let mut order: Vec<usize> = (0..problem.classes[class].len()).collect();
        order.sort_by_key(|at| bound(problem, &self.bounds, &problem.classes[class][*at]));
        for at in order {
            let choice = &problem.classes[class][at];
            if self.tries == 0 {
                break;
            }
            self.tries -= 1;
            if bound(problem, &self.bounds, choice) >= self.best.0 || self.is_cycle(class, choice) {
                continue;
            }
            let mut sum = cost + own(problem, choice);
            if choice.keeps.is_some_and(|kept| self.kept[kept] > 0) {
                sum.bytes = cost.bytes;
            }
            let mut rest = open.clone();
            for need in &choice.needs {
                if self.chosen[*need].is_none() && !rest.contains(need) {
                    rest.push(*need);
                }
            }
            let least = rest.iter().fold(sum, |sum, class| sum + self.least[*class]);
            if least < self.best.0 {
                self.chosen[class] = Some(at);
                choice.keeps.iter().for_each(|kept| self.kept[*kept] += 1);
                self.go(rest, sum);
                choice.keeps.iter().for_each(|kept| self.kept[*kept] -= 1);
                self.chosen[class] = None;
            }
        }
    }

    /// Whether what a term needs is made of its own class, as chosen so far.
    fn is_cycle(&self, class: usize, choice: &Choice) -> bool {
        let mut work = choice.needs.clone();
        let mut seen = vec![false; self.chosen.len()];
        while let Some(need) = work.pop() {
            if need == class {
                return true;
            }
            if !std::mem::replace(&mut seen[need], true)
                && let Some(at) = self.chosen[need]
            {
                work.extend(&self.problem.classes[need][at].needs);
            }
        }
        false
    }
}
