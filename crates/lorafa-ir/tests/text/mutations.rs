//! Whatever a text says, reading, checking and printing it give a result or an error.

use crate::decompose::decompose;
use crate::fixtures;
use lorafa_ir::interp::{Array, run};
use lorafa_ir::layout::Layout;
use lorafa_ir::text::parse;
use lorafa_ir::{Bindings, Graph, TensorType};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed};

/// Pieces that mean something somewhere, and numbers at the edges.
const PIECES: &[&str] = &[
    "0",
    "1",
    "-1",
    "2",
    "7",
    "255",
    "4294967296",
    "9223372036854775807",
    "-9223372036854775807",
    "18446744073709551615",
    "1e400",
    "NaN",
    "batch",
    "seq//2",
    "max(a, 2)",
    "[",
    "]",
    "[]",
    "{",
    "}",
    "{}",
    "(",
    ")",
    ",",
    ";",
    ":",
    "=",
    " ",
    "\"",
    "\\",
    "%",
    "%x",
    "v0",
    "v1",
    "v18",
    "v63",
    "%mask",
    "%rows",
    "%scale",
    "axis=1",
    "axis=0",
    "axes=[]",
    "axes=[0:0:0:1]",
    "add, ",
    "keep_dims",
    "shape=[0]",
    "perm=[0]",
    "f32",
    "f64",
    "bf16",
    "i64",
    "bool",
    "f32[]",
    "f32[0,4]",
    "i64[2,0]",
    "f32[0,9223372036854775807,9223372036854775807]",
    "forward:\n",
    "backward:\n",
    "update:\n",
    " of v1",
    " @m",
    " loss",
    " gradient %scale",
    " updated %m",
    "out \"a\" = v0\n",
    "\n",
    "é",
    "\u{301}",
];

/// Elements of a value beyond which a graph is not run.
const SMALL: u64 = 4096;

/// One change of a text; places are taken modulo the length of what is there.
#[derive(Clone, Debug)]
enum Mutation {
    Insert(usize, usize),
    Replace(usize, usize, usize),
    Delete(usize, usize),
    SwapWords(usize, usize),
    DropLine(usize),
    CopyLine(usize, usize),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let (at, piece) = (any::<usize>(), 0..PIECES.len());
    prop_oneof![
        1 => (at, piece.clone()).prop_map(|(at, p)| Mutation::Insert(at, p)),
        4 => (at, 1..8usize, piece).prop_map(|(at, n, p)| Mutation::Replace(at, n, p)),
        1 => (at, 1..12usize).prop_map(|(at, n)| Mutation::Delete(at, n)),
        4 => (at, at).prop_map(|(a, b)| Mutation::SwapWords(a, b)),
        1 => at.prop_map(Mutation::DropLine),
        1 => (at, at).prop_map(|(from, to)| Mutation::CopyLine(from, to)),
    ]
}

/// The places where words begin and end.
fn words(text: &str) -> Vec<(usize, usize)> {
    let word = |c: char| c.is_alphanumeric() || "_.%-".contains(c);
    let mut words = Vec::new();
    let mut start = None;
    for (i, c) in text.char_indices() {
        match (word(c), start) {
            (true, None) => start = Some(i),
            (false, Some(from)) => {
                words.push((from, i));
                start = None;
            }
            _ => {}
        }
    }
    words
}

fn apply(text: &mut String, mutation: &Mutation) {
    let boundary = |text: &str, at: usize| {
        let at = at % (text.len() + 1);
        (0..=at)
            .rev()
            .find(|i| text.is_char_boundary(*i))
            .unwrap_or(0)
    };
    match *mutation {
        Mutation::Insert(at, piece) => text.insert_str(boundary(text, at), PIECES[piece]),
        Mutation::Replace(at, mut count, piece) => {
            let words = words(text);
            if words.is_empty() {
                return;
            }
            let at = at % words.len();
            if count > 2 {
                count = 1;
            }
            let last = words[(at + count - 1).min(words.len() - 1)].1;
            text.replace_range(words[at].0..last, PIECES[piece]);
        }
        Mutation::Delete(at, count) => {
            let from = boundary(text, at);
            let to = boundary(text, from + count.min(text.len() - from));
            text.replace_range(from..to.max(from), "");
        }
        Mutation::SwapWords(a, b) => {
            let words = words(text);
            if words.is_empty() {
                return;
            }
            let (from, to) = (words[a % words.len()], words[b % words.len()]);
            let word = text[to.0..to.1].to_string();
            text.replace_range(from.0..from.1, &word);
        }
        Mutation::DropLine(at) => {
            let count = text.lines().count().max(1);
            let kept = text.lines().enumerate().filter(|(i, _)| *i != at % count);
            *text = kept.map(|(_, line)| format!("{line}\n")).collect();
        }
        Mutation::CopyLine(from, to) => {
            let mut lines: Vec<String> = text.lines().map(|l| format!("{l}\n")).collect();
            if !lines.is_empty() {
                let line = lines[from % lines.len()].clone();
                lines.insert(to % lines.len(), line);
            }
            *text = lines.concat();
        }
    }
}

/// What may be asked of any graph that verifies.
fn use_it(mut graph: Graph) {
    for op in graph.ops() {
        let types: Vec<&TensorType> = op.operands.iter().map(|v| graph.ty(*v)).collect();
        let results: Vec<&TensorType> = op.results.iter().map(|v| graph.ty(*v)).collect();
        op.kind.flops(&types, &results);
        op.kind
            .bind(&Bindings::from([("batch".into(), 2), ("a".into(), 0)]));
        let layouts: Option<Vec<Layout>> = types.iter().map(|t| Layout::contiguous(t)).collect();
        let Some(layouts) = layouts else { continue };
        let operands: Vec<_> = types.iter().copied().zip(&layouts).collect();
        op.kind.scratch(&operands, &results);
        if let (Some(first), Some(result)) = (operands.first(), results.first()) {
            op.kind.view(*first, result);
        }
    }
    let small = |ty: &TensorType| ty.elements().is_some_and(|n| n <= SMALL);
    let values = graph.ops().flat_map(|op| op.results.clone());
    if !values.into_iter().all(|v| small(graph.ty(v))) {
        return;
    }
    decompose(&mut graph);
    let params = graph.params().filter_map(|(value, param)| {
        let mut next = -1.0;
        let array = Array::from_fn(&param.ty, |_| {
            next += 1.0;
            next
        });
        Some((value, array.ok()?))
    });
    let params = params.collect();
    // Indices may be out of range: that is an error.
    let _ = run(&graph, &params);
}

proptest! {
    #![proptest_config(Config {
        cases: 3000,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(1),
        ..Config::default()
    })]

    #[test]
    fn a_changed_text_is_read_or_refused(
        at in any::<prop::sample::Index>(),
        changes in prop::collection::vec(mutation(), 1..4),
    ) {
        let fixtures = fixtures();
        let (_, mut text) = at.get(&fixtures).clone();
        for change in &changes {
            apply(&mut text, change);
        }
        if let Ok(graph) = parse(&text) {
            let printed = graph.to_string();
            let again = parse(&printed).map(|g| g.to_string());
            prop_assert_eq!(again, Ok(printed));
            if graph.verify().is_ok() {
                use_it(graph);
            }
        }
    }
}
