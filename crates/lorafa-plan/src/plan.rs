//! The plan: one arena, a place in it for every value, and the order to run ops in.
//!
//! ```text
//!   0                      persistent                                 arena
//!   | parameters | constants | reusable: what `allocate` laid out          |
//!   +------------+-----------+----------------------------------------------+
//! ```
//!
//! Parameters (inputs and optimizer state too) and constants are stacked in the order of their storages, each on a
//! multiple of [`ALIGN`]; behind them lies what comes and goes within the step.

use std::ops::Range;

use lorafa_ir::layout;
use lorafa_ir::{DType, Graph, OpId, ValueId};

use crate::allocate::allocate;
use crate::category::{Category, categories};
use crate::check::check;
use crate::error::PlanError;
use crate::in_place::{Buffers, Content, buffers};
use crate::liveness::{LiveRange, live_ranges};
use crate::problem::{ALIGN, Buffer, BufferId, Layout, LowerBound, MAX_TOTAL, Problem};
use crate::schedule::Schedule;
use crate::storage::{StorageId, StorageKind, Storages};

/// The largest plan that a debug build checks on its own: the checker is quadratic, and takes about a second there.
const MOST_CHECKED: usize = 1 << 13;

/// A step's memory, enough to run it from.
#[derive(Debug, Clone)]
pub struct Plan {
    schedule: Schedule,
    storages: Storages,
    ranges: Vec<LiveRange>,
    categories: Vec<Category>,
    /// From the start of the arena, by storage.
    offsets: Vec<u64>,
    persistent: u64,
    contents: Vec<Content>,
    scratch: Vec<Option<Scratch>>,
    problem: Problem,
    layout: Layout,
    lower_bound: LowerBound,
}

/// Where a value lies in the arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'p> {
    /// Its storage: values with the same one alias each other.
    pub storage: StorageId,
    /// The first byte of that storage, from the start of the arena; a multiple of [`ALIGN`].
    pub offset: u64,
    /// Its elements' places from there, in elements.
    pub layout: &'p layout::Layout,
    /// Its element type.
    pub dtype: DType,
}

impl Place<'_> {
    /// The first byte of the value itself, from the start of the arena.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.offset + self.layout.offset * self.dtype.size()
    }
}

/// An op's private scratch while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scratch {
    /// Its first byte, from the start of the arena.
    pub offset: u64,
    /// Its size in bytes, not rounded.
    pub bytes: u64,
}

/// A buffer of the reusable part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedBuffer<'p> {
    /// What it holds.
    pub content: &'p Content,
    /// Schedule positions at which it is in use.
    pub live: Range<u32>,
    /// Size in bytes, not rounded.
    pub bytes: u64,
    /// Size in bytes, a multiple of [`ALIGN`].
    pub size: u64,
    /// Its first byte, from the start of the arena.
    pub offset: u64,
}

/// Plans the memory of a step whose dimensions are all bound.
///
/// The same graph gives the same plan everywhere. A debug build checks the layout with [`check()`] if it has no more
/// than some thousand buffers.
///
/// # Errors
/// See [`PlanError`]. A graph that verifies, has no symbols and reads no parameter after updating it has a plan, unless
/// its sizes exceed [`MAX_TOTAL`].
pub fn plan(graph: &Graph) -> Result<Plan, PlanError> {
    let Needs {
        schedule,
        storages,
        ranges,
        buffers,
        problem,
    } = Needs::of(graph)?;
    let categories = categories(graph, &storages, &ranges);
    let layout = allocate(&problem);
    if cfg!(debug_assertions) && problem.buffers().len() <= MOST_CHECKED {
        check(&problem, &layout)?;
    }

    let (persistent, mut offsets) = stack(&storages)?;
    if persistent + layout.arena > MAX_TOTAL {
        return Err(PlanError::TooManyBytes);
    }
    for (offset, buffer) in offsets.iter_mut().zip(&buffers.of_storage) {
        if let Some(buffer) = buffer {
            *offset = persistent + layout.offsets[buffer.index()];
        }
    }
    let mut scratch = vec![None; schedule.ops().len()];
    for (content, offset) in buffers.contents.iter().zip(&layout.offsets) {
        if let Content::Scratch { position, bytes } = *content {
            let offset = persistent + offset;
            scratch[position as usize] = Some(Scratch { offset, bytes });
        }
    }
    Ok(Plan {
        lower_bound: problem.lower_bound(),
        contents: buffers.contents,
        schedule,
        storages,
        ranges,
        categories,
        offsets,
        persistent,
        scratch,
        problem,
        layout,
    })
}

/// The peak of a step, whatever its layout.
#[derive(Debug, Clone)]
pub struct Peak {
    /// The least bytes that the schedule takes: [`Plan::arena_bytes`] without fragmentation.
    pub bytes: u64,
    /// The first position at which that many are in use.
    pub position: u32,
    /// The schedule.
    pub schedule: Schedule,
}

/// The peak of a step: what [`plan`] comes to without fragmentation, for a fraction of its time.
///
/// # Errors
/// As [`plan`].
pub fn peak(graph: &Graph) -> Result<Peak, PlanError> {
    let needs = Needs::of(graph)?;
    let (persistent, _) = stack(&needs.storages)?;
    let LowerBound { bytes, position } = needs.problem.lower_bound();
    if persistent + bytes > MAX_TOTAL {
        return Err(PlanError::TooManyBytes);
    }
    Ok(Peak {
        bytes: persistent + bytes,
        position,
        schedule: needs.schedule,
    })
}

