//! Printing.

use crate::graph::{Graph, Region};
use crate::ids::{OpId, ValueId};
use crate::ops::Op;
use crate::outputs::OutputKind;
use std::fmt;

/// Prints a value as operands spell it: `%name` for a parameter, `v7` otherwise.
#[derive(Clone, Copy)]
pub struct ValueDisplay<'g>(pub &'g Graph, pub ValueId);

impl fmt::Display for ValueDisplay<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ValueDisplay(graph, value) = *self;
        match graph.get_value(value).and_then(|_| graph.param(value)) {
            Some(param) => write!(f, "%{}", Word(&param.name)),
            None => write!(f, "{value}"),
        }
    }
}

/// Prints an op as its line, without indentation.
#[derive(Clone, Copy)]
pub struct OpDisplay<'g>(pub &'g Graph, pub OpId);

impl fmt::Display for OpDisplay<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let OpDisplay(graph, id) = *self;
        let op = graph.op(id);
        if let Op::Param(param) = &op.kind {
            let (name, attrs) = (Word(&param.name), op.kind.attrs());
            return write!(f, "param %{name} : {} {}{attrs}", param.ty, param.role);
        }
        for (i, result) in op.results.iter().enumerate() {
            write!(f, "{}{result}", if i == 0 { "" } else { ", " })?;
        }
        write!(f, " = {}", op.kind.name())?;
        for (i, operand) in op.operands.iter().enumerate() {
            write!(
                f,
                "{}{}",
                if i == 0 { " " } else { ", " },
                ValueDisplay(graph, *operand)
            )?;
        }
        write!(f, "{} : ", op.kind.attrs())?;
        for (i, result) in op.results.iter().enumerate() {
            write!(f, "{}{}", if i == 0 { "" } else { ", " }, graph.ty(*result))?;
        }
        if !op.site.module.is_empty() {
            write!(f, " @{}", Word(&op.site.module))?;
        }
        if let Some(of) = op.site.of.and_then(|of| graph.get_op(of)) {
            write!(f, " of {}", ValueDisplay(graph, of.results[0]))?;
        }
        Ok(())
    }
}

/// Prints a name bare where it can be read back, quoted otherwise.
struct Word<'a>(&'a str);

/// Characters of names that need no quotes.
pub(super) fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | ':' | '/' | '-')
}

impl fmt::Display for Word<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.0.is_empty() && self.0.chars().all(is_word) {
            f.write_str(self.0)
        } else {
            write!(f, "{:?}", self.0)
        }
    }
}

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "graph @{} {{", Word(&self.name))?;
        for (value, _) in self.params() {
            writeln!(f, "  {}", OpDisplay(self, self.value(value).op))?;
        }
        let mut region = Region::Forward;
        for id in self.order() {
            let op = self.op(id);
            if matches!(op.kind, Op::Param(_)) {
                continue;
            }
            if op.site.region != region {
                region = op.site.region;
                writeln!(f, "{}", heading(region))?;
            }
            writeln!(f, "  {}", OpDisplay(self, id))?;
        }
        for output in self.outputs() {
            let value = ValueDisplay(self, output.value);
            write!(f, "  out {:?} = {value}", output.name)?;
            match output.kind {
                OutputKind::Value => writeln!(f)?,
                OutputKind::Loss => writeln!(f, " loss")?,
                OutputKind::Gradient(p) => writeln!(f, " gradient {}", ValueDisplay(self, p))?,
                OutputKind::Updated(p) => writeln!(f, " updated {}", ValueDisplay(self, p))?,
            }
        }
        for a in self.adapters() {
            write!(
                f,
                "  adapter {:?} {{a={}, ",
                a.module,
                ValueDisplay(self, a.a)
            )?;
            write!(f, "b={}, rank={}, ", ValueDisplay(self, a.b), a.rank)?;
            write!(f, "scale={}, x={}, ", a.scale, ValueDisplay(self, a.x))?;
            writeln!(f, "xa={}}}", ValueDisplay(self, a.xa))?;
        }
        writeln!(f, "}}")
    }
}

/// The line that starts a region.
pub(super) fn heading(region: Region) -> &'static str {
    match region {
        Region::Forward => "forward:",
        Region::Backward => "backward:",
        Region::Update => "update:",
    }
}
