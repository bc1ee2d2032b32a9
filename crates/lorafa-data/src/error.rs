//! What can be wrong with training data.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::form::Forms;
use crate::spec::{SpecError, Task};

/// Training data that cannot be used: where, and why.
#[derive(Debug, thiserror::Error)]
pub struct DataError {
    /// The file, as it was given. `None` if the fault is in no file, like a batch of rows that do not exist.
    pub path: Option<PathBuf>,
    /// Where in the file.
    pub place: Place,
    /// What is wrong.
    pub kind: DataErrorKind,
}

/// A place in a data file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The file as a whole.
    Whole,
    /// A line of text, counted from 1.
    Line(u64),
    /// A row of tensors, counted from 0.
    Row(u64),
}

impl fmt::Display for Place {
    /// As it follows the file's name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Whole => Ok(()),
            Place::Line(line) => write!(f, ":{line}"),
            Place::Row(row) => write!(f, ", row {row}"),
        }
    }
}

impl fmt::Display for DataError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(path) = &self.path {
            write!(f, "{}{}: ", path.display(), self.place)?;
        }
        write!(f, "{}", self.kind)
    }
}

impl DataError {
    pub(crate) fn in_file(path: &Path, place: Place, kind: DataErrorKind) -> Self {
        Self {
            path: Some(path.to_owned()),
            place,
            kind,
        }
    }

    pub(crate) fn of_file(path: &Path, kind: impl Into<DataErrorKind>) -> Self {
        Self::in_file(path, Place::Whole, kind.into())
    }
}

/// An error that no file is to blame for.
impl<K: Into<DataErrorKind>> From<K> for DataError {
    fn from(kind: K) -> Self {
        Self {
            path: None,
            place: Place::Whole,
            kind: kind.into(),
        }
    }
}

/// What is wrong with training data.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataErrorKind {
    /// A file, as such.
    #[error(transparent)]
    File(#[from] FileError),
    /// A line or row.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A tokenizer or a file beside it.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A chat that its template does not render, or not so that its answers can be found.
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// The inputs that the step asks for.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// Rows, batches and positions that do not exist.
    #[error(transparent)]
    Use(#[from] UseError),
}

/// What is wrong with a data file as a whole.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// Nothing at that path.
    #[error("no such file")]
    NotFound,
    /// A folder.
    #[error("this is a folder; give the files inside it")]
    Directory,
    /// The operating system refused.
    #[error("cannot be read: {0}")]
    Io(std::io::Error),
    /// A name that does not tell the format.
    #[error("expected a name that ends in .jsonl, .json (an object a line) or .safetensors")]
    Ending,
    /// No files at all.
    #[error("no data files were given")]
    NoFiles,
    /// No bytes, or blank lines only.
    #[error("the file is empty")]
    Empty,
    /// `skip_bad`, but nothing good.
    #[error("all {count} lines or rows are bad; the first: {first}")]
    AllBad {
        /// How many there are.
        count: u64,
        /// What is wrong with the first.
        first: Box<DataError>,
    },
    /// Every example was dropped.
    #[error(
        "no example is left: all {dropped} have no label that is trained within {seq} tokens; use a longer sequence, \
         or check the masks and labels"
    )]
    NoRows {
        /// How many were dropped.
        dropped: u64,
        /// Length of the sequence.
        seq: usize,
    },
    /// A damaged safetensors file.
    #[error("not a whole safetensors file: {0}")]
    Safetensors(String),
    /// `input_ids` or labels are missing.
    #[error("expected a tensor `{name}`, found {}", list(found))]
    NoTensor {
        /// What is missing.
        name: String,
        /// What there is.
        found: Vec<String>,
    },
    /// Not integers.
    #[error("tensor `{name}` is {found}; expected integers (or BOOL for a mask)")]
    TensorType {
        /// The tensor.
        name: String,
        /// Its type, as safetensors spells it.
        found: String,
    },
    /// A shape that fits neither the step nor `input_ids`.
    #[error("tensor `{name}` is {found:?}; expected {expected}")]
    TensorShape {
        /// The tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// What it should be.
        expected: String,
    },
    /// A tensor that would not be read.
    #[error(
        "tensor `{0}` is not read, because that input is made from the others; remove it from the file"
    )]
    TensorMade(String),
    /// Data of a kind that [`Options::pack`](crate::Options) cannot join.
    #[error("tensor `{0}` cannot be packed: it holds one value for a whole row; turn packing off")]
    CannotPack(String),
}

