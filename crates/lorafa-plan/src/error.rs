//! Why a graph has no plan.

use lorafa_ir::OpId;

use crate::check::Violations;
use crate::problem::{MAX_TOTAL, ProblemError};

/// Why a graph cannot be planned.
///
/// Values are spelled as the text form spells operands, ops as their line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// An op can never run, because it needs its own result. Such a graph does not verify.
    #[error("{op} is on a cycle or behind one; verify the graph first")]
    Cycle {
        /// The first such op.
        op: OpId,
    },
    /// A size is not a number.
    #[error("{value} : {ty} has a symbolic size; bind its dimensions first: `{line}`")]
    Symbolic {
        /// The value.
        value: String,
        /// Its type.
        ty: String,
        /// The op that defines it.
        line: String,
    },
    /// Something reads a value after an update has overwritten its bytes.
    #[error(
        "{value} is read after it was updated in place; \
         read the updated value or move the reader before the update: `{update}`, then `{reader}`"
    )]
    ReadAfterUpdate {
        /// The value from before the update.
        value: String,
        /// The op that overwrites it.
        update: String,
        /// The op or output that still needs it.
        reader: String,
    },
    /// An update would overwrite bytes that it reads through another operand.
    #[error(
        "{value} is updated in place but operand {slot} lies in the same bytes; copy one of them: `{update}`"
    )]
    UpdateShares {
        /// The value to overwrite.
        value: String,
        /// The operand slot that shares bytes with it.
        slot: usize,
        /// The update.
        update: String,
    },
    /// An update would write several results to the same bytes.
    #[error(
        "{value} is updated in place but repeats elements; update the value that was expanded: `{update}`"
    )]
    UpdateRepeats {
        /// The value to overwrite.
        value: String,
        /// The update.
        update: String,
    },
    /// An operand of a joined `concat` is made elsewhere.
    #[error(
        "{value} cannot be made where it is joined: it is a view, an update, joined elsewhere, too, not a parameter \
         while others are, or of a kernel whose results are row-major; copy it first, or leave `joined` out: `{concat}`"
    )]
    NotJoined {
        /// The operand.
        value: String,
        /// The op that joins it.
        concat: String,
    },
    /// The arena would be larger than libtorch can address.
    #[error("expected an arena of at most {MAX_TOTAL} B, found more; use smaller dimensions")]
    TooManyBytes,
    /// The transient buffers make no allocation problem.
    #[error(transparent)]
    Problem(#[from] ProblemError),
    /// The checker refused what the allocator made.
    #[error("the allocator made a wrong layout, please report it: {0}")]
    Layout(#[from] Violations),
}
