//! What type-checks can be asked everything without a panic, whatever the numbers are.

#[path = "common/rng.rs"]
mod rng;

use lorafa_ir::grad::Gradient;
use lorafa_ir::interp::Array;
use lorafa_ir::layout::Layout;
use lorafa_ir::ops::attrs::{AttrReader, split};
use lorafa_ir::ops::{Param, Role};
use lorafa_ir::text::parse_type;
use lorafa_ir::types::line_up;
use lorafa_ir::{Bindings, DType, Graph, Op, OpId, TensorType, ValueId};
use rng::Rng;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Ops, with `?` for a small number and `!` for a large one, then types that fit: letters are
/// dimensions. Where no types are given, random ones fit often enough.
const OPS: &str = "
    neg; abs; sqrt; exp; not; is_nan; relu; silu; gelu; gelu_tanh; sigmoid_grad; gelu_grad
    add; div; pow; max; mod; and; eq; lt; select; cast to=i64; cast to=bool; cast to=bf16
    matmul; matmul trans_a; matmul trans_b; matmul trans_a, trans_b, alpha=0.5
    reshape shape=[?,?]; reshape shape=[?]; reshape shape=[]
    reshape shape=[0,!] : i64[a,0]; expand shape=[?,?]; expand shape=[0,!]
    transpose perm=[?,?]; transpose perm=[?,?,?]
    slice axes=[?:?:?:1]; slice axes=[?:?:?:-1]; slice axes=[0:?:?:?,1:?:?:1]
    slice axes=[0:!:?:1] : f32[a]; slice axes=[?:?:?:!] : f32[a,b]; slice axes=[0:!:0:!] : f32[a,b]
    slice axes=[0:?:!:0] : f32[n]; slice axes=[0:-!:!:!] : f32[n]
    pad before=[?], after=[-?], value=0.5 : i64[a]; pad before=[!], after=[-!], value=0.5 : f32[a]
    pad before=[-?,?], after=[?,-?], value=0.5 : f32[a,b]; concat axis=?
    reduce_sum axes=[?], keep_dims; reduce_mean axes=[0,?]; reduce_max axes=[?]
    cumsum axis=?; cumsum axis=?, exclusive, reverse
    gather axis=?; gather_grad shape=[?]; gather_grad shape=[?,2] : i64[a,b], f32[a,b,2]
    gather_elements axis=?; scatter_elements axis=? : f32[a,b], i64[c,d], f32[c,d]
    scatter_elements axis=?, add : f32[a,b], i64[a,b], f32[a,b]
    gather_nd; gather_nd : f32[a,b,c], i64[d,2]; gather_nd batch_dims=1 : f64[a,b,c], i64[a,d,1]
    scatter_nd : f32[a,b], i64[c,1], f32[c,b]; scatter_nd add : f32[a,b], i64[c,d,2], f32[c,d]
    scatter_nd add : i64[a,b], i64[c,d,0], i64[c,d,a,b]
    softmax axis=?; log_softmax axis=?; softmax_grad axis=?; log_softmax_grad axis=?
    layer_norm axis=?, eps=1e-5; layer_norm axis=1, eps=1e-5 : f32[a,b,c], f32[b,c], f32[b,c]
    layer_norm_grad axis=1, weights : bf16[a,b,c], bf16[a,b,c], bf16[c], f32[a,1,1], f32[a,1,1]
    layer_norm_grad axis=1 : f32[a,b], f32[a,b], f32[1], f32[a,1], f32[a,1]
    rms_norm axis=?, eps=1e-5; rms_norm axis=1, eps=1e-5 : bf16[a,b,c], bf16[b,c]
    rms_norm_grad axis=1, weight : bf16[a,b,c], bf16[a,b,c], bf16[b,c], f32[a,1,1]
    rms_norm_grad axis=1 : f32[a,b], f32[a,b], f32[b], f32[a,1]
    gated act=silu; gated act=relu; gated_grad act=gelu; gated_grad act=gelu_tanh : bf16[a], bf16[a], bf16[a]
    rotary; rotary interleaved, inverse : f32[a,b,4], f32[b,2], f32[a,1,2]; rotary : bf16[a,0], bf16[0], bf16[a,0]
    attention scale=0.5, causal, window=? : f32[a,b,c,d], f32[a,b,c,d], f32[a,b,c,d]
    attention scale=0.5, dropout=0.5, seed=? : f32[a,b,c,d], f32[a,b,c,d], f32[a,b,c,d]
    attention scale=0.5 : bf16[a,b,c,d], bf16[a,1,c,d], bf16[a,1,c,d], bool[a,1,1,c], f32[b,c,c]
    attention_grad scale=0.5, causal : f64[a,c,b,d], f64[a,b,c,d], f64[a,b,c,d], f64[a,b,c,d], f64[a,c,b,d], f64[a,b,c]
    cross_entropy : f32[a,b], i64[a]; cross_entropy ignore_index=0 : bf16[a,b], i32[a]
    cross_entropy_grad : f64[], f64[a,b], i64[a]
    linear_cross_entropy : f32[a,b], f32[b,c], i64[a]; linear_cross_entropy trans_b, ignore_index=0 : bf16[a,b], bf16[c,b], i32[a]
    linear_cross_entropy_grad weight : bf16[a,b], bf16[b,c], i64[a]; linear_cross_entropy_grad trans_b : f64[a,b], f64[c,b], i64[a]
    dropout ratio=0.5, seed=1; dropout_grad ratio=0.5 : f32[a,b], bool[a,b]
    dropout_mask ratio=0.5, seed=1, shape=[?,?]; dropout_mask ratio=0.5, seed=1, shape=[0,!]
    adamw : f32[a,b], f32[a,b], f32[a,b], f32[a,b], i64[], f32[]
    accumulate : f32[a,b], bf16[a,b], f32[], f32[]; accumulate : f32[], f32[], f32[], f32[]
    adamw form=peft, weight_decay=0.1 : f32[a], bf16[a], f32[a], f32[a], i64[], f32[]
    adamw weight_decay=0.1 : bf16[a], f32[a], f32[a], f32[a], i64[], f32[]
    iota dtype=i64, len=?; iota dtype=i64, len=?, start=!, step=!; iota dtype=bf16, len=?
    fill dtype=f32, shape=[?,?], value=1.0; fill dtype=i64, shape=[0,!,!], value=1e400
    fill dtype=i32, shape=[?], value=1e400; constant dtype=f32, value=1.0
    constant dtype=i64, shape=[2], value=[1,2]; dims shape=[2], value=[1,2]
