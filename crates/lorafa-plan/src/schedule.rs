//! The schedule: which op runs at which position.

use lorafa_ir::{Graph, Op, OpId};

use crate::error::PlanError;

/// The ops of a step in the order they run; one op, one position, counted from 0.
///
/// It is [`Graph::order`] without parameters and constants, which are there before the step starts. A view has a
/// position although there is nothing to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    ops: Vec<OpId>,
}

impl Schedule {
    /// Schedules a graph.
    ///
    /// # Errors
    /// [`PlanError::Cycle`] if an op can never run.
    pub fn new(graph: &Graph) -> Result<Self, PlanError> {
        let mut ops = graph.order();
        if ops.len() != graph.op_count() {
            ops.sort_unstable();
            let left_out = graph.ops().find(|op| ops.binary_search(&op.id).is_err());
            if let Some(op) = left_out {
                return Err(PlanError::Cycle { op: op.id });
            }
        }
        ops.retain(|op| !matches!(graph.op(*op).kind, Op::Param(_) | Op::Constant(_)));
        Ok(Self { ops })
    }

    /// The ops, by position.
    #[must_use]
    pub fn ops(&self) -> &[OpId] {
        &self.ops
    }

    /// How many positions there are; the position after the last.
    #[must_use]
    pub fn end(&self) -> u32 {
        self.ops.len() as u32
    }

    /// Every position with its op, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (u32, OpId)> {
        self.ops
            .iter()
            .enumerate()
            .map(|(position, op)| (position as u32, *op))
    }
}
