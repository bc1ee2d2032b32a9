//! Chat templates: messages to text, and where in the text the assistant speaks.
//!
//! A template is rendered as transformers' `apply_chat_template` does. What the assistant says is what stands between
//! `{% generation %}` and `{% endgeneration %}`. A template without these is rendered twice for each of the assistant's
//! messages: the messages before it with a generation prompt, and the messages up to it. Both must be prefixes of the whole
//! rendering, and what lies between them is the answer, its end-of-turn tokens included.

mod python;

use std::collections::BTreeMap;
use std::ops::Range;

use minijinja::value::Kwargs;
use minijinja::{Environment, ErrorKind, State, Value};
use regex::Regex;

use crate::error::{ChatError, TokenizerError};

pub use python::Date;

/// Noncharacters, which Unicode reserves for internal use; they mark answers in a rendering.
const BEGIN: char = '\u{FDD0}';
const END: char = '\u{FDD1}';

/// The text of a chat and the byte ranges in it that train.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rendered {
    pub(crate) text: String,
    pub(crate) trained: Vec<Range<usize>>,
}

/// A message: an object with a string `role`, and whatever else its template reads.
#[derive(Debug, Clone)]
pub(crate) struct Message(Value);

impl Message {
    pub(crate) fn new(role: &str, content: String) -> Self {
        let fields = [
            ("role", Value::from(role)),
            ("content", Value::from(content)),
        ];
        Self(Value::from_iter(fields))
    }

    fn is_assistant(&self) -> bool {
        field(&self.0, "role").and_then(|role| role.as_str().map(|role| role == "assistant"))
            == Some(true)
    }
}

fn field(value: &Value, key: &str) -> Option<Value> {
    value
        .get_attr(key)
        .ok()
        .filter(|value| !value.is_undefined())
}

/// Checks the form of messages.
pub(crate) fn messages(values: Vec<Value>) -> Result<Vec<Message>, ChatError> {
    use minijinja::value::ValueKind;
    if values.is_empty() {
        return Err(ChatError::Empty);
    }
    for (index, value) in values.iter().enumerate() {
        let refuse = |problem| ChatError::Message {
            index: index + 1,
            problem,
        };
        if value.kind() != ValueKind::Map {
            return Err(refuse("expected an object with `role` and `content`"));
        }
        if field(value, "role").is_none_or(|role| role.kind() != ValueKind::String) {
            return Err(refuse("`role` must be a string"));
        }
        match field(value, "content").map_or(ValueKind::None, |content| content.kind()) {
            ValueKind::String | ValueKind::Seq => {}
            ValueKind::None if field(value, "tool_calls").is_some() => {}
            _ => {
                return Err(refuse(
                    "`content` must be a string (or a list, if the template takes one)",
                ));
            }
        }
    }
    Ok(values.into_iter().map(Message).collect())
}

/// A compiled chat template.
#[derive(Debug)]
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    /// Whether it marks answers itself.
    marks: bool,
    /// `bos_token` and the like, by key.
    special: BTreeMap<String, String>,
}

const NAME: &str = "chat_template";

impl ChatTemplate {
    pub(crate) fn compile(
        source: &str,
        special: BTreeMap<String, String>,
    ) -> Result<Self, TokenizerError> {
        let refuse = |error: minijinja::Error| TokenizerError::Template(describe(&error));
        let mut environment = python::environment();
        environment.add_function("__generation", generation);
        let (source, marks) = rewrite(source).map_err(TokenizerError::Template)?;
        environment
            .add_template_owned(NAME, source)
            .map_err(refuse)?;
        Ok(Self {
            environment,
            marks,
            special,
        })
    }

    pub(crate) fn set_date(&mut self, date: Date) {
        python::set_date(&mut self.environment, date);
    }

    /// The text of `messages`, with the header of an answer to come if `generation_prompt`.
    pub(crate) fn render(
        &self,
        messages: &[Message],
        tools: Option<&Value>,
        generation_prompt: bool,
    ) -> Result<String, ChatError> {
        Ok(self.rendered(messages, tools, generation_prompt)?.text)
    }

    /// The text of `messages`, of which the answers train, or everything after the first `prompt` messages.
    pub(crate) fn render_trained(
        &self,
        messages: &[Message],
        tools: Option<&Value>,
        prompt: Option<usize>,
    ) -> Result<Rendered, ChatError> {
        let mut whole = self.rendered(messages, tools, false)?;
        if let Some(prompt) = prompt {
            let start = self.prefix(messages, tools, prompt, &whole.text)?;
            whole.trained = Vec::new();
            whole.trained.push(start..whole.text.len());
        } else if !self.marks {
            for (index, message) in messages.iter().enumerate() {
                if !message.is_assistant() {
                    continue;
                }
                let start = self.prefix(messages, tools, index, &whole.text)?;
                let end = self.render(&messages[..=index], tools, false)?;
                check_prefix(&whole.text, &end, index, "the messages up to it")?;
                whole.trained.push(start..end.len());
            }
        }
        Ok(whole)
    }

