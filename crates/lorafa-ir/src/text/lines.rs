//! Reading one line: a cursor over its words.

use super::print::is_word;
use crate::dtype::DType;
use crate::ops::attrs::{AttrReader, split, unquoted};
use crate::types::{Shape, TensorType};

/// A position in a line.
pub(super) struct Cursor<'a> {
    text: &'a str,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Cursor { text: text.trim() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// Goes past `token` if it comes next.
    pub(super) fn eat(&mut self, token: &str) -> bool {
        let rest = self.text.strip_prefix(token);
        if let Some(rest) = rest {
            self.text = rest.trim_start();
        }
        rest.is_some()
    }

    /// Whether this character comes next.
    pub(super) fn next_is(&self, c: char) -> bool {
        self.text.starts_with(c)
    }

    pub(super) fn expect(&mut self, token: &str) -> Result<(), String> {
        if self.eat(token) {
            Ok(())
        } else {
            Err(format!("expected `{token}` before `{}`", self.text))
        }
    }

    /// A bare or quoted name.
    pub(super) fn name(&mut self) -> Result<String, String> {
        if let Some(rest) = self.text.strip_prefix('"') {
            let mut name = String::new();
            let mut chars = rest.char_indices();
            while let Some((i, c)) = chars.next() {
                match c {
                    '"' => {
                        self.text = rest[i + 1..].trim_start();
                        return Ok(name);
                    }
                    '\\' => name.push(escape(&mut chars)?),
                    c => name.push(c),
                }
            }
            return Err("a quote is not closed".into());
        }
        let len = self.text.find(|c| !is_word(c)).unwrap_or(self.text.len());
        if len == 0 {
            return Err(format!("expected a name before `{}`", self.text));
        }
        let name = self.text[..len].to_string();
        self.text = self.text[len..].trim_start();
        Ok(name)
    }

    /// A type.
    pub(super) fn ty(&mut self) -> Result<TensorType, String> {
        let end = self
            .text
            .find(']')
            .ok_or_else(|| format!("expected a type in `{}`", self.text))?;
        let ty = parse_type(&self.text[..=end]);
        self.text = self.text[end + 1..].trim_start();
        ty
    }

    /// `{name=value, flag}`, or nothing.
    pub(super) fn attrs(&mut self) -> Result<AttrReader<'a>, String> {
        let mut reader = AttrReader::default();
        if !self.eat("{") {
            return Ok(reader);
        }
        let end = unquoted(self.text).find(|(_, c)| *c == '}');
        let (end, _) = end.ok_or("`{` is not closed")?;
        for item in split(&self.text[..end]) {
            let (name, value) = item.split_once('=').unwrap_or((item, ""));
            if reader.0.insert(name.trim(), value.trim()).is_some() {
                return Err(format!("attribute `{name}` is given twice"));
            }
        }
        self.text = self.text[end + 1..].trim_start();
        Ok(reader)
    }
}

/// What follows a backslash, as Rust's `{:?}` writes it.
fn escape(chars: &mut std::str::CharIndices<'_>) -> Result<char, String> {
    match chars.next().map(|(_, c)| c) {
        Some('n') => Ok('\n'),
        Some('r') => Ok('\r'),
        Some('t') => Ok('\t'),
        Some('0') => Ok('\0'),
        Some('u') => {
            let code: String = chars
                .map(|(_, c)| c)
                .skip(1)
                .take_while(|c| *c != '}')
                .collect();
            let code = u32::from_str_radix(&code, 16).ok().and_then(char::from_u32);
            code.ok_or_else(|| "bad escape".into())
        }
        Some(c) => Ok(c),
        None => Err("a quote is not closed".into()),
    }
}

/// Reads a bare or quoted name that is all of `text`.
pub(crate) fn parse_name(text: &str) -> Result<String, String> {
    let mut cursor = Cursor::new(text);
    let name = cursor.name()?;
    if cursor.is_empty() {
        Ok(name)
    } else {
        Err(format!("expected a name, found `{text}`"))
    }
}

/// Reads `f32[2,seq]`.
pub fn parse_type(text: &str) -> Result<TensorType, String> {
    let inner = text
        .trim()
        .strip_suffix(']')
        .and_then(|t| t.split_once('['));
    let (dtype, dims) = inner.ok_or_else(|| format!("expected a type, found `{text}`"))?;
    let dtype = DType::parse(dtype).ok_or_else(|| format!("no type is called `{dtype}`"))?;
    let shape: Shape = split(dims)
        .into_iter()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    Ok(TensorType { dtype, shape })
}

/// The line without its comment.
pub(super) fn strip_comment(line: &str) -> &str {
    let end = unquoted(line).find(|(_, c)| *c == ';');
    line[..end.map_or(line.len(), |(i, _)| i)].trim()
}
