//! Numbers for the model's symbolic dimensions.
//!
//! Models spell the batch and the sequence as they like, and may give one batch several names. What
//! counts is the place: the first axis of an input is the batch, the second the sequence.

use crate::args::TrainingArgs;
use crate::fit::Axis;
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
    /// The batch of the main input, if the model has one.
    pub batch: Option<i64>,
    /// The length of the main input, if the model has one.
    pub seq: Option<i64>,
    /// The symbols of the batch, and of the main input's length; none if they are fixed.
    symbols: [BTreeSet<Arc<str>>; 2],
    /// Lines for the report: what was not given and how to give it.
    pub notes: Vec<String>,
}

impl Dims {
    /// The symbols on an axis of the inputs; none if it is fixed.
    pub fn symbols(&self, axis: Axis) -> &BTreeSet<Arc<str>> {
        match axis {
            Axis::Batch => &self.symbols[0],
            Axis::Seq => &self.symbols[1],
        }
    }
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
        symbols: Default::default(),
        notes: Vec::new(),
    };
    let inputs = data_inputs(graph);
    for (_, shape) in &inputs {
        shape[0].symbols(&mut dims.symbols[0]);
    }
    if let Some(length) = inputs.first().and_then(|(_, shape)| shape.get(1)) {
        length.symbols(&mut dims.symbols[1]);
    }
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

/// The inputs whose first axis is the batch and whose second is the sequence: token ids and
/// embeddings, masks and labels. The main one comes first.
fn data_inputs(graph: &Graph) -> Vec<(Arc<str>, Vec<Dim>)> {
    const OTHERS: [&str; 2] = ["position_ids", "cache_position"];
    const MAIN: [&str; 2] = ["input_ids", "inputs_embeds"];
    let mut inputs: Vec<(Arc<str>, Vec<Dim>)> = graph
        .params()
        .filter(|(_, p)| p.role == Role::Input && (1..=3).contains(&p.ty.rank()))
        .filter(|(_, p)| !OTHERS.contains(&&*p.name))
        .map(|(_, p)| (p.name.clone(), p.ty.shape.to_vec()))
        .collect();
    inputs.sort_by_key(|(name, _)| !MAIN.contains(&&**name));
    inputs
}

/// Binds the symbols on one axis to one number, that of the main input, and returns it.
fn flag(graph: &Graph, flag: &Flag, dims: &mut Dims) -> Result<Option<i64>, String> {
    let inputs = data_inputs(graph);
    let on_axis = |(name, shape): &'_ (Arc<str>, Vec<Dim>)| {
        Some((name.clone(), shape.get(flag.axis)?.clone()))
    };
    let axis: Vec<(Arc<str>, Dim)> = inputs.iter().filter_map(on_axis).collect();
    let Some((input, main)) = axis.first() else {
        return match flag.given {
            Some(n) => Err(format!(
                "--{} {n}: the model has no input with such an axis",
                flag.name
            )),
            None => Ok(None),
        };
    };
    let number = main_number(input, main, &axis, flag, dims)?;
    for (input, dim) in &axis[1..] {
        match dim.known() {
            // The batch is the same for all; lengths differ, of a decoder's inputs for instance.
            Some(fixed) if flag.axis == 0 && fixed != number => {
                return Err(contradiction(input, flag, fixed, number));
            }
            Some(_) => {}
            None => bind_other(dim, number, flag, dims)?,
        }
    }
    Ok(Some(number))
}

/// What the axis is in the main input: as bound already, or as the flag or another input says.
fn main_number(
    input: &str,
    main: &Dim,
    axis: &[(Arc<str>, Dim)],
    flag: &Flag,
    dims: &mut Dims,
) -> Result<i64, String> {
    let bound = main.bind(&dims.bindings).and_then(|dim| dim.known());
    if let Some(number) = bound {
        return match flag.given {
            Some(given) if given != number && main.known().is_some() => {
                Err(contradiction(input, flag, number, given))
            }
            Some(given) if given != number => {
                let name = flag.name;
                Err(format!(
                    "--{name} {given}: the {name} of {input}, {main}, is {number} already"
                ))
            }
            _ => Ok(number),
        };
    }
    let Some(symbol) = main.as_symbol() else {
        return Err(format!(
            "the {} of input {input} is `{main}`: give its symbols with --dim NAME=N",
            flag.name
        ));
    };
    let fixed = axis
        .iter()
        .filter(|_| flag.axis == 0)
        .find_map(|(_, dim)| dim.known());
    let number = flag.given.or(fixed).unwrap_or(flag.default);
    bind(&mut dims.bindings, symbol, number)?;
    if flag.given.is_none() && fixed.is_none() {
        let name = flag.name;
        dims.notes.push(format!(
            "{symbol} = {number} by default: set it with --{name} N"
        ));
    }
    Ok(number)
}

/// Binds a symbol on the same axis of another input.
fn bind_other(dim: &Dim, number: i64, flag: &Flag, dims: &mut Dims) -> Result<(), String> {
    let Some(symbol) = dim.as_symbol().filter(|s| !dims.bindings.contains_key(*s)) else {
        return Ok(());
    };
    if flag.axis > 0 {
        dims.notes.push(format!(
            "{symbol} = {number}, too: set it with --dim {symbol}=N"
        ));
    }
    bind(&mut dims.bindings, symbol, number)
}

fn contradiction(input: &str, flag: &Flag, fixed: i64, given: i64) -> String {
    let (name, axis) = (flag.name, flag.axis);
    format!(
        "--{name} {given} contradicts the model, whose input {input} has {name} {fixed} fixed: give \
         that, or export with a dynamic dimension: \
         torch.onnx.export(…, dynamic_shapes={{\"{input}\": {{{axis}: \"{name}\"}}, …}})"
    )
}
