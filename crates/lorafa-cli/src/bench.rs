//! `lorafa-opt bench`: what a step really takes, beside what was planned.

use crate::args::BenchArgs;
use crate::artifacts;
use crate::compile::{self, Single};
use crate::error::Error;
use crate::train::task;
use crate::units::{bytes, count};
use crate::{file_name, machine, output, weights};
use lorafa_data::Spec;
use lorafa_exec::{Mode, OpenDevice, Peaks, Program};
use lorafa_ir::Graph;
use lorafa_onnx::external::ExternalStore;
use lorafa_passes::attach_optimizer::OptimizerKind;
use lorafa_train::update::update;
use lorafa_train::{Check, inputs};
use serde::Serialize;
use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

/// The learning rate: large enough to change parameters in bf16.
const LR: f64 = 1e-3;

/// What was planned and measured. `bench/README.md` says what each field means; the other side of the comparison there
/// prints the same ones.
#[derive(Debug, Serialize)]
struct Figures {
    tool: &'static str,
    version: &'static str,
    model: String,
    method: &'static str,
    optimizer: &'static str,
    dtype: Option<String>,
    adapter_dtype: Option<String>,
    batch: u64,
    seq: u64,
    rank: Option<u64>,
    device: String,
    device_name: String,
    steps: u64,
    warmup: u64,
    attention: &'static str,
    memory: Memory,
    /// What follows is null where the step does not fit.
    step_seconds: Option<Seconds>,
    tokens_per_second: Option<f64>,
    flops_per_second: Option<f64>,
    loss: Option<Losses>,
    trained_parameters: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'static str>,
}

