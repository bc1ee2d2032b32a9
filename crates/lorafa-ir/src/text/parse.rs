//! Reading a graph.

use super::lines::{Cursor, strip_comment};
use super::print::heading;
use crate::adapter::Adapter;
use crate::graph::{Graph, Region, Site};
use crate::ids::{OpId, ValueId};
use crate::ops::attrs::AttrReader;
use crate::ops::{Data, External, Init, Op, Param, Role, Stored};
use crate::outputs::{Output, OutputKind};
use crate::types::TensorType;
use std::collections::BTreeMap;
use std::sync::Arc;
use thiserror::Error;

/// Why a text is no graph.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("line {line}: {message}")]
pub struct ParseError {
    /// Counted from one.
    pub line: usize,
    /// What was expected and what was found.
    pub message: String,
}

/// Reads a graph. Types are taken as written: run the verifier to know whether they hold.
pub fn parse(text: &str) -> Result<Graph, ParseError> {
    let mut parser = Parser {
        numbered: numbered(text),
        ..Parser::default()
    };
    for (i, line) in text.lines().enumerate() {
        let line = strip_comment(line);
        if !line.is_empty() {
            parser.line(line, i).map_err(|message| ParseError {
                line: i + 1,
                message,
            })?;
        }
    }
    parser.origins()?;
    match parser.graph {
        Some(graph) if !parser.open => Ok(graph),
        _ => Err(ParseError {
            line: text.lines().count(),
            message: "expected `graph @name {` … `}`".into(),
        }),
    }
}

/// Reads a mnemonic with its attributes: `cast {to=f32}`.
///
/// # Errors
///
/// What was expected and what was found.
pub fn parse_op(text: &str) -> Result<Op, String> {
    let mut cursor = Cursor::new(text);
    let mnemonic = cursor.name()?;
    let mut attrs = cursor.attrs()?;
    let op = Op::parse(&mnemonic, &mut attrs)?;
    leftover(&attrs)?;
    match cursor.is_empty() {
        true => Ok(op),
        false => Err(format!("expected an op and its attributes, found `{text}`")),
    }
}

/// The largest number of a value: the graph keeps a table up to it.
const MAX_VALUES: u32 = 1 << 20;

/// The number in `v7`, which has one spelling.
fn number(name: &str) -> Option<u32> {
    let digits = name.trim().strip_prefix('v')?;
    let number: u32 = digits.parse().ok()?;
    (number < MAX_VALUES && number.to_string() == digits).then_some(number)
}

/// The largest number that the text gives a value, plus one: parameters, which have ids but no
/// numbers in the text, take theirs from there.
fn numbered(text: &str) -> usize {
    let results = text
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(names, _)| names);
    let numbers = results
        .flat_map(|names| names.split(','))
        .filter_map(number);
    numbers.max().map_or(0, |n| n as usize + 1)
}

#[derive(Default)]
struct Parser {
    graph: Option<Graph>,
    open: bool,
    numbered: usize,
    region: Option<Region>,
    values: BTreeMap<String, ValueId>,
    ops: BTreeMap<String, OpId>,
    /// Ops with what `of` says and its line: that may be an op further down.
    origins: Vec<(OpId, String, usize)>,
}

impl Parser {
    fn line(&mut self, line: &str, number: usize) -> Result<(), String> {
        let mut c = Cursor::new(line);
        if self.graph.is_none() {
            c.expect("graph @")?;
            let mut graph = Graph::new(c.name()?);
            graph.reserve_values(self.numbered);
            self.graph = Some(graph);
            self.open = true;
            c.expect("{")?;
        } else if !self.open {
            return Err("expected the end after `}`".into());
        } else if let Some(region) = [Region::Forward, Region::Backward, Region::Update]
            .into_iter()
            .find(|r| heading(*r) == line)
        {
            self.region = Some(region);
            return Ok(());
        } else if c.eat("}") {
            self.open = false;
        } else if c.eat("param %") {
            self.param(&mut c)?;
        } else if c.eat("out ") {
            self.out(&mut c)?;
        } else if c.eat("adapter ") {
            self.adapter(&mut c)?;
        } else {
            self.op(&mut c, number)?;
        }
        if c.is_empty() {
            Ok(())
        } else {
            Err("expected the end of the line".into())
        }
    }

    fn graph(&mut self) -> &mut Graph {
        self.graph.get_or_insert_default()
    }

    fn value(&self, c: &mut Cursor<'_>) -> Result<ValueId, String> {
        let name = reference(c)?;
        self.values
            .get(&name)
            .copied()
            .ok_or_else(|| format!("`{name}` is not defined above"))
    }

    fn param(&mut self, c: &mut Cursor<'_>) -> Result<(), String> {
        let name = c.name()?;
        c.expect(":")?;
        let ty = c.ty()?;
        let role = c.name()?;
        let role = Role::parse(&role).ok_or_else(|| format!("no role is called `{role}`"))?;
        let mut a = c.attrs()?;
        let dtype = if a.0.contains_key("stored") {
            a.dtype("stored")?
        } else {
            ty.dtype
        };
        let stored = Stored {
            dtype,
            transposed: a.flag("transposed"),
            data: data(&mut a)?,
        };
        leftover(&a)?;
        let param = Param {
            name: name.as_str().into(),
            role,
            ty: ty.clone(),
            stored,
        };
        let site = site(Region::Forward, i64::MIN);
        let id = self
            .graph()
            .push_op(Op::Param(Box::new(param)), &[], [ty], site, "text");
        let value = self.graph().op(id).results[0];
        self.define(format!("%{name}"), value, id)
    }

