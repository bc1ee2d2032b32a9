//! A step takes the memory that was planned, at the first step and the thousandth.

use crate::models::{self, METHODS, compiled, compiled_with};
use crate::numbers::Tensors;
use crate::{output, start};

use lorafa_exec::{Allocation, ExecError, Mode, Trace};
use lorafa_ir::DType;
use lorafa_onnx::dtype::encode;
use lorafa_passes::pass::{Method, Options};
use std::sync::Arc;

/// Every example, in its own element types, in f32 and in bf16, there with packed products, too: the peak of the second step is the plan's to the byte.
#[test]
fn steps_take_what_was_planned() {
    let mut done = 0;
    for model in models::all() {
        for method in METHODS {
            let mut answers = model.any_answers(method);
            // Their weights are in f32, whatever the step's are in.
            answers.retain(|name, _| name.starts_with("input::"));
            for (dtype, pack_frozen) in [
                (None, false),
                (Some(DType::F32), false),
                (Some(DType::BF16), false),
                (Some(DType::BF16), true),
            ] {
                let sizes = models::bindings(&model, &answers);
                let options = Options {
                    dtype,
                    pack_frozen,
                    ..models::options(&model, method, sizes)
                };
                let graph = Arc::new(compiled_with(&model, options));
                let label = format!("{} {} {dtype:?} {pack_frozen}", model.name, method.name());
                let mut program = start(&model, &graph, &answers, Mode::Arena);
                let plan = lorafa_plan::plan(&graph).unwrap();
                let stepped = program.step();
                stepped.unwrap_or_else(|error| panic!("{label}: {error}"));
                let trace = program.step_traced().unwrap();
                let checked = trace.check();
                checked.unwrap_or_else(|error| panic!("{label}: {error}"));
                assert_eq!(trace.measured, plan.arena_bytes(), "{label}");
                assert_eq!(trace.planned, plan.arena_bytes(), "{label}");
                done += 1;
            }
        }
    }
    assert!(done >= 200, "{done}");
}

/// Sizes at which kernels work in parallel and in blocks, in all float types that models are trained in.
#[test]
fn large_steps_take_what_was_planned() {
    let mut done = 0;
    for model in models::all() {
        let lora = model.name.contains("lora") && model.is_comparable();
        if !lora || model.name.contains("-ts-") {
            continue;
        }
        for (dtype, method) in [
            (DType::F32, Method::Full),
            (DType::BF16, Method::Full),
            (DType::F16, Method::Full),
            (DType::BF16, Method::LoraFa),
        ] {
            let sizes = models::sizes(&model, 24, 30);
            let options = Options {
                dtype: Some(dtype),
                pack_frozen: method == Method::LoraFa,
                ..models::options(&model, method, sizes)
            };
            let graph = Arc::new(compiled_with(&model, options));
            let label = format!("{} {} {dtype}", model.name, method.name());
            let mut program = start(&model, &graph, &Tensors::new(), Mode::Arena);
            for (_, param) in graph.params().filter(|(_, p)| p.name.contains("mask")) {
                let ones = vec![1.0; param.ty.elements().unwrap() as usize];
                let bytes = encode(param.ty.dtype, ones);
                program.write(&param.name, &bytes).unwrap();
            }
            let stepped = program.step();
            stepped.unwrap_or_else(|error| panic!("{label}: {error}"));
            let trace = program.step_traced().unwrap();
            let checked = trace.check();
            checked.unwrap_or_else(|error| panic!("{label}: {error}"));
            let loss = output(&program, &graph.loss().unwrap().name)[0];
            assert!(loss.is_finite(), "{label}: {loss}");
            done += 1;
        }
    }
    assert!(done >= 20, "{done}");
}

/// Steps whose backward pass others wrote, too.
#[test]
fn steps_of_training_graphs_take_what_was_planned() {
    let ort = models::ort().into_iter().map(|(model, _)| model);
    for model in models::joint().into_iter().chain(ort) {
        for method in model.methods() {
            let answers = model.answers(*method).unwrap();
            let graph = Arc::new(compiled(&model, *method, &answers));
            let label = format!("{} {}", model.name, method.name());
            let mut program = start(&model, &graph, &answers, Mode::Arena);
            program.step().unwrap();
            let trace = program.step_traced().unwrap();
            let checked = trace.check();
            checked.unwrap_or_else(|error| panic!("{label}: {error}"));
            let planned = lorafa_plan::plan(&graph).unwrap().arena_bytes();
            assert_eq!(
                (trace.measured, trace.planned),
                (planned, planned),
                "{label}"
            );
        }
    }
}

#[test]
fn what_was_not_planned_is_named_with_its_size() {
    let allocation = |line: &str, bytes| Allocation {
        line: line.into(),
        bytes: 2 * bytes,
        peak: bytes,
        count: 2,
    };
    let trace = Trace {
        planned: 1000,
        measured: 1320,
        allocations: vec![
            allocation("v1 = neg v0", 64),
            allocation("v2 = exp v1", 320),
        ],
    };
    let error = trace.check().unwrap_err();
    assert!(matches!(
        error,
        ExecError::Memory {
            planned: 1000,
            measured: 1320,
            ..
        }
    ));
    assert_eq!(
        error.to_string(),
        "the plan's peak is 1000 B, the step's 1320 B: `v2 = exp v1` takes 320 B in 2 allocations beside the plan"
    );
}

/// Resident bytes of the process.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = text.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// Other tests of the process allocate meanwhile, so it runs as a process of its own.
#[test]
fn a_thousand_steps_do_not_grow() {
    const ALONE: &str = "LORAFA_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "memory::a_thousand_steps_do_not_grow"]);
        // Threads that wait for each other in so small a step take longer than the step.
        command.env(ALONE, "1").env("OMP_NUM_THREADS", "1");
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}");
        assert!(text.contains("1 passed"), "{text}");
        return;
    }
    let models = models::all();
    let model = models
        .iter()
        .find(|m| m.family() == "llama" && m.is_comparable());
    let model = model.unwrap();
    let answers = model.any_answers(Method::LoraFa);
    let graph = Arc::new(crate::models::compiled(model, Method::LoraFa, &answers));
    let mut program = start(model, &graph, &answers, Mode::Arena);
    let mut warm = 0;
    for step in 1..=1000i64 {
        program.write("optim::step", &step.to_le_bytes()).unwrap();
        if step % 100 == 2 {
            program.step_traced().unwrap().check().unwrap();
        } else {
            program.step().unwrap();
        }
        assert!(output(&program, &graph.loss().unwrap().name)[0].is_finite());
        if step == 100 {
            warm = resident();
        }
    }
    let grown = resident().saturating_sub(warm);
    assert!(grown <= 1 << 20, "{grown} B more after 900 steps");
}
