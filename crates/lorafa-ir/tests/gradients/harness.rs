//! One op under test: its gradient rule against central finite differences.
//!
//! A case is written `f64[3,4], ~f64[4,5] {trans_b}`: operands, then attributes as in the text
//! form. An operand is a type, and its values are random; `+` makes them positive, `~` says that
//! no gradient is wanted, `=(2,0,1)` gives them. A number is a constant.

use crate::decompose::decompose;
use crate::rng::Rng;
use lorafa_ir::grad::{Gradient, GradientError};
use lorafa_ir::interp::{Array, run};
use lorafa_ir::ops::attrs::{AttrReader, split};
use lorafa_ir::ops::{Constant, Param, Role};
use lorafa_ir::text::parse_type;
use lorafa_ir::{DType, Graph, Op, OpId, OutputKind, Region, Site, ValueId};
use std::collections::BTreeMap;

type Values = BTreeMap<ValueId, Array>;

/// Distance of the finite differences.
const STEP: f64 = 1e-5;

/// Largest difference, relative to the larger of the two and one.
const TOLERANCE: f64 = 1e-6;

/// An op with operands and values for them.
pub struct Case {
    pub graph: Graph,
    pub op: OpId,
    pub wants: Vec<bool>,
    pub values: Values,
    rng: Rng,
}

/// A case before it has its op.
struct Operands {
    graph: Graph,
    wants: Vec<bool>,
    values: Values,
    rng: Rng,
}

/// The op with this mnemonic and attributes in braces, or nothing.
pub fn parse_op(name: &str, attrs: &str) -> Op {
    let inner = attrs.trim_matches(|c| matches!(c, '{' | '}' | ' '));
    let mut reader = AttrReader::default();
    for item in split(inner) {
        let (key, value) = item.split_once('=').unwrap_or((item, ""));
        reader.0.insert(key, value);
    }
    let op = Op::parse(name, &mut reader).unwrap();
    assert!(reader.0.is_empty(), "{name}: left over {:?}", reader.0);
    op
}

impl Operands {
    fn add(&mut self, text: &str) -> ValueId {
        if let Ok(number) = text.parse() {
            self.wants.push(false);
            let constant = Constant::scalar(DType::F64, number);
            return self.graph.patch("case").add1(constant.into(), &[]).unwrap();
        }
        let (text, given) = text.split_once('=').unwrap_or((text, ""));
        let ty = parse_type(text.trim_start_matches(['+', '~'])).unwrap();
        self.wants.push(ty.dtype.is_float() && !text.contains('~'));
        let given: Vec<f64> = split(given.trim_matches(|c| matches!(c, '(' | ')')))
            .into_iter()
            .map(|item| item.parse().unwrap())
            .collect();
        let (low, high) = if text.contains('+') {
            (0.5, 2.0)
        } else {
            (-1.5, 1.5)
        };
        let mut count = 0;
        let values = Array::from_fn(&ty, |_| {
            count += 1;
            match ty.dtype {
                _ if !given.is_empty() => given[count - 1],
                DType::Bool => self.rng.below(2) as f64,
                _ => self.rng.between(low, high),
            }
        });
        let name = format!("p{}", self.wants.len());
        let param = Param::runtime(name, Role::Trained, ty.clone());
        let param = Op::Param(Box::new(param));
        let value = self.graph.patch("case").add1(param, &[]).unwrap();
        self.values.insert(value, values.unwrap());
        value
    }
}

impl Case {
    /// The case `text` of the op `name`.
    pub fn new(name: &str, text: &str) -> Case {
        let (operands, attrs) = text.split_at(text.find('{').unwrap_or(text.len()));
        let mut case = Operands {
            graph: Graph::new("case"),
            wants: Vec::new(),
            values: Values::new(),
            rng: Rng(name.len() as u64),
        };
        let slots: Vec<ValueId> = split(operands.trim())
            .into_iter()
            .map(|operand| case.add(operand))
            .collect();
        let kind = parse_op(name, attrs);
        assert_eq!(kind.name(), name);
        let results = case.graph.patch("case").add(kind, &slots).unwrap();
        Case {
            op: case.graph.def(results[0]).id,
            graph: case.graph,
            wants: case.wants,
            values: case.values,
            rng: case.rng,
        }
    }

