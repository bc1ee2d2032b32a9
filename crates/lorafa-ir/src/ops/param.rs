//! Parameters: everything that exists before the step starts.

use super::attrs::Attrs;
use super::{Op, Operator, Types, one};
use crate::dim::Bindings;
use crate::dtype::DType;
use crate::types::{TensorType, TypeError};
use bytes::Bytes;
use std::fmt;
use std::sync::Arc;

/// What training does with a parameter.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Role {
    /// A weight that keeps its value.
    Frozen,
    /// A weight that the optimizer changes.
    Trained,
    /// State of the optimizer.
    OptState,
    /// An input of each step.
    Input,
    /// Not a weight: a table or a mask.
    Constant,
}

impl Role {
    const NAMES: [(Role, &'static str); 5] = [
        (Role::Frozen, "frozen"),
        (Role::Trained, "trained"),
        (Role::OptState, "optstate"),
        (Role::Input, "input"),
        (Role::Constant, "constant"),
    ];

    /// The role with this spelling.
    pub fn parse(name: &str) -> Option<Role> {
        Self::NAMES
            .iter()
            .find(|(_, n)| *n == name)
            .map(|(r, _)| *r)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::NAMES
            .iter()
            .find(|(r, _)| r == self)
            .map_or("?", |(_, n)| n);
        f.write_str(name)
    }
}

/// How a new adapter matrix gets its first values, by PEFT's names.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Init {
    /// Zero everywhere.
    Zeros,
    /// Uniform in ±1/√in: `kaiming_uniform_(a=√5)`.
    Kaiming,
    /// Normal with standard deviation 1/rank.
    Gaussian,
    /// Orthonormal rows.
    Orthogonal,
}

impl Init {
    /// Every init with its spelling.
    pub const NAMES: [(Init, &'static str); 4] = [
        (Init::Zeros, "zeros"),
        (Init::Kaiming, "kaiming"),
        (Init::Gaussian, "gaussian"),
        (Init::Orthogonal, "orthogonal"),
    ];

    /// The spelling.
    pub fn name(self) -> &'static str {
        Self::NAMES
            .iter()
            .find(|(i, _)| *i == self)
            .map_or("?", |(_, n)| n)
    }
}

/// Weights in a file next to the model.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct External {
    /// Path relative to the model's folder.
    pub location: Arc<str>,
    /// First byte.
    pub offset: u64,
    /// Number of bytes, if the model says so.
    pub length: Option<u64>,
}

/// Where a parameter's values come from.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Data {
    /// Given at run time.
    Runtime,
    /// Little-endian elements.
    Inline(Bytes),
    /// In a file next to the model.
    External(External),
    /// Drawn when they are needed, from the parameter's name and a seed.
    Init {
        /// How.
        init: Init,
        /// The seed of the run.
        seed: u64,
    },
    /// Known only by its digest, in a graph read from text.
    Digest(u64),
}

/// A parameter's values and how they differ from its type.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Stored {
    /// The values.
    pub data: Data,
    /// Their element type.
    pub dtype: DType,
    /// Whether they are the transpose of the parameter (an exporter folded `Wᵀ`).
    pub transposed: bool,
}

/// Whether a name is a path in a module tree, as opposed to one that an exporter made up.
pub fn is_path(name: &str) -> bool {
    name.contains('.') && !name.contains("::") && !name.starts_with('/')
}

/// A parameter, input, optimizer state or large constant.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Param {
    /// Unique name; for weights, PyTorch's.
    pub name: Arc<str>,
    /// What training does with it.
    pub role: Role,
    /// Its type.
    pub ty: TensorType,
    /// Its values.
    pub stored: Stored,
}

impl Param {
    /// A parameter whose values are given at run time.
    pub fn runtime(name: impl Into<Arc<str>>, role: Role, ty: TensorType) -> Self {
        let stored = Stored {
            data: Data::Runtime,
            dtype: ty.dtype,
            transposed: false,
        };
        Param {
            name: name.into(),
            role,
            ty,
            stored,
        }
    }

