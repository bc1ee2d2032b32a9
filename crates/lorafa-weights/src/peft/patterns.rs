//! Short names for modules that mean the right ones by PEFT's rules.

use crate::names::plain;
use crate::peft::config::Pairs;
use lorafa_ir::Graph;
use lorafa_passes::targets::Targets;
use std::collections::{BTreeMap, BTreeSet};

/// The ends of a path from a dot on, shortest first; the last is the path.
fn ends(path: &str) -> impl Iterator<Item = &str> {
    let dots = path.rmatch_indices('.').map(|(at, _)| &path[at + 1..]);
    dots.chain([path])
}

/// PEFT's `target_modules` with one name.
fn target(name: &str) -> Targets {
    Targets::List(vec![name.to_string()])
}

/// Whether PEFT's patterns take a key for a path: keys are regular expressions, in which a dot is any character.
fn matches(key: &str, path: &str) -> bool {
    ends(path).any(|end| {
        let same = |(k, p): (u8, u8)| k == p || k == b'.';
        end.len() == key.len() && key.bytes().zip(end.bytes()).all(same)
    })
}

/// The shortest names that take all of `chosen` and, of the other modules in `known`, none; and the modules that even a
/// full path takes, because theirs ends in it.
pub(super) fn target_modules(
    chosen: &BTreeSet<&str>,
    known: &BTreeSet<String>,
) -> (BTreeSet<String>, BTreeSet<String>) {
    let others = || {
        known
            .iter()
            .map(String::as_str)
            .filter(|m| !chosen.contains(m))
    };
    let mut names = BTreeSet::new();
    let mut excluded = BTreeSet::new();
    for module in chosen {
        let alone = |name: &&str| {
            let target = target(name);
            !others().any(|other| target.matches(other).is_some())
        };
        match ends(module).find(alone) {
            Some(name) => names.insert(name.to_string()),
            None => {
                let target = target(module);
                let taken = others().filter(|other| target.matches(other).is_some());
                excluded.extend(taken.map(str::to_string));
                names.insert(module.to_string())
            }
        };
    }
    (names, excluded)
}

/// The value that most modules have, and the shortest keys for those that have another. Among equally common values the
/// first by module counts.
pub(super) fn pattern<T: Copy + PartialEq>(values: &BTreeMap<&str, T>) -> (Option<T>, Pairs<T>) {
    let count = |value: T| values.values().filter(|v| **v == value).count();
    let most = values.values().map(|value| count(*value)).max();
    let common = values.values().copied().find(|v| Some(count(*v)) == most);
    let mut keys: Vec<(String, T)> = Vec::new();
    for (module, value) in values.iter().filter(|(_, v)| Some(**v) != common) {
        if keys.iter().any(|(key, _)| matches(key, module)) {
            continue;
        }
        let alone = |key: &&str| values.iter().all(|(m, v)| !matches(key, m) || v == value);
        let key = ends(module).find(alone).map(str::to_string);
        // A path that another one ends in is told apart by its start.
        keys.push((key.unwrap_or_else(|| format!("^{module}")), *value));
    }
    (common, Pairs(keys))
}

/// The paths of every module that the graph tells of, and of those around them, as PEFT finds them in the model itself.
pub(super) fn known_modules(graph: &Graph) -> BTreeSet<String> {
    let of_ops = graph.ops().map(|op| op.site.module.to_string());
    let of_weights = graph.params().filter(|(_, p)| p.is_weight());
    let of_weights = of_weights.filter_map(|(_, p)| Some(p.name.rsplit_once('.')?.0.to_string()));
    let mut known = BTreeSet::new();
    for path in of_ops.chain(of_weights) {
        let path = plain(path.split(".lora_").next().unwrap_or_default());
        for (at, _) in path.match_indices('.') {
            known.insert(path[..at].to_string());
        }
        known.insert(path);
    }
    known.remove("");
    known
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(paths: &[&str]) -> BTreeSet<String> {
        paths.iter().map(|p| p.to_string()).collect()
    }

    fn names(chosen: &[&str], paths: &[&str]) -> Vec<String> {
        let chosen: BTreeSet<&str> = chosen.iter().copied().collect();
        target_modules(&chosen, &known(paths))
            .0
            .into_iter()
            .collect()
    }

    #[test]
    fn short_names_where_every_module_of_the_name_is_adapted() {
        let all = [
            "m.0.q_proj",
            "m.1.q_proj",
            "m.0.up",
            "m.1.up",
            "m",
            "m.0",
            "m.1",
        ];
        assert_eq!(names(&["m.0.q_proj", "m.1.q_proj"], &all), ["q_proj"]);
        assert_eq!(names(&["m.1.q_proj"], &all), ["1.q_proj"]);
        let dense = ["e.output.dense", "e.attention.output.dense", "cls.dense"];
        assert_eq!(
            names(&["e.output.dense", "e.attention.output.dense"], &dense),
            ["output.dense"]
        );
        assert_eq!(names(&["e.output.dense"], &dense), ["e.output.dense"]);
    }

    #[test]
    fn a_path_that_another_ends_in_excludes_that() {
        let chosen = BTreeSet::from(["q"]);
        let (names, excluded) = target_modules(&chosen, &known(&["q", "m.q"]));
        assert_eq!(names, known(&["q"]));
        assert_eq!(excluded, known(&["m.q"]));
    }

    #[test]
    fn patterns_name_what_differs() {
        let ranks = BTreeMap::from([
            ("a.0.q", 4),
            ("a.0.v", 8),
            ("a.1.q", 4),
            ("a.1.v", 8),
            ("b", 4),
        ]);
        assert_eq!(pattern(&ranks), (Some(4), Pairs(vec![("v".into(), 8)])));
        let ranks = BTreeMap::from([("a.0.q", 4), ("a.1.q", 2), ("b.1.q", 4)]);
        assert_eq!(pattern(&ranks), (Some(4), Pairs(vec![("a.1.q".into(), 2)])));
        let ranks = BTreeMap::from([("a.q", 4), ("b", 4), ("q", 2)]);
        assert_eq!(pattern(&ranks), (Some(4), Pairs(vec![("^q".into(), 2)])));
        assert_eq!(pattern::<u64>(&BTreeMap::new()), (None, Pairs(Vec::new())));
    }
}