";

/// Elements beyond which an op is not run.
const SMALL: u64 = 4096;

/// The op that `text` spells, with numbers put in.
fn spell(text: &str, rng: &mut Rng) -> Option<Op> {
    let numbers = ["0", "1", "2", "3", "4"];
    let large = ["9223372036854775807", "4611686018427387904", "3"];
    let pieces: String = text
        .chars()
        .map(|c| match c {
            '?' => numbers[rng.below(numbers.len())].to_string(),
            '!' => large[rng.below(large.len())].to_string(),
            c => c.to_string(),
        })
        .collect();
    let (name, attrs) = pieces.split_once(' ').unwrap_or((&pieces, ""));
    let mut reader = AttrReader::default();
    for item in split(attrs) {
        let (key, value) = item.split_once('=').unwrap_or((item, ""));
        reader.0.insert(key, value);
    }
    Op::parse(name, &mut reader).ok()
}

/// A type of few axes, most of them short, of an element type that the slot may want.
fn random_type(rng: &mut Rng, like: Option<&TensorType>) -> TensorType {
    if let Some(like) = like.filter(|_| rng.below(3) == 0) {
        return like.clone();
    }
    let dtype = [
        "f32", "f32", "f32", "f64", "bf16", "i64", "i64", "i32", "bool",
    ][rng.below(9)];
    let dtype = DType::parse(dtype).unwrap();
    if let Some(like) = like.filter(|_| rng.below(2) == 0) {
        let from = rng.below(like.rank() + 1);
        let to = from + rng.below(like.rank() - from + 1);
        return TensorType::new(dtype, like.shape[from..to].iter().cloned());
    }
    let rank = rng.below(4);
    let dims = [
        "0",
        "1",
        "1",
        "2",
        "2",
        "3",
        "3",
        "4",
        "n",
        "9223372036854775807",
    ];
    let known = if rng.below(20) == 0 { dims.len() } else { 8 };
    let shape: Vec<&str> = (0..rank).map(|_| dims[rng.below(known)]).collect();
    parse_type(&format!("{dtype}[{}]", shape.join(","))).unwrap()
}

/// The types that `text` gives, or random ones; then sometimes a change.
fn random_types(rng: &mut Rng, text: &str, kind: &Op) -> Vec<TensorType> {
    let sizes: Bindings = ["a", "b", "c", "d"]
        .map(|name| (name.into(), rng.below(4) as i64))
        .into();
    let given = split(text).into_iter().map(|ty| parse_type(ty).unwrap());
    let mut types: Vec<TensorType> = given.filter_map(|ty| ty.bind(&sizes)).collect();
    if types.is_empty() {
        let (least, most) = kind.arity();
        for _ in 0..least + rng.below(most.min(least + 2) - least + 1) {
            let like = (!types.is_empty()).then(|| rng.below(types.len()));
            let ty = random_type(rng, like.map(|i| &types[i]));
            types.push(ty);
        }
    } else if rng.below(3) == 0 {
        let (slot, like) = (rng.below(types.len()), rng.below(types.len()));
        types[slot] = random_type(rng, Some(&types[like].clone()));
    }
    types
}

