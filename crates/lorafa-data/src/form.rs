//! The forms a line of JSON can have, told apart by their keys.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::chat::{self, Message};
use crate::error::{ChatError, DataErrorKind, RecordError, unplaced};
use crate::spec::Task;

/// A form of JSON line. Keys beyond those named here are ignored, and keys that are `null`, as writers of tables spell what a
/// row lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `{"text"}`: every token trains.
    Text,
    /// `{"prompt", "completion"}`, both strings or both lists of messages: the completion trains.
    PromptCompletion,
    /// `{"messages": [{"role", "content"}]}`, with `tools` if there are: what the assistant says trains.
    Messages,
    /// ShareGPT's `{"conversations": [{"from", "value"}]}`, the same by other names.
    Conversations,
    /// Alpaca's `{"instruction", "input", "output"}`, `input` optional: the output trains.
    Instruction,
    /// `{"text", "label"}`, with `text_pair` if there is one: a class a text.
    TextLabel,
    /// `{"source", "target"}`: the target trains.
    SourceTarget,
    /// `{"input_ids"}`, with `labels`, `attention_mask` and `token_type_ids` if there are.
    InputIds,
}

impl Form {
    /// All of them.
    pub const ALL: [Form; 8] = [
        Form::Text,
        Form::PromptCompletion,
        Form::Messages,
        Form::Conversations,
        Form::Instruction,
        Form::TextLabel,
        Form::SourceTarget,
        Form::InputIds,
    ];

    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Form::Text => "text",
            Form::PromptCompletion => "prompt-completion",
            Form::Messages => "messages",
            Form::Conversations => "conversations",
            Form::Instruction => "instruction",
            Form::TextLabel => "text-label",
            Form::SourceTarget => "source-target",
            Form::InputIds => "input-ids",
        }
    }

    /// The keys it must have.
    #[must_use]
    pub fn keys(self) -> &'static [&'static str] {
        match self {
            Form::Text => &["text"],
            Form::PromptCompletion => &["prompt", "completion"],
            Form::Messages => &["messages"],
            Form::Conversations => &["conversations"],
            Form::Instruction => &["instruction", "output"],
            Form::TextLabel => &["text", "label"],
            Form::SourceTarget => &["source", "target"],
            Form::InputIds => &["input_ids"],
        }
    }

    /// The forms that data for `task` can have.
    #[must_use]
    pub fn of(task: Task) -> &'static [Form] {
        match task {
            Task::CausalLm => &[
                Form::Text,
                Form::PromptCompletion,
                Form::Messages,
                Form::Conversations,
                Form::Instruction,
                Form::InputIds,
            ],
            Task::SeqCls => &[Form::TextLabel, Form::InputIds],
            Task::TokenCls => &[Form::InputIds],
            Task::Seq2Seq => &[Form::PromptCompletion, Form::SourceTarget, Form::InputIds],
        }
    }
}

/// Displays the forms of a task by their keys.
pub(crate) struct Forms(pub(crate) Task);

impl fmt::Display for Forms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, form) in Form::of(self.0).iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            let mut keys: Vec<String> =
                form.keys().iter().map(|key| format!("\"{key}\"")).collect();
            if *form == Form::InputIds && self.0 != Task::CausalLm {
                keys.push("\"labels\"".to_owned());
            }
            write!(f, "{comma}{{{}}}", keys.join(", "))?;
        }
        Ok(())
    }
}

/// What a line says, before tokens.
#[derive(Debug)]
pub(crate) enum Record {
    Text(String),
    Completion {
        prompt: String,
        completion: String,
    },
    Chat {
        messages: Vec<Message>,
        tools: Option<minijinja::Value>,
        /// Where the trained part begins; `None` if the assistant's messages train.
        prompt: Option<usize>,
    },
    Class {
        text: String,
        pair: Option<String>,
        label: Label,
    },
    Ids(Ids),
}

/// Token ids as given, labels by task.
#[derive(Debug, Default)]
pub(crate) struct Ids {
    pub(crate) ids: Vec<i64>,
    pub(crate) mask: Option<Vec<i64>>,
    pub(crate) types: Option<Vec<i64>>,
    /// A label a token, or one label.
    pub(crate) labels: Option<Vec<i64>>,
    pub(crate) fixed: Vec<Box<[i64]>>,
}

/// A class by number or by name.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Label {
    Number(i64),
    Name(String),
}

type Fields<'a> = BTreeMap<String, &'a RawValue>;

impl Record {
    pub(crate) fn parse(
        line: &[u8],
        task: Task,
        form: Option<Form>,
    ) -> Result<Self, DataErrorKind> {
        let line = std::str::from_utf8(line).map_err(|error| RecordError::NotUtf8 {
            at: error.valid_up_to(),
        })?;
        if line.trim_start().starts_with('[') {
            return Err(RecordError::List.into());
        }
        let mut fields: Fields =
            serde_json::from_str(line.trim_end()).map_err(RecordError::from)?;
        fields.retain(|_, value| value.get() != "null");
        match recognise(&fields, task, form)? {
            Form::Text => Ok(Record::Text(string(&fields, "text")?)),
            Form::PromptCompletion => completion(&fields),
            Form::Messages => Ok(Record::Chat {
                messages: messages(&fields, "messages")?,
                tools: optional(&fields, "tools", "a list of tools")?,
                prompt: None,
            }),
            Form::Conversations => conversation(&fields),
            Form::Instruction => instruction(&fields),
            Form::TextLabel => Ok(Record::Class {
                text: string(&fields, "text")?,
                pair: optional(&fields, "text_pair", "a string")?,
                label: required(&fields, "label", "an integer or a name")?,
            }),
            Form::SourceTarget => Ok(Record::Completion {
                prompt: string(&fields, "source")?,
                completion: string(&fields, "target")?,
            }),
            Form::InputIds => ids(&fields, task),
        }
    }
}

