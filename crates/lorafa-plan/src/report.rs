//! The report: what a planned step needs at its peak, and why.

use std::cmp::Reverse;
use std::sync::Arc;

use lorafa_ir::ops::Role;
use lorafa_ir::{Graph, OpData, Region, ValueId};
use serde::Serialize;

use crate::category::{Breakdown, Category, parameters};
use crate::plan::Plan;
use crate::problem::{ALIGN, MAX_TOTAL};
use crate::storage::{StorageId, StorageKind};

/// The memory of one training method. All sizes are in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MethodReport {
    /// Elements of all trained parameters.
    pub trainable_params: u64,
    /// What the step needs: the arena and the runtime reserve.
    pub peak_bytes: u64,
    /// The least that this schedule needs, however it is laid out.
    pub lower_bound_bytes: u64,
    /// What the executor allocates.
    pub arena_bytes: u64,
    /// What the allocator's layout takes beyond the lower bound; counted as temporaries.
    pub fragmentation_bytes: u64,
    /// The op that runs at the peak, as mnemonic and first result.
    pub peak_op: String,
    /// Its module; empty if unknown.
    pub peak_module: Arc<str>,
    /// What the peak consists of; sums to [`peak_bytes`](Self::peak_bytes).
    pub breakdown: Breakdown,
    /// The saved activations at the peak, largest first; they sum to their category.
    pub saved: Vec<SavedActivation>,
}

/// A value that the forward region makes and the backward region reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SavedActivation {
    /// The value that the storage was made for.
    #[serde(skip)]
    pub id: ValueId,
    /// Its name in the imported model, or its number.
    pub value: String,
    /// The module of the op that makes it; empty if unknown.
    pub module: Arc<str>,
    /// The mnemonic of that op.
    pub kind: &'static str,
    /// Size in bytes, rounded to [`ALIGN`].
    pub bytes: u64,
    /// The backward ops that read it, in schedule order, each once.
    ///
    /// A view stands for the ops that read through it, and is named only if there are none.
    pub by: Vec<Reader>,
}

/// A backward op that keeps an activation alive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reader {
    /// Its mnemonic.
    pub op: &'static str,
    /// Its module; empty if unknown.
    pub module: Arc<str>,
}

impl Reader {
    fn new(op: &OpData) -> Self {
        Reader {
            op: op.kind.name(),
            module: op.site.module.clone(),
        }
    }
}

impl Plan {
    /// Reports the peak of `graph`, which must be the graph that was planned.
    ///
    /// `runtime_reserve` is what the runtime takes outside the arena, in bytes; more than [`MAX_TOTAL`] counts as that.
    #[must_use]
    pub fn report(&self, graph: &Graph, runtime_reserve: u64) -> MethodReport {
        let runtime_reserve = runtime_reserve.min(MAX_TOTAL);
        let peak = self.lower_bound().position;
        let mut breakdown = Breakdown::default();
        for (id, storage) in self.storages().iter() {
            if storage.kind != StorageKind::Transient {
                for (category, bytes) in parameters(graph, storage, self.category(id)) {
                    breakdown[category] += bytes;
                }
            }
        }
        let mut saved = vec![false; self.storages().as_slice().len()];
        for buffer in self.buffers().filter(|buffer| buffer.live.contains(&peak)) {
            let category = match self.occupant(buffer.content, peak) {
                Some(storage) => {
                    saved[storage.index()] = true;
                    self.category(storage)
                }
                None => Category::Workspace,
            };
            breakdown[category] += buffer.size;
        }
        breakdown[Category::Temporaries] += self.fragmentation_bytes();
        breakdown[Category::RuntimeReserve] = runtime_reserve;

        let op = self.op(peak).map(|op| graph.op(op));
        let trained = graph
            .params()
            .filter(|(_, param)| param.role == Role::Trained);
        MethodReport {
            trainable_params: trained.filter_map(|(_, param)| param.ty.elements()).sum(),
            peak_bytes: self.arena_bytes() + runtime_reserve,
            lower_bound_bytes: self.persistent_bytes() + self.lower_bound().bytes + runtime_reserve,
            arena_bytes: self.arena_bytes(),
            fragmentation_bytes: self.fragmentation_bytes(),
            peak_op: op.map(spell).unwrap_or_default(),
            peak_module: op.map_or_else(|| "".into(), |op| op.site.module.clone()),
            breakdown,
            saved: self.saved(graph, |storage| saved[storage.index()]),
        }
    }

    /// Everything that crosses from the forward into the backward region, whether it is live at the peak or not,
    /// largest first. `graph` must be the graph that was planned.
    #[must_use]
    pub fn all_saved(&self, graph: &Graph) -> Vec<SavedActivation> {
        self.saved(graph, |_| true)
    }

    /// The saved activations in the storages for which `keep` answers yes.
    fn saved(&self, graph: &Graph, keep: impl Fn(StorageId) -> bool) -> Vec<SavedActivation> {
        let storages = self.storages();
        let mut slots: Vec<Option<usize>> = vec![None; storages.as_slice().len()];
        let mut saved = Vec::new();
        for (id, storage) in storages.iter() {
            if self.category(id) == Category::SavedActivations && keep(id) {
                slots[id.index()] = Some(saved.len());
                let op = graph.def(storage.root);
                let name = &graph.value(storage.root).name;
                saved.push(SavedActivation {
                    id: storage.root,
                    value: name
                        .as_ref()
                        .map_or_else(|| storage.root.to_string(), |name| name.to_string()),
                    module: op.site.module.clone(),
                    kind: op.kind.name(),
                    bytes: storage.bytes.next_multiple_of(ALIGN),
                    by: Vec::new(),
                });
            }
        }
        let mut views: Vec<Vec<Reader>> = vec![Vec::new(); saved.len()];
        for (_, id) in self.schedule().iter() {
            let op = graph.op(id);
            if op.site.region != Region::Backward {
                continue;
            }
            for operand in &op.operands {
                let Some(slot) = slots[storages.of(*operand).index()] else {
                    continue;
                };
                let readers = if storages.is_view(op) {
                    &mut views[slot]
                } else {
                    &mut saved[slot].by
                };
                let reader = Reader::new(op);
                if !readers.contains(&reader) {
                    readers.push(reader);
                }
            }
        }
        for (saved, views) in saved.iter_mut().zip(views) {
            if saved.by.is_empty() {
                saved.by = views;
            }
        }
        saved.sort_by_key(|saved| Reverse(saved.bytes));
        saved
    }
}

fn spell(op: &OpData) -> String {
    let name = op.kind.name();
    match op.results.first() {
        Some(result) => format!("{name} {result}"),
        None => name.to_string(),
    }
}
