//! `attach-loss`: gives a model without a loss the one that Hugging Face would compute.
//!
//! ```text
//! + param %labels : i64[2,8] input
//! + v8 = pad %labels {after=[0,1], before=[0,0], value=-100.0}  : i64[2,9]
//! + v9 = slice v8 {axes=[1:1:8:1]}                              : i64[2,8]
//! + v10 = reshape v9                                            : i64[16]
//! + v11 = reshape v7                                            : f32[16,64]
//! + v12 = cross_entropy v11, v10                                : f32[]
//!   out "logits" = v7
//! + out "loss" = v12 loss
//! ```
//!
//! Logits `[batch, classes]` are a classification of sequences. Logits `[batch, seq, vocabulary]`
//! are those of a sequence-to-sequence model if it reads `decoder_input_ids`, else of a causal
//! language model if something depends on the order of positions, else of a classification of
//! tokens. Only the causal loss shifts the labels. The loss is taken in f32.

mod causal;

use crate::pass::{Changed, Pass, PassCx, PassError, PassKind};
use lorafa_ir::ops::{CrossEntropy, Op, Pad, Param, Role, Scalar, Slice, SliceAxis};
use lorafa_ir::types::{Shape, may_equal, product};
use lorafa_ir::{DType, Dim, Graph, OutputKind, Patch, Region, Site, TensorType, ValueId};
use std::fmt;
use std::sync::Arc;

/// The label that does not count.
const IGNORED: i64 = -100;
/// The name of the labels' input.
const LABELS: &str = "labels";
/// The name of the loss's output.
const LOSS: &str = "loss";

/// What the logits are compared with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum LossKind {
    /// The next token at each position.
    CausalLm,
    /// One class a sequence.
    SeqCls,
    /// A target sequence, which the model got shifted as `decoder_input_ids`.
    Seq2Seq,
    /// One class a token.
    TokenCls,
}

impl LossKind {
    /// Every loss with its spelling.
    pub const ALL: [(LossKind, &'static str); 4] = [
        (LossKind::CausalLm, "causal-lm"),
        (LossKind::SeqCls, "seq-cls"),
        (LossKind::Seq2Seq, "seq2seq"),
        (LossKind::TokenCls, "token-cls"),
    ];

    /// The spelling.
    pub fn name(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(k, _)| *k == self)
            .map_or("?", |(_, n)| n)
    }

    /// The loss with this spelling.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, n)| *n == name).map(|(k, _)| *k)
    }

    /// The rank of the logits that it takes.
    fn rank(self) -> usize {
        if self == LossKind::SeqCls { 2 } else { 3 }
    }
}

impl fmt::Display for LossKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The output that holds the logits: the one so named, or else the first of rank 2 or 3.
pub fn logits(graph: &Graph) -> Option<(Arc<str>, ValueId)> {
    let fits = |value: ValueId| {
        let ty = graph.ty(value);
        ty.dtype.is_float() && matches!(ty.rank(), 2 | 3)
    };
    let mut values = graph
        .outputs()
        .iter()
        .filter(|o| o.kind == OutputKind::Value && fits(o.value));
    let named = values.clone().find(|o| &*o.name == "logits");
    named
        .or_else(|| values.next())
        .map(|o| (o.name.clone(), o.value))
}

/// The loss that suits logits of this graph.
pub fn choose(graph: &Graph, logits: ValueId) -> Option<LossKind> {
    let decoder = |(_, p): (ValueId, &Param)| &*p.name == "decoder_input_ids";
    match graph.ty(logits).rank() {
        2 => Some(LossKind::SeqCls),
        3 if graph.params().any(decoder) => Some(LossKind::Seq2Seq),
        3 if causal::is_causal(graph, logits) => Some(LossKind::CausalLm),
        3 => Some(LossKind::TokenCls),
        _ => None,
    }
}

/// See the module.
pub struct AttachLoss;

impl Pass for AttachLoss {
    fn name(&self) -> &'static str {
        "attach-loss"
    }

    fn kind(&self) -> PassKind {
        PassKind::Extends
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<Changed, PassError> {
        if let Some(loss) = graph.loss() {
            let name = loss.name.clone();
            if let Some(kind) = cx.options.loss {
                return refused(format!(
                    "the model has a loss, the output {name:?}: leave out --loss {kind}, or \
                     export the model without labels"
                ));
            }
            cx.note(format_args!("the model has a loss, {name:?}"));
            return Ok(Changed::No);
        }
        let (name, logits) = logits(graph).ok_or_else(|| no_logits(graph))?;
        let (kind, ty) = (pick(graph, logits, &name, cx)?, graph.ty(logits).clone());
        if graph.outputs().iter().any(|o| &*o.name == LOSS) {
            return refused(format!(
                "the output {LOSS:?} is no scalar loss: rename or remove it"
            ));
        }
        let rows = &ty.shape[..ty.rank() - 1];
        let wanted = TensorType::new(DType::I64, rows.iter().cloned());
        let known = existing_labels(graph, &wanted)?;

        let mut patch = graph.patch("attach-loss");
        let labels = match known {
            Some(labels) => labels,
            None => new_labels(&mut patch, wanted)?,
        };
        build(&mut patch, kind, logits, labels)?;
        let changes = patch.changes();
        cx.note(format_args!("{kind} on {name:?} : {ty}"));
        Ok(Changed::from_count(changes))
    }
}

