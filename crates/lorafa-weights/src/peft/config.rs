//! `adapter_config.json`.

use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

/// A number that is written as an integer if it is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(transparent)]
pub(crate) struct Number(pub f64);

/// Integers below this are exact in f64.
const EXACT: f64 = 9_007_199_254_740_992.0;

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.fract() == 0.0 && self.0.abs() < EXACT {
            true => serializer.serialize_i64(self.0 as i64),
            false => serializer.serialize_f64(self.0),
        }
    }
}

/// A JSON object in its own order: the first key that matches a module counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Pairs<T>(pub Vec<(String, T)>);

impl<T: Serialize> Serialize for Pairs<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in &self.0 {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Pairs<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for InOrder<T> {
            type Value = Pairs<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<T>, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }

            fn visit_unit<E>(self) -> Result<Pairs<T>, E> {
                Ok(Pairs(Vec::new()))
            }
        }
        deserializer.deserialize_any(InOrder(PhantomData))
    }
}

/// What PEFT needs to know of an adapter. Fields that PEFT has and this has not are left at PEFT's defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Config {
    /// Numerators of the scale by module.
    #[serde(default)]
    pub alpha_pattern: Pairs<Number>,
    /// The model that was adapted.
    #[serde(default)]
    pub base_model_name_or_path: Option<String>,
    /// Which biases train; only `none` is supported.
    #[serde(default = "none")]
    pub bias: String,
    /// Modules that the targets name and that have no adapter.
    #[serde(default)]
    pub exclude_modules: Option<serde_json::Value>,
    /// Whether the adapted weights are `[in, out]`.
    #[serde(default)]
    pub fan_in_fan_out: bool,
    /// Whether the adapter is loaded frozen.
    #[serde(default)]
    pub inference_mode: bool,
    /// How A and B start.
    #[serde(default = "yes")]
    pub init_lora_weights: serde_json::Value,
    /// The numerator of the scale.
    pub lora_alpha: Number,
    /// The probability that an adapter's input is dropped in training.
    #[serde(default)]
    pub lora_dropout: f64,
    /// Modules that were trained in full.
    #[serde(default)]
    pub modules_to_save: Option<Vec<String>>,
    /// The kind of adapter, `LORA`.
    pub peft_type: String,
    /// The rank.
    pub r: u64,
    /// Ranks by module.
    #[serde(default)]
    pub rank_pattern: Pairs<u64>,
    /// The adapted modules: ends of paths, or a regular expression.
    #[serde(default)]
    pub target_modules: Option<serde_json::Value>,
    /// What the model is for, `CAUSAL_LM`.
    #[serde(default)]
    pub task_type: Option<String>,
    /// Whether weights are normalised.
    #[serde(default)]
    pub use_dora: bool,
    /// Whether the scale is alpha/√r and not alpha/r.
    #[serde(default)]
    pub use_rslora: bool,
    /// What else a file says.
    #[serde(flatten, skip_serializing)]
    pub others: BTreeMap<String, serde_json::Value>,
}

fn none() -> String {
    "none".to_string()
}

fn yes() -> serde_json::Value {
    serde_json::Value::Bool(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_config_is_filled_in_and_patterns_keep_their_order() {
        let text = r#"{"peft_type": "LORA", "r": 8, "lora_alpha": 2.5, "unknown": {"x": 1},
                       "rank_pattern": {"z": 3, "a": 4}, "alpha_pattern": null}"#;
        let config: Config = serde_json::from_str(text).unwrap();
        assert_eq!(config.bias, "none");
        assert_eq!(config.rank_pattern.0, [("z".into(), 3), ("a".into(), 4)]);
        assert!(config.alpha_pattern.0.is_empty());
        let text = serde_json::to_string(&config).unwrap();
        assert!(text.contains(r#""lora_alpha":2.5"#) && text.contains(r#"{"z":3,"a":4}"#));
        let whole = serde_json::to_string(&Number(16.0)).unwrap();
        assert_eq!(whole, "16");
    }
}
