//! Every kernel against the IR's reference semantics.
//!
//! In a program without an arena every value is still there after the step, so each op is held against what the
//! reference makes of the very operands that the kernel read: errors do not add up, and the op at fault is the one named.
#![cfg(feature = "torch")]

#[path = "../../../lorafa-plan/tests/arena/mod.rs"]
#[allow(dead_code, unused_imports)]
mod arena;
mod blocks;
#[path = "../../../lorafa-onnx/tests/export/case.rs"]
mod case;
#[path = "../../../lorafa-onnx/tests/export/cases.rs"]
mod cases;
mod chunks;
#[path = "../../../lorafa-ir/tests/common/decompose.rs"]
mod decompose;
mod masks;
mod reference;
#[path = "../../../lorafa-ir/tests/common/rng.rs"]
mod rng;
#[path = "../../../lorafa-plan/tests/steps/mod.rs"]
mod steps;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lorafa_exec::{ExecError, Mode, OpenDevice, Program};
use lorafa_ir::interp::Array;
use lorafa_ir::text::OpDisplay;
use lorafa_ir::{Graph, Op, ValueId};
use lorafa_onnx::dtype::{decode, encode};
use lorafa_plan::{Plan, StorageId, plan};

/// Values by parameter name.
pub type Values = BTreeMap<String, Array>;

fn compile(graph: &Arc<Graph>, plan: &Plan, mode: Mode) -> Result<Program, ExecError> {
    Program::compile(graph.clone(), plan, mode, OpenDevice::CPU)
}

fn feed(program: &mut Program, graph: &Graph, values: &arena::Values) {
    for (value, param) in graph.params() {
        let array = &values[&value];
        let bytes = encode(param.ty.dtype, array.data.iter().copied());
        program.write(&param.name, &bytes).unwrap();
    }
}

/// Runs a step without an arena and checks every op.
fn check(graph: &Arc<Graph>, values: &arena::Values, label: &str) -> Result<(), ExecError> {
    let plan = plan(graph).unwrap();
    let mut program = compile(graph, &plan, Mode::Separate)?;
    feed(&mut program, graph, values);
    program.step()?;
    if graph.ops().all(|op| op.kind.updates().is_empty()) {
        // Of the same step, which the reference is: its masks are those of step 0.
        program.set_steps(0);
        let trace = program.step_traced()?;
        assert_eq!(trace.allocations, [], "{label}");
    }
    let overwritten = overwritten(graph, &plan);
    let mut known: BTreeMap<ValueId, Array> = BTreeMap::new();
    for id in graph.order() {
        let op = graph.op(id);
        let line = || format!("{label}: {}", OpDisplay(graph, id));
        if let Op::Param(param) = &op.kind {
            let numbers = &values[&op.results[0]].data;
            let rounded = decode(
                param.ty.dtype,
                &encode(param.ty.dtype, numbers.iter().copied()),
            );
            known.insert(op.results[0], Array::new(&param.ty, rounded).unwrap());
            continue;
        }
        let operands: Vec<&Array> = op.operands.iter().map(|v| &known[v]).collect();
        let types: Vec<_> = op.results.iter().map(|v| graph.ty(*v)).collect();
        let found: Vec<Array> = op
            .results
            .iter()
            .zip(&types)
            .map(|(value, ty)| {
                let bytes = program.value(*value).unwrap();
                Array::new(ty, decode(ty.dtype, &bytes)).unwrap()
            })
            .collect();
        let view = !matches!(op.kind, Op::Constant(_)) && plan.storages().is_view(op);
        let view = view || op.results.iter().any(|value| overwritten.contains(value));
        match reference::eval(&op.kind, &operands, &types) {
            // A view of a parameter may have been updated since, part of a value overwritten.
            Ok(expected) if view => known.extend(op.results.iter().copied().zip(expected)),
            Ok(expected) => {
                for (expected, found) in expected.iter().zip(&found) {
                    reference::compare(expected, found, &op.kind, &operands)
                        .unwrap_or_else(|e| panic!("{}: {e}\n of {operands:?}", line()));
                }
                known.extend(op.results.iter().copied().zip(found));
            }
            Err(error) => panic!("{}: {error}", line()),
        }
    }
    Ok(())
}

