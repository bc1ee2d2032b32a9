//! A machine that runs a plan byte by byte, to see whether the plan is one that can be run.
//!
//! Every value lives only in the arena, at the place that the plan gives it. Before an op runs, its scratch and every
//! buffer that it will write, but not what it overwrites in place, are filled with garbage, as a kernel may do. Then
//! every operand is read back and compared with a run that has memory for everything. An elementwise op in place reads
//! and writes one element after the other, so an operand that lies askew in the same bytes is seen too.

mod bytes;
pub mod eval;

use std::collections::BTreeMap;

use lorafa_ir::interp::{Array, EvalError};
use lorafa_ir::text::OpDisplay;
use lorafa_ir::{Graph, Op, OpData, TensorType, ValueId};
use lorafa_plan::{ALIGN, Place, Plan};

pub use eval::eval;

/// Values by name, each rounded to its type.
pub type Values = BTreeMap<ValueId, Array>;

/// What a run met, to know that a test tested something.
#[derive(Debug, Default, Clone, Copy)]
pub struct Met {
    pub views: u32,
    pub in_place: u32,
    /// Of those in place, how many in part of a storage.
    pub in_part: u32,
    /// Values made where they are joined.
    pub joined: u32,
    pub updates: u32,
    pub scratch: u32,
}

/// Runs a graph with memory for everything.
pub fn run(graph: &Graph, params: &Values) -> Result<Values, EvalError> {
    let mut values = params.clone();
    for array in values.values_mut() {
        bytes::round(array);
    }
    for id in graph.order() {
        let op = graph.op(id);
        if matches!(op.kind, Op::Param(_)) {
            continue;
        }
        let operands: Vec<&Array> = op.operands.iter().map(|value| &values[value]).collect();
        let types: Vec<&TensorType> = op.results.iter().map(|value| graph.ty(*value)).collect();
        let results = eval(&op.kind, &operands, &types)?;
        for (value, array) in op.results.iter().zip(results) {
            values.insert(*value, array);
        }
    }
    Ok(values)
}

/// Runs a graph in the arena of its plan; the error names the op that read something else than `expected`, or found a
/// place where it must not be.
pub fn simulate(graph: &Graph, plan: &Plan, expected: &Values) -> Result<Met, String> {
    let mut arena = Arena {
        graph,
        plan,
        expected,
        bytes: vec![GARBAGE; usize::try_from(plan.arena_bytes()).expect("a small arena")],
        met: Met::default(),
    };
    for op in graph.ops() {
        if matches!(op.kind, Op::Param(_) | Op::Constant(_)) {
            arena.write(op.results[0], &expected[&op.results[0]])?;
        }
    }
    for (position, id) in plan.schedule().iter() {
        let op = graph.op(id);
        arena
            .step(position, op)
            .map_err(|error| format!("{position}: {}: {error}", OpDisplay(graph, id)))?;
    }
    for output in graph.outputs() {
        arena
            .read(output.value)
            .map_err(|error| format!("output {error}"))?;
    }
    let updated: Vec<_> = graph
        .ops()
        .flat_map(|op| op.kind.updates().iter().map(|(_, slot)| op.operands[*slot]))
        .collect();
    for (param, _) in graph.params() {
        if !updated.contains(&param) {
            arena
                .read(param)
                .map_err(|error| format!("parameter {error}"))?;
        }
    }
    Ok(arena.met)
}

/// Not a number in floats, and neither 0 nor 1.
const GARBAGE: u8 = 0xff;

struct Arena<'g> {
    graph: &'g Graph,
    plan: &'g Plan,
    expected: &'g Values,
    bytes: Vec<u8>,
    met: Met,
}