fn recognise(fields: &Fields, task: Task, form: Option<Form>) -> Result<Form, RecordError> {
    let fits = |form: &&Form| form.keys().iter().all(|key| fields.contains_key(*key));
    let wanted = |candidate: &&Form| form.is_none_or(|form| form == **candidate);
    let found: Vec<Form> = Form::of(task)
        .iter()
        .filter(wanted)
        .filter(fits)
        .copied()
        .collect();
    match found[..] {
        [form] => Ok(form),
        [] => Err(RecordError::UnknownForm {
            keys: fields.keys().cloned().collect(),
            task,
        }),
        _ => Err(RecordError::SeveralForms {
            forms: found.iter().map(|form| form.name().to_owned()).collect(),
        }),
    }
}

fn required<'a, T: Deserialize<'a>>(
    fields: &Fields<'a>,
    key: &'static str,
    expected: &'static str,
) -> Result<T, RecordError> {
    let value = fields.get(key).map_or("null", |value| value.get());
    serde_json::from_str(value).map_err(|error| RecordError::WrongType {
        key,
        expected,
        problem: unplaced(&error),
    })
}

fn optional<'a, T: Deserialize<'a>>(
    fields: &Fields<'a>,
    key: &'static str,
    expected: &'static str,
) -> Result<Option<T>, RecordError> {
    if !fields.contains_key(key) {
        return Ok(None);
    }
    required(fields, key, expected)
}

fn string(fields: &Fields, key: &'static str) -> Result<String, RecordError> {
    required(fields, key, "a string")
}

fn messages(fields: &Fields, key: &'static str) -> Result<Vec<Message>, DataErrorKind> {
    let values: Vec<minijinja::Value> = required(fields, key, "a list of messages")?;
    Ok(chat::messages(values)?)
}

fn completion(fields: &Fields) -> Result<Record, DataErrorKind> {
    let is_list = |key| {
        fields
            .get(key)
            .is_some_and(|value| value.get().starts_with('['))
    };
    match (is_list("prompt"), is_list("completion")) {
        (false, false) => Ok(Record::Completion {
            prompt: string(fields, "prompt")?,
            completion: string(fields, "completion")?,
        }),
        (true, true) => {
            let mut all = messages(fields, "prompt")?;
            let prompt = all.len();
            all.extend(messages(fields, "completion")?);
            Ok(Record::Chat {
                messages: all,
                tools: optional(fields, "tools", "a list of tools")?,
                prompt: Some(prompt),
            })
        }
        _ => Err(RecordError::MixedCompletion.into()),
    }
}

#[derive(Deserialize)]
struct Turn {
    from: String,
    value: String,
}

fn conversation(fields: &Fields) -> Result<Record, DataErrorKind> {
    let turns: Vec<Turn> = required(fields, "conversations", "a list of {\"from\", \"value\"}")?;
    let mut messages = Vec::with_capacity(turns.len());
    for turn in turns {
        let role = match turn.from.as_str() {
            "human" | "user" => "user",
            "gpt" | "assistant" | "chatgpt" | "bing" | "bard" => "assistant",
            "system" => "system",
            "tool" => "tool",
            _ => return Err(RecordError::Speaker(turn.from).into()),
        };
        messages.push(Message::new(role, turn.value));
    }
    if messages.is_empty() {
        return Err(ChatError::Empty.into());
    }
    Ok(Record::Chat {
        messages,
        tools: None,
        prompt: None,
    })
}

/// The prompts that Stanford Alpaca was trained with.
fn instruction(fields: &Fields) -> Result<Record, DataErrorKind> {
    let instruction = string(fields, "instruction")?;
    let input: Option<String> = optional(fields, "input", "a string")?;
    let prompt = match input.as_deref() {
        None | Some("") => format!(
            "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n\
             ### Instruction:\n{instruction}\n\n### Response:"
        ),
        Some(input) => format!(
            "Below is an instruction that describes a task, paired with an input that provides further context. Write a \
             response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\
             \n\n### Response:"
        ),
    };
    Ok(Record::Completion {
        prompt,
        completion: string(fields, "output")?,
    })
}

fn ids(fields: &Fields, task: Task) -> Result<Record, DataErrorKind> {
    const LIST: &str = "a list of integers";
    let labels = match task {
        _ if !fields.contains_key("labels") => None,
        Task::SeqCls => Some(vec![required(fields, "labels", "an integer")?]),
        _ => Some(required(fields, "labels", LIST)?),
    };
    Ok(Record::Ids(Ids {
        ids: required(fields, "input_ids", LIST)?,
        mask: optional(fields, "attention_mask", LIST)?,
        types: optional(fields, "token_type_ids", LIST)?,
        labels,
        fixed: Vec::new(),
    }))
}
