//! What to keep for the backward pass: as few bytes as do.

use super::extract::{Problem, TRIES};

/// Ways to keep equally few bytes that are looked at, at most.
const WAYS: usize = 8;

/// The ways to keep enough to make the roots of with the fewest bytes, and whether these are certainly all and the fewest;
/// `None` if even all that can be kept is not enough.
pub(super) fn least_kept(problem: &Problem) -> Option<(Vec<Vec<bool>>, bool)> {
    let mut largest_first: Vec<usize> = (0..problem.bytes.len()).collect();
    largest_first.sort_by_key(|at| std::cmp::Reverse(problem.bytes[*at]));
    let mut search = Search {
        problem,
        // What is empty costs nothing to keep.
        undecided: largest_first
            .into_iter()
            .filter(|at| problem.bytes[*at] > 0)
            .collect(),
        allowed: vec![true; problem.bytes.len()],
        ways: Vec::new(),
        bytes: u64::MAX,
        tries: TRIES,
        all: true,
    };
    if !search.suffices() {
        return None;
    }
    search.go(0, 0);
    Some((search.ways, search.all && search.tries > 0))
}

/// The classes that can be made if this may be kept.
pub(super) fn makeable(problem: &Problem, kept: &[bool]) -> Vec<bool> {
    let mut makeable = vec![false; problem.classes.len()];
    loop {
        let mut changed = false;
        for (at, class) in problem.classes.iter().enumerate() {
            let fine = !makeable[at]
                && class.iter().any(|choice| {
                    choice.keeps.is_none_or(|at| kept[at])
                        && choice.needs.iter().all(|need| makeable[*need])
                });
            makeable[at] |= fine;
            changed |= fine;
        }
        if !changed {
            return makeable;
        }
    }
}

struct Search<'p> {
    problem: &'p Problem,
    /// What can be left out, in the order of deciding.
    undecided: Vec<usize>,
    /// What is not left out.
    allowed: Vec<bool>,
    ways: Vec<Vec<bool>>,
    /// What the ways keep.
    bytes: u64,
    tries: usize,
    /// Whether no way was dropped.
    all: bool,
}

impl Search<'_> {
    fn suffices(&self) -> bool {
        let makeable = makeable(self.problem, &self.allowed);
        self.problem.roots.iter().all(|root| makeable[*root])
    }

    /// Decides on all from this place on, where those before it that are kept have so many bytes.
    fn go(&mut self, place: usize, bytes: u64) {
        let Some(at) = self.undecided.get(place).copied() else {
            if bytes < self.bytes {
                self.ways.clear();
                self.bytes = bytes;
            }
            match self.ways.len() < WAYS {
                true => self.ways.push(self.allowed.clone()),
                false => self.all = false,
            }
            return;
        };
        // The first way is found whatever it takes.
        if self.tries == 0 && !self.ways.is_empty() {
            return;
        }
        self.tries = self.tries.saturating_sub(1);
        self.allowed[at] = false;
        if self.suffices() {
            self.go(place + 1, bytes);
        }
        self.allowed[at] = true;
        let bytes = bytes.saturating_add(self.problem.bytes[at]);
        // Of ways that keep as much, one may take fewer operations.
        if bytes <= self.bytes {
            self.go(place + 1, bytes);
        }
    }
}