impl<'g> Arena<'g> {
    fn step(&mut self, position: u32, op: &OpData) -> Result<(), String> {
        if let Some(scratch) = self.plan.scratch(position) {
            self.spoil(scratch.offset, scratch.bytes)?;
            self.met.scratch += 1;
        }
        if self.plan.storages().is_view(op) {
            self.met.views += 1;
            return self.read(op.results[0]).map(drop);
        }
        let updated = |slot| op.kind.updates().iter().find(|(result, _)| *result == slot);
        let overwrites = self.overwrites(op, 0);
        for (slot, result) in op.results.iter().enumerate() {
            let place = self.place(*result)?;
            if let Some((_, operand)) = updated(slot) {
                if self.place(op.operands[*operand])? != place {
                    return Err(format!("{result} does not lie where it updates"));
                }
                self.met.updates += 1;
            } else if !self.overwrites(op, slot) {
                self.spoil_place(*result, &place)?;
            } else if self.plan.storages().get(place.storage).root != *result {
                self.met.in_part += 1;
            }
        }
        let operands: Vec<Array> = op
            .operands
            .iter()
            .map(|value| self.read(*value))
            .collect::<Result<_, _>>()?;
        if overwrites {
            self.met.in_place += 1;
            if element_by_element(&op.kind) {
                return self.overwrite(op, position % 2 == 1);
            }
        }
        let operands: Vec<&Array> = operands.iter().collect();
        let types: Vec<&TensorType> = op.results.iter().map(|v| self.graph.ty(*v)).collect();
        let results = eval(&op.kind, &operands, &types).map_err(|error| error.to_string())?;
        for (value, array) in op.results.iter().zip(&results) {
            self.write(*value, array)?;
        }
        Ok(())
    }

    /// Whether a result is written over an operand, all of it, that the op's kind lets it overwrite.
    fn overwrites(&self, op: &OpData, result: usize) -> bool {
        let offset = |value| self.plan.place(value).map(|place| place.start());
        let result = op.results[result];
        let empty = self.graph.ty(result).bytes() == Some(0);
        let slots = op.kind.in_place().iter();
        let mut slots = slots.filter(|(to, _)| op.results[*to] == result);
        !empty
            && slots.any(|(_, slot)| {
                let operand = op.operands.get(*slot);
                operand.is_some_and(|value| offset(*value) == offset(result))
            })
    }

    /// Computes one element at a time, from either end.
    fn overwrite(&mut self, op: &OpData, backwards: bool) -> Result<(), String> {
        let scalar = |value: ValueId| self.graph.ty(value).with_shape([]);
        let ins: Vec<TensorType> = op.operands.iter().map(|v| scalar(*v)).collect();
        let out = scalar(op.results[0]);
        let to = self.place(op.results[0])?;
        let mut indices = Vec::new();
        let shape: Vec<usize> = to.layout.shape.iter().map(|d| *d as usize).collect();
        lorafa_ir::interp::for_each_index(&shape, |index| indices.push(index.to_vec()));
        if backwards {
            indices.reverse();
        }
        for index in indices {
            let mut operands = Vec::new();
            for (value, ty) in op.operands.iter().zip(&ins) {
                let place = self.place(*value)?;
                let at = address(&place, &index);
                let element = self.element(&place, at)?;
                operands.push(Array::new(ty, vec![element]).expect("one element"));
            }
            let operands: Vec<&Array> = operands.iter().collect();
            let results = eval(&op.kind, &operands, &[&out]).map_err(|error| error.to_string())?;
            self.set_element(&to, address(&to, &index), results[0].data[0])?;
        }
        Ok(())
    }

