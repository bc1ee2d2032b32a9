//! What `inject-lora` adapts, held against PEFT: every row of `tests/peft/expected.json`, which
//! `tests/peft/expected.py` makes with PEFT itself, on every example of the row's architecture.

mod common;

use common::{Model, examples, options};
use lorafa_ir::Graph;
use lorafa_passes::attach_loss::LossKind;
use lorafa_passes::inject_lora::{InjectLora, InjectOptions};
use lorafa_passes::pass::{Method, Options};
use lorafa_passes::registry::PREPARE;
use lorafa_passes::targets::{Patterns, Targets};
use lorafa_passes::{Manager, PassCx};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Rank and scale of each adapted module, and the parameters that train in full; or a refusal.
type Injected = Result<(BTreeMap<String, (u64, f64)>, BTreeSet<String>), String>;

#[test]
fn the_same_layers_as_peft() {
    let table = include_str!("peft/expected.json");
    let rows: Vec<Value> = serde_json::from_str(table).unwrap();
    let mut checked: BTreeMap<&str, usize> = rows.iter().map(|r| (text(r, "model"), 0)).collect();
    let mut wrong = Vec::new();
    // Legacy exports are of a wrapper, which is a part of their modules' paths; PEFT's models have two layers.
    let other = |name: &str| name.contains("-ts-") || name.ends_with("-L1");
    let models = examples().into_iter().filter(|m| !other(&m.name));
    for model in models {
        let family = model.name.split("-tiny-").next().unwrap();
        let rows = rows.iter().filter(|row| text(row, "model") == family);
        let (graph, prepared) = prepare(&model);
        for row in rows {
            let flags = text(row, "flags");
            let got = inject(graph.clone(), asked(prepared.clone(), flags));
            if let Some(difference) = differs(row, &got) {
                wrong.push(format!("{} {flags}\n  {difference}", model.name));
            }
            *checked.get_mut(family).unwrap() += 1;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(checked.values().all(|n| *n > 0), "{checked:?}");
}

fn text<'a>(row: &'a Value, key: &str) -> &'a str {
    row[key].as_str().unwrap()
}

/// The graph that adapters are injected into, its own ones removed, and the options.
fn prepare(model: &Model) -> (Graph, Options) {
    let options = Options {
        replace_adapters: true,
        ..options(model, Method::Lora)
    };
    let (mut graph, mut cx) = (model.graph.clone(), PassCx::new(options.clone()));
    let done = Manager::new().run(PREPARE, &mut graph, &mut cx);
    done.unwrap_or_else(|e| panic!("{}: {e}", model.name));
    (graph, options)
}

/// The options with a row's flags; rank 4 and alpha 8 where they say nothing.
fn asked(mut options: Options, flags: &str) -> Result<Options, String> {
    let mut inject = InjectOptions {
        rank: Some(4),
        alpha: Some(8.0),
        ..InjectOptions::default()
    };
    let (mut ranks, mut alphas) = (Vec::new(), Vec::new());
    let mut words = flags.split(' ');
    while let Some(flag) = words.next() {
        let mut value = || words.next().unwrap();
        let targets = |text| Targets::parse(text).map_err(|e| e.to_string());
        match flag {
            "--rank" => inject.rank = Some(value().parse().unwrap()),
            "--alpha" => inject.alpha = Some(value().parse().unwrap()),
            "--rslora" => inject.rslora = true,
            "--targets" => inject.targets = targets(value())?,
            "--exclude" => inject.exclude = Some(targets(value())?),
            "--layers" => {
                let numbers = value().split(',').map(|n| n.parse().unwrap());
                inject.layers_to_transform = numbers.collect();
            }
            "--rank-pattern" => ranks.push(pair(value())),
            "--alpha-pattern" => alphas.push(pair(value())),
            "--loss" => options.loss = Some(LossKind::parse(value()).unwrap()),
            other => panic!("no flag is called {other}"),
        }
    }
    inject.rank_pattern = Patterns::new(ranks).map_err(|e| e.to_string())?;
    inject.alpha_pattern = Patterns::new(alphas).map_err(|e| e.to_string())?;
    Ok(Options { inject, ..options })
}

fn pair<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> (&str, T) {
    let (key, number) = text.rsplit_once('=').unwrap();
    (key, number.parse().unwrap())
}

fn inject(mut graph: Graph, options: Result<Options, String>) -> Injected {
    let mut cx = PassCx::new(options?);
    let done = Manager::new().run(&[&InjectLora], &mut graph, &mut cx);
    done.map_err(|e| e.to_string())?;
    let name = |value| graph.param(value).unwrap().name.to_string();
    let mut adapters = BTreeMap::new();
    for adapter in graph.adapters() {
        // Modules of models that PEFT has wrapped have its prefix.
        let module = adapter.module.trim_start_matches("base_model.model.");
        for (matrix, value) in [("A", adapter.a), ("B", adapter.b)] {
            let expected = format!("base_model.model.{module}.lora_{matrix}.default.weight");
            assert_eq!(name(value), expected);
        }
        let a = graph.ty(adapter.a).known_shape().unwrap();
        let b = graph.ty(adapter.b).known_shape().unwrap();
        assert_eq!((a[0], b[1]), (adapter.rank, adapter.rank), "{module}");
        adapters.insert(module.to_string(), (adapter.rank, adapter.scale.0));
    }
    let params = graph.params().map(|(_, p)| p.name.to_string());
    let saved = params.filter(|n| n.contains(".modules_to_save."));
    Ok((adapters, saved.collect()))
}

/// How the outcome differs from a row.
fn differs(row: &Value, got: &Injected) -> Option<String> {
    let embeddings = row.get("embeddings").map(strings).unwrap_or_default();
    let (adapters, saved) = match got {
        Ok(_) if row.get("refused").is_some() => {
            return Some(format!("expected a refusal: {}", row["refused"]));
        }
        // Adapters of embeddings are PEFT's alone.
        Ok(_) if !embeddings.is_empty() => return Some("expected a refusal".to_string()),
        Ok(got) => got,
        Err(_) if row.get("refused").is_some() => return None,
        Err(error) if embeddings.iter().any(|e| error.contains(e.as_str())) => return None,
        Err(error) => return Some(format!("refused: {error}")),
    };
    let expected = row["adapters"].as_object().unwrap();
    let modules: BTreeSet<&String> = expected.keys().chain(adapters.keys()).collect();
    let same = |module: &String| {
        let (Some(expected), Some((rank, scale))) = (expected.get(module), adapters.get(module))
        else {
            return false;
        };
        let distance = (expected[1].as_f64().unwrap() - scale).abs();
        // The JSON reader may be off by the last bit.
        expected[0].as_u64() == Some(*rank) && distance <= f64::EPSILON * scale.abs()
    };
    let wrong: Vec<String> = modules
        .into_iter()
        .filter(|module| !same(module))
        .map(|m| format!("{m}: {:?} and not {:?}", adapters.get(m), expected.get(m)))
        .collect();
    if !wrong.is_empty() {
        return Some(wrong.join("\n  "));
    }
    let expected = strings(&row["modules_to_save"]);
    (*saved != expected).then(|| format!("trained in full: {saved:?} and not {expected:?}"))
}

fn strings(list: &Value) -> BTreeSet<String> {
    let list = list.as_array().unwrap().iter();
    list.map(|s| s.as_str().unwrap().to_string()).collect()
}
