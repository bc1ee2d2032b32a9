//! Attributes in the text form: `{axis=1, keep_dims, perm=[0,2,1]}`.

use super::Scalar;
use crate::dim::Dim;
use crate::dtype::DType;
use crate::types::{Shape, ShapeDisplay};
use std::collections::BTreeMap;
use std::fmt::{self, Display};

/// Attributes to print, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attrs(BTreeMap<&'static str, String>);

impl Attrs {
    /// Prints `name` alone if `on`.
    pub fn flag(mut self, name: &'static str, on: bool) -> Self {
        if on {
            self.0.insert(name, String::new());
        }
        self
    }

    /// Prints `name=value`.
    pub fn with(mut self, name: &'static str, value: impl Display) -> Self {
        self.0.insert(name, value.to_string());
        self
    }

    /// Prints `name=value` if that is not the default.
    pub fn unless<T: Display + PartialEq>(self, name: &'static str, value: T, default: T) -> Self {
        if value == default {
            self
        } else {
            self.with(name, value)
        }
    }

    /// Prints `name=[…]`.
    pub fn list<T: Display>(self, name: &'static str, items: impl IntoIterator<Item = T>) -> Self {
        let items: Vec<String> = items.into_iter().map(|i| i.to_string()).collect();
        self.with(name, format_args!("[{}]", items.join(",")))
    }

    /// Prints `name=[…]` for a shape.
    pub fn dims(self, name: &'static str, dims: &[Dim]) -> Self {
        self.with(name, ShapeDisplay(dims))
    }
}

impl Display for Attrs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        f.write_str(" {")?;
        for (i, (name, value)) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            f.write_str(name)?;
            if !value.is_empty() {
                write!(f, "={value}")?;
            }
        }
        f.write_str("}")
    }
}

/// Attributes as written, taken one by one; what is left over is an error.
#[derive(Debug, Default)]
pub struct AttrReader<'a>(pub BTreeMap<&'a str, &'a str>);

impl<'a> AttrReader<'a> {
    fn take(&mut self, name: &str) -> Result<&'a str, String> {
        self.0
            .remove(name)
            .ok_or_else(|| format!("attribute `{name}` is missing"))
    }

    /// Whether the flag is there.
    pub fn flag(&mut self, name: &str) -> bool {
        self.0.remove(name).is_some()
    }

    /// The attribute's text, if it is there.
    pub fn text(&mut self, name: &str) -> Option<&'a str> {
        self.0.remove(name)
    }

    /// A string: a bare or quoted name.
    pub fn name(&mut self, name: &str) -> Result<String, String> {
        let text = self.take(name)?;
        crate::text::parse_name(text).map_err(|e| format!("attribute `{name}`: {e}"))
    }

    /// An integer.
    pub fn int(&mut self, name: &str) -> Result<i64, String> {
        let text = self.take(name)?;
        text.parse()
            .map_err(|_| format!("attribute `{name}`: expected an integer, found `{text}`"))
    }

    /// An integer with a default.
    pub fn int_or(&mut self, name: &str, default: i64) -> Result<i64, String> {
        if self.0.contains_key(name) {
            self.int(name)
        } else {
            Ok(default)
        }
    }

    /// A float.
    pub fn float(&mut self, name: &str) -> Result<Scalar, String> {
        let text = self.take(name)?;
        text.parse()
            .map(Scalar)
            .map_err(|_| format!("attribute `{name}`: expected a number, found `{text}`"))
    }

    /// A float with a default.
    pub fn float_or(&mut self, name: &str, default: f64) -> Result<Scalar, String> {
        if self.0.contains_key(name) {
            self.float(name)
        } else {
            Ok(Scalar(default))
        }
    }

    /// An element type.
    pub fn dtype(&mut self, name: &str) -> Result<DType, String> {
        let text = self.take(name)?;
        DType::parse(text).ok_or_else(|| format!("attribute `{name}`: no type is called `{text}`"))
    }

    /// A dimension.
    pub fn dim(&mut self, name: &str) -> Result<Dim, String> {
        self.take(name)?.parse()
    }

    /// The items of a bracketed list.
    pub fn items(&mut self, name: &str) -> Result<Vec<&'a str>, String> {
        let text = self.take(name)?;
        let inner = text
            .strip_prefix('[')
            .and_then(|t| t.strip_suffix(']'))
            .ok_or_else(|| format!("attribute `{name}`: expected `[…]`, found `{text}`"))?;
        Ok(split(inner))
    }

    /// A list of parsed items.
    pub fn list<T: std::str::FromStr>(&mut self, name: &str) -> Result<Vec<T>, String> {
        self.items(name)?
            .into_iter()
            .map(|i| {
                i.parse()
                    .map_err(|_| format!("attribute `{name}`: bad item `{i}`"))
            })
            .collect()
    }

    /// A shape.
    pub fn dims(&mut self, name: &str) -> Result<Shape, String> {
        Ok(self.list::<Dim>(name)?.into_iter().collect())
    }
}

/// The characters outside quotes, with their positions.
pub(crate) fn unquoted(text: &str) -> impl Iterator<Item = (usize, char)> {
    let (mut quoted, mut escaped) = (false, false);
    text.char_indices().filter(move |(_, c)| {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ => return !quoted,
        }
        false
    })
}

/// Splits at commas outside brackets and quotes, trimming each item; empty text has no items.
pub fn split(text: &str) -> Vec<&str> {
    let (mut items, mut depth, mut start) = (Vec::new(), 0usize, 0);
    for (i, c) in unquoted(text) {
        match c {
            '(' | '[' => depth += 1,
            ')' | ']' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                items.push(text[start..i].trim());
                start = i + 1;
            }
            _ => {}
        }
    }
    if !text[start..].trim().is_empty() || !items.is_empty() {
        items.push(text[start..].trim());
    }
    items
}