/// Values in storages of which a result is written over a part, but for the last of these, which stays.
fn overwritten(graph: &Graph, plan: &Plan) -> BTreeSet<ValueId> {
    let storages = plan.storages();
    let of = |value: &ValueId| storages.alias(*value).unwrap().storage;
    let mut last: BTreeMap<StorageId, ValueId> = BTreeMap::new();
    for op in plan.schedule().ops().iter().map(|id| graph.op(*id)) {
        if storages.is_view(op) || !op.kind.updates().is_empty() {
            continue;
        }
        for value in &op.results {
            let storage = storages.get(of(value));
            if storage.root != *value && !storage.joined.contains(value) {
                last.insert(of(value), *value);
            }
        }
    }
    let values = graph.ops().flat_map(|op| op.results.iter().copied());
    let gone = values.filter(|value| last.get(&of(value)).is_some_and(|last| last != value));
    gone.collect()
}

/// Runs two steps with and without the arena: the same bits, and nothing allocated in the second.
fn check_arena(graph: &Arc<Graph>, values: &arena::Values, label: &str) -> Result<(), ExecError> {
    let plan = plan(graph).unwrap();
    let mut programs = Vec::new();
    for mode in [Mode::Arena, Mode::Separate] {
        let mut program = compile(graph, &plan, mode)?;
        feed(&mut program, graph, values);
        program.step()?;
        let trace = program.step_traced()?;
        assert_eq!(trace.allocations, [], "{label}");
        programs.push(program);
    }
    let (arena, separate) = (&programs[0], &programs[1]);
    assert_eq!(arena.memory_bytes(), plan.arena_bytes());
    assert_eq!(arena.allocations(), 1);
    for name in arena.outputs() {
        assert_eq!(
            arena.output(name)?,
            separate.output(name)?,
            "{label} {name}"
        );
    }
    for name in arena.params() {
        assert_eq!(arena.param(name)?, separate.param(name)?, "{label} {name}");
    }
    Ok(())
}

/// A case's values by parameter. The gradient of an attention reads what the attention gave for its other operands.
fn values(case: &case::Case) -> arena::Values {
    let params = case.graph.params().map(|(value, param)| {
        let name: &str = &param.name;
        (value, case.values[name].clone())
    });
    let mut values: arena::Values = params.collect();
    for op in case.graph.ops() {
        if let Op::AttentionGrad(grad) = &op.kind {
            let operands = [1, 2, 3, 6, 7]
                .iter()
                .filter_map(|slot| op.operands.get(*slot));
            let operands: Vec<&Array> = operands.map(|value| &values[value]).collect();
            let given = [op.operands[4], op.operands[5]];
            let types = given.map(|value| case.graph.ty(value));
            let arrays = reference::eval(&grad.of.into(), &operands, &types).unwrap();
            values.extend(given.into_iter().zip(arrays));
        }
    }
    values
}

/// Beside the common cases: biases that leave a row nothing to see, and gradients that draw a dropout again, which no file
/// can hold without the dropout itself.
const MORE: &[(&str, &[&str])] = &[
    (
        "attention",
        &[
            "T[2,2,3,2], T[2,2,2,2], T[2,2,2,2], T[2,1,3,2]=(-inf,-inf,-inf,1,0,-inf,-3e38,-3e38,0,0,-3e38,1) {scale=1.0}",
            "T[2,1,2,2], T[2,1,2,2], T[2,1,2,2], bool[2]=(0,1), T[2,2]=(-inf,-3e38,-3e38,1) {scale=1.0, causal}",
        ],
    ),
    (
        "attention_grad",
        &[
            "T[2,3,2,2], T[2,2,3,2], T[2,2,2,2], T[2,2,2,2], T[2,3,2,2], f32[2,2,3], T[2,1,3,2]=(-inf,-inf,-inf,1,0,-inf,-3e38,-3e38,0,0,-3e38,1) {scale=1.0, bias}",
            "T[2,3,4,2], T[2,4,3,2], T[2,2,4,2], T[2,2,4,2], T[2,3,4,2], f32[2,4,3] {scale=0.5, dropout=0.25, seed=3}",
            "T[1,5,4,4], T[1,4,5,4], T[1,2,5,4], T[1,2,5,4], T[1,5,4,4], f32[1,4,5] {scale=0.5, causal, dropout=0.5, seed=4}",
            "T[2,2,1,2], T[2,1,2,2], T[2,1,2,2], T[2,1,2,2], T[2,2,1,2], f32[2,1,2], bool[2]=(0,1), T[2,2]=(-inf,-3e38,-3e38,1) {scale=1.0, causal, bias}",
        ],
    ),
];