    /// Length of the first `count` messages and the header of an answer, in the rendering of all.
    fn prefix(
        &self,
        messages: &[Message],
        tools: Option<&Value>,
        count: usize,
        whole: &str,
    ) -> Result<usize, ChatError> {
        let start = self
            .render(&messages[..count], tools, true)
            .map_err(|error| ChatError::RenderPrefix {
                index: count + 1,
                error: error.to_string(),
            })?;
        check_prefix(
            whole,
            &start,
            count,
            "the messages before it with a generation prompt",
        )?;
        Ok(start.len())
    }

    fn rendered(
        &self,
        messages: &[Message],
        tools: Option<&Value>,
        generation_prompt: bool,
    ) -> Result<Rendered, ChatError> {
        let refuse = |error: minijinja::Error| ChatError::Render(describe(&error));
        let template = self.environment.get_template(NAME).map_err(refuse)?;
        let mut context: BTreeMap<&str, Value> = BTreeMap::new();
        for (key, token) in &self.special {
            context.insert(key, Value::from(token.as_str()));
        }
        let messages = Value::from_iter(messages.iter().map(|message| message.0.clone()));
        let tools = tools.cloned().unwrap_or(Value::from(()));
        if self.marks {
            refuse_markers(&messages)?;
            refuse_markers(&tools)?;
        }
        context.insert("messages", messages);
        context.insert("tools", tools);
        context.insert("documents", Value::from(()));
        context.insert("add_generation_prompt", Value::from(generation_prompt));
        let text = template.render(context).map_err(refuse)?;
        if self.marks {
            return unmark(&text);
        }
        Ok(Rendered {
            text,
            trained: Vec::new(),
        })
    }
}

/// transformers compiles `{% generation %}` to a call block; so do we. The second value says whether there is one.
fn rewrite(source: &str) -> Result<(String, bool), String> {
    let compile = |pattern| Regex::new(pattern).map_err(|error| error.to_string());
    let begin = compile(r"\{%([-+]?)\s*generation\s*([-+]?)%\}")?;
    let end = compile(r"\{%([-+]?)\s*endgeneration\s*([-+]?)%\}")?;
    let marks = begin.is_match(source);
    let source = begin.replace_all(source, "{%$1 call __generation() $2%}");
    let source = end.replace_all(&source, "{%$1 endcall $2%}");
    Ok((source.into_owned(), marks))
}

fn generation(state: &State, arguments: Kwargs) -> Result<String, minijinja::Error> {
    let caller: Value = arguments.get("caller")?;
    let body = caller.call(state, &[])?;
    let body = body.as_str().unwrap_or_default();
    if body.contains(BEGIN) {
        let message = "one {% generation %} stands inside another";
        return Err(minijinja::Error::new(ErrorKind::InvalidOperation, message));
    }
    Ok(format!("{BEGIN}{body}{END}"))
}

fn refuse_markers(value: &Value) -> Result<(), ChatError> {
    let text =
        serde_json::to_string(value).map_err(|error| ChatError::Render(error.to_string()))?;
    match text.chars().find(|c| matches!(*c, BEGIN | END)) {
        Some(marker) => Err(ChatError::Marker(marker.into())),
        None => Ok(()),
    }
}

/// Takes the markers out.
fn unmark(marked: &str) -> Result<Rendered, ChatError> {
    let mut text = String::with_capacity(marked.len());
    let mut trained = Vec::new();
    let mut rest = marked;
    while let Some(begin) = rest.find([BEGIN, END]) {
        text.push_str(&rest[..begin]);
        let body = rest[begin..]
            .strip_prefix(BEGIN)
            .ok_or(ChatError::Marker(END.into()))?;
        let end = body.find(END).ok_or(ChatError::Marker(BEGIN.into()))?;
        let start = text.len();
        text.push_str(&body[..end]);
        if start < text.len() {
            trained.push(start..text.len());
        }
        rest = &body[end + END.len_utf8()..];
    }
    text.push_str(rest);
    Ok(Rendered { text, trained })
}

fn check_prefix(
    whole: &str,
    prefix: &str,
    index: usize,
    what: &'static str,
) -> Result<(), ChatError> {
    if whole.starts_with(prefix) {
        return Ok(());
    }
    let same = whole
        .char_indices()
        .zip(prefix.chars())
        .find(|((_, a), b)| a != b);
    let at = same.map_or(whole.len(), |((at, _), _)| at);
    let excerpt = |text: &str| text[at.min(text.len())..].chars().take(20).collect();
    Err(ChatError::NotAPrefix {
        index: index + 1,
        what,
        shorter: excerpt(prefix),
        longer: excerpt(whole),
    })
}

/// An error with its line and cause, on one line.
fn describe(error: &minijinja::Error) -> String {
    let mut text = match (error.detail(), error.kind()) {
        (Some(detail), ErrorKind::InvalidOperation) => detail.to_owned(),
        (Some(detail), kind) => format!("{kind}: {detail}"),
        (None, kind) => kind.to_string(),
    };
    if let Some(line) = error.line() {
        text.push_str(&format!(" (line {line} of the template)"));
    }
    if let Some(source) = std::error::Error::source(error) {
        text.push_str(&format!(": {source}"));
    }
    text
}
