//! A step, compiled.
//!
//! ```text
//!   Program ── memory: one arena                 | weights | inputs | reusable part |
//!           ── tasks:  0  mm     %x, %w → v0       each operand a tensor over the arena
//!                      0  …
//!                      1  relu   v0 → v1           by position of the schedule
//! ```
// Runs kernels over raw pointers, and copies bytes through them.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lorafa_ir::interp::for_each_index;
use lorafa_ir::ops::{Constant, Data, Literal};
use lorafa_ir::text::{OpDisplay, ValueDisplay};
use lorafa_ir::{Graph, Op, OpData, OpId, TensorType, ValueId};
use lorafa_onnx::export::weights;
use lorafa_onnx::external::ExternalStore;
use lorafa_plan::{Plan, StorageId};

use crate::error::{ExecError, KernelError};
use crate::kernels::{self, Cx, Mask, Task};
use crate::memory::Memory;
use crate::shim::{InferenceMode, Tracer};
use crate::view::View;

/// What memory a step runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// One arena, as planned.
    Arena,
    /// For debugging: an allocation for each storage and each op's scratch, so that nothing is overwritten but by
    /// updates. Results are the same bits.
    Separate,
}

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

/// What libtorch allocated beside the arena in a step; empty if the plan is all that a step takes.
///
/// Allocations of the thread that runs the step are seen, not those of a kernel's worker threads, and not memory that
/// BLAS keeps for itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trace {
    /// By op, in the order they ran.
    pub allocations: Vec<Allocation>,
}

/// A step compiled for its memory.
#[derive(Debug)]
pub struct Program {
    // Before the memory that they use, so that they are dropped first.
    tasks: Vec<(u32, Task)>,
    memory: Vec<Memory>,
    graph: Arc<Graph>,
    ops: Vec<OpId>,
    params: BTreeMap<Arc<str>, (View, TensorType)>,
    outputs: BTreeMap<Arc<str>, (View, TensorType)>,
    /// Of every value, if none overwrites another.
    values: BTreeMap<ValueId, View>,
    bytes: u64,
    steps: u64,
}

impl Program {
    /// Sets up every kernel of a step on the memory of its plan. Constants are written; parameters are zero until
    /// [`load`](Self::load) and [`write`](Self::write).
    ///
    /// # Errors
    /// An op without a kernel, and everything else by which plan, graph and kernels do not fit each other.
    pub fn compile(graph: Arc<Graph>, plan: &Plan, mode: Mode) -> Result<Self, ExecError> {
        let _inference = InferenceMode::enter();
        let mut compiler = Compiler {
            graph: &graph,
            plan,
            mode,
            memory: Vec::new(),
            storages: Vec::new(),
            bytes: 0,
        };
        compiler.allocate()?;
        let mut params = BTreeMap::new();
        for (value, param) in graph.params() {
            let view = compiler.view(value)?;
            // SAFETY: a parameter fills its storage, row-major.
            unsafe { view.address().write_bytes(0, view.bytes()) };
            params.insert(param.name.clone(), (view, param.ty.clone()));
        }
        for op in graph.ops() {
            if let Op::Constant(constant) = &op.kind {
                copy_in(&compiler.view(op.results[0])?, &literal(constant));
            }
        }
        let mut outputs = BTreeMap::new();
        for output in graph.outputs() {
            let view = compiler.view(output.value)?;
            let ty = graph.ty(output.value).clone();
            outputs.insert(output.name.as_ref().into(), (view, ty));
        }
        let mut tasks = Vec::new();
        for (position, id) in plan.schedule().iter() {
            let op = graph.op(id);
            if !plan.storages().is_view(op) {
                compiler.op(position, op, &mut tasks)?;
            }
        }
        let mut values = BTreeMap::new();
        if mode == Mode::Separate {
            for value in graph.ops().flat_map(|op| &op.results) {
                values.insert(*value, compiler.view(*value)?);
            }
        }
        let Compiler { memory, bytes, .. } = compiler;
        Ok(Self {
            tasks,
            memory,
            ops: plan.schedule().ops().to_vec(),
            params,
            outputs,
            values,
            bytes,
            steps: 0,
            graph,
        })
    }

