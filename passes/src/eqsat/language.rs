//! The terms of an adapter's algebra, and their types.

use egg::{Analysis, DidMerge, EGraph, Id, define_language};
use lorafa_ir::types::{TensorType, broadcast};
use lorafa_ir::{DType, Dim, ValueId};
use smallvec::SmallVec;

define_language! {
    /// A term. Transposes swap the last two axes, sums are over all axes before these. Leaves are numbers of [`Leaf`]s:
    /// no order of names, which is that of their interning, gets into the result.
    pub(crate) enum Term {
        "product" = Product([Id; 2]),
        "transpose" = Transpose(Id),
        "scale" = Scale([Id; 2]),
        "times" = Times([Id; 2]),
        "reshape" = Reshape([Id; 2]),
        "cast" = Cast([Id; 2]),
        "sum" = Sum(Id),
        Leaf(u32),
    }
}

/// Known dimensions.
pub(crate) type Dims = SmallVec<[u64; 4]>;

/// What a leaf stands for.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Leaf {
    /// A value that is there.
    Value(Source),
    /// A factor.
    Number(f64),
    /// The shape to give.
    Shape(Dims),
    /// The element type to give.
    DType(DType),
}

/// A value of the graph.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Source {
    /// The value.
    pub(crate) value: ValueId,
    /// Its type.
    pub(crate) ty: Tensor,
    /// What reading it in the backward pass keeps, and the size of that in bytes; nothing of weights and of what the
    /// backward pass makes.
    pub(crate) keeps: Option<(ValueId, u64)>,
}

/// Element type and dimensions.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Tensor {
    pub(crate) dtype: DType,
    pub(crate) dims: Dims,
}

impl Tensor {
    /// A type without symbols.
    pub(crate) fn of(ty: &TensorType) -> Option<Tensor> {
        let dims = ty.known_shape()?;
        let dtype = ty.dtype;
        Some(Tensor { dtype, dims })
    }

    /// All elements.
    pub(crate) fn elements(&self) -> u64 {
        self.dims.iter().product()
    }

    fn with(&self, dims: impl IntoIterator<Item = u64>) -> Kind {
        Kind::Tensor(Tensor {
            dtype: self.dtype,
            dims: dims.into_iter().collect(),
        })
    }
}

/// What a class of equal terms is.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Kind {
    Tensor(Tensor),
    Number(f64),
    Shape(Dims),
    DType(DType),
    /// No rule makes it; it has no cost and is never chosen.
    IllTyped,
}

impl Kind {
    pub(crate) fn tensor(&self) -> Option<&Tensor> {
        match self {
            Kind::Tensor(tensor) => Some(tensor),
            _ => None,
        }
    }

    pub(crate) fn shape(&self) -> Option<&Dims> {
        match self {
            Kind::Shape(dims) => Some(dims),
            _ => None,
        }
    }
}

/// Terms and what is known to be equal of them.
pub(crate) type Terms = EGraph<Term, Types>;

/// The types of terms, and what leaves stand for.
#[derive(Clone, Default, Debug)]
pub(crate) struct Types {
    leaves: Vec<Leaf>,
}

impl Types {
    /// What a leaf stands for.
    pub(crate) fn leaf(&self, leaf: u32) -> Option<&Leaf> {
        self.leaves.get(leaf as usize)
    }

    /// The number of a leaf that there is.
    pub(crate) fn find(&self, leaf: &Leaf) -> Option<u32> {
        let at = self.leaves.iter().position(|known| known == leaf);
        at.map(|at| at as u32)
    }

    fn number(&mut self, leaf: Leaf) -> u32 {
        self.find(&leaf).unwrap_or_else(|| {
            self.leaves.push(leaf);
            self.leaves.len() as u32 - 1
        })
    }
}

/// No terms yet.
pub(crate) fn terms() -> Terms {
    Terms::new(Types::default()).with_explanations_enabled()
}

