//! Builds one adapter.

use super::layers::Linear;
use crate::pass::PassError;
use lorafa_ir::ops::{Data, Dropout, Init, Op, Param, Role, Scalar};
use lorafa_ir::{Adapter, DType, Dim, Patch, TensorType, ValueId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Adds adapters to layers.
pub(super) struct Injector<'p, 'g> {
    patch: &'p mut Patch<'g>,
    init_a: Data,
    /// What each adapter drops of its input.
    dropout: Scalar,
    /// The seed of the next dropout, which no other has.
    seed: i64,
    /// The adapters' element type; the layer's if none.
    dtype: Option<DType>,
    /// A and B by the weight that they adapt: a layer that runs twice has one adapter.
    params: BTreeMap<ValueId, (ValueId, ValueId)>,
    names: BTreeSet<Arc<str>>,
}

impl<'p, 'g> Injector<'p, 'g> {
    pub(super) fn new(
        patch: &'p mut Patch<'g>,
        init_a: Data,
        dropout: f64,
        dtype: Option<DType>,
    ) -> Self {
        let seeds = patch.graph().ops().filter_map(|op| match op.kind {
            Op::Dropout(dropout) => Some(dropout.seed),
            _ => None,
        });
        let seed = seeds.max().map_or(0, |seed| seed.wrapping_add(1));
        let names = patch
            .graph()
            .params()
            .map(|(_, p)| p.name.clone())
            .collect();
        Injector {
            patch,
            init_a,
            dropout: Scalar(dropout),
            seed,
            dtype,
            params: BTreeMap::new(),
            names,
        }
    }

    /// Adds `scale·(x·A)·B` to a layer's result, for all that reads it; where there is dropout, `x` is what survives.
    pub(super) fn inject(
        &mut self,
        layer: &Linear,
        rank: u64,
        scale: f64,
    ) -> Result<(), PassError> {
        let own = self.patch.ty(layer.y).dtype;
        let dtype = self.dtype.unwrap_or(own);
        let (a, b) = match self.params.get(&layer.weight) {
            Some(known) => *known,
            None => {
                let new = self.new_params(layer, rank, dtype)?;
                *self.params.entry(layer.weight).or_insert(new)
            }
        };
        let patch = &mut *self.patch;
        patch.at(layer.op);
        let mut site = patch.site().clone();
        let prefix = &*site.module;
        site.module = prefix.strip_suffix(".base_layer").unwrap_or(prefix).into();
        patch.at_site(site);

        // Read here: the adapter of the layer before may have changed it.
        let x = patch.graph().op(layer.product).operands[0];
        let mut x = patch.cast(x, dtype)?;
        if self.dropout.0 > 0.0 {
            let dropout = Dropout {
                ratio: self.dropout,
                seed: self.seed,
            };
            self.seed = self.seed.wrapping_add(1);
            x = patch.add(dropout.into(), &[x])?[0];
        }
        let xa = patch.matmul(x, a, false, true)?;
        let product = patch.matmul(xa, b, false, true)?;
        let mut delta = patch.scaled(product, scale)?;
        let mut base = layer.y;
        // The sum is taken in the wider type, as PyTorch promotes.
        if dtype.size() > own.size() {
            base = patch.cast(base, dtype)?;
        } else {
            delta = patch.cast(delta, own)?;
        }
        let sum = patch.plus(base, delta)?;
        let result = patch.cast(sum, own)?;

        let reader = if base == layer.y { sum } else { base };
        let reader = patch.graph().value(reader).op;
        patch.replace(layer.y, result)?;
        patch.set_operand(reader, 0, layer.y);
        let (module, scale) = (patch.site().module.clone(), Scalar(scale));
        let module = if module.is_empty() {
            layer.module.clone()
        } else {
            module
        };
        patch.adapter(Adapter {
            module,
            x,
            a,
            b,
            xa,
            scale,
            rank,
        });
        Ok(())
    }

    fn new_params(
        &mut self,
        layer: &Linear,
        rank: u64,
        dtype: DType,
    ) -> Result<(ValueId, ValueId), PassError> {
        // Parameters stand where the layer's weight stands.
        let weight = self.patch.graph().value(layer.weight).op;
        self.patch.at(weight);
        let zeros = Data::Init {
            init: Init::Zeros,
            seed: 0,
        };
        let init_a = self.init_a.clone();
        let a = self.new_param(layer, "A", dtype, [rank, layer.inputs], init_a)?;
        let b = self.new_param(layer, "B", dtype, [layer.outputs, rank], zeros)?;
        Ok((a, b))
    }

    fn new_param(
        &mut self,
        layer: &Linear,
        which: &str,
        dtype: DType,
        shape: [u64; 2],
        data: Data,
    ) -> Result<ValueId, PassError> {
        let path = &layer.module;
        let name: Arc<str> = format!("base_model.model.{path}.lora_{which}.default.weight").into();
        if !self.names.insert(name.clone()) {
            return Err(PassError::Refused(format!(
                "the model has a parameter called {name} already: export it without adapters"
            )));
        }
        let dims = shape.map(|n| Dim::Known(i64::try_from(n).unwrap_or(i64::MAX)));
        let ty = TensorType::new(dtype, dims);
        let param = Param::new(name.clone(), Role::Trained, ty, data);
        let value = self.patch.add1(Op::Param(Box::new(param)), &[])?;
        self.patch.name(value, Some(name));
        Ok(value)
    }
}