    fn place(&self, value: ValueId) -> Result<Place<'g>, String> {
        let place = self.plan.place(value);
        let place = place.ok_or_else(|| format!("{value} has no place"))?;
        let ty = self.graph.ty(value);
        if place.dtype != ty.dtype || ty.known_shape().as_ref() != Some(&place.layout.shape) {
            return Err(format!("{value} : {ty} lies as {place:?}"));
        }
        Ok(place)
    }

    /// Reads a value and compares it with what it should be.
    fn read(&self, value: ValueId) -> Result<Array, String> {
        let place = self.place(value)?;
        let mut error = None;
        let array = Array::from_fn(self.graph.ty(value), |index| {
            self.element(&place, address(&place, index))
                .unwrap_or_else(|outside| {
                    error = Some(outside);
                    0.0
                })
        });
        let array = array.map_err(|error| error.to_string())?;
        let expected = &self.expected[&value];
        let same = |(a, b): (&f64, &f64)| a == b || a.is_nan() && b.is_nan();
        match error {
            Some(error) => Err(error),
            None if array.data.iter().zip(&expected.data).all(same) => Ok(array),
            None => Err(format!(
                "{value} at {place:?} was clobbered: expected {:?}, found {:?}",
                expected.data, array.data
            )),
        }
    }

    fn write(&mut self, value: ValueId, array: &Array) -> Result<(), String> {
        let place = self.place(value)?;
        let mut elements = array.data.iter();
        let shape: Vec<usize> = place.layout.shape.iter().map(|d| *d as usize).collect();
        let mut result = Ok(());
        lorafa_ir::interp::for_each_index(&shape, |index| {
            if let (Some(element), true) = (elements.next(), result.is_ok()) {
                result = self.set_element(&place, address(&place, index), *element);
            }
        });
        result
    }

    fn element(&self, place: &Place<'_>, at: usize) -> Result<f64, String> {
        let end = at + place.dtype.size() as usize;
        let bytes = self.bytes.get(at..end);
        let bytes = bytes.ok_or_else(|| format!("{place:?} leaves the arena"))?;
        Ok(bytes::decode(place.dtype, bytes))
    }

    fn set_element(&mut self, place: &Place<'_>, at: usize, element: f64) -> Result<(), String> {
        let end = at + place.dtype.size() as usize;
        let bytes = self.bytes.get_mut(at..end);
        let bytes = bytes.ok_or_else(|| format!("{place:?} leaves the arena"))?;
        bytes.copy_from_slice(&bytes::encode(place.dtype, element));
        Ok(())
    }

    /// A buffer that a result fills, or its elements in one that others are in, too.
    fn spoil_place(&mut self, value: ValueId, place: &Place<'_>) -> Result<(), String> {
        let storage = self.plan.storages().get(place.storage);
        if storage.root == value {
            return self.spoil(place.offset, storage.bytes.next_multiple_of(ALIGN));
        }
        self.met.joined += 1;
        let mut places = Vec::new();
        let shape: Vec<usize> = place.layout.shape.iter().map(|d| *d as usize).collect();
        lorafa_ir::interp::for_each_index(&shape, |index| places.push(address(place, index)));
        let mut places = places.into_iter();
        places.try_for_each(|at| self.spoil(at as u64, place.dtype.size()))
    }

    fn spoil(&mut self, offset: u64, bytes: u64) -> Result<(), String> {
        let range = self
            .bytes
            .get_mut(offset as usize..(offset + bytes) as usize);
        range
            .ok_or_else(|| format!("{bytes} B @{offset:#x} leave the arena"))?
            .fill(GARBAGE);
        Ok(())
    }
}

/// The first byte of an element of a value that broadcasts to the shape of `index`.
fn address(place: &Place<'_>, index: &[usize]) -> usize {
    let layout = place.layout;
    let skip = index.len() - layout.shape.len();
    let axes = layout.shape.iter().zip(&layout.strides).zip(&index[skip..]);
    let steps = axes.map(|((dim, stride), i)| if *dim == 1 { 0 } else { *i as u64 * stride });
    let elements = layout.offset + steps.sum::<u64>();
    (place.offset + elements * place.dtype.size()) as usize
}

/// Whether a kernel of this op may be a loop over elements.
fn element_by_element(kind: &Op) -> bool {
    let whole = [
        "matmul",
        "layer_norm",
        "rms_norm",
        "gated_grad",
        "softmax",
        "cross_entropy",
        "scatter",
        "dropout",
    ];
    !whole.iter().any(|name| kind.name().contains(name))
}
