//! Extraction: of each class of equal terms that is needed, one; the cheapest choice of all.
//!
//! What several terms share is computed once, and what several read is kept once, so the cheapest of each class by itself
//! need not be the cheapest of all. What is kept is decided first (`keep`): all smallest ways to keep enough. Given that, roots that
//! share no class are searched apart, each by trying every choice but those that cannot be cheaper than the best so far.
//!
//! Both searches end after [`TRIES`] steps. What was best until then is taken, which is no worse than the first way found: what
//! is largest is not kept where it need not be, and each class is its term with the lowest bound.

use super::keep::{least_kept, makeable};
use std::collections::BTreeSet;
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

/// Classes of equal terms, and those to have.
#[derive(Clone, Default, Debug)]
pub(crate) struct Problem {
    /// The terms of each class.
    pub(crate) classes: Vec<Vec<Choice>>,
    /// Sizes of what can be kept.
    pub(crate) bytes: Vec<u64>,
    /// The classes that are asked for.
    pub(crate) roots: Vec<usize>,
}

/// Of each class that is needed, the place of the term.
pub(crate) type Chosen = Vec<Option<usize>>;

/// Steps of a search at most.
pub(crate) const TRIES: usize = 20_000;

/// The cheapest choice.
#[derive(Clone, Debug)]
pub(crate) struct Extracted {
    pub(crate) cost: Cost,
    pub(crate) chosen: Chosen,
    /// Whether every search came to its end.
    pub(crate) proven: bool,
}

/// The cheapest choice; `None` if some root cannot be made of anything.
pub(crate) fn extract(problem: &Problem) -> Option<Extracted> {
    let (ways, mut proven) = least_kept(problem)?;
    let mut best: Option<(Cost, Chosen)> = None;
    for kept in ways {
        let found = with_kept(problem, &kept, &mut proven);
        let total = (cost(problem, &found), found);
        if best.as_ref().is_none_or(|best| total.0 < best.0) {
            best = Some(total);
        }
    }
    let (cost, chosen) = best?;
    Some(Extracted {
        cost,
        chosen,
        proven,
    })
}

/// The choice with the fewest FLOPs, then ops, that keeps no more than this.
fn with_kept(problem: &Problem, kept: &[bool], proven: &mut bool) -> Chosen {
    let makeable = makeable(problem, kept);
    let usable = |choice: &Choice| {
        choice.keeps.is_none_or(|at| kept[at]) && choice.needs.iter().all(|need| makeable[*need])
    };
    let usable: Vec<Vec<bool>> = problem
        .classes
        .iter()
        .map(|class| class.iter().map(usable).collect())
        .collect();
    let mut chosen = vec![None; problem.classes.len()];
    for (roots, shared) in apart(problem, &usable) {
        let nothing = vec![false; problem.classes.len()];
        let mut search = Search::new(problem, &usable, &roots, nothing);
        if roots.len() > 1 {
            for root in &roots {
                let mut alone = Search::new(problem, &usable, &[*root], shared.clone());
                alone.run();
                if alone.tries > 0 {
                    search.least[*root] = alone.best.0;
                }
            }
        }
        search.run();
        *proven &= search.tries > 0;
        for (class, at) in search.best.1.iter().enumerate() {
            chosen[class] = chosen[class].or(*at);
        }
    }
    chosen
}

/// Roots in groups that share no class that costs something, each with the classes that several of its roots can be made of.
fn apart(problem: &Problem, usable: &[Vec<bool>]) -> Vec<(Vec<usize>, Vec<bool>)> {
    let mut groups: Vec<(Vec<usize>, Vec<bool>, Vec<bool>)> = Vec::new();
    for root in BTreeSet::from_iter(&problem.roots) {
        let mut roots = vec![*root];
        let mut reach = reach(problem, usable, *root);
        let mut shared = vec![false; problem.classes.len()];
        groups.retain(|(others, theirs, between)| {
            let both = || reach.iter().zip(theirs).map(|(a, b)| *a && *b);
            if !both().any(|both| both) {
                return true;
            }
            for ((shared, both), between) in shared.iter_mut().zip(both()).zip(between) {
                *shared |= both || *between;
            }
            for (reach, theirs) in reach.iter_mut().zip(theirs) {
                *reach |= *theirs;
            }
            roots.extend(others);
            false
        });
        groups.push((roots, reach, shared));
    }
    let groups = groups.into_iter();
    groups.map(|(roots, _, shared)| (roots, shared)).collect()
}

/// The classes that a root can be made of, without those that cost nothing.
fn reach(problem: &Problem, usable: &[Vec<bool>], root: usize) -> Vec<bool> {
    let mut reach = vec![false; problem.classes.len()];
    let mut work = vec![root];
    while let Some(class) = work.pop() {
        let choices = problem.classes[class].iter().zip(&usable[class]);
        let needs = choices
            .filter(|(_, usable)| **usable)
            .map(|(c, _)| &c.needs);
        let needs: Vec<usize> = needs.flatten().copied().collect();
        if !needs.is_empty() && !std::mem::replace(&mut reach[class], true) {
            work.extend(needs);
        }
    }
    reach
}

/// What a term costs by itself, but for what it keeps.
fn own(choice: &Choice, free: bool) -> Cost {
    match free {
        true => Cost::default(),
        false => Cost {
            bytes: 0,
            flops: choice.flops,
            ops: choice.ops,
        },
    }
}

