//! Which tensor of a checkpoint is which weight.

use super::Wanted;
use crate::error::TensorProblem;
use crate::names;
use crate::shards::{Shards, Tensor};
use std::collections::{BTreeMap, BTreeSet};

/// How many prefixes of either side are tried; the most common ones.
const MAX_PREFIXES: usize = 16;

/// How many components a prefix has at most.
const MAX_DEPTH: usize = 3;

/// What quantized checkpoints have beside or in place of `….weight`.
const PACKED: &[&str] = &[
    "qweight",
    "weight_packed",
    "weight_scale",
    "weight_scale_inv",
    "weight.absmax",
    "SCB",
];

/// What a weight is in a checkpoint.
#[derive(Debug)]
pub(super) enum Found<'s> {
    /// This tensor, under these names, which hold the same values.
    Tensor {
        names: Vec<&'s str>,
        tensor: &'s Tensor,
    },
    /// Nothing, and it may go without.
    Nothing,
    /// Something that does not do.
    Problem(TensorProblem),
}

/// Names that start with `from` start with `to` in the checkpoint; others are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule<'a> {
    from: &'a str,
    to: &'a str,
}

impl Rule<'_> {
    fn apply(&self, name: &str) -> String {
        match name.strip_prefix(self.from) {
            Some(rest) => format!("{}{rest}", self.to),
            None => name.to_string(),
        }
    }
}

/// The checkpoint's tensors by plain name, with the names in their files.
type Files<'s> = BTreeMap<String, (&'s str, &'s Tensor)>;

/// The tensor of each wanted weight.
#[derive(Debug)]
pub(super) struct Matching<'s> {
    /// In the order of the weights.
    pub(super) found: Vec<Found<'s>>,
    from: String,
    to: String,
}

impl<'s> Matching<'s> {
    /// Finds the one rule under which every weight has a tensor of its own. If there is none, finds what fits best, so that
    /// what is missing can be said. A rule renames most weights, as that for a model without its head does: one that renames
    /// a few would be a guess.
    pub(super) fn new(
        wanted: &[Wanted],
        shards: &'s Shards,
        problems: &mut Vec<TensorProblem>,
    ) -> Self {
        let files = files(shards, problems);
        let own = wanted
            .iter()
            .flat_map(|w| w.names.iter().map(String::as_str));
        let (mut from, to) = (prefixes(own), prefixes(files.keys().map(String::as_str)));
        let starts = |w: &Wanted, from: &str| w.names.iter().any(|name| name.starts_with(from));
        from.retain(|from| wanted.iter().filter(|w| starts(w, from)).count() * 2 > wanted.len());
        let none = Rule { from: "", to: "" };
        let others = from
            .iter()
            .flat_map(|from| to.iter().map(|to| Rule { from, to }));
        let others = others.filter(|rule| rule.from != rule.to);
        let mut best: Option<Candidate> = None;
        for rule in std::iter::once(none).chain(others) {
            let candidate = Candidate::new(rule, wanted, shards, &files);
            if rule != none && !candidate.apart {
                continue;
            }
            let perfect = rule == none && candidate.complete;
            match &mut best {
                Some(other) if other.score() > candidate.score() => {}
                // The same tensors by another rule, or one more that is not whole: the first will do.
                Some(other)
                    if other.score() == candidate.score()
                        && (other.names == candidate.names || !candidate.complete) => {}
                Some(other) if other.score() == candidate.score() => {
                    other.rivals.push(candidate.names);
                }
                _ => best = Some(candidate),
            }
            if perfect {
                break;
            }
        }
        let Some(best) = best else {
            unreachable!("there is always the rule that changes nothing")
        };
        let (from, to) = (best.rule.from.to_string(), best.rule.to.to_string());
        let weights = wanted.iter().enumerate();
        let found = weights.map(|(i, weight)| best.found(i, weight, shards, &files));
        Matching {
            found: found.collect(),
            from,
            to,
        }
    }

    /// The rule in words, if it changes names.
    pub(super) fn renamed(&self) -> Option<String> {
        let quoted = |prefix: &str| match prefix {
            "" => "nothing".to_string(),
            prefix => format!("`{prefix}`"),
        };
        let changes = self.from != self.to;
        changes.then(|| format!("{} for {}", quoted(&self.to), quoted(&self.from)))
    }
}

/// What one rule finds.
struct Candidate<'a, 's> {
    rule: Rule<'a>,
    /// The names of each weight that the checkpoint has.
    names: Vec<Vec<&'s str>>,
    /// Whether no two weights are one tensor.
    apart: bool,
    /// Whether also every weight that must be there is.
    complete: bool,
    hits: usize,
    /// What other rules find that are as good.
    rivals: Vec<Vec<Vec<&'s str>>>,
}

impl<'a, 's> Candidate<'a, 's> {
    fn new(rule: Rule<'a>, wanted: &[Wanted], shards: &'s Shards, files: &Files<'s>) -> Self {
        let names: Vec<Vec<&str>> = wanted.iter().map(|w| hits(w, rule, files)).collect();
        let there = wanted.iter().zip(&names).all(|(weight, names)| {
            !names.is_empty() || weight.optional || tied(weight, rule, shards, files).is_some()
        });
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        let apart = names.iter().flatten().all(|name| seen.insert(name));
        let hits = names.iter().filter(|names| !names.is_empty()).count();
        Candidate {
            rule,
            apart,
            complete: there && apart,
            names,
            hits,
            rivals: Vec::new(),
        }
    }