/// What is wrong with one line or row.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// Bytes that are no text.
    #[error("not UTF-8 from byte {at} of the line on; convert the file to UTF-8")]
    NotUtf8 {
        /// Bytes of the line before the fault.
        at: usize,
    },
    /// The file is one JSON list.
    #[error(
        "this begins a JSON list; write one object a line, as `jq -c '.[]' FILE > FILE.jsonl` does"
    )]
    List,
    /// Broken JSON, or not an object.
    #[error("expected a JSON object: {problem} (column {column})")]
    Json {
        /// Where in the line, counted in bytes from 1.
        column: usize,
        /// What serde says.
        problem: String,
    },
    /// Keys of no form.
    #[error("found values for {}; data for {task} has one of the forms {}", list(keys), Forms(*task))]
    UnknownForm {
        /// The keys of the line that are not `null`.
        keys: Vec<String>,
        /// What is trained.
        task: Task,
    },
    /// Keys of more than one form.
    #[error("the keys fit the forms {}; choose one (`form`)", list(forms))]
    SeveralForms {
        /// The names of the forms.
        forms: Vec<String>,
    },
    /// A value of a wrong type.
    #[error("`{key}`: expected {expected}: {problem}")]
    WrongType {
        /// The key.
        key: &'static str,
        /// What it should be.
        expected: &'static str,
        /// What serde says.
        problem: String,
    },
    /// `prompt` is text and `completion` is a chat, or the other way round.
    #[error(
        "one of `prompt` and `completion` is a string and the other a list; both must be the same"
    )]
    MixedCompletion,
    /// An unknown speaker in the ShareGPT form.
    #[error(
        "`from` is `{0}`; expected human, user, gpt, assistant, chatgpt, bing, bard, system or tool"
    )]
    Speaker(String),
    /// Lists that belong together differ in length.
    #[error("`{key}` has {found} values for {expected} ids")]
    Length {
        /// The other list.
        key: &'static str,
        /// Its length.
        found: usize,
        /// Length of `input_ids`.
        expected: usize,
    },
    /// A hole in the attention mask.
    #[error(
        "`attention_mask` must be ones, with zeros only before or after them; leave masked tokens out"
    )]
    Mask,
    /// An id that the model's embedding lacks.
    #[error("token id {id} is out of range: the model's vocabulary has {vocab} entries")]
    TokenId {
        /// The id.
        id: i64,
        /// Rows of the embedding, or 2^31 where they are not known.
        vocab: u64,
    },
    /// A class that the model lacks.
    #[error("label {label} is out of range: the model has {classes} classes")]
    Label {
        /// The label.
        label: i64,
        /// Number of classes, or 2^31 where it is not known.
        classes: u64,
    },
    /// A token type that does not fit.
    #[error("token type {0} is out of range: at most 255")]
    TokenType(i64),
    /// A class by name, without a mapping.
    #[error(
        "label `{label}` is a name; give integers, or a config.json with `label2id` next to the tokenizer{}", 
        if known.is_empty() { String::new() } else { format!(" that has it: it knows {}", list(known)) }
    )]
    LabelName {
        /// The name.
        label: String,
        /// The names there are.
        known: Vec<String>,
    },
    /// `labels` are needed and not there.
    #[error("`input_ids` without `labels`: {0} needs labels")]
    NoLabels(Task),
    /// A row of verbatim tensors that is padded on the left.
    #[error("the row is padded on the left, and `{0}` is used as it is; pad on the right")]
    PaddedLeft(String),
    /// Text, but no tokenizer.
    #[error("text needs a tokenizer; give a tokenizer.json, or data with `input_ids`")]
    NeedsTokenizer,
    /// The tokenizer refused a text.
    #[error("the tokenizer refuses the text: {0}")]
    Encode(String),
    /// No room for text beside the special tokens.
    #[error("{special} special tokens leave no room in {seq}; use a longer sequence")]
    NoRoom {
        /// Tokens that the tokenizer adds.
        special: usize,
        /// Length of the sequence.
        seq: usize,
    },
}

