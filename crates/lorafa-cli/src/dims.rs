//! Numbers for the model's symbolic dimensions.
//!
//! Models spell the batch and the sequence as they like, and may give one batch several names. What
//! counts is the place: the first axis of an input is the batch, the second the sequence.

use crate::args::TrainingArgs;
use lorafa_ir::ops::Role;
use lorafa_ir::{Bindings, Dim, Graph};
use lorafa_passes::bind_dims::symbols;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Where nothing says otherwise.
const DEFAULT_BATCH: i64 = 1;
const DEFAULT_SEQ: i64 = 1024;

/// What the dimensions were bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dims {
    /// A number for every symbol of the graph that has one.
    pub bindings: Bindings,
    /// The batch, if the model has one.
    pub batch: Option<i64>,
    /// The sequence, if the model has one.
    pub seq: Option<i64>,
    /// Lines for the report: what was not given and how to give it.
    pub notes: Vec<String>,
}

/// A flag, and the axis of the inputs that it is about.
struct Flag {
    name: &'static str,
    axis: usize,
    given: Option<i64>,
    default: i64,
}

/// Numbers for the symbols of `graph` from the flags.
///
/// # Errors
///
/// A number that contradicts a fixed dimension, a name that the model does not have, two numbers
/// for one symbol.
pub fn resolve(graph: &Graph, args: &TrainingArgs) -> Result<Dims, String> {
    let known: BTreeSet<Arc<str>> = symbols(graph);
    let mut dims = Dims {
        bindings: Bindings::new(),
        batch: None,
        seq: None,
        notes: Vec::new(),
    };
    for (name, number) in &args.dims {
        let Some(symbol) = known.get(name.as_str()) else {
            return Err(no_such_symbol(name, &known));
        };
        if *number < 1 {
            return Err(format!("--dim {name}={number}: a dimension is at least 1"));
        }
        bind(&mut dims.bindings, symbol, *number)?;
    }
    let batch = Flag {
        name: "batch",
        axis: 0,
        given: args.batch,
        default: DEFAULT_BATCH,
    };
    let seq = Flag {
        name: "seq",
        axis: 1,
        given: args.seq,
        default: DEFAULT_SEQ,
    };
    dims.batch = flag(graph, &batch, &mut dims)?;
    dims.seq = flag(graph, &seq, &mut dims)?;
    Ok(dims)
}

fn no_such_symbol(name: &str, known: &BTreeSet<Arc<str>>) -> String {
    let names: Vec<&str> = known.iter().map(|s| &**s).collect();
    let has = match names.as_slice() {
        [] => "it has no symbolic dimensions".to_owned(),
        names => format!("it has {}", names.join(", ")),
    };
    format!("--dim {name}: the model has no dimension of that name; {has}")
}

fn bind(bindings: &mut Bindings, symbol: &Arc<str>, number: i64) -> Result<(), String> {
    match bindings.insert(symbol.clone(), number) {
        Some(other) if other != number => Err(format!(
            "the dimension {symbol} cannot be {other} and {number} at once: give one of them"
        )),
        _ => Ok(()),
    }
}

/// The inputs that hold one entry a sequence and position: integers, of two axes.
fn data_inputs(graph: &Graph) -> Vec<(Arc<str>, Vec<Dim>)> {
    graph
        .params()
        .filter(|(_, p)| p.role == Role::Input && !p.ty.dtype.is_float() && p.ty.rank() >= 1)
        .filter(|(_, p)| &*p.name != "position_ids" && &*p.name != "cache_position")
        .map(|(_, p)| (p.name.clone(), p.ty.shape.to_vec()))
        .collect()
}

/// Binds the symbols on one axis; returns what the axis is in the first input.
fn flag(graph: &Graph, flag: &Flag, dims: &mut Dims) -> Result<Option<i64>, String> {
    let mut free: BTreeSet<Arc<str>> = BTreeSet::new();
    let mut first = None;
    for (input, shape) in data_inputs(graph) {
        // Labels of a classification have a batch only, masks made by the user four axes.
        let Some(dim) = shape.get(flag.axis).filter(|_| shape.len() <= 2) else {
            continue;
        };
        match (dim.known(), flag.given, dim.as_symbol()) {
            (Some(fixed), Some(given), _) if fixed != given => {
                return Err(contradiction(&input, flag, fixed, given));
            }
            (Some(fixed), ..) => first = first.or(Some(fixed)),
            (None, _, Some(symbol)) => {
                if !dims.bindings.contains_key(symbol) {
                    free.insert(symbol.clone());
                }
                first = first.or(dims.bindings.get(symbol).copied());
            }
            (None, _, None) => {}
        }
    }
    let number = flag.given.unwrap_or(flag.default);
    for symbol in &free {
        bind(&mut dims.bindings, symbol, number)?;
    }
    if !free.is_empty() && flag.given.is_none() {
        let names: Vec<&str> = free.iter().map(|s| &**s).collect();
        dims.notes.push(format!(
            "{} = {number} by default: set it with --{} N",
            names.join(" = "),
            flag.name
        ));
    }
    Ok(first.or((!free.is_empty()).then_some(number)))
}

fn contradiction(input: &str, flag: &Flag, fixed: i64, given: i64) -> String {
    let (name, axis) = (flag.name, flag.axis);
    format!(
        "--{name} {given} contradicts the model, whose input {input} has {name} {fixed} fixed: leave \
         the flag out, or export with a dynamic dimension: \
         torch.onnx.export(…, dynamic_shapes={{\"{input}\": {{{axis}: \"{name}\"}}, …}})"
    )
}