#[test]
fn kernels_compute_what_the_reference_computes() {
    for (name, texts) in cases::CASES.iter().chain(MORE) {
        for case in texts.iter().flat_map(|text| case::cases(name, text)) {
            let label = &case.label;
            // The reference stops at zero, unsigned kernels wrap around.
            if ["neg u8", "sub u8"].iter().any(|w| label.starts_with(w)) {
                continue;
            }
            let values = values(&case);
            let runs = match check(&Arc::new(case.graph), &values, label) {
                Ok(()) => true,
                Err(ExecError::Unsupported { .. }) => false,
                Err(error) => panic!("{label}: {error}"),
            };
            // libtorch has names for these types, and next to no kernels.
            let unsigned = ["u16", "u32", "u64"].iter().any(|ty| label.contains(ty));
            // Their results are copies by bytes or views, if not constants.
            let moved = ["constant", "reshape", "expand", "transpose", "slice"];
            if !moved.contains(name) {
                assert_eq!(runs, !unsigned && *name != "onnx", "{label}");
            }
        }
    }
}

/// Nothing is a size like any other.
const EMPTY: &[(&str, &str)] = &[
    ("neg", "f32[0,3]"),
    ("add", "f32[0,3], f32[3]"),
    ("softmax", "f32[0,3] {axis=1}"),
    ("softmax", "f32[2,0] {axis=1}"),
    ("log_softmax_grad", "f32[2,0], f32[2,0] {axis=0}"),
    ("reduce_sum", "f32[2,0] {axes=[1]}"),
    ("reduce_mean", "f32[0,2] {axes=[1]}"),
    ("reduce_max", "f32[2,0] {axes=[1]}"),
    ("cumsum", "f32[0,2] {axis=0, exclusive}"),
    ("matmul", "f32[2,0], f32[0,3]"),
    ("matmul", "f32[2,0], f32[0,3], f32[2,3] {alpha=2.0}"),
    ("matmul", "f32[0,2,3], f32[3,2]"),
    ("matmul", "f32[2,1,0,3], f32[2,3,2]"),
    ("gather", "f32[4,3], i64[0] {axis=0}"),
    ("gather", "f32[4,0], i64[2]=(1,0) {axis=0}"),
    ("gather_grad", "i64[0], f32[0,2] {shape=[4,2]}"),
    ("gather_elements", "f32[3,3], i64[0,3] {axis=0}"),
    ("gather_nd", "f32[3,4], i64[0,2]"),
    ("gather_nd", "f32[3,4], i64[2,0]"),
    (
        "scatter_elements",
        "f32[3,3], i64[0,3], f32[0,3] {axis=0, add}",
    ),
    ("scatter_nd", "f32[4,2], i64[0,1], f32[0,2]"),
    ("concat", "f32[0,3], f32[2,3] {axis=0}"),
    ("pad", "f32[0,2] {before=[1,0], after=[1,0], value=0.5}"),
    ("layer_norm", "f32[0,4], f32[4], f32[4] {axis=1, eps=0.5}"),
    (
        "layer_norm_grad",
        "f32[0,4], f32[0,4], f32[4], f32[0,1], f32[0,1] {axis=1, weights}",
    ),
    (
        "attention",
        "f32[2,2,3,4], f32[2,2,0,4], f32[2,2,0,4], bool[1]=(1) {scale=0.5}",
    ),
    (
        "attention",
        "f32[0,2,3,4], f32[0,2,3,4], f32[0,2,3,4] {scale=0.5, causal}",
    ),
    (
        "attention_grad",
        "f32[2,0,2,4], f32[2,2,0,4], f32[2,2,3,4], f32[2,2,3,4], f32[2,0,2,4], f32[2,2,0] {scale=0.5}",
    ),
    ("rms_norm", "f32[0,4], f32[4] {axis=1, eps=0.5}"),
    (
        "rms_norm_grad",
        "f32[0,4], f32[0,4], f32[4], f32[0,1] {axis=1, weight}",
    ),
    ("gated", "f32[0,3], f32[0,3] {act=silu}"),
    ("gated_grad", "f32[0,3], f32[0,3], f32[0,3] {act=gelu}"),
    ("rotary", "f32[0,2,4], f32[2,2], f32[2,2]"),
    ("rotary", "f32[2,0], f32[2,0], f32[0] {interleaved}"),
    ("cross_entropy_grad", "f32[], f32[0,3], i64[0]"),
    (
        "linear_cross_entropy_grad",
        "f32[0,2], f32[2,3], i64[0] {weight}",
    ),
    ("dropout", "f32[0,3] {ratio=0.25, seed=3}"),
    ("accumulate", "f32[0,2], bf16[0,2], f32[], f32[]"),
    (
        "adamw",
        "f32[0], bf16[0], f32[0], f32[0], i64[]=(3), +f32[] {form=peft}",
    ),
    ("adamw", "f32[0], f32[0], f32[0], f32[0], i64[]=(3), +f32[]"),
];

