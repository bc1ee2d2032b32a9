//! What values are called in the file.

use super::ExportError;
use lorafa_ir::{Graph, Op, OpData, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// Names given out: each stands for one value of the file.
#[derive(Debug)]
pub(super) struct Names {
    taken: BTreeSet<String>,
    values: BTreeMap<ValueId, String>,
    outputs: BTreeSet<String>,
}

impl Names {
    /// Names every value that an op computes: by the output it is, by the name it was imported
    /// with, or by its number. Parameters and outputs keep theirs whatever else wants it.
    pub(super) fn new(graph: &Graph) -> Result<Self, ExportError> {
        let mut names = Names {
            taken: BTreeSet::new(),
            values: BTreeMap::new(),
            outputs: BTreeSet::new(),
        };
        for (value, param) in graph.params() {
            let name = usable("parameter", &param.name)?;
            names.taken.insert(name.clone());
            names.values.insert(value, name);
        }
        for output in graph.outputs() {
            let name = usable("output", &output.name)?;
            names.outputs.insert(name.clone());
            let is_itself = names.values.get(&output.value) == Some(&name);
            if !names.taken.insert(name.clone()) && !is_itself {
                return Err(ExportError::Name {
                    what: "output",
                    name,
                    why: "has the name of a parameter; rename the output",
                });
            }
            if computed(graph.def(output.value)) {
                names.values.entry(output.value).or_insert(name);
            }
        }
        for id in graph.order() {
            let op = graph.op(id);
            for value in op.results.iter().filter(|_| computed(op)) {
                if !names.values.contains_key(value) {
                    let imported = graph.value(*value).name.as_deref();
                    let imported = imported.filter(|n| !n.is_empty() && !names.taken.contains(*n));
                    let name = imported.map_or_else(|| value.to_string(), str::to_string);
                    let name = names.fresh(&name);
                    names.values.insert(*value, name);
                }
            }
        }
        Ok(names)
    }

    /// The name of a parameter or of what an op computes; constants have none of their own.
    pub(super) fn of(&self, value: ValueId) -> Option<&str> {
        self.values.get(&value).map(String::as_str)
    }

    /// Whether an output is called so.
    pub(super) fn is_output(&self, name: &str) -> bool {
        self.outputs.contains(name)
    }

    /// `wanted`, or `wanted.1`, `wanted.2`, … if it is taken.
    pub(super) fn fresh(&mut self, wanted: &str) -> String {
        let mut name = wanted.to_string();
        let mut n = 0;
        while !self.taken.insert(name.clone()) {
            n += 1;
            name = format!("{wanted}.{n}");
        }
        name
    }
}

/// Whether a node defines the op's results: equal constants share one initializer.
fn computed(op: &OpData) -> bool {
    !matches!(op.kind, Op::Param(_) | Op::Constant(_))
}

fn usable(what: &'static str, name: &str) -> Result<String, ExportError> {
    if name.is_empty() {
        return Err(ExportError::Name {
            what,
            name: String::new(),
            why: "has an empty name, which ONNX reads as left out; name it",
        });
    }
    Ok(name.to_string())
}