/// In bytes.
#[derive(Debug, Serialize)]
struct Memory {
    /// Of the arena, and on a GPU of cuBLAS's workspace.
    planned_peak: u64,
    /// What was in use on a GPU before.
    device_before: Option<u64>,
    allocated_peak: Option<u64>,
    reserved_peak: Option<u64>,
    device_peak: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Seconds {
    median: f64,
    min: f64,
    max: f64,
    p10: f64,
    p90: f64,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Losses {
    first: f64,
    last: f64,
}

/// What running steps shows.
struct Measured {
    seconds: Seconds,
    losses: Losses,
    /// Most bytes at once, of the arena and beside it, in one step.
    traced: u64,
    peaks: Peaks,
}

/// Runs steps and says what they took. With `--json`, a step that does not fit is a result, too.
///
/// # Errors
///
/// [`Error`].
pub fn bench(args: &BenchArgs, out: &mut dyn Write) -> Result<(), Error> {
    let opened = artifacts::open(&args.model, &args.training)?;
    let (model, training) = (&opened.model, &opened.training);
    let mut single = compile::single(model, training)?;
    let spec = inputs::spec(&single.step.graph, single.loss.map(task))?;
    let store = ExternalStore::new(model.folder());
    if !args.random_weights {
        let checkpoint = opened.checkpoint.as_deref();
        weights::bind(
            &mut single.step.graph,
            &args.machine.weights,
            checkpoint,
            &store,
        )?;
    }
    let device = machine::open(&args.machine.device)?;
    let fits = machine::check_fits(&args.machine, device, model, training, &single);
    let measured = match fits.and_then(|()| measure(args, &single, &spec, &store, device)) {
        Err(error) if error.is_out_of_memory() && args.json.is_some() => None,
        measured => Some(measured?),
    };

    let (graph, plan) = (&single.step.graph, &single.step.plan);
    let seq = single.dims.seq.map_or(1, i64::unsigned_abs);
    let micro_batches = u64::from(args.training.optimizer.accumulate);
    let tokens = spec.batch * seq * micro_batches;
    let rate = |amount: u64| {
        let seconds = measured.as_ref()?.seconds.median;
        Some(amount as f64 / seconds)
    };
    let figures = Figures {
        tool: "lorafa-opt",
        version: env!("CARGO_PKG_VERSION"),
        model: file_name(&args.model),
        method: single.step.method.name(),
        optimizer: OptimizerKind::from(training.optimizer.kind()).name(),
        dtype: compile::dtype(graph),
        adapter_dtype: adapter_dtype(graph),
        batch: spec.batch,
        seq,
        rank: graph.adapters().iter().map(|adapter| adapter.rank).max(),
        device: device.device().to_string(),
        device_name: device.name(),
        steps: args.steps,
        warmup: args.warmup,
        attention: "as in the graph",
        memory: Memory {
            planned_peak: plan.arena_bytes() + device.workspace(),
            device_before: device.before(),
            allocated_peak: measured
                .as_ref()
                .map(|m| m.peaks.allocated.unwrap_or(m.traced)),
            reserved_peak: measured.as_ref().and_then(|m| m.peaks.reserved),
            device_peak: measured.as_ref().map(|m| m.peaks.device),
        },
        tokens_per_second: rate(tokens),
        flops_per_second: rate(flops(graph) * micro_batches),
        trained_parameters: measured
            .is_some()
            .then(|| plan.report(graph, 0).trainable_params),
        error: measured.is_none().then_some("out of memory"),
        loss: measured.as_ref().map(|m| m.losses),
        step_seconds: measured.map(|m| m.seconds),
    };
    output::figures(args.json.as_deref(), &figures, &text(&figures), out)
}

fn measure(
    args: &BenchArgs,
    single: &Single,
    spec: &Spec,
    store: &ExternalStore,
    device: OpenDevice,
) -> Result<Measured, Error> {
    let graph = Arc::new(single.step.graph.clone());
    let mut program = Program::compile(graph.clone(), &single.step.plan, Mode::Arena, device)?;
    if args.random_weights {
        program.load_random(store, 0)?;
    } else {
        program.load(store)?;
    }
    lorafa_exec::write_inverses(&mut program)?;
    for (name, column) in inputs::synthetic(spec) {
        let (ty, _) = program.param(&name)?;
        program.write(&name, &inputs::encode(&ty, &column))?;
    }
    let micro_batches = args.training.optimizer.accumulate;
    let shares = vec![1.0 / f64::from(micro_batches); micro_batches as usize];
    // A trace takes time: memory is looked at in a step of its own.
    let check = match args.machine.check() {
        Check::Memory => Check::Nothing,
        check => check,
    };
    let (mut losses, mut seconds) = (Vec::new(), Vec::new());
    for step in 0..args.warmup + args.steps {
        let start = Instant::now();
        let at = (step + 1, LR);
        losses.push(update(&mut program, &graph, at, &shares, check, |_, _| {
            Ok(())
        })?);
        // The update has to be over, too, not only the loss.
        device.synchronize()?;
        if step >= args.warmup {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    // One more on the CPU, where libtorch keeps no book of peaks.
    let mut traced = single.step.plan.arena_bytes();
    if device == OpenDevice::CPU || args.machine.check_memory {
        let trace = program.step_traced()?;
        traced = trace.measured;
        if args.machine.check_memory {
            trace.check()?;
        }
    }
    Ok(Measured {
        seconds: spread(seconds),
        losses: Losses {
            first: losses.first().copied().unwrap_or(f64::NAN),
            last: losses.last().copied().unwrap_or(f64::NAN),
        },
        traced,
        peaks: device.peaks()?,
    })
}

/// Order statistics of measured times, interpolated between the two nearest.
fn spread(mut seconds: Vec<f64>) -> Seconds {
    seconds.sort_by(f64::total_cmp);
    let last = seconds.len().saturating_sub(1);
    let at = |share: f64| {
        let position = share * last as f64;
        let number = |index: f64| seconds.get(index as usize).copied().unwrap_or(f64::NAN);
        let (low, high) = (number(position.floor()), number(position.ceil()));
        low + (high - low) * position.fract()
    };
    Seconds {
        median: at(0.5),
        min: at(0.0),
        max: at(1.0),
        p10: at(0.1),
        p90: at(0.9),
    }
}

/// Floating-point operations of a step.
fn flops(graph: &Graph) -> u64 {
    let ops = graph.ops().map(|op| {
        let ty = |value: &lorafa_ir::ValueId| graph.ty(*value);
        let operands: Vec<_> = op.operands.iter().map(ty).collect();
        let results: Vec<_> = op.results.iter().map(ty).collect();
        op.kind.flops(&operands, &results)
    });
    ops.sum()
}

fn adapter_dtype(graph: &Graph) -> Option<String> {
    let adapter = graph.adapters().first()?;
    Some(graph.ty(adapter.b).dtype.to_string())
}

fn text(f: &Figures) -> String {
    let dtype = f.dtype.as_deref().unwrap_or("?");
    let mut text = format!(
        "{} · {} · {dtype} · batch {} · seq {} · {} ({})\n",
        f.model, f.method, f.batch, f.seq, f.device, f.device_name
    );
    let memory = &f.memory;
    text.push_str(&format!(
        " planned peak    {:>12}\n",
        bytes(memory.planned_peak)
    ));
    let planned = memory.planned_peak;
    let of_device = planned + memory.device_before.unwrap_or(0);
    let measured = [
        ("allocated peak", memory.allocated_peak, planned),
        ("reserved peak", memory.reserved_peak, planned),
        ("device peak", memory.device_peak, of_device),
    ];
    for (what, n, planned) in measured {
        if let Some(n) = n {
            let (size, ratio) = (bytes(n), n as f64 / planned.max(1) as f64);
            text.push_str(&format!(" {what:<15} {size:>12}  {ratio:.4} of the plan"));
            text.push_str(match planned - memory.planned_peak {
                0 => "\n",
                _ => " and what was in use before\n",
            });
        }
    }
    if let (Some(s), Some(loss)) = (&f.step_seconds, f.loss) {
        let [median, min, max] = [s.median, s.min, s.max].map(|s| s * 1e3);
        text.push_str(&format!(
            " step            {median:>9.2} ms  {min:.2} to {max:.2} over {} steps\n {} tokens/s · {:.2} GFLOP/s · loss \
             {:.4} to {:.4}\n",
            f.steps,
            count(f.tokens_per_second.unwrap_or_default() as u64),
            f.flops_per_second.unwrap_or_default() / 1e9,
            loss.first,
            loss.last
        ));
    }
    if let Some(error) = f.error {
        text.push_str(&format!(" {error}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `statistics.quantiles(…, method="inclusive")` has them.
    #[test]
    fn quantiles_lie_between_measurements() {
        let s = spread(vec![4.0, 1.0, 3.0, 2.0]);
        assert_eq!([s.min, s.median, s.max], [1.0, 2.5, 4.0]);
        assert!((s.p10 - 1.3).abs() < 1e-12 && (s.p90 - 3.7).abs() < 1e-12);
        assert_eq!(spread(vec![2.0]).p90, 2.0);
    }
}