#[test]
fn kernels_take_nothing() {
    for (name, text) in EMPTY {
        for case in case::cases(name, text) {
            let params = case.graph.params().map(|(value, param)| {
                let name: &str = &param.name;
                (value, case.values[name].clone())
            });
            let values: arena::Values = params.collect();
            let done = check(&Arc::new(case.graph), &values, &case.label);
            done.unwrap_or_else(|error| panic!("{}: {error}", case.label));
        }
    }
}

/// Random steps. libtorch refuses labels of classes that there are not, where the reference finds no hit: those are left
/// out.
fn random_steps() -> impl Iterator<Item = (String, Arc<Graph>, arena::Values)> {
    (0..300).map(|seed| {
        let (graph, values) = steps::step(seed, 40);
        (format!("seed {seed}"), Arc::new(graph), values)
    })
}

fn is_bad_label(error: &ExecError) -> bool {
    matches!(error, ExecError::Torch { line, .. } if line.contains("cross_entropy"))
}

#[test]
fn random_steps_compute_what_the_reference_computes() {
    let mut done = 0;
    for (label, graph, values) in random_steps() {
        match check(&graph, &values, &label) {
            Ok(()) => done += 1,
            Err(error) => assert!(is_bad_label(&error), "{label}: {error}"),
        }
    }
    assert!(done > 200, "{done}");
}

#[test]
fn random_steps_run_alike_in_their_arenas_and_allocate_nothing() {
    let mut done = 0;
    for (label, graph, values) in random_steps() {
        match check_arena(&graph, &values, &label) {
            Ok(()) => done += 1,
            Err(error) => assert!(is_bad_label(&error), "{label}: {error}"),
        }
    }
    assert!(done > 200, "{done}");
}

/// Gradients of more than one block, in order and askew.
#[test]
fn large_gradients_are_accumulated_in_blocks() {
    let text = "graph @large {
        param %g : bf16[331,401] input
        param %keep : f32[] input
        param %weight : f32[] input
        param %a : f32[331,401] optstate
        param %b : f32[401,331] optstate
        v0 = accumulate %a, %g, %keep, %weight : f32[331,401]
        v1 = transpose %g {perm=[1,0]} : bf16[401,331]
        v2 = accumulate %b, v1, %keep, %weight : f32[401,331]
        out \"a\" = v0 updated %a
        out \"b\" = v2 updated %b
      }";
    let graph = Arc::new(lorafa_ir::text::parse(text).unwrap());
    let mut rng = rng::Rng(7);
    let values = graph.params().map(|(value, param)| {
        let number = |_: &[usize]| 0.25 + rng.below(64) as f64 / 32.0;
        (value, Array::from_fn(&param.ty, number).unwrap())
    });
    let values: arena::Values = values.collect();
    check(&graph, &values, "large").unwrap();
    check_arena(&graph, &values, "large").unwrap();
}

