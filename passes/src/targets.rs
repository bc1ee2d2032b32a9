//! Which layers get adapters, by PEFT's rules.
//!
//! A module path is matched as PEFT matches it: a regular expression against all of the path, a
//! list exactly or by `.name` suffix, `all-linear` against every linear layer. The excluded
//! modules go first; `layers_to_transform` filters what matched by suffix. PEFT refuses it next to
//! a regular expression or `all-linear`; here it filters what those match, too.

use regex::Regex;
use std::fmt;
use std::sync::LazyLock;
use thiserror::Error;

/// Why a description of targets cannot be read.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum TargetsError {
    /// Nothing is named.
    #[error("no target is named: give `all-linear`, names like `q_proj,v_proj` or a regex")]
    Empty,
    /// The regular expression has an error.
    #[error("`{pattern}` is no regular expression: {error}")]
    Regex {
        /// As it was given.
        pattern: String,
        /// What is wrong with it.
        error: String,
    },
}

/// A choice of modules.
#[derive(Clone, Debug, Default)]
pub enum Targets {
    /// Every linear layer except the output embedding.
    #[default]
    AllLinear,
    /// Modules with one of these paths, or whose path ends in `.` and one of them.
    List(Vec<String>),
    /// Modules whose whole path matches.
    Regex(Regex),
}

/// How a module matched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Matched {
    /// Its path is in the list.
    Exactly,
    /// By suffix, regular expression or because every linear layer does.
    ByRule,
}

impl Targets {
    /// Reads `all-linear`, a comma list of names, or a regular expression.
    ///
    /// Text made of names (letters, digits, `_`, `-` and `.`), commas and blanks is a list;
    /// anything else is a regular expression as a whole. PEFT takes any plain string as a regular
    /// expression and tells a list by its JSON type, which a command line lacks.
    pub fn parse(text: &str) -> Result<Self, TargetsError> {
        let text = text.trim();
        if text.eq_ignore_ascii_case("all-linear") {
            return Ok(Targets::AllLinear);
        }
        let plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | ',' | ' ');
        if !text.chars().all(plain) {
            return whole(text).map(Targets::Regex);
        }
        let names = text.split(',').map(str::trim).filter(|n| !n.is_empty());
        let names: Vec<String> = names.map(str::to_string).collect();
        if names.is_empty() {
            return Err(TargetsError::Empty);
        }
        Ok(Targets::List(names))
    }

    /// What is named one by one, each as a choice of its own; `all-linear` names nothing.
    pub(crate) fn parts(&self) -> Vec<Targets> {
        match self {
            Targets::AllLinear => Vec::new(),
            Targets::List(names) => names
                .iter()
                .map(|n| Targets::List(vec![n.clone()]))
                .collect(),
            Targets::Regex(_) => vec![self.clone()],
        }
    }

    /// Whether and how the module with this path is chosen.
    pub fn matches(&self, module: &str) -> Option<Matched> {
        let by_rule = |hit: bool| hit.then_some(Matched::ByRule);
        match self {
            Targets::AllLinear => Some(Matched::ByRule),
            Targets::Regex(regex) => by_rule(regex.is_match(module)),
            Targets::List(names) if names.iter().any(|n| n == module) => Some(Matched::Exactly),
            Targets::List(names) => by_rule(names.iter().any(|n| is_suffix(n, module))),
        }
    }
}

impl fmt::Display for Targets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Targets::AllLinear => f.write_str("all-linear"),
            Targets::List(names) => f.write_str(&names.join(",")),
            Targets::Regex(regex) => {
                let text = regex.as_str();
                let inner = text
                    .strip_prefix(r"\A(?:")
                    .and_then(|t| t.strip_suffix(r")\z"));
                f.write_str(inner.unwrap_or(text))
            }
        }
    }
}

/// Whether `name` is a path's last components.
fn is_suffix(name: &str, path: &str) -> bool {
    path.strip_suffix(name)
        .is_some_and(|rest| rest.ends_with('.'))
}

/// A regular expression that matches only all of a text.
fn whole(pattern: &str) -> Result<Regex, TargetsError> {
    anchored(pattern, &format!(r"\A(?:{pattern})\z"))
}

fn anchored(pattern: &str, full: &str) -> Result<Regex, TargetsError> {
    Regex::new(full).map_err(|error| TargetsError::Regex {
        pattern: pattern.to_string(),
        // The library draws the pattern over several lines; the last says what is wrong.
        error: error
            .to_string()
            .lines()
            .last()
            .unwrap_or_default()
            .trim()
            .to_string(),
    })
}

/// How PEFT finds a layer's number without `layers_pattern`.
static LAYER: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"\A.*?\.[^.]*\.(\d+)\.").ok());

/// The number of the layer that a module is in: the first number in its path that has two
/// components in front and one behind, as in `model.layers.7.experts.0.up_proj`.
pub fn layer_index(module: &str) -> Option<usize> {
    let found = LAYER.as_ref()?.captures(module)?;
    found.get(1)?.as_str().parse().ok()
}

/// Numbers by module: PEFT's `rank_pattern` and `alpha_pattern`.
#[derive(Clone, Debug, Default)]
pub struct Patterns<T>(Vec<(String, Regex, T)>);

