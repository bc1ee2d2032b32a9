//! The verifier: every violation of what a graph must be, all at once.
//!
//! If a graph verifies, nothing after it panics on it. It checks that
//!
//! - every operand exists, and petgraph's edges agree with the operand lists;
//! - there is no cycle;
//! - results have the types that the op's type rule gives;
//! - no op reads a value of a later region (forward < backward < update);
//! - names of parameters and of outputs are unique, and each output exists;
//! - gradients belong to trained parameters and have their shape, the loss is a scalar;
//! - what updates a parameter has its type;
//! - an adapter's values exist and A and B are parameters of its rank.

use crate::graph::{Graph, Region};
use crate::ids::OpId;
use crate::ops::Role;
use crate::outputs::OutputKind;
use crate::text::{OpDisplay, ValueDisplay};
use crate::types::TensorType;
use std::collections::BTreeSet;
use std::fmt;

/// One thing wrong with a graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The op concerned, if it is one.
    pub op: Option<OpId>,
    /// The line of the text form concerned.
    pub line: String,
    /// What was expected and what was found.
    pub message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: `{}`", self.message, self.line)
    }
}

/// Everything wrong with a graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violations(pub Vec<Violation>);

impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, violation) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{violation}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Violations {}

impl Graph {
    /// Checks the whole graph.
    pub fn verify(&self) -> Result<(), Violations> {
        let mut v = Verifier {
            graph: self,
            found: Vec::new(),
        };
        v.operands();
        if v.found.is_empty() {
            v.cycles();
            v.types();
            v.regions();
            v.names();
            v.outputs();
            v.adapters();
        }
        if v.found.is_empty() {
            Ok(())
        } else {
            Err(Violations(v.found))
        }
    }
}

struct Verifier<'g> {
    graph: &'g Graph,
    found: Vec<Violation>,
}

impl Verifier<'_> {
    fn op(&mut self, op: OpId, message: String) {
        let line = OpDisplay(self.graph, op).to_string();
        self.found.push(Violation {
            op: Some(op),
            line,
            message,
        });
    }

    fn line(&mut self, line: String, message: impl Into<String>) {
        self.found.push(Violation {
            op: None,
            line,
            message: message.into(),
        });
    }

    fn operands(&mut self) {
        for op in self.graph.ops() {
            if let Some(v) = op
                .operands
                .iter()
                .find(|v| self.graph.get_value(**v).is_none())
            {
                let (id, message) = (op.id, format!("operand {v} does not exist"));
                self.found.push(Violation {
                    op: Some(id),
                    line: id.to_string(),
                    message,
                });
            } else if !self.graph.edges_agree(op.id) {
                self.op(op.id, "edges and operands disagree".into());
            }
        }
    }

    fn cycles(&mut self) {
        let order = self.graph.order();
        if order.len() == self.graph.op_count() {
            return;
        }
        let reached: BTreeSet<OpId> = order.into_iter().collect();
        if let Some(op) = self.graph.ops().find(|op| !reached.contains(&op.id)) {
            self.op(op.id, "the op is on a cycle or behind one".into());
        }
    }

    fn types(&mut self) {
        for op in self.graph.ops() {
            let operands: Vec<&TensorType> =
                op.operands.iter().map(|v| self.graph.ty(*v)).collect();
            match op.kind.infer_checked(&operands) {
                Err(error) => self.op(op.id, error.to_string()),
                Ok(types) if types.len() != op.results.len() => {
                    let (n, m) = (types.len(), op.results.len());
                    self.op(op.id, format!("expected {n} results, found {m}"));
                }
                Ok(types) => {
                    for (value, ty) in op.results.iter().zip(types) {
                        if *self.graph.ty(*value) != ty {
                            let found = self.graph.ty(*value);
                            self.op(op.id, format!("expected {value} : {ty}, found {found}"));
                        }
                    }
                }
            }
        }
    }

    fn regions(&mut self) {
        for op in self.graph.ops() {
            for operand in &op.operands {
                let def = self.graph.def(*operand);
                if def.site.region > op.site.region && !def.operands.is_empty() {
                    let name = |r| match r {
                        Region::Forward => "forward",
                        Region::Backward => "backward",
                        Region::Update => "update",
                    };
                    let (here, there) = (name(op.site.region), name(def.site.region));
                    self.op(
                        op.id,
                        format!("a {here} op reads {operand} of the {there} region"),
                    );
                }
            }
        }
    }

    fn names(&mut self) {
        let mut seen = BTreeSet::new();
        for (value, param) in self.graph.params() {
            if !seen.insert(param.name.clone()) {
                let op = self.graph.value(value).op;
                self.op(op, format!("a second parameter is called {}", param.name));
            }
        }
    }

    fn outputs(&mut self) {
        let mut seen = BTreeSet::new();
        for output in self.graph.outputs() {
            let line = format!("out {:?}", output.name);
            if !seen.insert(output.name.clone()) {
                self.line(line.clone(), "a second output has this name");
            }
            let Some(value) = self.graph.get_value(output.value) else {
                self.line(line, format!("{} does not exist", output.value));
                continue;
            };
            match output.kind {
                OutputKind::Loss if value.ty.elements() != Some(1) => {
                    self.line(line, format!("expected a scalar loss, found {}", value.ty));
                }
                OutputKind::Gradient(param) => match self.graph.get_value(param) {
                    None => self.line(line, format!("parameter {param} does not exist")),
                    Some(_) if self.graph.role(param) != Some(Role::Trained) => {
                        let param = ValueDisplay(self.graph, param);
                        self.line(line, format!("{param} has a gradient but is not trained"));
                    }
                    Some(p) if p.ty.shape != value.ty.shape => {
                        let message = format!("expected the shape of {}, found {}", p.ty, value.ty);
                        self.line(line, message);
                    }
                    Some(_) => {}
                },
                OutputKind::Updated(param) => match self.graph.get_value(param) {
                    None => self.line(line, format!("parameter {param} does not exist")),
                    Some(_) if self.graph.param(param).is_none() => {
                        self.line(line, format!("{param} is updated but is no parameter"));
                    }
                    Some(p) if p.ty != value.ty => {
                        self.line(line, format!("expected {}, found {}", p.ty, value.ty));
                    }
                    Some(_) => {}
                },
                OutputKind::Loss | OutputKind::Value => {}
            }
        }
    }

    fn adapters(&mut self) {
        for adapter in &self.graph.adapters {
            let line = format!("adapter {:?}", adapter.module);
            let gone = |(_, value): &(_, _)| self.graph.get_value(*value).is_none();
            if let Some((name, value)) = adapter.values().into_iter().find(gone) {
                self.line(line, format!("its {name} {value} does not exist"));
                continue;
            }
            for (name, value) in [("a", adapter.a), ("b", adapter.b)] {
                if self.graph.param(value).is_none() {
                    self.line(line.clone(), format!("its {name} {value} is no parameter"));
                }
            }
            let rank = i64::try_from(adapter.rank).unwrap_or(i64::MAX);
            let (a, b) = (self.graph.ty(adapter.a), self.graph.ty(adapter.b));
            if !(a.shape.iter().any(|d| d.is(rank)) && b.shape.iter().any(|d| d.is(rank))) {
                self.line(line, format!("{a} and {b} are not of rank {rank}"));
            }
        }
    }
}