/// What is wrong with a tokenizer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// Not a tokenizer.json.
    #[error("not a tokenizer.json: {0}")]
    Tokenizer(String),
    /// Damaged JSON in a file beside it.
    #[error("not JSON of the form expected: {0}")]
    Json(serde_json::Error),
    /// A special token without an id.
    #[error(
        "`{key}` is `{token}`, which tokenizer.json does not have; add it there, or name another"
    )]
    SpecialToken {
        /// `bos_token`, `eos_token` or `pad_token`.
        key: &'static str,
        /// The token.
        token: String,
    },
    /// More tokens than the model has embeddings.
    #[error(
        "the tokenizer has {tokenizer} ids and the model {model} embeddings; use the tokenizer that belongs to the model, \
         or export the model with its embeddings resized"
    )]
    Vocabulary {
        /// Largest id of the tokenizer plus one, added tokens included.
        tokenizer: u64,
        /// Rows of the model's embedding.
        model: u64,
    },
    /// A start token that the model's embedding lacks.
    #[error(
        "`decoder_start_token_id` is {id}, and the model's vocabulary has {vocab} entries; use the config.json that \
         belongs to the model"
    )]
    DecoderStart {
        /// The token.
        id: u32,
        /// Rows of the embedding, or 2^31 where they are not known.
        vocab: u64,
    },
    /// Templates by name, none of them the default.
    #[error(
        "there are chat templates {} and none is `default`; save the one to use as chat_template.jinja next to \
         tokenizer.json",
        list(names)
    )]
    NoDefaultTemplate {
        /// Their names.
        names: Vec<String>,
    },
    /// A template that does not parse.
    #[error("the chat template does not parse: {0}")]
    Template(String),
}

/// What is wrong with a chat.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChatError {
    /// No template.
    #[error(
        "a chat needs a chat template, and the tokenizer has none; put it in chat_template.jinja next to tokenizer.json, \
         or in tokenizer_config.json as `chat_template`"
    )]
    NoTemplate,
    /// No messages.
    #[error("the conversation is empty")]
    Empty,
    /// A message of a wrong form.
    #[error("message {index}: {problem}")]
    Message {
        /// Which, counted from 1.
        index: usize,
        /// What is wrong.
        problem: &'static str,
    },
    /// The template failed or refused.
    #[error("the chat template fails: {0}")]
    Render(String),
    /// The template failed on a part of the chat only.
    #[error(
        "the answer in message {index} cannot be found: the chat template fails on the messages before it: {error}; mark \
         answers with {{% generation %}} in the template, or begin with a user's message"
    )]
    RenderPrefix {
        /// The assistant's message, counted from 1.
        index: usize,
        /// Why the template fails.
        error: String,
    },
    /// The template renders a message differently once others follow.
    #[error(
        "the answer in message {index} cannot be found: the chat template renders {what} differently when more messages \
         follow (from `{shorter}` to `{longer}`); mark answers with {{% generation %}} in the template"
    )]
    NotAPrefix {
        /// The assistant's message, counted from 1.
        index: usize,
        /// Which rendering is not a prefix.
        what: &'static str,
        /// Where it stops agreeing, without the messages that follow.
        shorter: String,
        /// The same place, with them.
        longer: String,
    },
    /// A character that marks answers while rendering.
    #[error(
        "the chat has the character U+{0:04X}, which is for internal use by programs; remove it"
    )]
    Marker(u32),
}

/// Rows, batches and positions that do not exist.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UseError {
    /// A row beyond the last.
    #[error("row {row} is out of range: there are {rows}")]
    Row {
        /// The row.
        row: usize,
        /// How many there are.
        rows: usize,
    },
    /// No rows, or more than fit.
    #[error("a batch takes 1 to {batch} rows, not {found}")]
    BatchRows {
        /// Rows of the step's batch.
        batch: usize,
        /// Rows asked for.
        found: usize,
    },
    /// A split that leaves a side empty.
    #[error("an evaluation set of {eval} of {examples} examples leaves one side empty")]
    Split {
        /// What was asked for.
        eval: String,
        /// How many examples there are.
        examples: usize,
    },
    /// Nothing to sample.
    #[error("a sampler needs at least one row and a batch of at least one, not {rows} and {batch}")]
    Sampler {
        /// Rows.
        rows: usize,
        /// Rows a batch.
        batch: usize,
    },
    /// A position of another run.
    #[error("batch {found} is out of range: an epoch has {batches} batches")]
    Position {
        /// The batch.
        found: u64,
        /// Batches an epoch.
        batches: u64,
    },
    /// Not a date.
    #[error("`{0}` is no date; expected YYYY-MM-DD")]
    Date(String),
}

/// serde's text without its place, which is one in a part of a line.
pub(crate) fn unplaced(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    text.strip_suffix(&place).unwrap_or(&text).to_owned()
}

impl From<serde_json::Error> for RecordError {
    fn from(error: serde_json::Error) -> Self {
        RecordError::Json {
            column: error.column(),
            problem: unplaced(&error),
        }
    }
}

/// Names in backticks with commas, or "nothing".
pub(crate) fn list(names: &[String]) -> String {
    if names.is_empty() {
        return "nothing".to_owned();
    }
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    quoted.join(", ")
}