fn refused<T>(what: String) -> Result<T, PassError> {
    Err(PassError::Refused(what))
}

fn no_logits(graph: &Graph) -> PassError {
    let outputs = graph.outputs().iter();
    let found: Vec<String> = outputs
        .map(|o| format!("{} : {}", o.name, graph.ty(o.value)))
        .collect();
    PassError::Refused(format!(
        "no output can be logits, which are floats of rank 2 or 3; found {}",
        if found.is_empty() {
            "none".to_string()
        } else {
            found.join(", ")
        }
    ))
}

/// The loss to attach, which must suit the logits.
fn pick(graph: &Graph, logits: ValueId, name: &str, cx: &PassCx) -> Result<LossKind, PassError> {
    let ty = graph.ty(logits);
    let Some(kind) = cx.options.loss.or_else(|| choose(graph, logits)) else {
        return Err(no_logits(graph));
    };
    if kind.rank() != ty.rank() {
        return refused(format!(
            "--loss {kind} takes logits of rank {}, but {name:?} is {ty}",
            kind.rank()
        ));
    }
    if kind == LossKind::SeqCls && ty.shape[1].is(1) {
        return refused(format!(
            "{name:?} : {ty} has one class, which is a regression; only classification is supported"
        ));
    }
    Ok(kind)
}

/// The model's own input for labels, if it has one.
fn existing_labels(graph: &Graph, wanted: &TensorType) -> Result<Option<ValueId>, PassError> {
    let Some((value, param)) = graph.params().find(|(_, p)| &*p.name == LABELS) else {
        return Ok(None);
    };
    let ty = &param.ty;
    let mut dims = ty.shape.iter().zip(&wanted.shape);
    let fits = ty.dtype == wanted.dtype && ty.rank() == wanted.rank();
    if param.role != Role::Input || !fits || !dims.all(|(a, b)| may_equal(a, b)) {
        return refused(format!(
            "{LABELS:?} : {ty} is in use; labels must be {wanted}"
        ));
    }
    if graph.is_used(value) {
        return refused(format!(
            "{LABELS:?} is read by the model, which has no loss output"
        ));
    }
    Ok(Some(value))
}

fn new_labels(patch: &mut Patch<'_>, ty: TensorType) -> Result<ValueId, PassError> {
    let site = Site {
        region: Region::Forward,
        seq: i64::MIN,
        module: Arc::from(""),
        of: None,
    };
    let param = Param::runtime(LABELS, Role::Input, ty);
    let labels = patch.at_site(site).add1(Op::Param(Box::new(param)), &[])?;
    patch.name(labels, Some(Arc::from(LABELS)));
    Ok(labels)
}

fn build(
    patch: &mut Patch<'_>,
    kind: LossKind,
    logits: ValueId,
    labels: ValueId,
) -> Result<(), PassError> {
    let last = patch.graph().ops().map(|op| op.site.seq).max().unwrap_or(0);
    let seq = last.saturating_add(1);
    let site = Site {
        region: Region::Forward,
        seq,
        module: Arc::from(""),
        of: None,
    };
    patch.at_site(site);
    let shape = patch.ty(logits).shape.clone();
    let (rows, classes) = shape.split_at(shape.len() - 1);
    let rows_in_all = product(rows);

    let labels = if kind == LossKind::CausalLm {
        shifted(patch, labels)?
    } else {
        labels
    };
    let labels = patch.reshape(labels, [rows_in_all.clone()])?;
    let logits = patch.cast(logits, DType::F32)?;
    let logits = patch.reshape(logits, [rows_in_all, classes[0].clone()])?;
    let op = CrossEntropy {
        ignore_index: IGNORED,
    };
    let loss = patch.add1(op.into(), &[logits, labels])?;
    patch.output(LOSS, loss, OutputKind::Loss);
    Ok(())
}

/// The label of each position's next token; the last has none.
fn shifted(patch: &mut Patch<'_>, labels: ValueId) -> Result<ValueId, PassError> {
    let shape = &patch.ty(labels).shape;
    let (rank, len) = (shape.len(), shape[1].clone());
    let before = Shape::from_elem(Dim::Known(0), rank);
    let mut after = before.clone();
    after[1] = Dim::Known(1);
    let pad = Pad {
        before,
        after,
        value: Scalar(IGNORED as f64),
    };
    let padded = patch.add1(pad.into(), &[labels])?;
    let rest = SliceAxis {
        axis: 1,
        start: Dim::Known(1),
        len,
        step: 1,
    };
    let slice = Slice {
        axes: [rest].into_iter().collect(),
    };
    Ok(patch.add1(slice.into(), &[padded])?)
}
