//! Every pass on small graphs: the snapshot is the difference that it makes.
//!
//! A fixture is a graph with comments that say why it exists, and lines `; option name=value` with
//! what the user asked for. `; option before=PASS` runs another pass first, without showing it;
//! `; option after=PASS` shows what that pass does next, too.

use lorafa_ir::Graph;
use lorafa_ir::text::{self, ValueDisplay};
use lorafa_passes::attach_loss::LossKind;
use lorafa_passes::attach_optimizer::{OptimizerKind, OptimizerOptions};
use lorafa_passes::pass::{Method, Options};
use lorafa_passes::targets::Targets;
use lorafa_passes::{Manager, Pass, PassCx, registry};
use similar::{ChangeTag, TextDiff};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The entries of a folder by name.
fn entries(folder: &Path) -> Vec<(String, PathBuf)> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut entries: Vec<_> = entries
        .map(|entry| {
            let path = entry.unwrap().path();
            (
                path.file_stem().unwrap().to_string_lossy().into_owned(),
                path,
            )
        })
        .collect();
    entries.sort();
    entries
}

fn fixtures() -> Vec<(String, String, PathBuf)> {
    let mut fixtures = Vec::new();
    for (pass, folder) in entries(&root().join("tests/fixtures/passes")) {
        let graphs = entries(&folder).into_iter();
        fixtures.extend(graphs.map(|(name, path)| (pass.clone(), name, path)));
    }
    fixtures
}

fn pass(name: &str) -> &'static dyn Pass {
    let found = registry::all().into_iter().find(|p| p.name() == name);
    found.unwrap_or_else(|| panic!("no pass is called {name}"))
}

/// The name of a fixture's snapshot: the fixture's folder and file.
fn snapshot(pass: &str, name: &str) -> String {
    format!("{pass}__{name}")
}

#[test]
fn passes_change_what_their_fixtures_show() {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(root().join("snapshots"));
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    for (name, fixture, path) in fixtures() {
        let source = std::fs::read_to_string(&path).unwrap();
        let mut graph = text::parse(&source).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        graph
            .verify()
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let asked = asked(&source);
        let mut cx = PassCx::new(asked.options);
        if let Some(before) = asked.before {
            run(pass(&before), &mut graph, &mut cx);
            cx.notes.clear();
        }
        let old = graph.to_string();
        run(pass(&name), &mut graph, &mut cx);
        if let Some(after) = asked.after {
            run(pass(&after), &mut graph, &mut cx);
        }
        let shown = show(&name, &source, &old, &graph, &cx);
        settings.bind(|| insta::assert_snapshot!(snapshot(&name, &fixture), shown));
    }
}

/// Runs one pass; what it says when it refuses is its snapshot's only note.
fn run(pass: &dyn Pass, graph: &mut Graph, cx: &mut PassCx) {
    if let Err(error) = Manager::new().run(&[pass], graph, cx) {
        cx.notes.push(format!("refused: {error}"));
    }
}

#[derive(Default)]
struct Asked {
    options: Options,
    before: Option<String>,
    after: Option<String>,
}

fn asked(source: &str) -> Asked {
    let mut asked = Asked::default();
    let options = &mut asked.options;
    for line in source
        .lines()
        .filter_map(|line| line.strip_prefix("; option "))
    {
        let (name, value) = line.split_once('=').unwrap_or((line, ""));
        match name {
            "method" => options.method = Method::ALL.iter().find(|(_, n)| *n == value).unwrap().0,
            "dim" => {
                let (symbol, number) = value.split_once('=').unwrap();
                options
                    .bindings
                    .insert(symbol.into(), number.parse().unwrap());
            }
            "dtype" => options.dtype = Some(lorafa_ir::DType::parse(value).unwrap()),
            "loss" => options.loss = Some(LossKind::parse(value).unwrap()),
            "rank" => options.inject.rank = Some(value.parse().unwrap()),
            "alpha" => options.inject.alpha = Some(value.parse().unwrap()),
            "dropout" => options.inject.dropout = value.parse().unwrap(),
            "targets" => options.inject.targets = Targets::parse(value).unwrap(),
            "differentiate" => options.differentiate = true,
            "replace-adapters" => options.replace_adapters = true,
            "optimizer" => {
                let found = OptimizerKind::ALL
                    .into_iter()
                    .find(|kind| kind.name() == value);
                options.optimizer = OptimizerOptions::new(found.unwrap());
            }
            "weight_decay" => options.optimizer.weight_decay = value.parse().unwrap(),
            "clip" => options.optimizer.max_grad_norm = Some(value.parse().unwrap()),
            "projection" => {
                options.optimizer.projection = lorafa_ir::DType::parse(value).unwrap();
            }
            "accumulate" => options.optimizer.accumulate = true,
            "pack-frozen" => options.pack_frozen = true,
            "keep-gradients" => options.optimizer.keep_gradients = true,
            "before" => asked.before = Some(value.to_owned()),
            "after" => asked.after = Some(value.to_owned()),
            other => panic!("no option is called {other}"),
        }
    }
    asked
}

/// The fixture's comments, the difference, and what the pass said.
fn show(pass: &str, source: &str, old: &str, new: &Graph, cx: &PassCx) -> String {
    let mut shown = format!("; {pass}\n");
    let comments = source.lines().take_while(|line| line.starts_with(';'));
    for line in comments {
        writeln!(shown, "{line}").unwrap();
    }
    for change in TextDiff::from_lines(old, &new.to_string()).iter_all_changes() {
        let sign = match change.tag() {
            ChangeTag::Delete => '-',
            ChangeTag::Insert => '+',
            ChangeTag::Equal => ' ',
        };
        write!(shown, "{sign} {change}").unwrap();
    }
    for note in &cx.notes {
        writeln!(shown, "; {note}").unwrap();
    }
    let proofs = cx.certificate.iter().flat_map(|c| &c.proofs);
    for proof in proofs {
        let fate = match &proof.kept {
            Some(keeper) => format!("kept by {}: {}", keeper.by, keeper.reason),
            None => "released".to_owned(),
        };
        let x = ValueDisplay(new, proof.x);
        writeln!(shown, "; certificate: {} {x} {fate}", proof.module).unwrap();
    }
    shown
}

#[test]
fn every_pass_has_fixtures_and_every_snapshot_a_fixture() {
    let passes: BTreeSet<&str> = registry::all().iter().map(|pass| pass.name()).collect();
    let fixtures = fixtures();
    let covered: BTreeSet<&str> = fixtures.iter().map(|(pass, ..)| pass.as_str()).collect();
    assert_eq!(covered, passes);

    let expected: BTreeSet<String> = fixtures
        .iter()
        .map(|(pass, name, _)| snapshot(pass, name))
        .collect();
    let found: BTreeSet<String> = entries(&root().join("snapshots"))
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(found, expected);
}