impl<T: Copy> Patterns<T> {
    /// From keys, which are regular expressions for the end of a path, from a dot on.
    pub fn new<K: AsRef<str>>(
        entries: impl IntoIterator<Item = (K, T)>,
    ) -> Result<Self, TargetsError> {
        let entries = entries.into_iter().map(|(key, number)| {
            let key = key.as_ref();
            let regex = anchored(key, &format!(r"\A(?:.*\.)?(?:{key})\z"))?;
            Ok((key.to_owned(), regex, number))
        });
        entries.collect::<Result<_, _>>().map(Patterns)
    }

    /// The number of the first key that matches.
    pub fn get(&self, module: &str) -> Option<T> {
        let entry = self.0.iter().find(|(_, regex, _)| regex.is_match(module));
        entry.map(|(.., number)| *number)
    }

    /// The keys that match no module, where `any` says whether a test holds for one.
    pub(crate) fn unused(&self, any: impl Fn(&dyn Fn(&str) -> bool) -> bool) -> Vec<String> {
        let unused = |regex: &Regex| !any(&|module| regex.is_match(module));
        let entries = self.0.iter().filter(|(_, regex, _)| unused(regex));
        entries.map(|(key, ..)| key.clone()).collect()
    }
}

/// Whether a module is chosen: not excluded, matched, and in one of the layers if there are any.
///
/// A module named exactly is taken whatever its layer, as in PEFT.
pub fn selects(
    targets: &Targets,
    exclude: Option<&Targets>,
    layers: &[usize],
    module: &str,
) -> Option<Matched> {
    if exclude.is_some_and(|e| e.matches(module).is_some()) {
        return None;
    }
    let matched = targets.matches(module)?;
    let in_layer = || layer_index(module).is_some_and(|i| layers.contains(&i));
    (matched == Matched::Exactly || layers.is_empty() || in_layer()).then_some(matched)
}

#[cfg(test)]
mod tests {
    use super::*;

    const Q: &str = "model.layers.11.self_attn.q_proj";

    fn hit(targets: &str, module: &str) -> bool {
        Targets::parse(targets).unwrap().matches(module).is_some()
    }

    #[test]
    fn a_list_matches_exactly_or_by_suffix() {
        assert!(hit("q_proj,v_proj", Q));
        assert!(hit("self_attn.q_proj", Q));
        assert!(hit(Q, Q));
        assert!(!hit("proj", Q), "part of a name");
        assert!(!hit("self_attn", Q), "a component in the middle");
        assert!(hit("q_proj", "q_proj"));
    }

    #[test]
    fn a_regex_matches_all_of_the_path() {
        assert!(hit(r".*\.q_proj", Q));
        assert!(hit(r".*(q|k)_proj", Q));
        assert!(!hit(r"(q|k)_proj", Q));
        assert!(!hit(r"model.*self_attn$|nothing", Q));
    }

    #[test]
    fn words_with_a_meaning() {
        assert!(matches!(
            Targets::parse("ALL-linear"),
            Ok(Targets::AllLinear)
        ));
        assert!(matches!(Targets::parse(" , "), Err(TargetsError::Empty)));
        let error = Targets::parse("q_(proj").unwrap_err().to_string();
        assert!(
            error.starts_with("`q_(proj` is no regular expression"),
            "{error}"
        );
    }

    #[test]
    fn the_layer_is_the_first_number_inside_the_path() {
        assert_eq!(layer_index(Q), Some(11));
        assert_eq!(
            layer_index("encoder.block.3.layer.0.SelfAttention.q"),
            Some(3)
        );
        assert_eq!(layer_index("transformer.h.4.attn.c_attn"), Some(4));
        assert_eq!(layer_index("h.4.attn.c_attn"), None, "one component");
        assert_eq!(layer_index("lm_head"), None);
        assert_eq!(layer_index("model.layers.3"), None);
    }

    #[test]
    fn layers_filter_what_was_not_named_exactly() {
        let chosen = |t: &str, layers: &[usize]| {
            selects(&Targets::parse(t).unwrap(), None, layers, Q).is_some()
        };
        assert!(chosen("q_proj", &[]));
        assert!(chosen("q_proj", &[3, 11]));
        assert!(!chosen("q_proj", &[1]));
        assert!(chosen(Q, &[1]));
        assert!(chosen(r".*q_proj", &[11]) && !chosen(r".*q_proj", &[1]));
        assert!(chosen("all-linear", &[11]) && !chosen("all-linear", &[1]));
    }

    #[test]
    fn exclusion_goes_first() {
        let targets = Targets::AllLinear;
        let exclude = Targets::parse("q_proj").unwrap();
        assert_eq!(selects(&targets, Some(&exclude), &[], Q), None);
        let other = Targets::parse("k_proj").unwrap();
        assert_eq!(
            selects(&targets, Some(&other), &[], Q),
            Some(Matched::ByRule)
        );
    }

    #[test]
    fn patterns_match_the_end_of_a_path() {
        let ranks = Patterns::new([("q_proj", 8), (r"layers\.1\d\..*", 16), ("proj", 1)]).unwrap();
        assert_eq!(ranks.get(Q), Some(8));
        assert_eq!(ranks.get("model.layers.11.mlp.up"), Some(16));
        assert_eq!(ranks.get("model.layers.1.mlp.up_proj"), None);
        assert!(Patterns::new([("(", 1)]).is_err());
    }
}
