//! The report as text.

use crate::compile::{Compiled, Step};
use crate::units::{bytes, count};
use comfy_table::{Cell, CellAlignment, Table, presets};
use lorafa_passes::freeze_lora_a::Certificate;
use lorafa_passes::pass::Method;
use lorafa_plan::{Category, MethodReport, SavedActivation};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// How many groups of tensors a list shows.
const LISTED: usize = 12;

/// The report: memory by method, what the backward pass keeps, and the certificate.
pub fn text(model: &str, compiled: &Compiled, reports: &[MethodReport; 3]) -> String {
    let mut text = String::new();
    heading(&mut text, model, compiled);
    memory(&mut text, reports);
    saved(&mut text, compiled, reports);
    released(&mut text, compiled);
    certificate(&mut text, &compiled.certificate);
    text
}

/// Appends a line. Writing to a string cannot fail.
macro_rules! line {
    ($text:expr, $($arg:tt)*) => {{
        let _ = writeln!($text, $($arg)*);
    }};
}

fn heading(text: &mut String, model: &str, compiled: &Compiled) {
    let graph = &compiled.step(Method::LoraFa).graph;
    let dtype = crate::compile::dtype(graph).map_or("no floats".to_owned(), |d| d.to_string());
    let named = [("batch", compiled.dims.batch), ("seq", compiled.dims.seq)];
    let dims = named
        .iter()
        .filter_map(|(name, n)| Some(format!(" · {name} {}", (*n)?)));
    line!(text, "{model} · {dtype}{}", dims.collect::<String>());
    for note in &compiled.dims.notes {
        line!(text, "{note}");
    }
    let ranks: BTreeSet<u64> = graph.adapters().iter().map(|a| a.rank).collect();
    let ranks: Vec<String> = ranks.iter().map(u64::to_string).collect();
    line!(
        text,
        "{} adapters of rank {}",
        graph.adapters().len(),
        ranks.join(", ")
    );
}

fn table() -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(
        // The width of the terminal must not show in the output.
        comfy_table::ContentArrangement::Disabled,
    );
    table
}

fn show(text: &mut String, table: &Table) {
    for line in table.lines() {
        line!(text, "{}", line.trim_end());
    }
}

fn right(text: impl ToString) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

fn memory(text: &mut String, reports: &[MethodReport; 3]) {
    let mut table = table();
    let row = |name: &str, cell: &dyn Fn(&MethodReport) -> String| {
        let cells = reports.iter().map(|r| right(cell(r)));
        std::iter::once(Cell::new(name))
            .chain(cells)
            .collect::<Vec<_>>()
    };
    let titles = ["full", "LoRA", "LoRA-FA"].map(right);
    table.add_row(std::iter::once(Cell::new("memory at the peak")).chain(titles));
    for category in Category::ALL {
        table.add_row(row(label(category), &|r| bytes(r.breakdown[category])));
    }
    table.add_row(row("= peak", &|r| bytes(r.peak_bytes)));
    table.add_row(row("lower bound of the schedule", &|r| {
        bytes(r.lower_bound_bytes)
    }));
    table.add_row(row("peak / lower bound", &|r| {
        format!(
            "{:.4}",
            r.peak_bytes as f64 / r.lower_bound_bytes.max(1) as f64
        )
    }));
    table.add_row(row("trained parameters", &|r| count(r.trainable_params)));
    line!(text, "");
    show(text, &table);
    for (report, (_, method)) in reports.iter().zip(Method::ALL) {
        let place = match &*report.peak_module {
            "" => String::new(),
            module => format!(" in {module}"),
        };
        line!(text, "the peak of {method} is at {}{place}", report.peak_op);
    }
    if reports
        .iter()
        .all(|r| r.breakdown[Category::RuntimeReserve] == 0)
    {
        line!(
            text,
            "not counted: the CUDA context and cuBLAS workspaces (--reserve 544MiB)"
        );
    }
}

fn label(category: Category) -> &'static str {
    match category {
        Category::FrozenWeights => "weights of the model",
        Category::Adapters => "adapters",
        Category::Gradients => "gradients",
        Category::OptimizerState => "optimizer state",
        Category::SavedActivations => "saved activations",
        Category::Temporaries => "temporaries",
        Category::Workspace => "workspace",
        Category::RuntimeReserve => "runtime reserve",
    }
}

