//! What the importer knows about the names it has met.

use super::error::{Fail, ImportError};
use super::functions::Program;
use super::known::{Known, MAX_KNOWN};
use super::node::{Node, module};
use super::signature::Signature;
use super::training::Training;
use crate::dtype;
use crate::external::ExternalStore;
use crate::file::ModelFile;
use crate::proto::TensorProto;
use crate::tensor::{self, TensorPayload};
use lorafa_ir::ops::{
    Constant, Data, DimValue, External, Literal, Op, Param, Role, Scalar, is_path,
};
use lorafa_ir::{Dim, Graph, Patch, Region, Shape, Site, TensorType, ValueId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What a name stands for.
#[derive(Clone, Default)]
pub(super) struct Entry {
    /// The value in the graph, once something read it as data.
    pub(super) value: Option<ValueId>,
    /// Its integers, if they are known.
    pub(super) known: Option<Known>,
    /// The elements, if it is a sequence of tensors.
    pub(super) sequence: Option<Vec<ValueId>>,
}

/// An import under way.
pub(super) struct Importer<'m, 'g> {
    pub(super) model: &'m ModelFile,
    pub(super) program: &'m Program<'m>,
    pub(super) patch: Patch<'g>,
    /// What a training graph of onnxruntime-training says about its inputs and outputs.
    pub(super) training: Option<&'m Training<'m>>,
    signature: &'m Signature,
    /// What nodes read and what the model gives.
    read: BTreeSet<&'m str>,
    store: ExternalStore,
    initializers: BTreeMap<&'m str, &'m TensorProto>,
    entries: BTreeMap<String, Entry>,
}

impl<'m, 'g> Importer<'m, 'g> {
    pub(super) fn new(
        graph: &'g mut Graph,
        model: &'m ModelFile,
        program: &'m Program<'m>,
        training: Option<&'m Training<'m>>,
        signature: &'m Signature,
    ) -> Self {
        let inputs = program.nodes.iter().flat_map(|(node, _)| &node.input);
        let outputs = model.graph().output.iter().map(|o| o.name());
        let gradients = training.into_iter().flat_map(Training::gradients);
        let read = inputs.map(String::as_str).chain(outputs).chain(gradients);
        let initializers = model
            .graph()
            .initializer
            .iter()
            .map(|t| (t.name(), t))
            .collect();
        Importer {
            model,
            program,
            patch: graph.patch("import"),
            training,
            signature,
            read: read.collect(),
            store: ExternalStore::new(model.folder()),
            initializers,
            entries: BTreeMap::new(),
        }
    }

    /// What defines a name outside the nodes.
    pub(super) fn source(&self, name: &str) -> Option<&'static str> {
        if self.is_initializer(name) {
            Some("an initializer")
        } else {
            self.entries.contains_key(name).then_some("an input")
        }
    }

    /// Whether a node reads a name, or the model gives it.
    pub(super) fn is_read(&self, name: &str) -> bool {
        self.read.contains(name)
    }

    pub(super) fn is_initializer(&self, name: &str) -> bool {
        self.initializers.contains_key(name)
    }

    /// Refuses initializers that share a name.
    pub(super) fn check_initializers(&self) -> Result<(), ImportError> {
        let all = &self.model.graph().initializer;
        if all.len() == self.initializers.len() {
            return Ok(());
        }
        let mut seen = BTreeMap::new();
        let name = all.iter().find(|t| seen.insert(t.name(), ()).is_some());
        let name = name.map_or(String::new(), |t| t.name().into());
        let (first, second) = ("an initializer".into(), "an initializer".into());
        Err(ImportError::Duplicate {
            name,
            first,
            second,
        })
    }

    pub(super) fn define_input(&mut self, name: &str, param: Param) {
        self.patch.at_site(site(i64::MIN, ""));
        if let Ok(value) = self.patch.add1(Op::Param(Box::new(param)), &[]) {
            let entry = Entry {
                value: Some(value),
                ..Entry::default()
            };
            self.entries.insert(name.into(), entry);
        }
    }

    /// New ops stand where this node stands.
    pub(super) fn enter(&mut self, node: &Node<'_>) {
        self.patch.at_site(site(node.seq, &module(node.proto)));
    }

    /// Binds a name to a value.
    pub(super) fn define(&mut self, name: &str, value: ValueId) {
        if self.patch.graph().value(value).name.is_none() {
            self.patch.name(value, Some(name.into()));
        }
        self.entries.insert(
            name.into(),
            Entry {
                value: Some(value),
                ..Entry::default()
            },
        );
    }

    /// Binds a name to known integers, and to a value if there is one.
    pub(super) fn define_known(&mut self, name: &str, known: Known, value: Option<ValueId>) {
        self.entries.insert(
            name.into(),
            Entry {
                value,
                known: Some(known),
                sequence: None,
            },
        );
    }

    /// Binds a name to a sequence of tensors.
    pub(super) fn define_sequence(&mut self, name: &str, items: Vec<ValueId>) {
        let entry = Entry {
            sequence: Some(items),
            ..Entry::default()
        };
        self.entries.insert(name.into(), entry);
    }

    /// Makes one name another for what a name stands for.
    pub(super) fn alias(&mut self, name: &str, of: &str) -> Result<(), Fail> {
        if !self.entries.contains_key(of) {
            self.value(of)?;
        }
        let entry = self.entries.get(of).cloned().unwrap_or_default();
        self.entries.insert(name.into(), entry);
        Ok(())
    }

    pub(super) fn sequence(&self, name: &str) -> Option<&[ValueId]> {
        self.entries.get(name)?.sequence.as_deref()
    }

    /// The integers that a name stands for, if they are known.
    pub(super) fn known(&mut self, name: &str) -> Result<Option<Known>, Fail> {
        if let Some(entry) = self.entries.get(name) {
            return Ok(entry.known.clone());
        }
        let Some(tensor) = self.initializers.get(name).copied() else {
            return Ok(None);
        };
        self.known_tensor(tensor)
    }

    /// The integers of a tensor, if it is a small one of integers or bool.
    pub(super) fn known_tensor(&self, tensor: &TensorProto) -> Result<Option<Known>, Fail> {
        let Some(dtype) = dtype::from_onnx(tensor.data_type()).filter(|d| !d.is_float()) else {
            return Ok(None);
        };
        if tensor::element_count(tensor)? > MAX_KNOWN as u64 {
            return Ok(None);
        }
        let bytes = tensor::read(tensor, &self.store)?;
        let values = dtype::decode_ints(dtype, &bytes)
            .into_iter()
            .map(Dim::Known)
            .collect();
        let shape = tensor.dims.iter().map(|d| *d as usize).collect();
        Ok(Some(Known {
            dtype,
            shape,
            values,
        }))
    }

    /// The one number that a name stands for, if it is a constant of one element.
    pub(super) fn number(&mut self, name: &str) -> Result<Option<f64>, Fail> {
        if let Some(known) = self.known(name)? {
            return Ok(known.as_scalar().and_then(Dim::known).map(|n| n as f64));
        }
        let Ok(value) = self.value(name) else {
            return Ok(None);
        };
        Ok(match &self.patch.graph().def(value).kind {
            Op::Constant(c) => c.as_f64(),
            _ => None,
        })
    }

    /// The value that a name stands for, made now if only its integers were known.
    pub(super) fn value(&mut self, name: &str) -> Result<ValueId, Fail> {
        let entry = self.entries.get(name).cloned();
        let value = match entry {
            Some(Entry {
                value: Some(value), ..
            }) => return Ok(value),
            Some(Entry {
                known: Some(known), ..
            }) => self.materialize(&known)?,
            Some(_) => return Err(format!("`{name}` is a sequence, not a tensor").into()),
            None => {
                let tensor = self.initializers.get(name).copied();
                let tensor = tensor.ok_or_else(|| format!("`{name}` is not defined"))?;
                self.tensor(name, tensor)?
            }
        };
        self.entries.entry(name.into()).or_default().value = Some(value);
        if let Some(tensor) = self.initializers.get(name).copied() {
            let known = self.known_tensor(tensor)?;
            self.entries.entry(name.into()).or_default().known = known;
        }
        Ok(value)
    }

    fn materialize(&mut self, known: &Known) -> Result<ValueId, Fail> {
        let shape: Shape = known.shape.iter().map(|d| Dim::Known(*d as i64)).collect();
        let op = match known.numbers() {
            Some(numbers) => {
                let ty = TensorType {
                    dtype: known.dtype,
                    shape,
                };
                Constant {
                    ty,
                    literal: Literal::Ints(numbers),
                }
                .into()
            }
            None => DimValue {
                shape,
                values: known.values.iter().cloned().collect(),
            }
            .into(),
        };
        let value = self.patch.add1(op, &[])?;
        Ok(self.patch.cast(value, known.dtype)?)
    }

    /// A constant tensor in the graph: in full if small, as a parameter otherwise.
    pub(super) fn tensor(&mut self, name: &str, tensor: &TensorProto) -> Result<ValueId, Fail> {
        let dtype = dtype::from_onnx(tensor.data_type()).ok_or_else(|| {
            let found = tensor::data_type_name(tensor.data_type());
            format!("`{name}` has type {found}; supported are floats, integers and bool")
        })?;
        let count = tensor::element_count(tensor)?;
        let ty = TensorType::new(dtype, tensor.dims.iter().map(|d| Dim::Known(*d)));
        ty.check()?;
        let listed = self.signature.parameters.contains(name);
        let weight = dtype.is_float() && (is_path(name) || listed);
        let small = if dtype.is_float() {
            count <= 1
        } else {
            count <= MAX_KNOWN as u64
        };
        if small && !weight {
            let bytes = tensor::read(tensor, &self.store)?;
            let literal = if dtype.is_float() {
                Literal::Floats(
                    dtype::decode(dtype, &bytes)
                        .into_iter()
                        .map(Scalar)
                        .collect(),
                )
            } else {
                Literal::Ints(dtype::decode_ints(dtype, &bytes))
            };
            return Ok(self.patch.add1(Constant { ty, literal }.into(), &[])?);
        }
        let data = match tensor::payload(tensor)? {
            TensorPayload::Inline(bytes) => Data::Inline(bytes),
            TensorPayload::External(reference) => Data::External(External {
                location: reference.location().into(),
                offset: reference.offset(),
                length: reference.length(),
            }),
        };
        let role = if weight { Role::Frozen } else { Role::Constant };
        let site = self.patch.site().clone();
        self.patch.at_site(self::site(i64::MIN, ""));
        let param = Param::new(name, role, ty, data);
        let value = self.patch.add1(Op::Param(Box::new(param)), &[])?;
        self.patch.at_site(site);
        Ok(value)
    }
}

fn site(seq: i64, module: &str) -> Site {
    Site {
        region: Region::Forward,
        seq,
        module: Arc::from(module),
        of: None,
    }
}
