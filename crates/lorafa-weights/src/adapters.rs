//! The adapters of a graph as PEFT sees them: one for each adapted module.

use crate::error::SaveError;
use crate::names::plain;
use lorafa_ir::ops::Param;
use lorafa_ir::{Adapter, Graph, ValueId};
use std::collections::BTreeMap;

/// An adapted module.
#[derive(Clone, Debug)]
pub(crate) struct Adapted<'g> {
    /// Its path in the model itself.
    pub(crate) module: String,
    pub(crate) rank: u64,
    /// The factor on `B·A`.
    pub(crate) scale: f64,
    pub(crate) a: (ValueId, &'g Param),
    pub(crate) b: (ValueId, &'g Param),
}

/// Every adapted module, by path. A layer that runs twice has one adapter.
///
/// # Errors
///
/// [`SaveError::Adapter`] if two adapters claim a module, or A and B are not `[rank, in]` and `[out, rank]`.
pub(crate) fn adapted(graph: &Graph) -> Result<Vec<Adapted<'_>>, SaveError> {
    let mut modules: BTreeMap<String, Adapted> = BTreeMap::new();
    for adapter in graph.adapters() {
        let module = module(graph, adapter);
        let refused = |why: &str| SaveError::Adapter {
            module: module.clone(),
            why: why.to_string(),
        };
        let param = |value| graph.param(value).map(|param| (value, param));
        let (Some(a), Some(b)) = (param(adapter.a), param(adapter.b)) else {
            return Err(refused("A and B are no parameters of the model"));
        };
        let (rank, scale) = (adapter.rank, adapter.scale.0);
        let shape = |param: &Param| param.ty.known_shape().unwrap_or_default();
        let fits = matches!(shape(a.1).as_slice(), [r, _] if *r == rank)
            && matches!(shape(b.1).as_slice(), [_, r] if *r == rank);
        if !fits {
            let why = "A and B are not [rank, in] and [out, rank]; export the model with PEFT's own LoRA layers";
            return Err(refused(why));
        }
        let new = Adapted {
            module: module.clone(),
            rank,
            scale,
            a,
            b,
        };
        if let Some(other) = modules.insert(module.clone(), new)
            && (other.a.0, other.b.0, other.scale) != (adapter.a, adapter.b, scale)
        {
            return Err(refused("the module has two adapters; export it with one"));
        }
    }
    Ok(modules.into_values().collect())
}

/// The adapted module's path: what its B is called after, which no other module shares.
fn module(graph: &Graph, adapter: &Adapter) -> String {
    let named = |value: ValueId| {
        let (module, _) = graph.param(value)?.name.split_once(".lora_")?;
        Some(plain(module))
    };
    let name = named(adapter.b).or_else(|| named(adapter.a));
    name.unwrap_or_else(|| plain(&adapter.module))
}