    /// Fills every parameter whose values the graph or a file next to the model has, and draws those of new adapters.
    /// What is given at run time stays as it is.
    ///
    /// # Errors
    /// The first parameter whose values cannot be had.
    pub fn load(&mut self, store: &ExternalStore) -> Result<(), ExecError> {
        for (_, param) in self.graph.params() {
            if param.stored.data == Data::Runtime {
                continue;
            }
            let bytes = weights::values(param, store)?;
            fill(&self.params, &param.name, &bytes)?;
        }
        Ok(())
    }

    /// As [`load`](Self::load), with random numbers for weights: to measure a step of a model whose weights are not
    /// there. Matrices are normal with deviation 0.02, vectors are one, biases zero; the same seed gives the same.
    ///
    /// # Errors
    /// The first parameter that is no weight and whose values cannot be had.
    pub fn load_random(&mut self, store: &ExternalStore, seed: i64) -> Result<(), ExecError> {
        let _inference = InferenceMode::enter();
        tch::manual_seed(seed);
        for (_, param) in self.graph.params() {
            if param.stored.data == Data::Runtime {
                continue;
            }
            if !param.is_weight() {
                fill(&self.params, &param.name, &weights::values(param, store)?)?;
                continue;
            }
            let Some((view, _)) = self.params.get(&param.name) else {
                continue;
            };
            let drawn = kernels::random(view, &param.name).and_then(|task| match task {
                // SAFETY: the program owns the memory, and is borrowed mutably.
                Task::Call(call) => unsafe { call.run() }.map_err(KernelError::Torch),
                Task::Mask(_) => Ok(()),
            });
            drawn.map_err(|error| error.of(param.name.to_string()))?;
        }
        Ok(())
    }

    /// Sets a parameter: little-endian elements, row-major.
    ///
    /// # Errors
    /// There is no such parameter, or it takes another number of bytes.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), ExecError> {
        fill(&self.params, name, bytes)
    }

    /// What a parameter holds now, as [`write`](Self::write) takes it.
    ///
    /// # Errors
    /// There is no such parameter.
    pub fn param(&self, name: &str) -> Result<(TensorType, Vec<u8>), ExecError> {
        read(&self.params, "parameter", name)
    }

    /// What the last step left in an output; garbage before the first.
    ///
    /// # Errors
    /// There is no such output.
    pub fn output(&self, name: &str) -> Result<(TensorType, Vec<u8>), ExecError> {
        read(&self.outputs, "output", name)
    }

    /// What the last step left in a value, little-endian and row-major; `None` but in [`Mode::Separate`].
    #[must_use]
    pub fn value(&self, value: ValueId) -> Option<Vec<u8>> {
        self.values.get(&value).map(elements)
    }

    /// The names of the parameters, in order.
    pub fn params(&self) -> impl Iterator<Item = &str> {
        self.params.keys().map(|name| &**name)
    }

    /// The names of the outputs, in order.
    pub fn outputs(&self) -> impl Iterator<Item = &str> {
        self.outputs.keys().map(|name| &**name)
    }

    /// Bytes of the memory it runs in: those of the plan's arena in [`Mode::Arena`].
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.bytes
    }

    /// How many kernels a step calls.
    #[must_use]
    pub fn calls(&self) -> usize {
        self.tasks.len()
    }

    /// Steps that were run; dropout masks depend on it.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Continues the count of steps that another program has run.
    pub fn set_steps(&mut self, steps: u64) {
        self.steps = steps;
    }

    /// Runs the step.
    ///
    /// # Errors
    /// A kernel refuses its operands' values: a label or an index out of range. The op is named; what the step wrote up
    /// to there stays written.
    pub fn step(&mut self) -> Result<(), ExecError> {
        self.run(|_| {})
    }

    /// Runs the step and reports what libtorch allocated meanwhile.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn step_traced(&mut self) -> Result<Trace, ExecError> {
        let tracer = Tracer::start().map_err(|message| ExecError::Torch {
            line: "the allocation tracer".into(),
            message,
        })?;
        let mut found: Vec<(u32, Allocation)> = Vec::new();
        self.run(|position| {
            let traced = tracer.take();
            if traced.allocations == 0 {
                return;
            }
            match found.last_mut() {
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
                    found.push((position, allocation));
                }
            }
        })?;
        let allocations = found.into_iter().map(|(position, allocation)| Allocation {
            line: self.line(position),
            ..allocation
        });
        Ok(Trace {
            allocations: allocations.collect(),
        })
    }

    /// Runs the step and reports how long each kernel call took, in the order they ran.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn step_timed(&mut self) -> Result<Vec<(OpId, Duration)>, ExecError> {
        let mut times = Vec::with_capacity(self.tasks.len());
        let mut last = Instant::now();
        self.run(|position| {
            let now = Instant::now();
            times.push((position, now - last));
            last = now;
        })?;
        let of_op =
            |(position, time): (u32, Duration)| Some((*self.ops.get(position as usize)?, time));
        Ok(times.into_iter().filter_map(of_op).collect())
    }

    /// Runs the tasks in order, and calls `after` with each one's position.
    fn run(&mut self, mut after: impl FnMut(u32)) -> Result<(), ExecError> {
        let _inference = InferenceMode::enter();
        for (position, task) in &self.tasks {
            let done = match task {
                // SAFETY: the program owns the memory, and is borrowed mutably.
                Task::Call(call) => unsafe { call.run() },
                Task::Mask(mask) => {
                    draw(mask, self.steps);
                    Ok(())
                }
            };
            done.map_err(|message| ExecError::Torch {
                line: self.line(*position),
                message,
            })?;
            after(*position);
        }
        self.steps += 1;
        Ok(())
    }

    fn line(&self, position: u32) -> String {
        let op = self.ops.get(position as usize);
        op.map_or_else(String::new, |op| OpDisplay(&self.graph, *op).to_string())
    }

    /// How many allocations the memory consists of.
    #[must_use]
    pub fn allocations(&self) -> usize {
        self.memory.len()
    }
}

