//! The report as text.

use crate::compile::{Compiled, Released, Step};
use crate::units::{bytes, count};
use comfy_table::{Cell, CellAlignment, Table, presets};
use lorafa_passes::freeze_lora_a::Certificate;
use lorafa_passes::pass::{Method, layer_pattern};
use lorafa_plan::{Category, MethodReport};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// How many groups of tensors a list shows.
const LISTED: usize = 12;

/// The report: memory by method, what the backward pass keeps, and the certificate.
pub fn text(model: &str, compiled: &Compiled, reports: &[MethodReport]) -> String {
    let mut text = String::new();
    heading(&mut text, model, compiled);
    let columns: Vec<(&Step, &MethodReport)> = compiled.steps.iter().zip(reports).collect();
    memory(&mut text, &columns);
    if let Some((step, report)) = columns.last() {
        saved(&mut text, step.method, report);
    }
    if let Some(certificate) = &compiled.certificate {
        released(&mut text, &compiled.released());
        certified(&mut text, certificate);
    }
    text
}

/// Appends a line. Writing to a string cannot fail.
macro_rules! line {
    ($text:expr, $($arg:tt)*) => {{
        let _ = writeln!($text, $($arg)*);
    }};
}

fn heading(text: &mut String, model: &str, compiled: &Compiled) {
    let dtype = compiled
        .dtype()
        .map_or("no floats".to_owned(), |d| d.to_string());
    let named = [("batch", compiled.dims.batch), ("seq", compiled.dims.seq)];
    let dims = named
        .iter()
        .filter_map(|(name, n)| Some(format!(" · {name} {}", (*n)?)));
    line!(text, "{model} · {dtype}{}", dims.collect::<String>());
    line!(text, "loss: {}", compiled.loss);
    for note in compiled.dims.notes.iter().chain(&compiled.warnings) {
        line!(text, "{note}");
    }
    let adapters = compiled
        .steps
        .last()
        .map_or(&[][..], |s| s.graph.adapters());
    let ranks: BTreeSet<u64> = adapters.iter().map(|a| a.rank).collect();
    let ranks: Vec<String> = ranks.iter().map(u64::to_string).collect();
    match adapters.len() {
        0 if compiled.given => line!(text, "no adapters"),
        0 => line!(text, "no adapters: --rank R compares with LoRA and LoRA-FA"),
        n => line!(
            text,
            "{} of rank {}",
            counted(n as u64, "adapter"),
            ranks.join(", ")
        ),
    }
}

