//! Positions that a table does not have: a sequence longer than the model was made for.

use crate::matching::Memo;
use crate::pass::{PassError, in_module};
use lorafa_ir::ops::{Binary, BinaryKind, Literal, Op};
use lorafa_ir::text::ValueDisplay;
use lorafa_ir::{DType, Graph, OpData, ValueId};

/// Refuses look-ups whose indices are counters that leave the table.
pub(super) fn check(graph: &Graph) -> Result<(), PassError> {
    graph.ops().try_for_each(|op| match &op.kind {
        Op::Gather(gather) => check_gather(graph, op, gather.axis),
        _ => Ok(()),
    })
}

fn check_gather(graph: &Graph, op: &OpData, axis: usize) -> Result<(), PassError> {
    let (table, indices) = (op.operands[0], op.operands[1]);
    let rows = graph.ty(table).shape[axis].known();
    let (Some(rows), Some((low, high))) = (rows, range(graph, indices, &mut Memo::new())) else {
        return Ok(());
    };
    if low >= -rows && high < rows {
        return Ok(());
    }
    let index = if high >= rows { high } else { low };
    Err(PassError::Refused(format!(
        "{} : {} has {rows} positions, and position {index} is looked up{}: choose a --seq that \
         the model was made for",
        ValueDisplay(graph, table),
        graph.ty(table),
        in_module(&op.site.module)
    )))
}

/// The least and the largest number in a value.
type Range = (i64, i64);

/// The numbers that are in a value, if it counts positions or is constant.
fn range(graph: &Graph, value: ValueId, known: &mut Memo<Range>) -> Option<Range> {
    known.of(value, |known| computed(graph, value, known))
}

/// The numbers that an op makes of those in its operands.
fn computed(graph: &Graph, value: ValueId, known: &mut Memo<Range>) -> Option<Range> {
    let op = graph.def(value);
    let mut operand = |slot: usize| range(graph, op.operands[slot], known);
    match &op.kind {
        Op::Iota(iota) => {
            let (start, len) = (iota.start.known()?, iota.len.known()?);
            let span = len
                .checked_sub(1)
                .filter(|n| *n >= 0)?
                .checked_mul(iota.step)?;
            let last = start.checked_add(span)?;
            Some((start.min(last), start.max(last)))
        }
        Op::Constant(c) => match &c.literal {
            Literal::Ints(n) => Some((*n.iter().min()?, *n.iter().max()?)),
            Literal::Floats(_) => None,
        },
        Op::Reshape(_) | Op::Expand(_) | Op::Transpose(_) => operand(0),
        Op::Cast(cast) if !cast.to.is_float() => match graph.ty(op.operands[0]).dtype {
            DType::Bool => Some((0, 1)),
            _ => operand(0),
        },
        // As many as are counted in a sequence without padding.
        Op::CumSum(sum) => {
            let (low, high) = operand(0)?;
            let len = graph.ty(op.results[0]).shape[sum.axis].known()?;
            (low >= 0).then_some((0, high.checked_mul(len)?))
        }
        Op::Binary(Binary(BinaryKind::Mul)) => {
            let (a, b) = (operand(0)?, operand(1)?);
            (a.0 >= 0 && b.0 >= 0).then_some((a.0.checked_mul(b.0)?, a.1.checked_mul(b.1)?))
        }
        Op::Binary(Binary(BinaryKind::Add)) => {
            let (a, b) = (operand(0)?, operand(1)?);
            Some((a.0.checked_add(b.0)?, a.1.checked_add(b.1)?))
        }
        _ => None,
    }
}
