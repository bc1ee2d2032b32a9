//! One op under test.
//!
//! A case is written `T[2,4], i64[2]=(0,1) {axis=1}`: operands, then attributes as in the text
//! form. `T` stands for every element type that the op's type rule allows. Values are random
//! multiples of 1/64, which every float type holds; `+` makes them positive, `=(2,0)` gives them.

use crate::Values;
use crate::rng::Rng;
use lorafa_ir::interp::Array;
use lorafa_ir::ops::attrs::{AttrReader, split};
use lorafa_ir::ops::{Param, Role};
use lorafa_ir::text::parse_type;
use lorafa_ir::{DType, Graph, Op, OutputKind, PatchError, TensorType};

/// Every element type.
pub const DTYPES: &[&str] = &[
    "f64", "f32", "f16", "bf16", "i64", "i32", "i16", "i8", "u64", "u32", "u16", "u8", "bool",
];

/// A graph of one op, all of whose results are outputs, with values for its inputs.
pub struct Case {
    pub label: String,
    pub graph: Graph,
    pub values: Values,
}

/// The cases of a text: one for each element type that fits.
pub fn cases(name: &str, text: &str) -> Vec<Case> {
    let generic = text.contains("T[") || text.contains("=T");
    let dtypes = if generic { DTYPES } else { &DTYPES[..1] };
    let cases: Vec<Case> = dtypes
        .iter()
        .filter_map(|d| {
            let text = text
                .replace("T[", &format!("{d}["))
                .replace("=T", &format!("={d}"));
            case(name, &text).ok()
        })
        .collect();
    assert!(!cases.is_empty(), "no type fits {name} {text}");
    cases
}

fn case(name: &str, text: &str) -> Result<Case, PatchError> {
    let label = format!("{name} {text}");
    let (operands, attrs) = text.split_at(text.find('{').unwrap_or(text.len()));
    let mut graph = Graph::new("case");
    let (mut values, mut slots) = (Values::new(), Vec::new());
    let mut rng = Rng(label.len() as u64);
    for (i, operand) in split(operands.trim()).into_iter().enumerate() {
        let (spelled, given) = operand.split_once('=').unwrap_or((operand, ""));
        let ty = parse_type(spelled.trim_start_matches('+')).unwrap();
        let given: Vec<f64> = split(given.trim_matches(['(', ')']))
            .into_iter()
            .map(|item| item.parse().unwrap())
            .collect();
        let param = format!("p{i}");
        let array = fill(&ty, &given, spelled.starts_with('+'), &mut rng);
        values.insert(param.clone(), array);
        let param = Param::runtime(param, Role::Input, ty);
        let param = Op::Param(Box::new(param));
        slots.push(graph.patch("case").add1(param, &[]).unwrap());
    }
    let mut patch = graph.patch("case");
    let results = patch.add(op(name, attrs), &slots)?;
    for (i, value) in results.into_iter().enumerate() {
        patch.output(format!("y{i}"), value, OutputKind::Value);
    }
    Ok(Case {
        label,
        graph,
        values,
    })
}

fn op(name: &str, attrs: &str) -> Op {
    let mut reader = AttrReader::default();
    for item in split(attrs.trim_matches(['{', '}'])) {
        let (key, value) = item.split_once('=').unwrap_or((item, ""));
        reader.0.insert(key, value);
    }
    let op = Op::parse(name, &mut reader).unwrap_or_else(|e| panic!("{name} {attrs}: {e}"));
    assert!(reader.0.is_empty(), "{name}: left over {:?}", reader.0);
    op
}

fn fill(ty: &TensorType, given: &[f64], positive: bool, rng: &mut Rng) -> Array {
    let mut count = 0;
    let signed = |rng: &mut Rng| if rng.below(2) == 0 { 1.0 } else { -1.0 };
    let number = |_: &[usize]| {
        count += 1;
        match ty.dtype {
            _ if !given.is_empty() => given[count - 1],
            DType::Bool => rng.below(2) as f64,
            DType::U64 | DType::U32 | DType::U16 | DType::U8 => 1.0 + rng.below(3) as f64,
            d if d.is_float() && positive => (16 + rng.below(96)) as f64 / 64.0,
            d if d.is_float() => signed(rng) * (1 + rng.below(96)) as f64 / 64.0,
            _ if positive => 1.0 + rng.below(3) as f64,
            _ => signed(rng) * (1.0 + rng.below(3) as f64),
        }
    };
    Array::from_fn(ty, number).unwrap()
}
