//! What memory a step took, as measured.

use crate::error::ExecError;
use crate::program::Program;
use crate::shim::Traced;

/// What libtorch allocated beside the arena while an op ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allocation {
    /// The op, as its line in the text form.
    pub line: String,
    /// Bytes, over all of the op's allocations.
    pub bytes: u64,
    /// Most bytes at once.
    pub peak: u64,
    /// How many allocations.
    pub count: u64,
}

/// What memory a step took.
///
/// Allocations of the thread that runs the step are seen, not those of a kernel's worker threads, and not memory that
/// BLAS keeps for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// Bytes of the program's memory: in [`Mode::Arena`](crate::Mode::Arena), those of the plan's arena.
    pub planned: u64,
    /// Most bytes at once, of the program's memory and of what libtorch allocated beside it.
    pub measured: u64,
    /// What libtorch allocated beside it, by op, in the order they ran; empty if the plan is all that a step takes.
    pub allocations: Vec<Allocation>,
}

impl Trace {
    /// Whether the step took what was planned, to the byte.
    ///
    /// # Errors
    /// [`ExecError::Memory`], which names the op that allocated most.
    pub fn check(&self) -> Result<(), ExecError> {
        let Some(most) = self.allocations.iter().rev().max_by_key(|a| a.peak) else {
            return Ok(());
        };
        let Allocation {
            line, peak, count, ..
        } = most;
        let by = format!("`{line}` takes {peak} B in {count} allocations beside the plan");
        Err(ExecError::Memory {
            planned: self.planned,
            measured: self.measured,
            by,
        })
    }
}

/// A trace while it is made.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    found: Vec<(u32, Allocation)>,
    held: u64,
}

impl Watch {
    /// What was allocated while a task of the op at a position ran.
    pub(crate) fn record(&mut self, position: u32, traced: Traced) {
        self.held = self.held.max(traced.held);
        if traced.allocations == 0 {
            return;
        }
        match self.found.last_mut() {
            Some((at, last)) if *at == position => {
                last.bytes += traced.bytes;
                last.peak = last.peak.max(traced.peak);
                last.count += traced.allocations;
            }
            _ => {
                let allocation = Allocation {
                    line: String::new(),
                    bytes: traced.bytes,
                    peak: traced.peak,
                    count: traced.allocations,
                };
                self.found.push((position, allocation));
            }
        }
    }

    pub(crate) fn finish(self, program: &Program) -> Trace {
        let allocations = self.found.into_iter().map(|(position, found)| Allocation {
            line: program.line(position),
            ..found
        });
        Trace {
            planned: program.memory_bytes(),
            measured: program.memory_bytes() + self.held,
            allocations: allocations.collect(),
        }
    }
}
