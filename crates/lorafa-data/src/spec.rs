//! What a step asks for: its task, and its inputs with their shapes.

use std::fmt;

/// What a decoder reads: its target one place later, after the start token.
pub(crate) const DECODER_INPUT_IDS: &str = "decoder_input_ids";

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Task {
    /// The next token (Llama, GPT-2). The loss compares the logits at position `t` with the label at `t + 1`.
    CausalLm,
    /// One class a sequence (RoBERTa).
    SeqCls,
    /// One class a token (RoBERTa).
    TokenCls,
    /// A target sequence for a source sequence (T5).
    Seq2Seq,
}

impl Task {
    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Task::CausalLm => "causal-lm",
            Task::SeqCls => "seq-cls",
            Task::TokenCls => "token-cls",
            Task::Seq2Seq => "seq2seq",
        }
    }

    /// The inputs that text or token ids can give.
    #[must_use]
    pub fn inputs(self) -> &'static [&'static str] {
        match self {
            Task::Seq2Seq => &[
                "input_ids",
                "attention_mask",
                "labels",
                "position_ids",
                "token_type_ids",
                DECODER_INPUT_IDS,
                "decoder_attention_mask",
            ],
            Task::CausalLm | Task::SeqCls | Task::TokenCls => &[
                "input_ids",
                "attention_mask",
                "labels",
                "position_ids",
                "token_type_ids",
            ],
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What a step asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// What is trained.
    pub task: Task,
    /// Rows of a batch.
    pub batch: u64,
    /// The inputs. `input_ids` and `labels` must be among them.
    pub inputs: Vec<InputSpec>,
    /// Rows of the embedding, which bound token ids. `None` if not known.
    pub vocab: Option<u64>,
    /// Number of classes, which bounds labels of the classification tasks. `None` if not known.
    pub classes: Option<u64>,
}

/// An input of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputSpec {
    /// Its name in the model.
    pub name: String,
    /// Its shape; the first dimension is the batch.
    pub shape: Vec<u64>,
}

/// Inputs that no data can fill.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// A missing input.
    #[error("the step has no input `{0}`, which training needs")]
    Missing(&'static str),
    /// The same input twice.
    #[error("the step has two inputs `{0}`")]
    Twice(String),
    /// A shape that data does not have.
    #[error("input `{name}` is {found:?}; {task} data is {expected:?}")]
    Shape {
        /// The input.
        name: String,
        /// Its shape.
        found: Vec<u64>,
        /// The shape that data would have.
        expected: Vec<u64>,
        /// What is trained.
        task: Task,
    },
    /// A name that data does not have.
    #[error(
        "the step asks for `{name}`; text or token ids give {}; a pre-tokenized .safetensors file may hold \
         `{name}` as an integer tensor of that name, a row for each row of `input_ids`",
        task.inputs().join(", ")
    )]
    Unknown {
        /// The input.
        name: String,
        /// What is trained.
        task: Task,
    },
    /// An empty batch or sequence.
    #[error("input `{name}` is {found:?}: every dimension must be from 1 to 2^31")]
    Empty {
        /// The input.
        name: String,
        /// Its shape.
        found: Vec<u64>,
    },
    /// Packing outside of causal language models.
    #[error("only causal-lm rows can be packed, not {0}")]
    Pack(Task),
}

/// A checked [`Spec`].
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub(crate) task: Task,
    pub(crate) batch: usize,
    /// Length of `input_ids`.
    pub(crate) seq: usize,
    /// Length of `labels`: `seq`, the target's length for seq2seq, 1 for seq-cls.
    pub(crate) target: usize,
    /// Inputs that are made, in the order of [`Task::inputs`].
    pub(crate) made: Vec<&'static str>,
    /// Inputs that only a file can hold, with the number of elements of a row.
    pub(crate) fixed: Vec<(String, Vec<usize>)>,
    pub(crate) vocab: Option<u64>,
    pub(crate) classes: Option<u64>,
}

const LARGEST: u64 = 1 << 31;

impl Layout {
    /// The token ids there can be: those below this.
    pub(crate) fn ids(&self) -> u64 {
        self.vocab.unwrap_or(LARGEST).min(LARGEST)
    }

    pub(crate) fn new(spec: &Spec) -> Result<Self, SpecError> {
        let find = |name| spec.inputs.iter().find(|input| input.name == name);
        let ids = find("input_ids").ok_or(SpecError::Missing("input_ids"))?;
        let labels = find("labels").ok_or(SpecError::Missing("labels"))?;
        for (index, input) in spec.inputs.iter().enumerate() {
            if spec.inputs[..index]
                .iter()
                .any(|other| other.name == input.name)
            {
                return Err(SpecError::Twice(input.name.clone()));
            }
            if input.shape.is_empty() || input.shape.iter().any(|dim| !(1..=LARGEST).contains(dim))
            {
                return Err(SpecError::Empty {
                    name: input.name.clone(),
                    found: input.shape.clone(),
                });
            }
        }
        let seq = ids.shape.get(1).copied().unwrap_or(1);
        let target = match spec.task {
            Task::CausalLm | Task::TokenCls => seq,
            Task::SeqCls => 1,
            Task::Seq2Seq => labels.shape.get(1).copied().unwrap_or(1),
        };
        let mut made = Vec::new();
        let mut fixed = Vec::new();
        for input in &spec.inputs {
            let known = spec.task.inputs().iter().find(|name| **name == input.name);
            let expected = match input.name.as_str() {
                _ if known.is_none() => {
                    let mut expected = input.shape.clone();
                    expected[0] = spec.batch;
                    expected
                }
                "labels" if spec.task == Task::SeqCls => vec![spec.batch],
                "labels" | DECODER_INPUT_IDS | "decoder_attention_mask" => {
                    vec![spec.batch, target]
                }
                _ => vec![spec.batch, seq],
            };
            if input.shape != expected {
                return Err(SpecError::Shape {
                    name: input.name.clone(),
                    found: input.shape.clone(),
                    expected,
                    task: spec.task,
                });
            }
            match known {
                Some(name) => made.push(*name),
                None => {
                    let row = input.shape[1..].iter().map(|dim| *dim as usize).collect();
                    fixed.push((input.name.clone(), row));
                }
            }
        }
        Ok(Self {
            task: spec.task,
            batch: spec.batch as usize,
            seq: seq as usize,
            target: target as usize,
            made,
            fixed,
            vocab: spec.vocab,
            classes: spec.classes,
        })
    }
}
