//! A step, compiled: its memory, and what goes in and comes out.
//!
//! ```text
//!   Program ── memory: one arena                 | weights | inputs | reusable part |
//!           ── steps:  0  mm     %x, %w → v0       each operand a tensor over the arena
//!                      0  …
//!                      1  relu   v0 → v1           by position of the schedule
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use lorafa_ir::ops::{Data, Param};
use lorafa_ir::{Graph, OpId, TensorType, ValueId};
use lorafa_onnx::export::weights;
use lorafa_onnx::external::ExternalStore;

use crate::device::OpenDevice;
use crate::error::{ExecError, KernelError};
use crate::kernels;
use crate::memory::Memory;
use crate::run::{Part, Step};
use crate::shim::InferenceMode;
use crate::transfer;
use crate::view::View;

/// What memory a step runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// One arena, as planned.
    Arena,
    /// For debugging: an allocation for each storage and each op's scratch, so that nothing is overwritten but by
    /// updates and within a storage. Results are the same bits.
    Separate,
}

/// A step compiled for its memory.
#[derive(Debug)]
pub struct Program {
    // Before the memory that they use, so that they are dropped first.
    pub(crate) steps: Vec<Step>,
    pub(crate) memory: Vec<Memory>,
    pub(crate) device: OpenDevice,
    pub(crate) mode: Mode,
    pub(crate) graph: Arc<Graph>,
    /// By position of the schedule.
    pub(crate) ops: Vec<OpId>,
    pub(crate) params: BTreeMap<Arc<str>, ValueId>,
    pub(crate) outputs: BTreeMap<Arc<str>, ValueId>,
    pub(crate) views: BTreeMap<ValueId, View>,
    pub(crate) runs: u64,
}

impl Program {
    /// Fills every parameter whose values the graph or a file next to the model has, and draws those of new adapters.
    /// What is given at run time stays as it is.
    ///
    /// # Errors
    /// [`ExecError::Parameters`] with every parameter whose values cannot be had; the others are filled.
    pub fn load(&mut self, store: &ExternalStore) -> Result<(), ExecError> {
        self.fill(|program, param| match param.stored.data {
            Data::Runtime => Ok(()),
            _ => program.write(&param.name, &weights::values(param, store)?),
        })
    }

    /// As [`load`](Self::load), with random numbers for weights, made on the device: to measure a step of a model whose
    /// weights are not there. Matrices are normal with deviation 0.02, vectors are one, biases zero; the same seed gives
    /// the same on the same kind of device.
    ///
    /// # Errors
    /// [`ExecError::Parameters`] with every parameter that is no weight and whose values cannot be had.
    pub fn load_random(&mut self, store: &ExternalStore, seed: i64) -> Result<(), ExecError> {
        let _inference = InferenceMode::enter();
        self.device.seed(seed as u64)?;
        self.fill(|program, param| match program.params.get(&param.name) {
            Some(value) if param.is_weight() => program.draw(*value, param),
            _ if param.stored.data == Data::Runtime => Ok(()),
            _ => program.write(&param.name, &weights::values(param, store)?),
        })
    }

    fn fill(
        &mut self,
        mut fill: impl FnMut(&mut Self, &Param) -> Result<(), ExecError>,
    ) -> Result<(), ExecError> {
        let graph = self.graph.clone();
        let params = graph.params();
        let problems = params.filter_map(|(_, param)| fill(self, param).err());
        let problems: Vec<ExecError> = problems.collect();
        if problems.is_empty() {
            Ok(())
        } else {
            Err(ExecError::Parameters(problems))
        }
    }

    fn draw(&mut self, value: ValueId, param: &Param) -> Result<(), ExecError> {
        let tasks = kernels::random(&self.views[&value], &param.name, self.device);
        let drawn = tasks.and_then(|tasks| self.once(&tasks).map_err(KernelError::Torch));
        drawn.map_err(|error| error.of(param.name.to_string()))
    }

    /// Sets a parameter: little-endian elements, row-major.
    ///
    /// # Errors
    /// There is no such parameter, or it takes another number of bytes.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), ExecError> {
        let value = find(&self.params, "parameter", name)?;
        let view = &self.views[&value];
        if bytes.len() != view.bytes() {
            return Err(ExecError::Size {
                name: name.into(),
                ty: self.graph.ty(value).to_string(),
                expected: view.bytes() as u64,
                found: bytes.len() as u64,
            });
        }
        transfer::write(view, bytes, self.device).map_err(|message| ExecError::Torch {
            line: name.into(),
            message,
        })
    }

    /// What a parameter holds now, as [`write`](Self::write) takes it.
    ///
    /// # Errors
    /// There is no such parameter, or the device failed.
    pub fn param(&self, name: &str) -> Result<(TensorType, Vec<u8>), ExecError> {
        self.read(find(&self.params, "parameter", name)?, name)
    }

    /// What the last run left in an output that it computes; garbage otherwise.
    ///
    /// # Errors
    /// There is no such output, or the device failed.
    pub fn output(&self, name: &str) -> Result<(TensorType, Vec<u8>), ExecError> {
        self.read(find(&self.outputs, "output", name)?, name)
    }

    fn read(&self, value: ValueId, name: &str) -> Result<(TensorType, Vec<u8>), ExecError> {
        let bytes = transfer::read(&self.views[&value], self.device);
        let bytes = bytes.map_err(|message| ExecError::Torch {
            line: name.into(),
            message,
        })?;
        Ok((self.graph.ty(value).clone(), bytes))
    }

    /// What the last step left in a value, little-endian and row-major; `None` but in [`Mode::Separate`], and if the
    /// device failed.
    #[must_use]
    pub fn value(&self, value: ValueId) -> Option<Vec<u8>> {
        let view = self.views.get(&value)?;
        let kept = self.mode == Mode::Separate;
        kept.then(|| transfer::read(view, self.device).ok())?
    }

    /// The names of the parameters, in order.
    pub fn params(&self) -> impl Iterator<Item = &str> {
        self.params.keys().map(|name| &**name)
    }

    /// The names of the outputs, in order.
    pub fn outputs(&self) -> impl Iterator<Item = &str> {
        self.outputs.keys().map(|name| &**name)
    }

    /// Where it runs.
    #[must_use]
    pub fn device(&self) -> OpenDevice {
        self.device
    }

    /// Bytes of the memory it runs in, as allocated: those of the plan's arena in [`Mode::Arena`].
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.memory.iter().map(Memory::bytes).sum()
    }

    /// How many allocations the memory consists of.
    #[must_use]
    pub fn allocations(&self) -> usize {
        self.memory.len()
    }

    /// How many kernels a step calls, those that draw a mask as one; where it depends on what a mask hides, the last step.
    #[must_use]
    pub fn calls(&self) -> usize {
        let steps = self.steps.iter();
        steps.filter(|step| Part::Step.has(step)).count()
    }

    /// Steps and micro-steps that were run; dropout masks depend on it.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.runs
    }

    /// Continues the count of steps that another program has run.
    pub fn set_steps(&mut self, steps: u64) {
        self.runs = steps;
    }
}

fn find(
    names: &BTreeMap<Arc<str>, ValueId>,
    what: &'static str,
    name: &str,
) -> Result<ValueId, ExecError> {
    let value = names.get(name).copied();
    value.ok_or_else(|| ExecError::Unknown {
        what,
        name: name.into(),
    })
}
