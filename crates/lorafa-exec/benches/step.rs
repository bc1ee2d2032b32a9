//! A step in its arena against the same kernels with an allocation for every buffer.
//!
//! `cargo bench -p lorafa-exec --features torch` runs an example with LoRA-FA; `LORAFA_BENCH_MODEL` names another file,
//! `LORAFA_BENCH_BATCH` and `LORAFA_BENCH_SEQ` its sizes. Both programs run in turn, so that a slower moment of the
//! machine hits both. Weights are random.

use lorafa_exec::{Mode, OpenDevice, Program};
use lorafa_ir::Bindings;
use lorafa_ir::ops::Role;
use lorafa_onnx::external::ExternalStore;
use lorafa_onnx::file::ModelFile;
use lorafa_onnx::import::import;
use lorafa_passes::pass::{Method, Options};
use lorafa_passes::{Manager, PassCx};
use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

const ROUNDS: usize = 15;
const EXAMPLE: &str = "../../examples/llama-tiny-lora-r4-dynamo-noopt-sdpa-fp32-eval-loss-dyn.onnx";

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::var_os("LORAFA_BENCH_MODEL").map(PathBuf::from);
    let path = path.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(EXAMPLE));
    let (batch, seq) = (
        size("LORAFA_BENCH_BATCH", 4)?,
        size("LORAFA_BENCH_SEQ", 32)?,
    );
    let file = ModelFile::open(&path)?;
    let mut graph = import(&file)?;
    let mut bindings = Bindings::new();
    for (_, param) in graph.params().filter(|(_, p)| p.role == Role::Input) {
        for (axis, dim) in param.ty.shape.iter().enumerate() {
            if let Some(symbol) = dim.as_symbol() {
                bindings.insert(symbol.clone(), if axis == 0 { batch } else { seq });
            }
        }
    }
    let mut cx = PassCx::new(Options {
        method: Method::LoraFa,
        bindings,
        ..Options::default()
    });
    Manager::new().build(&mut graph, &mut cx)?;
    let graph = Arc::new(graph);
    let plan = lorafa_plan::plan(&graph)?;
    let store = ExternalStore::new(file.folder());
    let mut programs = Vec::new();
    for (name, mode) in [("arena", Mode::Arena), ("separate", Mode::Separate)] {
        let mut program = Program::compile(graph.clone(), &plan, mode, OpenDevice::CPU)?;
        program.load_random(&store, 0)?;
        for (_, param) in graph.params().filter(|(_, p)| p.name.contains("mask")) {
            let ones = vec![1.0; param.ty.elements().unwrap_or(0) as usize];
            let bytes = lorafa_onnx::dtype::encode(param.ty.dtype, ones);
            program.write(&param.name, &bytes)?;
        }
        program.write("optim::step", &1i64.to_le_bytes())?;
        program.step()?;
        programs.push((name, program, Vec::new()));
    }
    for _ in 0..ROUNDS {
        for (_, program, times) in &mut programs {
            let start = Instant::now();
            program.step()?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    println!("{} · batch {batch} · seq {seq}", path.display());
    for (name, program, times) in &mut programs {
        times.sort_by(f64::total_cmp);
        let (calls, bytes) = (program.calls(), program.memory_bytes());
        println!(
            "{name:>9}: {:.3} ms median, {:.3} to {:.3}; {calls} calls, {bytes} B in {} allocations",
            times[ROUNDS / 2],
            times[0],
            times[ROUNDS - 1],
            program.allocations(),
        );
    }
    if let Some((_, program, _)) = programs.first_mut() {
        // The fastest that each call ever was.
        let mut calls = program.step_timed()?;
        for _ in 1..ROUNDS {
            for ((_, best), (_, time)) in calls.iter_mut().zip(program.step_timed()?) {
                *best = time.min(*best);
            }
        }
        let mut kinds: BTreeMap<&str, (Duration, usize)> = BTreeMap::new();
        for (op, time) in calls {
            let (total, calls) = kinds.entry(graph.op(op).kind.name()).or_default();
            *total += time;
            *calls += 1;
        }
        let mut kinds: Vec<_> = kinds.into_iter().collect();
        kinds.sort_by_key(|(_, (time, _))| std::cmp::Reverse(*time));
        for (kind, (time, calls)) in kinds.iter().take(14) {
            println!(
                "{:>9.3} ms in {calls:>4} calls of {kind}",
                time.as_secs_f64() * 1e3
            );
        }
    }
    Ok(())
}

fn size(name: &str, default: i64) -> Result<i64, Box<dyn Error>> {
    match std::env::var(name) {
        Ok(text) => Ok(text.parse()?),
        Err(_) => Ok(default),
    }
}
