//! How the main job's time grows with the model: Llama-2-7B's layer, 1 to 128 times.
//!
//! `cargo bench -p lorafa-cli --bench layers` prints, for each number of layers, the median time of
//! compiling, planning and exporting, and that time divided by `n·log n` for `n` nodes. The last
//! column is what must not grow. Sizes are measured in turn, so that a slower moment of the machine
//! hits all of them.

mod llama;

use clap::Parser;
use llama::Builder;
use lorafa_cli::args::Cli;
use lorafa_cli::run;
use lorafa_onnx::write::write_atomic;
use std::path::Path;
use std::time::{Duration, Instant};

const LAYERS: [usize; 8] = [1, 2, 4, 8, 16, 32, 64, 128];
const ROUNDS: usize = 7;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let path = |layers: usize| folder.path().join(format!("{layers}.onnx"));
    let mut nodes = Vec::new();
    for layers in LAYERS {
        let model = Builder::model(layers);
        nodes.push(model.graph.as_ref().map_or(0, |g| g.node.len()));
        write_atomic(path(layers), &model)?;
    }
    let mut times = vec![Vec::new(); LAYERS.len()];
    for _ in 0..ROUNDS {
        for (times, layers) in times.iter_mut().zip(LAYERS) {
            times.push(time(&path(layers))?);
        }
    }
    println!(
        "{:>6} {:>7} {:>10} {:>22}",
        "layers", "nodes", "ms", "ns / (nodes·log2 nodes)"
    );
    for ((layers, nodes), times) in LAYERS.iter().zip(nodes).zip(&mut times) {
        times.sort_unstable();
        let median = times[ROUNDS / 2];
        let n = nodes as f64;
        let unit = median.as_nanos() as f64 / (n * n.log2());
        println!(
            "{layers:>6} {nodes:>7} {:>10.1} {unit:>22.0}",
            median.as_secs_f64() * 1e3
        );
    }
    Ok(())
}

/// The main job, written file included.
fn time(model: &Path) -> Result<Duration, Box<dyn std::error::Error>> {
    let model = model.display().to_string();
    let args = [
        "lorafa-opt",
        &model,
        "--batch",
        "16",
        "--seq",
        "1024",
        "--dtype",
        "bf16",
    ];
    let cli = Cli::try_parse_from(args)?;
    let start = Instant::now();
    run(&cli, &mut Vec::new())?;
    Ok(start.elapsed())
}