/// What a step needs and when, before anything has a place.
struct Needs {
    schedule: Schedule,
    storages: Storages,
    ranges: Vec<LiveRange>,
    buffers: Buffers,
    problem: Problem,
}

impl Needs {
    fn of(graph: &Graph) -> Result<Self, PlanError> {
        let schedule = Schedule::new(graph)?;
        let storages = Storages::new(graph, &schedule)?;
        let ranges = live_ranges(graph, &schedule, &storages);
        let buffers = buffers(graph, &schedule, &storages, &ranges);
        let wanted = buffers.contents.iter().map(|content| Buffer {
            live: live(content, &ranges),
            size: bytes(content, &storages).next_multiple_of(ALIGN),
        });
        Ok(Self {
            problem: Problem::new(wanted.collect())?,
            schedule,
            storages,
            ranges,
            buffers,
        })
    }
}

/// The size of the persistent part, and the offset in it of each storage that belongs there.
fn stack(storages: &Storages) -> Result<(u64, Vec<u64>), PlanError> {
    let mut top = 0u64;
    let mut offsets = vec![0; storages.as_slice().len()];
    for (id, storage) in storages.iter() {
        if storage.kind != StorageKind::Transient {
            offsets[id.index()] = top;
            top += storage.bytes.next_multiple_of(ALIGN);
            if top > MAX_TOTAL {
                return Err(PlanError::TooManyBytes);
            }
        }
    }
    Ok((top, offsets))
}

fn live(content: &Content, ranges: &[LiveRange]) -> Range<u32> {
    match content {
        Content::Storages(turns) => {
            let of = |storage: &StorageId| &ranges[storage.index()].positions;
            of(&turns[0]).start..of(&turns[turns.len() - 1]).end
        }
        Content::Scratch { position, .. } => *position..position + 1,
    }
}

fn bytes(content: &Content, storages: &Storages) -> u64 {
    match content {
        Content::Storages(turns) => storages.get(turns[0]).bytes,
        Content::Scratch { bytes, .. } => *bytes,
    }
}

impl Plan {
    /// Which op runs at which position.
    #[must_use]
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// Which values share bytes.
    #[must_use]
    pub fn storages(&self) -> &Storages {
        &self.storages
    }

    /// When a storage is needed.
    #[must_use]
    pub fn live_range(&self, storage: StorageId) -> &LiveRange {
        &self.ranges[storage.index()]
    }

    /// What a storage is for.
    #[must_use]
    pub fn category(&self, storage: StorageId) -> Category {
        self.categories[storage.index()]
    }

    /// Where a value lies; `None` if the graph that was planned has no such value.
    #[must_use]
    pub fn place(&self, value: ValueId) -> Option<Place<'_>> {
        self.storages.alias(value).map(|alias| Place {
            storage: alias.storage,
            offset: self.offset(alias.storage),
            layout: &alias.layout,
            dtype: alias.dtype,
        })
    }

    /// The first byte of a storage, from the start of the arena.
    #[must_use]
    pub fn offset(&self, storage: StorageId) -> u64 {
        self.offsets[storage.index()]
    }

    /// The scratch of the op at a position, if it needs any.
    #[must_use]
    pub fn scratch(&self, position: u32) -> Option<Scratch> {
        self.scratch.get(position as usize).copied().flatten()
    }

    /// The op that runs at a position.
    #[must_use]
    pub fn op(&self, position: u32) -> Option<OpId> {
        self.schedule.ops().get(position as usize).copied()
    }

    /// The buffers of the reusable part, ordered by the position at which their life begins.
    pub fn buffers(&self) -> impl ExactSizeIterator<Item = PlannedBuffer<'_>> {
        self.problem.iter().map(|(id, _)| self.buffer(id))
    }

    fn buffer(&self, id: BufferId) -> PlannedBuffer<'_> {
        let content = &self.contents[id.index()];
        let Buffer { live, size } = &self.problem.buffers()[id.index()];
        PlannedBuffer {
            content,
            live: live.clone(),
            bytes: bytes(content, &self.storages),
            size: *size,
            offset: self.persistent + self.layout.offsets[id.index()],
        }
    }

    /// What a buffer is for at a position where it is live.
    ///
    /// Where an op overwrites one storage with another, the bytes count for the one that it reads.
    #[must_use]
    pub fn occupant(&self, content: &Content, position: u32) -> Option<StorageId> {
        match content {
            Content::Storages(turns) => turns
                .iter()
                .copied()
                .find(|turn| self.live_range(*turn).positions.contains(&position)),
            Content::Scratch { .. } => None,
        }
    }

    /// Bytes of the whole arena.
    #[must_use]
    pub fn arena_bytes(&self) -> u64 {
        self.persistent + self.layout.arena
    }

    /// Bytes at the start of the arena that outlive the step: parameters and constants.
    #[must_use]
    pub fn persistent_bytes(&self) -> u64 {
        self.persistent
    }

    /// The least that any layout of the reusable part takes, and where.
    #[must_use]
    pub fn lower_bound(&self) -> LowerBound {
        self.lower_bound
    }

    /// Bytes that the reusable part takes beyond its lower bound.
    #[must_use]
    pub fn fragmentation_bytes(&self) -> u64 {
        self.layout.arena - self.lower_bound.bytes
    }

    /// The reusable part as it was given to the allocator.
    #[must_use]
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// What the allocator made of it; offsets count from the end of the persistent part.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }
}
