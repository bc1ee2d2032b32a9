//! What templates written for Python's Jinja expect of their environment.

use std::io;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value};
use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter, Serializer};

use crate::error::UseError;

/// transformers' environment: its block settings, `raise_exception`, `strftime_now`, its `tojson`, Python's methods, and
/// Python's spelling of what is printed.
pub(super) fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_formatter(print);
    environment.add_filter("tojson", tojson);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", no_date);
    environment
}

pub(super) fn set_date(environment: &mut Environment<'static>, date: Date) {
    environment.add_function("strftime_now", move |format: &str| date.format(format));
}

fn refuse(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(refuse(message))
}

fn no_date(_format: &str) -> Result<Value, Error> {
    Err(refuse(
        "it writes today's date into the text, and the same data would train differently tomorrow; give a date",
    ))
}

/// Prints a value as Python would; lists and objects are refused, because a template that prints one has met data that it
/// does not know.
fn print(out: &mut Output, state: &State, value: &Value) -> Result<(), Error> {
    let text = match value.kind() {
        ValueKind::None => "None",
        ValueKind::Bool if value.is_true() => "True",
        ValueKind::Bool => "False",
        ValueKind::Seq | ValueKind::Map => {
            return Err(refuse(
                "it prints a list or an object; it takes only texts there",
            ));
        }
        _ => return minijinja::escape_formatter(out, state, value),
    };
    out.write_str(text).map_err(Error::from)
}

/// Python's `json.dumps` with `ensure_ascii=False`, as transformers defines the filter.
fn tojson(value: Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    if options.get::<Option<bool>>("ensure_ascii")? == Some(true) {
        return Err(refuse("tojson with ensure_ascii=true is not supported"));
    }
    if options.get::<Option<bool>>("sort_keys")? == Some(true) {
        return Err(refuse("tojson with sort_keys=true is not supported"));
    }
    options.assert_all_used()?;
    let mut bytes = Vec::new();
    let written = match indent {
        Some(width) => {
            let indent = " ".repeat(width);
            let formatter = PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut bytes, formatter))
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut bytes, Spaced)),
    };
    written.map_err(|error| refuse(error.to_string()))?;
    String::from_utf8(bytes).map_err(|error| refuse(error.to_string()))
}

/// `json.dumps` puts a space after commas and colons.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        CompactFormatter.begin_object_value(out)?;
        out.write_all(b" ")
    }
}

/// The day that `strftime_now` gives to templates that ask for today.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Date {
    year: u32,
    month: u32,
    day: u32,
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

impl Date {
    /// Writes the date by a format of `strftime`: `%Y`, `%m`, `%d`, `%B`, `%b`, `%y`, `%%`; the time of day is midnight.
    fn format(self, format: &str) -> Result<String, Error> {
        let month = MONTHS[self.month as usize - 1];
        let mut text = String::new();
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                text.push(c);
                continue;
            }
            match chars.next() {
                Some('Y') => text.push_str(&format!("{:04}", self.year)),
                Some('y') => text.push_str(&format!("{:02}", self.year % 100)),
                Some('m') => text.push_str(&format!("{:02}", self.month)),
                Some('d') => text.push_str(&format!("{:02}", self.day)),
                Some('B') => text.push_str(month),
                Some('b') => text.push_str(&month[..3]),
                Some('H' | 'M' | 'S') => text.push_str("00"),
                Some('%') => text.push('%'),
                _ => {
                    return Err(refuse(format!(
                        "the date format `{format}` is not supported"
                    )));
                }
            }
        }
        Ok(text)
    }
}

impl std::str::FromStr for Date {
    type Err = UseError;

    fn from_str(text: &str) -> Result<Self, UseError> {
        let refuse = || UseError::Date(text.to_owned());
        let number = |range: std::ops::Range<usize>| {
            let digits = text
                .get(range)
                .filter(|part| part.bytes().all(|b| b.is_ascii_digit()));
            digits
                .and_then(|digits| digits.parse::<u32>().ok())
                .ok_or_else(refuse)
        };
        let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
        let shape = text.len() == 10 && text.get(4..5) == Some("-") && text.get(7..8) == Some("-");
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let days = match month {
            2 if leap => 29,
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        if !shape || !(1..=12).contains(&month) || !(1..=days).contains(&day) {
            return Err(refuse());
        }
        Ok(Self { year, month, day })
    }
}