    /// The parameter that the rule gets as gradient of the result, with random values.
    pub fn add_dy(&mut self) -> ValueId {
        let y = self.graph.op(self.op).results[0];
        let ty = self.graph.ty(y).clone();
        let values = Array::from_fn(&ty, |_| self.rng.between(-1.0, 1.0)).unwrap();
        let param = Param::runtime("dy", Role::Input, ty);
        let mut patch = self.graph.patch("case");
        let dy = patch.add1(Op::Param(Box::new(param)), &[]).unwrap();
        patch.output("y", y, OutputKind::Value);
        self.values.insert(dy, values);
        dy
    }

    /// Applies the rule in the backward region.
    pub fn gradient(
        &mut self,
        dy: ValueId,
        wants: &[bool],
    ) -> Result<Vec<Option<ValueId>>, GradientError> {
        let mut patch = self.graph.patch("gradient");
        patch.at_site(Site {
            region: Region::Backward,
            seq: 0,
            module: "".into(),
            of: Some(self.op),
        });
        Gradient::apply(&mut patch, self.op, &[Some(dy)], wants)
    }

    /// Checks every wanted gradient, all asked for at once and one by one.
    pub fn check(mut self, label: &str) {
        let dy = self.add_dy();
        let numeric = self.numeric(dy);
        let mut asked = vec![self.wants.clone()];
        let slots = (0..self.wants.len()).filter(|slot| self.wants[*slot]);
        asked.extend(slots.map(|slot| (0..self.wants.len()).map(|s| s == slot).collect()));
        let operands = self.graph.op(self.op).operands.clone();
        for wants in asked {
            let given = self.gradient(dy, &wants);
            let given = given.unwrap_or_else(|e| panic!("{label}: {e}"));
            let mut graph = self.graph.clone();
            for (slot, grad) in given.iter().enumerate() {
                assert_eq!(grad.is_some(), wants[slot], "{label}: operand {slot}");
                if let Some(grad) = *grad {
                    assert_eq!(graph.ty(grad), graph.ty(operands[slot]), "{label}");
                    let mut patch = graph.patch("case");
                    patch.output(format!("d{slot}"), grad, OutputKind::Value);
                }
            }
            let results = evaluate(graph, &self.values);
            for (name, analytic) in results {
                if let Some(slot) = name.strip_prefix('d') {
                    let slot: usize = slot.parse().unwrap();
                    close(
                        &analytic.data,
                        &numeric[&slot],
                        &format!("{label}: operand {slot}"),
                    );
                }
            }
        }
    }

    /// `d(Σ dy·y)/dx` for each wanted operand, by central differences.
    fn numeric(&self, dy: ValueId) -> BTreeMap<usize, Vec<f64>> {
        let sum = |values: &Values| -> f64 {
            let y = &evaluate(self.graph.clone(), values)["y"];
            y.data
                .iter()
                .zip(&values[&dy].data)
                .map(|(y, w)| y * w)
                .sum()
        };
        let wanted = (0..self.wants.len()).filter(|slot| self.wants[*slot]);
        let gradient = |slot: usize| {
            let x = self.graph.op(self.op).operands[slot];
            let at = |i: usize, step: f64| {
                let mut values = self.values.clone();
                values.entry(x).and_modify(|x| x.data[i] += step);
                sum(&values)
            };
            (0..self.values[&x].data.len())
                .map(|i| (at(i, STEP) - at(i, -STEP)) / (2.0 * STEP))
                .collect()
        };
        wanted.map(|slot| (slot, gradient(slot))).collect()
    }
}

/// Verifies, decomposes, verifies and runs; gives the outputs by name.
pub fn evaluate(mut graph: Graph, values: &Values) -> BTreeMap<String, Array> {
    graph.verify().unwrap_or_else(|e| panic!("{e}"));
    decompose(&mut graph);
    graph.verify().unwrap_or_else(|e| panic!("decomposed: {e}"));
    let results = run(&graph, values).unwrap_or_else(|e| panic!("{e}\n{graph}"));
    let outputs = graph.outputs().iter();
    outputs
        .map(|o| (o.name.to_string(), results[&o.value].clone()))
        .collect()
}

/// Compares element by element.
#[track_caller]
pub fn close(found: &[f64], expected: &[f64], label: &str) {
    assert_eq!(found.len(), expected.len(), "{label}");
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        let scale = a.abs().max(b.abs()).max(1.0);
        let near = (a - b).abs() <= TOLERANCE * scale;
        assert!(near, "{label}, element {i}: rule {a}, differences {b}");
    }
}