/// What a choice costs in all.
pub(crate) fn cost(problem: &Problem, chosen: &Chosen) -> Cost {
    let mut kept = vec![false; problem.bytes.len()];
    let taken = chosen.iter().zip(&problem.classes);
    let taken = taken.filter_map(|(at, class)| at.map(|at| &class[at]));
    taken.fold(Cost::default(), |sum, choice| {
        let mut cost = own(choice, false);
        if let Some(at) = choice.keeps
            && !std::mem::replace(&mut kept[at], true)
        {
            cost.bytes = problem.bytes[at];
        }
        sum + cost
    })
}

/// What each class costs at least: its cheapest term, and the dearest of what that needs.
fn bounds(problem: &Problem, usable: &[Vec<bool>], free: &[bool]) -> Vec<Cost> {
    let mut bounds = vec![Cost::MOST; problem.classes.len()];
    loop {
        let mut changed = false;
        for (at, class) in problem.classes.iter().enumerate() {
            let choices = class.iter().zip(&usable[at]).filter(|(_, usable)| **usable);
            let costs = choices.map(|(choice, _)| bound(&bounds, choice, free[at]));
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

fn bound(bounds: &[Cost], choice: &Choice, free: bool) -> Cost {
    let needs = choice.needs.iter().map(|class| bounds[*class]);
    match needs.max().unwrap_or_default() {
        Cost::MOST => Cost::MOST,
        needs => own(choice, free) + needs,
    }
}

struct Search<'p> {
    problem: &'p Problem,
    /// The terms of each class that can be chosen, the lowest bound first.
    order: Vec<Vec<usize>>,
    /// What each class costs at least.
    bounds: Vec<Cost>,
    /// What choosing a term of each class adds at least.
    least: Vec<Cost>,
    best: (Cost, Chosen),
    chosen: Chosen,
    roots: Vec<usize>,
    /// Classes whose terms cost nothing by themselves.
    free: Vec<bool>,
    tries: usize,
}

impl<'p> Search<'p> {
    fn new(problem: &'p Problem, usable: &[Vec<bool>], roots: &[usize], free: Vec<bool>) -> Self {
        let bounds = bounds(problem, usable, &free);
        let mut order = Vec::new();
        for (class, usable) in problem.classes.iter().zip(usable) {
            let mut places: Vec<usize> = (0..class.len()).filter(|at| usable[*at]).collect();
            places.sort_by_key(|at| bound(&bounds, &class[*at], false));
            order.push(places);
        }
        let least = problem.classes.iter().zip(&order).zip(&free);
        let least = least.map(|((class, order), free)| {
            let costs = order.iter().map(|at| own(&class[*at], *free));
            costs.min().unwrap_or(Cost::MOST)
        });
        let least = least.collect();
        // Bounds fall from a term to what it needs, so the lowest of each class is no cycle.
        let mut greedy = vec![None; problem.classes.len()];
        let mut work = roots.to_vec();
        while let Some(class) = work.pop() {
            if let (None, Some(at)) = (greedy[class], order[class].first()) {
                greedy[class] = Some(*at);
                work.extend(&problem.classes[class][*at].needs);
            }
        }
        Search {
            problem,
            order,
            bounds,
            least,
            best: (of_terms(problem, &greedy, &free), greedy),
            chosen: vec![None; problem.classes.len()],
            roots: roots.to_vec(),
            free,
            tries: TRIES,
        }
    }

    fn run(&mut self) {
        self.go(self.roots.clone(), Cost::default());
    }

    /// Chooses a term of each open class, where the terms chosen so far cost so much.
    fn go(&mut self, mut open: Vec<usize>, cost: Cost) {
        let Some(class) = open.pop() else {
            if cost < self.best.0 {
                self.best = (cost, self.chosen.clone());
            }
            return;
        };
        let problem = self.problem;
        for place in 0..self.order[class].len() {
            let at = self.order[class][place];
            let choice = &problem.classes[class][at];
            if self.tries == 0 {
                break;
            }
            self.tries -= 1;
            let free = self.free[class];
            if bound(&self.bounds, choice, free) >= self.best.0 || self.is_cycle(class, choice) {
                continue;
            }
            let sum = cost + own(choice, free);
            let mut rest = open.clone();
            for need in &choice.needs {
                if self.chosen[*need].is_none() && !rest.contains(need) {
                    rest.push(*need);
                }
            }
            let least = rest.iter().fold(sum, |sum, class| sum + self.least[*class]);
            if least < self.best.0 {
                self.chosen[class] = Some(at);
                self.go(rest, sum);
                self.chosen[class] = None;
            }
        }
    }

    /// Whether what a term needs is made of its own class, as chosen so far.
    fn is_cycle(&self, class: usize, choice: &Choice) -> bool {
        // In order of coming there; few.
        let mut work = choice.needs.clone();
        let mut next = 0;
        while let Some(need) = work.get(next).copied() {
            if need == class {
                return true;
            }
            next += 1;
            if let Some(at) = self.chosen[need] {
                let needs = &self.problem.classes[need][at].needs;
                for need in needs {
                    if !work.contains(need) {
                        work.push(*need);
                    }
                }
            }
        }
        false
    }
}

/// What the terms of a choice cost, but for what they keep.
fn of_terms(problem: &Problem, chosen: &Chosen, free: &[bool]) -> Cost {
    let taken = chosen.iter().zip(&problem.classes).zip(free);
    taken.fold(Cost::default(), |sum, ((at, class), free)| match at {
        Some(at) => sum + own(&class[*at], *free),
        None => sum,
    })
}
