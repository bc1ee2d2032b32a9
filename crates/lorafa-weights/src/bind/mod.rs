//! Gives the weights of a graph the values of a checkpoint.

mod matching;

use crate::error::{TensorProblem, WeightsError};
use crate::names::{self, Lines};
use crate::shards::{Shards, Tensor};
use lorafa_ir::ops::{Data, Param, Role, Stored};
use lorafa_ir::{DType, Graph, TensorType, ValueId};
use lorafa_onnx::external::{ExternalError, ExternalRef, ExternalStore};
use lorafa_passes::inject_lora::in_head;
use matching::{Found, Matching};
use std::collections::BTreeSet;
use std::fmt;

/// What [`bind`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bound {
    /// How many parameters got values.
    pub weights: usize,
    /// How names differ from the checkpoint's, `transformer. → `, or nothing.
    pub renamed: Option<String>,
    /// Parameters that the checkpoint has not and need not have: heads that are trained anew. They keep their values.
    pub kept: Vec<String>,
    /// Tensors of the checkpoint that the model does not read.
    pub unused: Vec<String>,
}

impl fmt::Display for Bound {
    /// What the user should know though nothing is wrong, a line each; long lists are cut.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} weights read", self.weights)?;
        if let Some(renamed) = &self.renamed {
            write!(f, "\nnames differ by {renamed}")?;
        }
        for (what, names) in [
            ("not in the checkpoint, kept as they are:", &self.kept),
            ("in the checkpoint and not in the model:", &self.unused),
        ] {
            if !names.is_empty() {
                write!(f, "\n{what}\n{}", Lines(names))?;
            }
        }
        Ok(())
    }
}

/// A weight that a checkpoint must or may have.
#[derive(Debug)]
struct Wanted {
    value: ValueId,
    /// The names that a checkpoint may have it under, without prefixes, the most telling first.
    names: Vec<String>,
    ty: TensorType,
    /// Whether it keeps its values where the checkpoint has none.
    optional: bool,
}

impl Wanted {
    /// The name for messages: its own.
    fn name(&self) -> &str {
        self.names.last().map_or("", String::as_str)
    }
}

/// Gives every weight of `graph`, frozen or trained, the values that `shards` has for it: slices of the map, in the file's
/// element type. Constants keep theirs, and so does a classification head that the checkpoint has not; adapters get those
/// of a checkpoint of the whole adapted model.
///
/// Names match as they are, or after taking one prefix off and putting another on, as for a checkpoint of a model without
/// its head, if that finds a tensor of its own for every weight. A weight that modules share is found under any of their
/// names; an output embedding that is missing is the input embedding, unless `config.json` says otherwise.
///
/// # Errors
///
/// [`WeightsError::Tensors`] with everything that does not fit. The graph is not changed then.
pub fn bind(graph: &mut Graph, shards: &Shards) -> Result<Bound, WeightsError> {
    let wanted = wanted(graph, shards);
    let mut problems: Vec<TensorProblem> = names::nameless(graph)
        .into_iter()
        .map(|name| TensorProblem::Nameless { name })
        .collect();
    let matching = Matching::new(&wanted, shards, &mut problems);
    let mut bound = Bound {
        renamed: matching.renamed(),
        ..Bound::default()
    };
    let mut used: BTreeSet<&str> = BTreeSet::new();
    let mut values: Vec<(ValueId, Stored)> = Vec::new();
    for (weight, found) in wanted.iter().zip(&matching.found) {
        match found {
            Found::Tensor { names, tensor } => {
                used.extend(names.iter().copied());
                match fits(weight.name(), names[0], &weight.ty, tensor) {
                    Ok(dtype) => values.push((weight.value, stored(dtype, tensor))),
                    Err(problem) => problems.push(problem),
                }
            }
            Found::Problem(problem) => problems.push(problem.clone()),
            Found::Nothing => bound.kept.push(weight.name().to_string()),
        }
    }
    if !problems.is_empty() {
        return Err(WeightsError::Tensors {
            path: shards.path().to_owned(),
            problems,
        });
    }
    bound.weights = values.len();
    let unused = shards.iter().filter(|(name, _)| !used.contains(name));
    bound.unused = unused.map(|(name, _)| name.to_string()).collect();
    set(graph, values);
    Ok(bound)
}