/// Where one number comes of many, and where what is read is askew.
#[test]
fn large_reductions_allocate_nothing() {
    let text = "graph @large {
        param %x : f32[300,211] input
        param %i : i64[70001] input
        v0 = reduce_sum %x {axes=[0,1]} : f32[]
        v1 = reduce_mean %x {axes=[0,1], keep_dims} : f32[1,1]
        v2 = reduce_max %x {axes=[0,1]} : f32[]
        v3 = transpose %x {perm=[1,0]} : f32[211,300]
        v4 = slice v3 {axes=[1:0:150:2]} : f32[211,150]
        v5 = reduce_sum v4 {axes=[0,1]} : f32[]
        v6 = reduce_sum %i {axes=[0]} : i64[]
        v7 = cast %x {to=bf16} : bf16[300,211]
        v8 = transpose v7 {perm=[1,0]} : bf16[211,300]
        v9 = reduce_sum v8 {axes=[0]} : bf16[300]
        v10 = reduce_mean v8 {axes=[0,1]} : bf16[]
        v11 = softmax v3 {axis=0} : f32[211,300]
        v12 = cumsum v3 {axis=1} : f32[211,300]
        v13 = add v3, v11 : f32[211,300]
        v14 = reshape v3 {shape=[63300]} : f32[63300]
        out \"y\" = v0
      }";
    reduces_as_the_reference(text);
}

/// Rows and columns of more numbers than come to one in a step, in order and askew.
#[test]
fn long_reductions_leave_parts_in_scratch() {
    let text = "graph @long {
        param %columns : f32[70000,3] input
        param %rows : f32[3,70000] input
        param %x : f32[20,3,30] input
        param %i : i64[600,2] input
        v0 = reduce_sum %columns {axes=[0]} : f32[3]
        v1 = reduce_max %columns {axes=[0], keep_dims} : f32[1,3]
        v2 = reduce_mean %rows {axes=[1]} : f32[3]
        v3 = transpose %rows {perm=[1,0]} : f32[70000,3]
        v4 = reduce_sum v3 {axes=[0]} : f32[3]
        v5 = transpose %columns {perm=[1,0]} : f32[3,70000]
        v6 = reduce_max v5 {axes=[1]} : f32[3]
        v7 = reduce_sum %x {axes=[0,2]} : f32[3]
        v8 = reduce_max %x {axes=[0,2], keep_dims} : f32[1,3,1]
        v9 = transpose %x {perm=[2,0,1]} : f32[30,20,3]
        v10 = reduce_sum v9 {axes=[0,1]} : f32[3]
        v11 = reshape %columns {shape=[2,350,300]} : f32[2,350,300]
        v12 = reduce_mean v11 {axes=[1]} : f32[2,300]
        v13 = slice v11 {axes=[1:0:300:1]} : f32[2,300,300]
        v14 = reduce_sum v13 {axes=[0,1], keep_dims} : f32[1,1,300]
        v15 = cast v9 {to=bf16} : bf16[30,20,3]
        v16 = transpose v15 {perm=[1,0,2]} : bf16[20,30,3]
        v17 = reduce_sum v16 {axes=[0,1]} : bf16[3]
        v18 = reduce_max v16 {axes=[0,1]} : bf16[3]
        v19 = reduce_sum %i {axes=[0]} : i64[2]
        v20 = reduce_mean %i {axes=[0]} : i64[2]
        out \"y\" = v0
      }";
    reduces_as_the_reference(text);
}