/// Adds the op to a graph of its own, if it type-checks.
fn build(kind: &Op, types: &[TensorType]) -> Option<(Graph, OpId)> {
    let mut graph = Graph::new("typed");
    let mut patch = graph.patch("typed");
    let operands: Vec<ValueId> = types
        .iter()
        .enumerate()
        .map(|(i, ty)| {
            let param = Param::runtime(format!("p{i}"), Role::Trained, ty.clone());
            patch.add1(Op::Param(Box::new(param)), &[]).ok()
        })
        .collect::<Option<_>>()?;
    let results = patch.add(kind.clone(), &operands).ok()?;
    let op = graph.def(results[0]).id;
    graph.verify().is_ok().then_some((graph, op))
}

/// Asks everything of the op; gives whether it was run.
fn ask(graph: &mut Graph, op: OpId, rng: &mut Rng) -> bool {
    let data = graph.op(op).clone();
    let types: Vec<TensorType> = data.operands.iter().map(|v| graph.ty(*v).clone()).collect();
    let results: Vec<TensorType> = data.results.iter().map(|v| graph.ty(*v).clone()).collect();
    let (operands, outs): (Vec<_>, Vec<_>) = (types.iter().collect(), results.iter().collect());
    data.kind.flops(&operands, &outs);
    let layouts: Option<Vec<Layout>> = types.iter().map(Layout::contiguous).collect();
    if let Some(layouts) = layouts {
        let with_layout: Vec<_> = operands.iter().copied().zip(&layouts).collect();
        data.kind.scratch(&with_layout, &outs);
        if let Some(first) = with_layout.first() {
            data.kind.view(*first, &results[0]);
        }
    }
    let mut patch = graph.patch("typed");
    let dy = Param::runtime("dy", Role::Input, results[0].clone());
    let dy = patch.add1(Op::Param(Box::new(dy)), &[]).unwrap();
    let wants: Vec<bool> = types.iter().map(|t| t.dtype.is_float()).collect();
    if let Ok(given) = Gradient::apply(&mut patch, op, &[Some(dy)], &wants) {
        for (grad, ty) in given.iter().zip(&types) {
            assert!(
                grad.is_none_or(|g| patch.ty(g).dtype == ty.dtype),
                "element type of a gradient"
            );
        }
    }
    if let Some(decomposed) = data.kind.decompose(&mut patch, &data.operands) {
        let decomposed = decomposed.unwrap();
        assert_eq!(decomposed.len(), results.len());
        // A symbol may have become the number that another operand has in its place.
        for (found, ty) in decomposed.iter().map(|v| patch.ty(*v)).zip(&results) {
            assert!(
                found.dtype == ty.dtype && line_up(&found.shape, &ty.shape),
                "{found} for {ty}"
            );
        }
    }
    graph.verify().unwrap();
    let small = |ty: &TensorType| ty.elements().is_some_and(|n| n <= SMALL);
    if !types.iter().chain(&results).all(small) {
        return false;
    }
    let mut number = |ty: &TensorType| match ty.dtype.is_float() {
        true => rng.between(-2.0, 2.0),
        false => rng.below(8) as f64 - 3.0,
    };
    let arrays: Vec<Array> = types
        .iter()
        .map(|ty| Array::from_fn(ty, |_| number(ty)).unwrap())
        .collect();
    let arrays: Vec<&Array> = arrays.iter().collect();
    let Ok(found) = data.kind.eval(&arrays, &outs) else {
        return false;
    };
    for (array, ty) in found.iter().zip(&results) {
        let empty = Array::from_fn(ty, |_| 0.0).unwrap();
        assert_eq!((array.dtype, &array.shape), (empty.dtype, &empty.shape));
        assert_eq!(array.data.len(), empty.data.len());
        let whole = |x: &f64| x.is_finite() && x.fract() == 0.0;
        assert!(
            ty.dtype.is_float() || array.data.iter().all(whole),
            "{array:?}"
        );
    }
    true
}

#[test]
fn what_type_checks_does_not_panic() {
    let mut failures = Vec::new();
    for text in OPS
        .split([';', '\n'])
        .map(str::trim)
        .filter(|t| !t.is_empty())
    {
        let mut rng = Rng(text.len() as u64);
        let mut checked = 0;
        for _ in 0..TRIES {
            let (op, fitting) = text.split_once(" : ").unwrap_or((text, ""));
            let Some(kind) = spell(op, &mut rng) else {
                continue;
            };
            let types = random_types(&mut rng, fitting, &kind);
            let Some((mut graph, op)) = build(&kind, &types) else {
                continue;
            };
            checked += 1;
            if catch_unwind(AssertUnwindSafe(|| ask(&mut graph, op, &mut rng))).is_err() {
                failures.push(graph.to_string());
                break;
            }
        }
        if checked == 0 {
            failures.push(format!("{text} never type-checked"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Random operands for each op.
const TRIES: usize = 500;
