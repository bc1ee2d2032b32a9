//! Steps that look for the op at which numbers stop being finite.
//!
//! Infinities are not wrong as such: masks are made of them, and T5 takes the logarithm of zero where a `select` then
//! takes something else. So where one comes from is only remembered, and reported once a NaN is made of it, or it
//! reaches an output or a parameter.

use std::collections::{BTreeMap, BTreeSet};

use lorafa_ir::ops::Role;
use lorafa_ir::{Op, OpData, OpId, ValueId};

use tch::{TchError, Tensor};

use crate::error::{ExecError, KernelError, NonFinite};
use crate::program::Program;
use crate::run::Part;
use crate::shim::InferenceMode;

/// By value, the op that made the infinity which is in it.
type Origins = BTreeMap<ValueId, OpId>;

/// What was seen in a value, or in one of several.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    nan: bool,
    positive: bool,
    negative: bool,
}

impl Seen {
    fn infinite(self) -> bool {
        self.positive || self.negative
    }
}

impl Program {
    /// Runs the step as [`step`](Self::step) does, and looks at what each op reads and writes. It takes many times as
    /// long, and memory beside the plan.
    ///
    /// # Errors
    /// [`ExecError::NotFinite`] for the op that made a NaN of operands without one, or an infinity of operands without
    /// one that became a NaN, an output or a parameter's update: a mask of negative infinities is no such op, nor is what
    /// reads it. Also for parameters and constants that are NaN, for trained parameters and optimizer state with an
    /// infinity, and for frozen weights with a positive one. What the step wrote up to there stays written. Otherwise as
    /// [`step`](Self::step).
    pub fn step_checked(&mut self) -> Result<(), ExecError> {
        self.checked(Part::Step)
    }

    /// As [`step_checked`](Self::step_checked), for a [`micro_step`](Self::micro_step).
    ///
    /// # Errors
    /// As [`step_checked`](Self::step_checked).
    pub fn micro_step_checked(&mut self) -> Result<(), ExecError> {
        self.checked(Part::MicroStep)
    }

    fn checked(&mut self, part: Part) -> Result<(), ExecError> {
        let _inference = InferenceMode::enter();
        let graph = self.graph.clone();
        for op in graph.ops() {
            self.check_source(op)?;
        }
        let outputs: BTreeSet<ValueId> = graph.outputs().iter().map(|o| o.value).collect();
        let mut origins = Origins::new();
        let mut next = 0;
        for (position, id) in self.ops.clone().into_iter().enumerate() {
            let op = graph.op(id);
            let steps = self.steps[next..].iter();
            let own = steps.take_while(|step| step.position as usize == position);
            let tasks = next..next + own.count();
            next = tasks.end;
            if !tasks.is_empty() && !tasks.clone().any(|index| part.has(&self.steps[index])) {
                continue;
            }
            // Before it runs, as it may overwrite them.
            let read = self.look(&op.operands)?;
            for index in tasks {
                if part.has(&self.steps[index]) {
                    self.task(index)?;
                }
            }
            let made = self.look(&op.results)?;
            let origin = op
                .operands
                .iter()
                .find_map(|value| origins.get(value).copied());
            if made.nan && !read.nan {
                return Err(match origin {
                    Some(origin) => self.not_finite(graph.op(origin), NonFinite::Infinity),
                    None => self.not_finite(op, NonFinite::Nan),
                });
            }
            let origin = origin.or((!read.infinite()).then_some(op.id));
            if let Some(origin) = origin.filter(|_| made.infinite()) {
                let kept = |value: &ValueId| outputs.contains(value);
                if op.results.iter().any(kept) || !op.kind.updates().is_empty() {
                    return Err(self.not_finite(graph.op(origin), NonFinite::Infinity));
                }
                origins.extend(op.results.iter().map(|value| (*value, origin)));
            }
        }
        self.count(part);
        Ok(())
    }

    /// Looks at a parameter or constant.
    fn check_source(&self, op: &OpData) -> Result<(), ExecError> {
        let role = match &op.kind {
            Op::Param(param) => Some(param.role),
            Op::Constant(_) => None,
            _ => return Ok(()),
        };
        let seen = self.look(&op.results)?;
        let infinite = match role {
            Some(Role::Trained | Role::OptState) => seen.infinite(),
            Some(Role::Frozen) => seen.positive,
            Some(Role::Input | Role::Constant) | None => false,
        };
        if seen.nan {
            Err(self.not_finite(op, NonFinite::Nan))
        } else if infinite {
            Err(self.not_finite(op, NonFinite::Infinity))
        } else {
            Ok(())
        }
    }

    fn not_finite(&self, op: &OpData, found: NonFinite) -> ExecError {
        let what = match &op.kind {
            Op::Param(param) => format!("the parameter `{}` : {}", param.name, param.ty),
            _ => self.line_of(op.id),
        };
        ExecError::NotFinite {
            what,
            module: op.site.module.to_string(),
            found,
        }
    }

    /// What is in the floats among these values, looked at where they are.
    fn look(&self, values: &[ValueId]) -> Result<Seen, ExecError> {
        let mut seen = Seen::default();
        for value in values {
            let view = &self.views[value];
            if !view.dtype.is_float() || view.elements() == 0 {
                continue;
            }
            let tensor = view.tensor(self.device);
            let of_op = |error: KernelError| error.of(self.line_of(self.graph.value(*value).op));
            let found = examine(&tensor.map_err(of_op)?)
                .map_err(|error| of_op(KernelError::Torch(error.to_string())))?;
            seen.nan |= found.nan;
            seen.positive |= found.positive;
            seen.negative |= found.negative;
        }
        Ok(seen)
    }
}

fn examine(tensor: &Tensor) -> Result<Seen, TchError> {
    let holds = |flags: Tensor| flags.f_any()?.f_int64_value(&[]).map(|any| any != 0);
    if tensor.f_isfinite()?.f_all()?.f_int64_value(&[])? != 0 {
        return Ok(Seen::default());
    }
    Ok(Seen {
        nan: holds(tensor.f_isnan()?)?,
        positive: holds(tensor.f_isposinf()?)?,
        negative: holds(tensor.f_isneginf()?)?,
    })
}
