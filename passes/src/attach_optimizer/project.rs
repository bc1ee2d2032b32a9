//! The gradient of B as PEFT's LoRA-FA optimizer takes it.

use super::{Trained, state};
use crate::pass::PassError;
use lorafa_ir::ops::Role;
use lorafa_ir::optimizer::INVERSE;
use lorafa_ir::{Adapter, DType, Patch, TensorType, ValueId};
use std::collections::BTreeMap;

/// What the gradients of adapters' B are multiplied by.
pub(super) struct Projections {
    of_b: BTreeMap<ValueId, Projection>,
    /// The type of the product.
    dtype: DType,
}

struct Projection {
    /// The parameter `pinv(A·Aᵀ + 1e-8·I)`.
    inverse: ValueId,
    /// The constant `1/scale²`, unless it is one.
    factor: Option<ValueId>,
}

impl Projections {
    /// Adds a parameter for each A whose B is trained; adapters that share A share it.
    pub(super) fn new(
        patch: &mut Patch<'_>,
        trained: &[Trained],
        dtype: DType,
    ) -> Result<Self, PassError> {
        let mut found = Projections {
            of_b: BTreeMap::new(),
            dtype,
        };
        let mut inverses: BTreeMap<ValueId, ValueId> = BTreeMap::new();
        let mut factors: BTreeMap<u64, ValueId> = BTreeMap::new();
        let adapters = patch.graph().adapters().to_vec();
        let mut of_b: BTreeMap<ValueId, &Adapter> = BTreeMap::new();
        for adapter in &adapters {
            if trained.iter().all(|t| t.param != adapter.b) {
                continue;
            }
            if patch.graph().role(adapter.a) == Some(Role::Trained) {
                return Err(PassError::Refused(format!(
                    "the adapter of {} trains its A, which is tied, and PEFT's LoRA-FA optimizer needs A to stay as it \
                     is; use AdamW",
                    adapter.module
                )));
            }
            let first = *of_b.entry(adapter.b).or_insert(adapter);
            if (first.a, first.scale) != (adapter.a, adapter.scale) {
                return Err(PassError::Refused(format!(
                    "the adapters of {} and {} have one B, but not one A and one scale: PEFT's \
                     LoRA-FA optimizer has no step for it; use AdamW",
                    first.module, adapter.module
                )));
            }
            let inverse = match inverses.get(&adapter.a) {
                Some(inverse) => *inverse,
                None => self::inverse(patch, adapter)?,
            };
            inverses.insert(adapter.a, inverse);
            let number = 1.0 / (adapter.scale.0 * adapter.scale.0);
            if !number.is_finite() {
                return Err(PassError::Refused(format!(
                    "the adapter of {} has scale {}, and PEFT's LoRA-FA optimizer divides by its \
                     square; use AdamW",
                    adapter.module, adapter.scale
                )));
            }
            let factor = match factors.get(&number.to_bits()) {
                Some(factor) => Some(*factor),
                None if number == 1.0 => None,
                None => Some(patch.scalar(DType::F32, number)?),
            };
            factors.extend(factor.map(|factor| (number.to_bits(), factor)));
            found.of_b.insert(adapter.b, Projection { inverse, factor });
        }
        Ok(found)
    }

    /// How many parameters are projected.
    pub(super) fn len(&self) -> usize {
        self.of_b.len()
    }

    /// `1/scale² · gradient · inverse` in f32 for an adapter's B; other gradients as they are.
    pub(super) fn apply(
        &self,
        patch: &mut Patch<'_>,
        param: ValueId,
        gradient: ValueId,
    ) -> Result<ValueId, PassError> {
        let Some(Projection { inverse, factor }) = self.of_b.get(&param) else {
            return Ok(gradient);
        };
        let gradient = patch.cast(gradient, self.dtype)?;
        let inverse = patch.cast(*inverse, self.dtype)?;
        let product = patch.matmul(gradient, inverse, false, false)?;
        let product = patch.cast(product, DType::F32)?;
        let Some(factor) = factor else {
            return Ok(product);
        };
        // As PyTorch multiplies by a number: in f32, rounded to the product's type.
        let scaled = patch.times(product, *factor)?;
        let scaled = patch.cast(scaled, self.dtype)?;
        Ok(patch.cast(scaled, DType::F32)?)
    }
}

fn inverse(patch: &mut Patch<'_>, adapter: &Adapter) -> Result<ValueId, PassError> {
    let rank = i64::try_from(adapter.rank).unwrap_or(i64::MAX);
    let ty = TensorType::new(DType::F32, [rank.into(), rank.into()]);
    let name = patch.graph().param(adapter.a).map(|a| a.name.clone());
    let name = name.unwrap_or_default();
    Ok(state(patch, &format!("{INVERSE}{name}"), ty)?)
}
