//! What a graph reads of a batch in a safetensors file.

use crate::error::Error;
use lorafa_ir::ops::{Param, Role};
use lorafa_ir::{Bindings, DType, Graph};
use lorafa_onnx::dtype::{decode, decode_ints, encode};
use lorafa_passes::bind_dims::symbols;
use lorafa_weights::shards::{Shards, Tensor};
use std::path::Path;

/// What may stand before the name of an input.
const PREFIXES: [&str; 3] = ["", "input::", "input."];

/// Inputs by name.
pub struct Batch {
    tensors: Shards,
}

impl Batch {
    /// Opens a file of inputs.
    ///
    /// # Errors
    ///
    /// It cannot be read.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let tensors = Shards::open(path)?;
        Ok(Batch { tensors })
    }

    fn find(&self, input: &str) -> Option<&Tensor> {
        let names = PREFIXES.iter().map(|prefix| format!("{prefix}{input}"));
        names.filter_map(|name| self.tensors.get(&name)).next()
    }

    /// Numbers for the symbols of a graph, as the shapes of its inputs have them.
    ///
    /// # Errors
    ///
    /// Inputs of other ranks or of contradicting shapes; symbols that no input has.
    pub fn bindings(&self, graph: &Graph) -> Result<Bindings, Error> {
        let mut bindings = Bindings::new();
        for (_, param) in graph.params().filter(|(_, p)| p.role == Role::Input) {
            let Some(tensor) = self.find(&param.name) else {
                continue;
            };
            if tensor.shape.len() != param.ty.rank() {
                return Err(self.misshapen(param, tensor));
            }
            for (dim, found) in param.ty.shape.iter().zip(&tensor.shape) {
                let found = i64::try_from(*found).unwrap_or(i64::MAX);
                let Some(symbol) = dim.as_symbol() else {
                    continue;
                };
                match bindings.insert(symbol.clone(), found) {
                    Some(other) if other != found => {
                        return Err(self.problem(format!(
                            "the input {} makes the dimension {symbol} {found}, another one {other}",
                            param.name
                        )));
                    }
                    _ => {}
                }
            }
        }
        let open = symbols(graph);
        let open: Vec<&str> = open
            .iter()
            .filter(|s| !bindings.contains_key(*s))
            .map(|s| &**s)
            .collect();
        if open.is_empty() {
            return Ok(bindings);
        }
        let missing = graph.params().filter(|(_, p)| p.role == Role::Input);
        let missing = missing.filter(|(_, p)| self.find(&p.name).is_none());
        let missing: Vec<&str> = missing.map(|(_, p)| &*p.name).collect();
        Err(match missing.is_empty() {
            true => self.problem(format!(
                "no input says what the dimension {} is: export the model with a number for it",
                open.join(", ")
            )),
            false => self.missing(&missing),
        })
    }

    /// The bytes that an input takes.
    ///
    /// # Errors
    ///
    /// It is not there, or has another shape or type.
    pub fn bytes(&self, param: &Param) -> Result<Vec<u8>, Error> {
        let tensor = self
            .find(&param.name)
            .ok_or_else(|| self.missing(&[&param.name]))?;
        if param.ty.known_shape().as_deref() != Some(&tensor.shape[..]) {
            return Err(self.misshapen(param, tensor));
        }
        let to = param.ty.dtype;
        match tensor.ir_dtype() {
            Some(from) if from == to => Ok(tensor.bytes.to_vec()),
            Some(from) if from.is_float() && to.is_float() => {
                Ok(encode(to, decode(from, &tensor.bytes)))
            }
            Some(from) if !from.is_float() && to == DType::I64 => {
                Ok(decode_ints(from, &tensor.bytes)
                    .into_iter()
                    .flat_map(i64::to_le_bytes)
                    .collect())
            }
            Some(from) if !from.is_float() => Ok(encode(to, decode(from, &tensor.bytes))),
            _ => Err(self.problem(format!(
                "the input {} holds {}, the model reads {to}",
                param.name, tensor.dtype
            ))),
        }
    }

    fn missing(&self, names: &[&str]) -> Error {
        let has: Vec<&str> = self.tensors.iter().map(|(name, _)| name).take(8).collect();
        self.problem(format!(
            "there is no input {}; the file has {}",
            names.join(", "),
            has.join(", ")
        ))
    }

    fn misshapen(&self, param: &Param, tensor: &Tensor) -> Error {
        self.problem(format!(
            "the input {} has shape {:?}, the model reads {}",
            param.name, tensor.shape, param.ty
        ))
    }

    fn problem(&self, what: String) -> Error {
        Error::Args(format!("{}: {what}", self.tensors.path().display()))
    }
}