/// The term that stands for a leaf.
pub(crate) fn leaf(terms: &mut Terms, leaf: Leaf) -> Id {
    let number = terms.analysis.number(leaf);
    terms.add_uncanonical(Term::Leaf(number))
}

impl Analysis<Term> for Types {
    type Data = Kind;

    fn make(terms: &mut Terms, term: &Term) -> Kind {
        kind(terms, term).unwrap_or(Kind::IllTyped)
    }

    fn merge(&mut self, kind: &mut Kind, other: Kind) -> DidMerge {
        if *kind == Kind::IllTyped && other != Kind::IllTyped {
            *kind = other;
            return DidMerge(true, false);
        }
        DidMerge(false, *kind != other)
    }

    /// A product of factors is a factor.
    fn modify(terms: &mut Terms, id: Id) {
        if let Kind::Number(number) = terms[id].data {
            let folded = leaf(terms, Leaf::Number(number));
            terms.union_trusted(id, folded, "fold-factors");
        }
    }
}

fn kind(terms: &Terms, term: &Term) -> Option<Kind> {
    let kind = |id: &Id| &terms[*id].data;
    let tensor = |id: &Id| kind(id).tensor();
    Some(match term {
        Term::Leaf(leaf) => match terms.analysis.leaf(*leaf)? {
            Leaf::Value(source) => Kind::Tensor(source.ty.clone()),
            Leaf::Number(number) => Kind::Number(*number),
            Leaf::Shape(dims) => Kind::Shape(dims.clone()),
            Leaf::DType(dtype) => Kind::DType(*dtype),
        },
        Term::Product([a, b]) => product(tensor(a)?, tensor(b)?)?,
        Term::Transpose(x) => {
            let x = tensor(x)?;
            let mut dims = x.dims.clone();
            let last = dims.len().checked_sub(1).filter(|last| *last > 0)?;
            dims.swap(last - 1, last);
            x.with(dims)
        }
        Term::Scale([x, by]) => match (tensor(x)?, kind(by)) {
            (x, Kind::Number(_)) => Kind::Tensor(x.clone()),
            _ => return None,
        },
        Term::Times([a, b]) => match (kind(a), kind(b)) {
            (Kind::Number(a), Kind::Number(b)) => Kind::Number(a * b),
            _ => return None,
        },
        Term::Reshape([x, to]) => {
            let (x, to) = (tensor(x)?, kind(to).shape()?);
            (x.elements() == to.iter().product()).then(|| x.with(to.iter().copied()))?
        }
        Term::Cast([x, to]) => match (tensor(x)?, kind(to)) {
            (x, Kind::DType(to)) => Kind::Tensor(Tensor {
                dtype: *to,
                dims: x.dims.clone(),
            }),
            _ => return None,
        },
        Term::Sum(x) => {
            let x = tensor(x)?;
            let matrix = x.dims.len().checked_sub(2).filter(|lead| *lead > 0)?;
            x.with(x.dims[matrix..].iter().copied())
        }
    })
}

fn product(a: &Tensor, b: &Tensor) -> Option<Kind> {
    let (lead_a, [m, k]) = a.dims.split_last_chunk::<2>()?;
    let (lead_b, [k2, n]) = b.dims.split_last_chunk::<2>()?;
    if k != k2 || a.dtype != b.dtype {
        return None;
    }
    let known = |dims: &[u64]| -> Vec<Dim> { dims.iter().map(|n| Dim::Known(*n as i64)).collect() };
    let lead: Option<Dims> = match (lead_a, lead_b) {
        ([], lead) | (lead, []) => Some(lead.into()),
        (a, b) => broadcast(&known(a), &known(b)).ok().and_then(|lead| {
            let dims = lead.iter().map(|d| d.known().map(|n| n as u64));
            dims.collect()
        }),
    };
    Some(a.with(lead?.into_iter().chain([*m, *n])))
}