fn wanted(graph: &Graph, shards: &Shards) -> Vec<Wanted> {
    let adapted = shards.iter().any(|(name, _)| names::is_adapter(name));
    let weights = graph.params().filter(|(_, p)| p.is_weight());
    let weights = weights.filter(|(_, p)| adapted || !names::is_adapter(&p.name));
    let weights = weights.map(|(value, param)| {
        let mut names = names::aliases(graph, value, &param.name);
        let own = names::plain(&param.name);
        let optional = names::saved_module(&param.name).is_some() || in_head(&own);
        // Messages call it by its own name.
        names.retain(|name| *name != own);
        names.push(own);
        Wanted {
            value,
            names,
            ty: param.ty.clone(),
            optional,
        }
    });
    weights.collect()
}

/// The element type in which a tensor can stand for a parameter of this type.
pub(crate) fn fits(
    name: &str,
    found: &str,
    ty: &TensorType,
    tensor: &Tensor,
) -> Result<DType, TensorProblem> {
    let (name, other) = (name.to_string(), found.to_string());
    let Some(dtype) = tensor.ir_dtype() else {
        return Err(TensorProblem::Quantized {
            name,
            tensor: format!("{other} has type {}", tensor.dtype),
        });
    };
    let floats = dtype.is_float() && ty.dtype.is_float();
    if !floats && dtype != ty.dtype {
        let packed = dtype.size() == 1 && ty.dtype.is_float();
        return Err(match packed {
            true => TensorProblem::Quantized {
                name,
                tensor: format!("{other} has type {}", tensor.dtype),
            },
            false => TensorProblem::Dtype {
                name,
                tensor: other,
                found: tensor.dtype,
            },
        });
    }
    let expected = ty.known_shape().unwrap_or_default();
    if expected.as_slice() != tensor.shape || expected.len() != ty.rank() {
        return Err(TensorProblem::Shape {
            name,
            tensor: other,
            expected: expected.to_vec(),
            found: tensor.shape.clone(),
        });
    }
    Ok(dtype)
}

pub(crate) fn stored(dtype: DType, tensor: &Tensor) -> Stored {
    Stored {
        data: Data::Inline(tensor.bytes.clone()),
        dtype,
        transposed: false,
    }
}

pub(crate) fn set(graph: &mut Graph, values: Vec<(ValueId, Stored)>) {
    let mut patch = graph.patch("bind-weights");
    for (value, stored) in values {
        patch.update_param(value, |param| param.stored = stored);
    }
}

/// A parameter without values, and why it has none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Absent {
    /// The parameter.
    pub name: String,
    /// Why.
    pub why: String,
}

impl fmt::Display for Absent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.why)
    }
}

/// Parameters without values, none of which a step can run without.
#[derive(Debug, thiserror::Error)]
#[error("{} parameters have no values; give the model's folder with --weights:\n{}", .0.len(), Lines(.0))]
pub struct NoValues(pub Vec<Absent>);

/// Refuses a graph in which a weight or a constant has no values: its file is not there or too short, or only a digest is
/// known. Reads no values.
///
/// # Errors
///
/// [`NoValues`], with every such parameter.
pub fn missing(graph: &Graph, store: &ExternalStore) -> Result<(), NoValues> {
    let params = graph.params().map(|(_, p)| p);
    let fixed = params.filter(|p| p.is_weight() || p.role == Role::Constant);
    let absent = fixed.filter_map(|param| {
        let why = absent(param, store)?;
        let name = param.name.to_string();
        Some(Absent { name, why })
    });
    let absent: Vec<Absent> = absent.collect();
    match absent.is_empty() {
        true => Ok(()),
        false => Err(NoValues(absent)),
    }
}

fn absent(param: &Param, store: &ExternalStore) -> Option<String> {
    match &param.stored.data {
        Data::Inline(_) | Data::Init { .. } => None,
        Data::Runtime => Some("the model takes its values as an input".to_string()),
        Data::Digest(_) => Some("only the digest of its values is known".to_string()),
        Data::External(external) => {
            let size = param
                .ty
                .with_dtype(param.stored.dtype)
                .bytes()
                .unwrap_or(u64::MAX);
            let reference = ExternalRef::new(&*external.location, external.offset, external.length);
            let read = reference.and_then(|reference| store.read(&reference, size));
            match read {
                Ok(_) => None,
                Err(ExternalError::Missing { location, .. }) => {
                    Some(format!("there is no file `{location}`"))
                }
                Err(error) => Some(error.to_string()),
            }
        }
    }
}
