//! Categories: what each byte of a step is for.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::{Index, IndexMut};

use lorafa_ir::ops::{Param, Role};
use lorafa_ir::{Graph, Op, OutputKind, Region, ValueId};
use serde::ser::{Serialize, Serializer};

use crate::liveness::LiveRange;
use crate::problem::ALIGN;
use crate::storage::{Storage, StorageKind, Storages};

/// What memory is used for, in the order of the report. Every byte belongs to one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Category {
    /// Weights of the base model, trained or not, tables and constants.
    FrozenWeights,
    /// The matrices A and B of LoRA adapters.
    Adapters,
    /// Gradients of parameters: gradient outputs, accumulators, and what the update region reads of what others make.
    Gradients,
    /// State of the optimizer.
    OptimizerState,
    /// What the forward region makes and the backward region reads.
    SavedActivations,
    /// Everything else that the step makes, its inputs, and what fragmentation costs.
    Temporaries,
    /// Private scratch of ops.
    Workspace,
    /// What the runtime takes outside the arena: CUDA context, cuBLAS workspace.
    RuntimeReserve,
}

impl Category {
    /// All of them, in order.
    pub const ALL: [Category; 8] = [
        Category::FrozenWeights,
        Category::Adapters,
        Category::Gradients,
        Category::OptimizerState,
        Category::SavedActivations,
        Category::Temporaries,
        Category::Workspace,
        Category::RuntimeReserve,
    ];

    /// Its key in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Category::FrozenWeights => "frozen_weights",
            Category::Adapters => "adapters",
            Category::Gradients => "gradients",
            Category::OptimizerState => "optimizer_state",
            Category::SavedActivations => "saved_activations",
            Category::Temporaries => "temporaries",
            Category::Workspace => "workspace",
            Category::RuntimeReserve => "runtime_reserve",
        }
    }
}

impl fmt::Display for Category {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Bytes by category.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Breakdown([u64; Category::ALL.len()]);

impl Breakdown {
    /// Every category with its bytes, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Category, u64)> {
        Category::ALL.into_iter().zip(self.0)
    }

    /// The sum, in bytes.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

impl Index<Category> for Breakdown {
    type Output = u64;

    fn index(&self, category: Category) -> &u64 {
        &self.0[category as usize]
    }
}

impl IndexMut<Category> for Breakdown {
    fn index_mut(&mut self, category: Category) -> &mut u64 {
        &mut self.0[category as usize]
    }
}

impl Serialize for Breakdown {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

/// The category of every storage, by [`StorageId::index`](crate::StorageId::index).
pub(crate) fn categories(
    graph: &Graph,
    storages: &Storages,
    ranges: &[LiveRange],
) -> Vec<Category> {
    let adapters = adapters(graph);
    let mut gradients = vec![false; storages.as_slice().len()];
    for output in graph.outputs() {
        if matches!(output.kind, OutputKind::Gradient(_)) {
            gradients[storages.of(output.value).index()] = true;
        }
    }
    for op in graph.ops() {
        if let Op::Accumulate(_) = op.kind {
            gradients[storages.of(op.results[0]).index()] = true;
        }
    }
    let category = |(index, range): (usize, &LiveRange)| {
        let storage = &storages.as_slice()[index];
        match storage.kind {
            StorageKind::Constant => Category::FrozenWeights,
            StorageKind::Parameter => match graph.param(storage.root) {
                Some(param) if param.role == Role::OptState && gradients[index] => {
                    Category::Gradients
                }
                param => persistent(param, adapters.contains(&storage.root)),
            },
            StorageKind::Transient => {
                let first = storage.joined.first().unwrap_or(&storage.root);
                transient(gradients[index], region(graph, *first), range)
            }
        }
    };
    ranges.iter().enumerate().map(category).collect()
}

/// The bytes of what lies in a storage of parameters, each with its category. They are those of the storage, rounded.
pub(crate) fn parameters(
    graph: &Graph,
    storage: &Storage,
    category: Category,
) -> Vec<(Category, u64)> {
    let rounded = storage.bytes.next_multiple_of(ALIGN);
    if storage.joined.is_empty() {
        return vec![(category, rounded)];
    }
    let adapters = adapters(graph);
    let part = |value: &ValueId| {
        let category = persistent(graph.param(*value), adapters.contains(value));
        (category, graph.ty(*value).bytes().unwrap_or(0))
    };
    let mut found: Vec<_> = storage.joined.iter().map(part).collect();
    let parts: u64 = found.iter().map(|(_, bytes)| bytes).sum();
    found.push((category, rounded - parts));
    found
}

/// The matrices of adapters.
fn adapters(graph: &Graph) -> BTreeSet<ValueId> {
    let adapters = graph.adapters().iter();
    adapters
        .flat_map(|adapter| [adapter.a, adapter.b])
        .collect()
}

fn region(graph: &Graph, value: ValueId) -> Region {
    graph.def(value).site.region
}

fn persistent(param: Option<&Param>, adapter: bool) -> Category {
    match param {
        Some(param) if param.role == Role::OptState => Category::OptimizerState,
        Some(param) if param.role == Role::Input => Category::Temporaries,
        Some(param) if adapter || param.name.contains(".lora_") => Category::Adapters,
        _ => Category::FrozenWeights,
    }
}

fn transient(gradient: bool, made_in: Region, range: &LiveRange) -> Category {
    if gradient || made_in < Region::Update && range.read_in_update {
        Category::Gradients
    } else if made_in == Region::Forward && range.read_in_backward {
        Category::SavedActivations
    } else {
        Category::Temporaries
    }
}