    /// A parameter whose values have its own type.
    pub fn new(name: impl Into<Arc<str>>, role: Role, ty: TensorType, data: Data) -> Self {
        let stored = Stored {
            data,
            dtype: ty.dtype,
            transposed: false,
        };
        Param {
            name: name.into(),
            role,
            ty,
            stored,
        }
    }

    /// Whether this is a weight of the model or of an adapter.
    pub fn is_weight(&self) -> bool {
        matches!(self.role, Role::Frozen | Role::Trained)
    }

    /// Whether the first values are one number everywhere, as far as that can be told without reading files.
    pub fn is_uniform(&self) -> Option<bool> {
        match &self.stored.data {
            Data::Inline(bytes) => {
                let mut elements = bytes.chunks(self.stored.dtype.size() as usize);
                let first = elements.next();
                Some(elements.all(|element| Some(element) == first))
            }
            Data::Init { init, .. } => Some(*init == Init::Zeros),
            Data::Runtime | Data::External(_) | Data::Digest(_) => None,
        }
    }

    /// Whether two parameters of one type start with the same elements, as far as that can be told without reading files.
    pub fn same_elements(&self, other: &Param) -> Option<bool> {
        let (a, b) = (&self.stored, &other.stored);
        if self.ty != other.ty || a.dtype != b.dtype {
            return Some(false);
        }
        match (&a.data, &b.data) {
            (Data::Inline(x), Data::Inline(y)) => Some(match (a.transposed, b.transposed) {
                (false, true) => is_transpose(x, y, self)?,
                (true, false) => is_transpose(y, x, self)?,
                _ => x == y,
            }),
            (Data::External(_), _) | (Data::Digest(_), _) => (a == b).then_some(true),
            _ => None,
        }
    }
}

/// Whether the bytes of a matrix's rows hold the same as those of the columns of one of its type.
fn is_transpose(rows: &[u8], columns: &[u8], of: &Param) -> Option<bool> {
    let [height, width] = of.ty.known_shape()?.first_chunk().copied()?;
    let (height, width) = (usize::try_from(height).ok()?, usize::try_from(width).ok()?);
    let size = of.stored.dtype.size() as usize;
    let bytes = height.checked_mul(width)?.checked_mul(size)?;
    if rows.len() != bytes || columns.len() != bytes {
        return Some(false);
    }
    let places = |row: usize| (0..width).map(move |c| (row * width + c, c * height + row));
    let mut places = (0..height).flat_map(places);
    Some(places.all(|(i, j)| rows[i * size..][..size] == columns[j * size..][..size]))
}

impl Operator for Box<Param> {
    fn name(&self) -> &'static str {
        "param"
    }

    /// The text form has a line of its own for parameters, which prints these.
    fn attrs(&self) -> Attrs {
        let stored = &self.stored;
        let attrs = Attrs::default()
            .unless("stored", stored.dtype, self.ty.dtype)
            .flag("transposed", stored.transposed);
        match &stored.data {
            Data::Runtime => attrs,
            Data::Inline(bytes) => attrs.with("digest", format_args!("{:016x}", digest(bytes))),
            Data::Digest(digest) => attrs.with("digest", format_args!("{digest:016x}")),
            Data::Init { init, seed } => attrs.with("init", init.name()).unless("seed", *seed, 0),
            Data::External(e) => attrs
                .with("external", format_args!("{:?}", e.location))
                .with("offset", e.offset)
                .with(
                    "length",
                    e.length.map_or("rest".to_string(), |n| n.to_string()),
                ),
        }
    }

    fn arity(&self) -> (usize, usize) {
        (0, 0)
    }

    fn infer(&self, _: &[&TensorType]) -> Result<Types, TypeError> {
        Ok(one(self.ty.clone()))
    }

    fn bind(&self, bindings: &Bindings) -> Option<Op> {
        let ty = self.ty.bind(bindings)?;
        Some(Op::Param(Box::new(Param {
            ty,
            ..(**self).clone()
        })))
    }

    /// Values are copied in from the host.
    fn writes_strided(&self) -> bool {
        true
    }

    fn flops(&self, _: &[&TensorType], _: &[&TensorType]) -> u64 {
        0
    }
}

/// 64-bit FNV-1a, to tell weights apart in the text form.
fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