/// Finds places for values while a program is compiled.
struct Compiler<'a> {
    graph: &'a Graph,
    plan: &'a Plan,
    mode: Mode,
    memory: Vec<Memory>,
    /// The first byte of each storage.
    storages: Vec<*mut u8>,
    bytes: u64,
}

impl Compiler<'_> {
    fn allocate(&mut self) -> Result<(), ExecError> {
        let arena = match self.mode {
            Mode::Arena => Some(self.take(self.plan.arena_bytes())?),
            Mode::Separate => None,
        };
        let storages: Vec<(StorageId, u64)> = {
            let storages = self.plan.storages().iter();
            storages.map(|(id, storage)| (id, storage.bytes)).collect()
        };
        for (id, bytes) in storages {
            let start = match arena {
                Some(arena) => arena.wrapping_add(self.plan.offset(id) as usize),
                None => self.take(bytes)?,
            };
            self.storages.push(start);
        }
        Ok(())
    }

    fn take(&mut self, bytes: u64) -> Result<*mut u8, ExecError> {
        let memory = Memory::new(bytes)?;
        let start = memory.start();
        self.memory.push(memory);
        self.bytes += bytes;
        Ok(start)
    }

    fn view(&self, value: ValueId) -> Result<View, ExecError> {
        let place = self.plan.place(value);
        let place = place.filter(|place| {
            let ty = self.graph.ty(value);
            place.dtype == ty.dtype && ty.known_shape().as_ref() == Some(&place.layout.shape)
        });
        let place = place.ok_or_else(|| ExecError::NotPlanned {
            line: OpDisplay(self.graph, self.graph.value(value).op).to_string(),
            value: ValueDisplay(self.graph, value).to_string(),
        })?;
        Ok(View {
            start: self.storages[place.storage.index()],
            layout: place.layout.clone(),
            dtype: place.dtype,
        })
    }

    fn op(
        &mut self,
        position: u32,
        op: &OpData,
        tasks: &mut Vec<(u32, Task)>,
    ) -> Result<(), ExecError> {
        let line = || OpDisplay(self.graph, op.id).to_string();
        let views = |values: &[ValueId]| values.iter().map(|v| self.view(*v)).collect();
        let ins: Vec<View> = Result::from_iter::<Vec<_>>(views(&op.operands))?;
        let outs: Vec<View> = Result::from_iter::<Vec<_>>(views(&op.results))?;
        let constants = op.operands.iter().map(|v| match &self.graph.def(*v).kind {
            Op::Constant(constant) => constant.as_f64(),
            _ => None,
        });
        let constants: Vec<Option<f64>> = constants.collect();
        let planned = self.plan.scratch(position);
        let scratch = match (planned, self.mode) {
            (None, _) => None,
            (Some(scratch), Mode::Separate) => Some((self.take(scratch.bytes)?, scratch)),
            (Some(scratch), Mode::Arena) => {
                let arena = self.memory.first().map(Memory::start);
                arena.map(|arena| (arena.wrapping_add(scratch.offset as usize), scratch))
            }
        };
        let mut made = Vec::new();
        let mut cx = Cx::new(&ins, &outs, &constants, scratch, &mut made);
        let emitted = kernels::emit(&op.kind, &mut cx);
        let used = cx.used();
        emitted.map_err(|error| error.of(line()))?;
        let planned = planned.map_or(0, |scratch| scratch.bytes);
        if used != planned {
            let line = line();
            return Err(ExecError::Scratch {
                line,
                planned,
                used,
            });
        }
        tasks.extend(made.into_iter().map(|task| (position, task)));
        Ok(())
    }
}