    fn score(&self) -> (bool, usize) {
        (self.complete, self.hits)
    }

    fn found(&self, i: usize, weight: &Wanted, shards: &'s Shards, files: &Files<'s>) -> Found<'s> {
        let name = weight.name().to_string();
        let rival = self.rivals.iter().find(|rival| rival[i] != self.names[i]);
        if let Some(rival) = rival {
            let tensors = self.names[i].iter().chain(&rival[i]);
            let tensors = tensors.map(|t| t.to_string()).collect();
            return Found::Problem(TensorProblem::Ambiguous { name, tensors });
        }
        let mut names = self.names[i].clone();
        if names.is_empty() {
            names.extend(tied(weight, self.rule, shards, files));
        }
        let tensors: Vec<&Tensor> = names.iter().filter_map(|name| shards.get(name)).collect();
        let Some(tensor) = tensors.first().copied() else {
            if weight.optional {
                return Found::Nothing;
            }
            let sought = weight.names.iter().map(|name| self.rule.apply(name));
            let sought: Vec<String> = sought.collect();
            return Found::Problem(match packed(&sought, files) {
                Some(tensor) => TensorProblem::Quantized { name, tensor },
                None => TensorProblem::Missing { name, sought },
            });
        };
        let same = |other: &&Tensor| other.shape == tensor.shape && other.bytes == tensor.bytes;
        if !tensors[1..].iter().all(same) {
            let tensors = names.iter().map(|t| t.to_string()).collect();
            return Found::Problem(TensorProblem::Untied { name, tensors });
        }
        Found::Tensor { names, tensor }
    }
}

/// Every tensor by the name it has without wrappers.
fn files<'s>(shards: &'s Shards, problems: &mut Vec<TensorProblem>) -> Files<'s> {
    let mut files = Files::new();
    for (name, tensor) in shards.iter() {
        let plain = names::plain(name);
        if let Some((other, _)) = files.insert(plain.clone(), (name, tensor)) {
            problems.push(TensorProblem::Ambiguous {
                name: plain,
                tensors: vec![other.to_string(), name.to_string()],
            });
        }
    }
    files
}

/// The names in the files of a weight.
fn hits<'s>(weight: &Wanted, rule: Rule, files: &Files<'s>) -> Vec<&'s str> {
    let mut found = Vec::new();
    for name in &weight.names {
        let renamed = rule.apply(name);
        // Nothing to take off means something to put on, which the head goes without.
        let kept = rule.from.is_empty().then_some(name);
        let hit = files
            .get(&renamed)
            .or_else(|| files.get(&old_name(&renamed)?))
            .or_else(|| files.get(kept?));
        if let Some((name, _)) = hit
            && !found.contains(name)
        {
            found.push(*name);
        }
    }
    found
}

/// What TensorFlow called the weights of a layer norm, as old checkpoints do.
fn old_name(name: &str) -> Option<String> {
    let stem = name.strip_suffix(".weight").map(|stem| (stem, "gamma"));
    let (stem, old) = stem.or_else(|| Some((name.strip_suffix(".bias")?, "beta")))?;
    stem.ends_with("LayerNorm").then(|| format!("{stem}.{old}"))
}

/// The input embedding in place of an output embedding that the checkpoint leaves out because they are tied, if there is
/// only one of the right shape.
fn tied<'s>(weight: &Wanted, rule: Rule, shards: &Shards, files: &Files<'s>) -> Option<&'s str> {
    let name = weight.names.last()?;
    if shards.unties() || !names::is_output_embedding(name) || !name.ends_with(".weight") {
        return None;
    }
    let shape = weight.ty.known_shape()?;
    let mut inputs = files.iter().filter(|(plain, (_, tensor))| {
        names::is_input_embedding(plain)
            && plain.ends_with(".weight")
            && plain.starts_with(rule.to)
            && tensor.shape == shape.as_slice()
    });
    let (_, (only, _)) = inputs.next()?;
    inputs.next().is_none().then_some(*only)
}

/// A tensor that holds one of these weights in a compressed form.
fn packed(names: &[String], files: &Files) -> Option<String> {
    let stems = names.iter().filter_map(|name| name.strip_suffix(".weight"));
    let packed = stems.flat_map(|stem| PACKED.iter().map(move |last| format!("{stem}.{last}")));
    packed
        .filter_map(|name| files.get(&name))
        .map(|(name, _)| name.to_string())
        .next()
}

/// The most common prefixes of names, up to the first number, and the empty one; each ends in a dot.
fn prefixes<'n>(names: impl Iterator<Item = &'n str>) -> Vec<String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for name in names {
        for (at, _) in name.match_indices('.').take(MAX_DEPTH) {
            let last = name[..at].rsplit('.').next().unwrap_or_default();
            if last.bytes().all(|b| b.is_ascii_digit()) {
                break;
            }
            *counts.entry(&name[..=at]).or_default() += 1;
        }
    }
    let mut counts: Vec<(&str, usize)> = counts.into_iter().collect();
    counts.sort_by_key(|(prefix, count)| (std::cmp::Reverse(*count), *prefix));
    let common = counts.into_iter().take(MAX_PREFIXES);
    let common = common.map(|(prefix, _)| prefix.to_string());
    std::iter::once(String::new()).chain(common).collect()
}