fn reduces_as_the_reference(text: &str) {
    let graph = Arc::new(lorafa_ir::text::parse(text).unwrap());
    let mut rng = rng::Rng(7);
    let values = graph.params().map(|(value, param)| {
        let number = |_: &[usize]| rng.below(64) as f64 / 16.0 - 2.0;
        (value, Array::from_fn(&param.ty, number).unwrap())
    });
    let mut values: arena::Values = values.collect();
    for array in values.values_mut() {
        for x in &mut array.data {
            *x = array.dtype.round(*x);
        }
    }
    check(&graph, &values, "large").unwrap();
    check_arena(&graph, &values, "large").unwrap();
}

/// Attention whose scores do not fit one block, and of more sequences than are taken together, against the ops that it
/// decomposes into.
#[test]
fn blocks_of_attention_make_the_whole() {
    let (long, some, many) = ([1, 1700, 1500], [5, 500, 480], [5, 350, 340]);
    for (sizes, attrs) in [
        (long, "scale=0.25"),
        (long, "causal, scale=0.25"),
        (long, "causal, scale=0.25, window=700"),
        (long, "causal, scale=0.25, window=1800"),
        (some, "causal, scale=0.25"),
        (many, "scale=0.25"),
        (many, "causal, scale=0.25, window=30"),
        (long, "causal, scale=0.25, window=700, dropout=0.25, seed=3"),
        (many, "scale=0.25, dropout=0.1, seed=4"),
    ] {
        let [b, rows, keys] = sizes;
        let text = format!(
            "graph @blocks {{
                param %x : f32[{b},{rows},4,4] input
                param %y : f32[{b},{keys},2,4] input
                param %seen : bool[{keys}] input
                param %bias : f32[4,1,{keys}] input
                param %dy : f32[{b},{rows},4,4] input
                v0 = transpose %x {{perm=[0,2,1,3]}} : f32[{b},4,{rows},4]
                v1 = transpose %y {{perm=[0,2,1,3]}} : f32[{b},2,{keys},4]
                v2, v3 = attention v0, v1, v1, %seen, %bias {{{attrs}}} : f32[{b},{rows},4,4], f32[{b},4,{rows}]
                v4, v5, v6, v7 = attention_grad %dy, v0, v1, v1, v2, v3, %seen, %bias {{bias, {attrs}}} : f32[{b},{rows},4,4], f32[{b},{keys},2,4], f32[{b},{keys},2,4], f32[4,1,{keys}]
                out \"out\" = v2
                out \"dq\" = v4
                out \"dk\" = v5
                out \"dv\" = v6
                out \"dbias\" = v7
              }}"
        );
        let fused = lorafa_ir::text::parse(&text).unwrap();
        let mut spelled = fused.clone();
        decompose::decompose(&mut spelled);
        let mut rng = rng::Rng(11);
        let values = fused.params().map(|(value, param)| {
            let seen = param.ty.dtype == lorafa_ir::DType::Bool;
            let number = |_: &[usize]| match seen {
                true => f64::from(u8::from(rng.below(5) > 0)),
                false => rng.below(64) as f64 / 32.0 - 1.0,
            };
            (value, Array::from_fn(&param.ty, number).unwrap())
        });
        let values: arena::Values = values.collect();
        let results = [fused, spelled].map(|graph| {
            let graph = Arc::new(graph);
            let plan = plan(&graph).unwrap();
            let mut program = compile(&graph, &plan, Mode::Arena).unwrap();
            feed(&mut program, &graph, &values);
            program.step().unwrap();
            let outputs = ["out", "dq", "dk", "dv", "dbias"].map(|name| {
                let (ty, bytes) = program.output(name).unwrap();
                decode(ty.dtype, &bytes)
            });
            (outputs, program.step_traced().unwrap().allocations)
        });
        let [(fused, allocations), (spelled, _)] = results;
        assert_eq!(allocations, [], "{attrs}");
        for (fused, spelled) in fused.iter().zip(&spelled) {
            let most = spelled.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
            let pairs = fused.iter().zip(spelled);
            let off = pairs.fold(0.0, |most: f64, (a, b)| most.max((a - b).abs()));
            assert!(
                most > 1e-4 && off <= 3e-5 * most,
                "{attrs}: {off} of {most}"
            );
        }
    }
}