/// The bytes of a constant.
fn literal(constant: &Constant) -> Vec<u8> {
    let dtype = constant.ty.dtype;
    match &constant.literal {
        Literal::Ints(numbers) if !dtype.is_float() => {
            let size = dtype.size() as usize;
            let bytes = |n: &i64| dtype.wrap(*n).to_le_bytes()[..size].to_vec();
            numbers.iter().flat_map(bytes).collect()
        }
        literal => lorafa_onnx::dtype::encode(dtype, literal.to_f64()),
    }
}

fn fill(
    params: &BTreeMap<Arc<str>, (View, TensorType)>,
    name: &str,
    bytes: &[u8],
) -> Result<(), ExecError> {
    let (view, ty) = params.get(name).ok_or_else(|| ExecError::Unknown {
        what: "parameter",
        name: name.into(),
    })?;
    if bytes.len() != view.bytes() {
        return Err(ExecError::Size {
            name: name.into(),
            ty: ty.to_string(),
            expected: view.bytes() as u64,
            found: bytes.len() as u64,
        });
    }
    copy_in(view, bytes);
    Ok(())
}

/// Writes a row-major view, which has as many bytes.
fn copy_in(view: &View, bytes: &[u8]) {
    debug_assert!(view.is_contiguous() && view.bytes() == bytes.len());
    // SAFETY: the view is of the program's memory, row-major, and has as many bytes; parameters and constants are.
    unsafe {
        view.address()
            .copy_from_nonoverlapping(bytes.as_ptr(), bytes.len())
    }
}

fn read(
    places: &BTreeMap<Arc<str>, (View, TensorType)>,
    what: &'static str,
    name: &str,
) -> Result<(TensorType, Vec<u8>), ExecError> {
    let (view, ty) = places.get(name).ok_or_else(|| ExecError::Unknown {
        what,
        name: name.into(),
    })?;
    Ok((ty.clone(), elements(view)))
}

/// The bytes of a view in row-major order.
fn elements(view: &View) -> Vec<u8> {
    let size = view.dtype.size();
    let mut bytes = Vec::with_capacity(view.bytes());
    let shape: Vec<usize> = view.shape().iter().map(|n| *n as usize).collect();
    for_each_index(&shape, |index| {
        let steps = index.iter().zip(&view.layout.strides);
        let at = steps.map(|(i, stride)| *i as u64 * stride).sum::<u64>() * size;
        // SAFETY: an element of a view of the program's memory.
        let element = unsafe {
            std::slice::from_raw_parts(view.address().wrapping_add(at as usize), size as usize)
        };
        bytes.extend_from_slice(element);
    });
    bytes
}

/// Draws a mask for a step.
fn draw(mask: &Mask, step: u64) {
    // SAFETY: the mask is a result of the program, row-major, one byte an element.
    let out = unsafe { std::slice::from_raw_parts_mut(mask.out.address(), mask.out.bytes()) };
    for (i, byte) in out.iter_mut().enumerate() {
        *byte = u8::from(mask.keeps(step, i as u64));
    }
}