/// Tensors of one kind in the same place of every layer.
#[derive(Default)]
struct Group {
    tensors: u64,
    bytes: u64,
}

/// A module path with `*` for the numbers of layers.
fn pattern(module: &str) -> String {
    let number = |part: &str| part.bytes().all(|b| b.is_ascii_digit()) && !part.is_empty();
    let parts = module
        .split('.')
        .map(|part| if number(part) { "*" } else { part });
    parts.collect::<Vec<_>>().join(".")
}

fn grouped<'a>(
    tensors: impl IntoIterator<Item = &'a SavedActivation>,
) -> Vec<(Vec<String>, Group)> {
    let mut groups: BTreeMap<Vec<String>, Group> = BTreeMap::new();
    for tensor in tensors {
        let readers: BTreeSet<&str> = tensor.by.iter().map(|reader| reader.op).collect();
        let readers = readers.into_iter().collect::<Vec<_>>().join(", ");
        let key = vec![pattern(&tensor.module), tensor.kind.to_owned(), readers];
        let group = groups.entry(key).or_default();
        group.tensors += 1;
        group.bytes += tensor.bytes;
    }
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by_key(|(_, group)| Reverse(group.bytes));
    groups
}

fn list(text: &mut String, last: Option<&str>, groups: &[(Vec<String>, Group)]) {
    let mut table = table();
    let mut titles = vec![
        right("bytes"),
        right("tensors"),
        Cell::new("module"),
        Cell::new("made by"),
    ];
    titles.extend(last.map(Cell::new));
    table.add_row(titles);
    for (key, group) in groups.iter().take(LISTED) {
        let cells = key
            .iter()
            .take(if last.is_some() { 3 } else { 2 })
            .map(Cell::new);
        let numbers = [right(bytes(group.bytes)), right(group.tensors)];
        table.add_row(numbers.into_iter().chain(cells));
    }
    show(text, &table);
    if let Some(rest) = groups.get(LISTED..).filter(|rest| !rest.is_empty()) {
        let sum = rest.iter().map(|(_, group)| group.bytes).sum();
        line!(
            text,
            "… and {} more groups, {} (--json lists every tensor)",
            rest.len(),
            bytes(sum)
        );
    }
}

fn saved(text: &mut String, compiled: &Compiled, reports: &[MethodReport; 3]) {
    line!(text, "\nsaved activations of LoRA-FA, largest first");
    let index = Method::ALL
        .iter()
        .position(|(m, _)| *m == Method::LoraFa)
        .unwrap_or(0);
    let _ = compiled;
    list(text, Some("read by"), &grouped(&reports[index].saved));
}

fn all_saved(step: &Step) -> Vec<SavedActivation> {
    step.plan.all_saved(&step.graph)
}

/// What LoRA keeps for the backward pass and LoRA-FA does not.
fn released(text: &mut String, compiled: &Compiled) {
    let (lora, lora_fa) = (compiled.step(Method::Lora), compiled.step(Method::LoraFa));
    let kept: BTreeSet<_> = all_saved(lora_fa).iter().map(|s| s.id).collect();
    let released: Vec<SavedActivation> = all_saved(lora)
        .into_iter()
        .filter(|s| !kept.contains(&s.id))
        .collect();
    let sum: u64 = released.iter().map(|s| s.bytes).sum();
    line!(
        text,
        "\nreleased by LoRA-FA: {} in {} tensors",
        bytes(sum),
        released.len()
    );
    if !released.is_empty() {
        list(text, None, &grouped(&released));
    }
}

fn certificate(text: &mut String, certificate: &Certificate) {
    let released = certificate.released().count();
    line!(
        text,
        "\ncertificate: {released} of {} adapters release x",
        certificate.proofs.len()
    );
    let mut kept: BTreeMap<(String, String, &str), u64> = BTreeMap::new();
    for proof in &certificate.proofs {
        if let Some(keeper) = &proof.kept {
            let key = (
                pattern(&proof.module),
                pattern(&keeper.by),
                keeper.reason.as_str(),
            );
            *kept.entry(key).or_default() += 1;
        }
    }
    for ((module, by, reason), adapters) in kept {
        line!(text, "  {adapters} × {module}: kept by {by}: {reason}");
    }
}
