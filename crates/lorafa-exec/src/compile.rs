//! From a plan to a program: places become views, ops become tasks.

use std::collections::BTreeMap;
use std::sync::Arc;

use lorafa_ir::ops::{Constant, Literal};
use lorafa_ir::text::{OpDisplay, ValueDisplay};
use lorafa_ir::{Graph, Op, OpData, Region, ValueId};
use lorafa_plan::{Plan, Scratch, StorageKind};

use crate::device::OpenDevice;
use crate::error::ExecError;
use crate::kernels::{self, Cx, Looks};
use crate::memory::Memory;
use crate::program::{Mode, Program};
use crate::run::Step;
use crate::shim::InferenceMode;
use crate::transfer;
use crate::view::View;

impl Program {
    /// Sets up every kernel of a step on the memory of its plan. Constants are written; parameters are zero until
    /// [`load`](Self::load) and [`write`](Self::write).
    ///
    /// # Errors
    /// No memory, an op without a kernel, and everything else by which plan, graph and kernels do not fit each other.
    pub fn compile(
        graph: Arc<Graph>,
        plan: &Plan,
        mode: Mode,
        device: OpenDevice,
    ) -> Result<Self, ExecError> {
        let _inference = InferenceMode::enter();
        let mut compiler = Compiler {
            graph: &graph,
            plan,
            mode,
            device,
            memory: Vec::new(),
            storages: Vec::new(),
            looks: Looks::new(),
        };
        compiler.allocate()?;
        let mut views = BTreeMap::new();
        for value in graph.ops().flat_map(|op| &op.results) {
            views.insert(*value, compiler.view(*value)?);
        }
        for (id, storage) in plan.storages().iter() {
            let set = match &graph.def(storage.root).kind {
                Op::Constant(constant) => {
                    transfer::write(&views[&storage.root], &literal(constant), device)
                }
                _ if storage.kind == StorageKind::Parameter => {
                    transfer::fill(compiler.storages[id.index()], storage.bytes, 0, device)
                }
                _ => Ok(()),
            };
            set.map_err(|message| ExecError::Torch {
                line: OpDisplay(&graph, graph.def(storage.root).id).to_string(),
                message,
            })?;
        }
        let mut steps = Vec::new();
        for (position, id) in plan.schedule().iter() {
            let op = graph.op(id);
            if !plan.storages().is_view(op) {
                compiler.op(position, op, &views, &mut steps)?;
            }
        }
        let memory = compiler.memory;
        let params = graph.params();
        let params = params.map(|(value, param)| (param.name.clone(), value));
        let outputs = graph.outputs().iter();
        let outputs = outputs.map(|output| (output.name.as_ref().into(), output.value));
        Ok(Self {
            steps,
            memory,
            device,
            mode,
            ops: plan.schedule().ops().to_vec(),
            params: params.collect(),
            outputs: outputs.collect(),
            views,
            runs: 0,
            graph,
        })
    }
}

/// Finds places for values while a program is compiled.
struct Compiler<'a> {
    graph: &'a Graph,
    plan: &'a Plan,
    mode: Mode,
    device: OpenDevice,
    memory: Vec<Memory>,
    /// The first byte of each storage.
    storages: Vec<*mut u8>,
    /// What ops look at while they run.
    looks: Looks,
}

impl Compiler<'_> {
    fn allocate(&mut self) -> Result<(), ExecError> {
        let plan = self.plan;
        let arena = match self.mode {
            Mode::Arena => Some(self.take(plan.arena_bytes())?),
            Mode::Separate => None,
        };
        for (id, storage) in plan.storages().iter() {
            let start = match arena {
                Some(arena) => arena.wrapping_add(plan.offset(id) as usize),
                None => self.take(storage.bytes)?,
            };
            self.storages.push(start);
        }
        Ok(())
    }

    fn take(&mut self, bytes: u64) -> Result<*mut u8, ExecError> {
        let memory = Memory::new(bytes, self.device)?;
        let start = memory.start();
        self.memory.push(memory);
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

    /// The first region that needs an op: what has no operands may stand in a later one than its readers.
    fn region(&self, op: &OpData) -> Region {
        let readers = op.results.iter().flat_map(|value| self.graph.uses(*value));
        let readers = readers.map(|reader| self.graph.op(reader.op).site.region);
        if op.operands.is_empty() {
            readers.fold(op.site.region, Region::min)
        } else {
            op.site.region
        }
    }

    fn scratch(&mut self, planned: Scratch) -> Result<*mut u8, ExecError> {
        match (self.mode, self.memory.first()) {
            (Mode::Arena, Some(arena)) => Ok(arena.start().wrapping_add(planned.offset as usize)),
            _ => self.take(planned.bytes),
        }
    }

    fn op(
        &mut self,
        position: u32,
        op: &OpData,
        views: &BTreeMap<ValueId, View>,
        steps: &mut Vec<Step>,
    ) -> Result<(), ExecError> {
        let graph = self.graph;
        let line = || OpDisplay(graph, op.id).to_string();
        let places = |values: &[ValueId]| values.iter().map(|v| views[v].clone()).collect();
        let (ins, outs): (Vec<View>, Vec<View>) = (places(&op.operands), places(&op.results));
        let constants = op.operands.iter().map(|v| match &self.graph.def(*v).kind {
            Op::Constant(constant) => constant.as_f64(),
            _ => None,
        });
        let constants: Vec<Option<f64>> = constants.collect();
        let region = self.region(op);
        let scratch = match self.plan.scratch(position) {
            Some(planned) => Some((self.scratch(planned)?, planned)),
            None => None,
        };
        let mut tasks = Vec::new();
        let cx = Cx::new(&ins, &outs, &constants, scratch, self.device, &mut tasks);
        let mut cx = cx.sharing(&op.operands, &mut self.looks);
        let emitted = kernels::emit(&op.kind, &mut cx);
        let used = cx.used();
        emitted.map_err(|error| error.of(line()))?;
        let planned = scratch.map_or(0, |(_, scratch)| scratch.bytes);
        if used != planned {
            return Err(ExecError::Scratch {
                line: line(),
                planned,
                used,
            });
        }
        steps.extend(tasks.into_iter().map(|task| Step {
            position,
            region,
            task,
        }));
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