/// A number of things: `1 adapter`, `2 adapters`.
fn counted(n: u64, thing: &str) -> String {
    format!("{} {thing}{}", count(n), if n == 1 { "" } else { "s" })
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

fn memory(text: &mut String, columns: &[(&Step, &MethodReport)]) {
    let mut table = table();
    type Column<'a> = (&'a Step, &'a MethodReport);
    let row = |name: &str, cell: &dyn Fn(&Column<'_>) -> String| {
        let cells = columns.iter().map(|column| right(cell(column)));
        std::iter::once(Cell::new(name))
            .chain(cells)
            .collect::<Vec<_>>()
    };
    let titles = columns.iter().map(|(step, _)| right(title(step.method)));
    table.add_row(std::iter::once(Cell::new("memory at the peak")).chain(titles));
    for category in Category::ALL {
        table.add_row(row(label(category), &|(_, r)| bytes(r.breakdown[category])));
    }
    table.add_row(row("= peak", &|(_, r)| bytes(r.peak_bytes)));
    table.add_row(row("lower bound of the schedule", &|(_, r)| {
        bytes(r.lower_bound_bytes)
    }));
    table.add_row(row("peak / lower bound", &|(_, r)| {
        format!(
            "{:.4}",
            r.peak_bytes as f64 / r.lower_bound_bytes.max(1) as f64
        )
    }));
    let lora = columns.iter().find(|(step, _)| step.method == Method::Lora);
    if let Some((_, lora)) = lora {
        table.add_row(row("peak / peak of LoRA", &|(_, r)| {
            format!("{:.4}", r.peak_bytes as f64 / lora.peak_bytes.max(1) as f64)
        }));
    }
    table.add_row(row("trained parameters", &|(_, r)| {
        count(r.trainable_params)
    }));
    if columns.iter().any(|(step, _)| step.recomputed.is_some()) {
        table.add_row(row("recomputed, not saved", &|(step, _)| {
            bytes(step.recomputed.as_ref().map_or(0, |again| again.bytes))
        }));
        table.add_row(row("FLOPs for that", &|(step, _)| {
            let share = step.recomputed.as_ref().map_or(0.0, |again| {
                again.flops as f64 / again.step_flops.max(1) as f64
            });
            format!("+{:.3} %", 100.0 * share)
        }));
    }
    line!(text, "");
    show(text, &table);
    for (step, report) in columns {
        let place = match &*report.peak_module {
            "" => String::new(),
            module => format!(" in {module}"),
        };
        line!(
            text,
            "the peak of {} is at {}{place}",
            title(step.method),
            report.peak_op
        );
    }
    let reserve = |(_, report): &(&Step, &MethodReport)| report.breakdown[Category::RuntimeReserve];
    if columns.iter().all(|column| reserve(column) == 0) {
        line!(
            text,
            "not counted: the CUDA context and cuBLAS workspaces (--reserve 544MiB)"
        );
    }
}

/// A method as people write it.
fn title(method: Method) -> &'static str {
    match method {
        Method::Full => "full",
        Method::Lora => "LoRA",
        Method::LoraFa => "LoRA-FA",
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

/// Tensors with their bytes, by what they have in common; the largest groups first.
fn grouped(tensors: impl Iterator<Item = (Vec<String>, u64)>) -> Vec<(Vec<String>, Group)> {
    let mut groups: BTreeMap<Vec<String>, Group> = BTreeMap::new();
    for (key, bytes) in tensors {
        let group = groups.entry(key).or_default();
        group.tensors += 1;
        group.bytes += bytes;
    }
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by_key(|(_, group)| Reverse(group.bytes));
    groups
}

fn list(text: &mut String, titles: &[&str], groups: &[(Vec<String>, Group)]) {
    let mut table = table();
    let numbers = [right("bytes"), right("tensors")];
    table.add_row(numbers.into_iter().chain(titles.iter().map(Cell::new)));
    for (key, group) in groups.iter().take(LISTED) {
        let numbers = [right(bytes(group.bytes)), right(group.tensors)];
        table.add_row(numbers.into_iter().chain(key.iter().map(Cell::new)));
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

fn saved(text: &mut String, method: Method, report: &MethodReport) {
    line!(
        text,
        "\nsaved activations at the peak of {}, largest first",
        title(method)
    );
    let tensors = report.saved.iter().map(|tensor| {
        let readers: BTreeSet<&str> = tensor.by.iter().map(|reader| reader.op).collect();
        let readers = readers.into_iter().collect::<Vec<_>>().join(", ");
        let key = [
            layer_pattern(&tensor.module),
            tensor.kind.to_owned(),
            readers,
        ];
        (key.to_vec(), tensor.bytes)
    });
    list(text, &["module", "made by", "read by"], &grouped(tensors));
}

fn released(text: &mut String, released: &[Released]) {
    let sum = released.iter().map(|tensor| tensor.bytes).sum();
    let tensors = counted(released.len() as u64, "tensor");
    let again = released.iter().filter(|tensor| tensor.recomputed);
    let again = match again.map(|tensor| tensor.bytes).sum() {
        0 => String::new(),
        again => format!(", of which LoRA computes {} again", bytes(again)),
    };
    line!(
        text,
        "\nreleased by LoRA-FA: {} in {tensors}{again}",
        bytes(sum)
    );
    if !released.is_empty() {
        let tensors = released.iter().map(|tensor| {
            let key = [layer_pattern(&tensor.module), tensor.kind.to_owned()];
            (key.to_vec(), tensor.bytes)
        });
        list(text, &["module", "made by"], &grouped(tensors));
    }
}

fn certified(text: &mut String, certificate: &Certificate) {
    let (released, all) = (certificate.released().count(), certificate.proofs.len());
    let all = counted(all as u64, "adapter");
    line!(text, "\ncertificate: {released} of {all} release x");
    let mut kept: BTreeMap<(String, String, &str), u64> = BTreeMap::new();
    for proof in &certificate.proofs {
        if let Some(keeper) = &proof.kept {
            let key = (
                layer_pattern(&proof.module),
                layer_pattern(&keeper.by),
                keeper.reason.as_str(),
            );
            *kept.entry(key).or_default() += 1;
        }
    }
    for ((module, by, reason), adapters) in kept {
        line!(text, "  {adapters} × {module}: kept by {by}: {reason}");
    }
}