    /// Resolves what `of` says.
    fn origins(&mut self) -> Result<(), ParseError> {
        for (op, name, line) in std::mem::take(&mut self.origins) {
            let Some(of) = self.ops.get(&name).copied() else {
                let message = format!("`{name}` is not defined");
                return Err(ParseError { line, message });
            };
            self.graph().op_mut(op).site.of = Some(of);
        }
        Ok(())
    }

    fn define(&mut self, name: String, value: ValueId, op: OpId) -> Result<(), String> {
        self.ops.insert(name.clone(), op);
        match self.values.insert(name.clone(), value) {
            Some(_) => Err(format!("`{name}` is defined twice")),
            None => Ok(()),
        }
    }

    fn op(&mut self, c: &mut Cursor<'_>, line: usize) -> Result<(), String> {
        let mut names = vec![c.name()?];
        while c.eat(",") {
            names.push(c.name()?);
        }
        c.expect("=")?;
        let mnemonic = c.name()?;
        let mut operands = Vec::new();
        while !c.next_is('{') && !c.next_is(':') {
            operands.push(self.value(c)?);
            if !c.eat(",") {
                break;
            }
        }
        let mut attrs = c.attrs()?;
        c.expect(":")?;
        let mut types: Vec<TensorType> = vec![c.ty()?];
        while c.eat(",") {
            types.push(c.ty()?);
        }
        if types.len() != names.len() {
            return Err(format!("{} results but {} types", names.len(), types.len()));
        }
        let kind = Op::parse(&mnemonic, &mut attrs)?;
        leftover(&attrs)?;
        let mut site = site(self.region.unwrap_or(Region::Forward), line as i64);
        if c.eat("@") {
            site.module = c.name()?.into();
        }
        let origin = if c.eat("of ") {
            Some(reference(c)?)
        } else {
            None
        };
        let results: Option<Vec<ValueId>> = names.iter().map(|n| number(n).map(ValueId)).collect();
        let results = results.ok_or("results are spelled `v` and a number")?;
        if let Some(name) = names.iter().find(|n| self.values.contains_key(*n)) {
            return Err(format!("`{name}` is defined twice"));
        }
        let typed = results.iter().copied().zip(types);
        let id = self
            .graph()
            .push_numbered(kind, &operands, typed, site, "text");
        self.origins.extend(origin.map(|name| (id, name, line + 1)));
        for (name, value) in names.into_iter().zip(results) {
            self.define(name, value, id)?;
        }
        Ok(())
    }

    fn out(&mut self, c: &mut Cursor<'_>) -> Result<(), String> {
        let name: Arc<str> = c.name()?.into();
        c.expect("=")?;
        let value = self.value(c)?;
        let kind = if c.eat("loss") {
            OutputKind::Loss
        } else if c.eat("gradient ") {
            OutputKind::Gradient(self.value(c)?)
        } else if c.eat("updated ") {
            OutputKind::Updated(self.value(c)?)
        } else {
            OutputKind::Value
        };
        self.graph().outputs.push(Output { name, value, kind });
        Ok(())
    }

    fn adapter(&mut self, c: &mut Cursor<'_>) -> Result<(), String> {
        let module = c.name()?.into();
        let mut a = c.attrs()?;
        let mut value = |name: &str| {
            let text = a
                .text(name)
                .ok_or_else(|| format!("attribute `{name}` is missing"))?;
            let mut c = Cursor::new(text);
            let value = self.value(&mut c)?;
            if c.is_empty() {
                Ok(value)
            } else {
                Err(format!(
                    "attribute `{name}`: expected a value, found `{text}`"
                ))
            }
        };
        let (va, vb, x, xa) = (value("a")?, value("b")?, value("x")?, value("xa")?);
        let rank = u64::try_from(a.int("rank")?).map_err(|_| "negative rank")?;
        let scale = a.float("scale")?;
        leftover(&a)?;
        self.graph().adapters.push(Adapter {
            module,
            x,
            a: va,
            b: vb,
            xa,
            scale,
            rank,
        });
        Ok(())
    }
}

/// What a value is called where it is read.
fn reference(c: &mut Cursor<'_>) -> Result<String, String> {
    Ok(if c.eat("%") {
        format!("%{}", c.name()?)
    } else {
        c.name()?
    })
}

fn site(region: Region, seq: i64) -> Site {
    Site {
        region,
        seq,
        module: Arc::from(""),
        of: None,
    }
}

fn leftover(attrs: &AttrReader<'_>) -> Result<(), String> {
    match attrs.0.keys().next() {
        Some(name) => Err(format!("unknown attribute `{name}`")),
        None => Ok(()),
    }
}

fn data(a: &mut AttrReader<'_>) -> Result<Data, String> {
    if let Some(hex) = a.text("digest") {
        let digest = u64::from_str_radix(hex, 16).map_err(|_| format!("bad digest `{hex}`"))?;
        return Ok(Data::Digest(digest));
    }
    if let Some(name) = a.text("init") {
        let init = Init::NAMES.iter().find(|(_, n)| *n == name);
        let (init, _) = *init.ok_or_else(|| format!("no init is called `{name}`"))?;
        let seed = a.text("seed").unwrap_or("0");
        let seed = seed.parse().map_err(|_| format!("bad seed `{seed}`"))?;
        return Ok(Data::Init { init, seed });
    }
    if !a.0.contains_key("external") {
        return Ok(Data::Runtime);
    }
    let location = a.name("external")?.into();
    let offset = a.text("offset").ok_or("attribute `offset` is missing")?;
    let offset = offset
        .parse()
        .map_err(|_| format!("bad offset `{offset}`"))?;
    let length = match a.text("length") {
        None | Some("rest") => None,
        Some(n) => Some(n.parse().map_err(|_| format!("bad length `{n}`"))?),
    };
    Ok(Data::External(External {
        location,
        offset,
        length,
    }))
}
