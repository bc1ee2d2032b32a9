//! What a gradient rule sees.
//!
//! A rule is given the gradients of an op's results and gives those of its operands. It reads
//! forward values through [`Gradient::operand`] and [`Gradient::result`]; each value that it
//! builds into an op this way is kept for the backward pass. Broadcasting is nobody's concern
//! but [`Gradient::give`]'s.

use crate::ids::{OpId, ValueId};
use crate::patch::{Patch, PatchError};
use std::ops::{Deref, DerefMut};
use thiserror::Error;

/// Why an op has no gradient.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum GradientError {
    /// The op has no gradient rule.
    #[error("has no gradient rule")]
    NotDifferentiable,
    /// The op has a gradient rule, but not for this operand or these attributes.
    #[error("{0}")]
    Unsupported(String),
    /// The rule built something ill-typed.
    #[error(transparent)]
    Patch(#[from] PatchError),
}

/// A gradient rule at work on one op.
#[derive(Debug)]
pub struct Gradient<'p, 'g> {
    patch: &'p mut Patch<'g>,
    op: OpId,
    result_grads: &'p [Option<ValueId>],
    wants: &'p [bool],
    given: Vec<Option<ValueId>>,
}

impl<'p, 'g> Gradient<'p, 'g> {
    /// Applies `op`'s rule: for each operand slot that `wants`, its gradient, if it has one.
    pub fn apply(
        patch: &'p mut Patch<'g>,
        op: OpId,
        result_grads: &'p [Option<ValueId>],
        wants: &'p [bool],
    ) -> Result<Vec<Option<ValueId>>, GradientError> {
        let kind = patch.graph().op(op).kind.clone();
        let given = vec![None; wants.len()];
        let mut gradient = Gradient {
            patch,
            op,
            result_grads,
            wants,
            given,
        };
        kind.gradient(&mut gradient)?;
        Ok(gradient.given)
    }

    /// The gradient of a result, if anything depends on it.
    pub fn result_grad(&self, slot: usize) -> Option<ValueId> {
        self.result_grads.get(slot).copied().flatten()
    }

    /// The gradient of result 0, which must be the only result that anything depends on.
    pub fn dy(&self) -> Result<ValueId, GradientError> {
        match self.result_grads {
            [Some(dy), rest @ ..] if rest.iter().all(Option::is_none) => Ok(*dy),
            _ => Err(GradientError::Unsupported(
                "only its first result has a gradient".into(),
            )),
        }
    }

    /// A forward operand.
    pub fn operand(&self, slot: usize) -> ValueId {
        self.graph().op(self.op).operands[slot]
    }

    /// A forward result.
    pub fn result(&self, slot: usize) -> ValueId {
        self.graph().op(self.op).results[slot]
    }

    /// Whether the gradient of this operand is needed.
    pub fn wants(&self, slot: usize) -> bool {
        self.wants[slot]
    }

    /// Adds to the forward pass, where the op stands: what is cheapest to compute with it.
    pub fn in_forward<T>(&mut self, build: impl FnOnce(&mut Patch<'g>) -> T) -> T {
        let site = self.patch.site().clone();
        let made = build(self.patch.at(self.op));
        self.patch.at_site(site);
        made
    }

    /// Gives the gradient of an operand, in the shape of the result it comes from: it is summed
    /// over the axes that were broadcast.
    pub fn give(&mut self, slot: usize, grad: ValueId) -> Result<(), PatchError> {
        if !self.wants[slot] {
            return Ok(());
        }
        let operand = self.operand(slot);
        let ty = self.patch.ty(operand).clone();
        let grad = self.patch.unbroadcast(grad, &ty.shape)?;
        self.given[slot] = Some(self.patch.cast(grad, ty.dtype)?);
        Ok(())
    }
}

impl<'g> Deref for Gradient<'_, 'g> {
    type Target = Patch<'g>;

    fn deref(&self) -> &Patch<'g> {
        self.patch
    }
}

impl<'g> DerefMut for Gradient<'_, 'g> {
    fn deref_mut(&mut self) -> &mut Patch<'g> {
        self.patch
    }
}
