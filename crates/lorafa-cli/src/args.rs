//! The command line.

mod passes;
mod run;

pub use passes::PassArgs;
pub use run::{
    BenchArgs, CheckArgs, DataArgs, DecayArg, HeldOut, MachineArgs, ResumeArg, RunArgs, TrainArgs,
    WeightArgs,
};

use crate::optimizer::OptimizerArgs;
use clap::{Args, Parser, Subcommand, ValueEnum};
use lorafa_ir::DType;
use lorafa_ir::ops::Init;
use lorafa_passes::attach_loss::LossKind;
use lorafa_passes::pass::Method;
use std::path::PathBuf;

/// Reads an ONNX model of a transformer, builds its training step, rewrites LoRA into LoRA-FA, and
/// says before training how much memory a step takes.
///
/// LoRA keeps every adapted layer's input x for the backward pass, only to train A. LoRA-FA freezes
/// A and keeps x·A instead, which is as wide as the adapter's rank. The report compares full
/// fine-tuning, LoRA and LoRA-FA; the written file is the training step in ONNX.
#[derive(Debug, Parser)]
#[command(
    name = "lorafa-opt",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Exit status: 0 done; 1 `check` found wrong gradients; 2 not done, with one message on standard error and nothing written but \
                  the checkpoints of a run of `train` that had begun; 3 the step does not fit into the device's memory, or the \
                  budget; 130 training was interrupted and saved."
)]
pub struct Cli {
    /// What to do instead of the main job.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// The main job.
    #[command(flatten)]
    pub compile: CompileArgs,
}

/// What to do instead of the main job.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print the graph as text after a pass.
    Dump(Box<DumpArgs>),
    /// Train through libtorch, in exactly the memory that the report shows.
    ///
    /// Ctrl-C or SIGTERM saves the updates that are done, and ends with status 130; `--resume` goes on. The update under way
    /// is finished first, unless it is between two micro-batches: then it is given up. A second signal ends at once.
    Train(Box<TrainArgs>),
    /// Run steps through libtorch, and say what they take beside what was planned.
    Bench(Box<BenchArgs>),
    /// Compare the gradients of a training graph with our own and with finite differences.
    ///
    /// Takes a training graph made by another program, whose outputs are the loss and
    /// `grad::<parameter>`, differentiates its forward pass anew, and runs both on one batch, in f64.
    /// Exit status 1 if a gradient is wrong.
    Check(Box<CheckArgs>),
}

/// `lorafa-opt MODEL`.
#[derive(Debug, Args)]
pub struct CompileArgs {
    /// The model: the forward pass of a transformer, with or without adapters, with or without a
    /// loss; or a training graph, whose outputs are the loss and `grad::<parameter>`; or the folder of
    /// artifacts that onnxruntime-training writes.
    // Optional only where a subcommand takes its place.
    #[arg(value_name = "MODEL", required = true)]
    pub model: Option<PathBuf>,

    /// How to train it.
    #[command(flatten)]
    pub training: TrainingArgs,

    /// Write the training step here [default: MODEL with the ending .lorafa.onnx].
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    pub output: Option<PathBuf>,

    /// Print the report only.
    #[arg(long, conflicts_with = "output", help_heading = "Output")]
    pub no_write: bool,

    /// Write the optimizer too: trained parameters and state as inputs, the next ones as outputs.
    #[arg(long, conflicts_with = "no_write", help_heading = "Output")]
    pub with_optimizer: bool,

    /// Put weights that the model keeps in other files into the written one.
    #[arg(long, conflicts_with = "no_write", help_heading = "Output")]
    pub embed_weights: bool,

    /// Write the report as JSON; `-` is standard output, in place of the text.
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub json: Option<PathBuf>,

    /// Say what each pass did or did not do, and why.
    #[arg(long, help_heading = "Output")]
    pub explain: bool,

    /// Memory to count for what is not planned: the CUDA context, cuBLAS workspaces. 544MiB is a
    /// cautious value for one GPU.
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = size, help_heading = "Output")]
    pub reserve: u64,

    /// Say whether the step fits into so much memory, and the largest batch and sequence that do. What does not is not
    /// written, and the exit status is 3.
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = "Output")]
    pub budget: Option<u64>,
}

/// `lorafa-opt dump MODEL`.
#[derive(Debug, Args)]
pub struct DumpArgs {
    /// The model.
    #[arg(value_name = "MODEL")]
    pub model: PathBuf,

    /// How to train it.
    #[command(flatten)]
    pub training: TrainingArgs,

    /// Stop after this pass, the first time it runs; `import` is before all of them
    /// [default: after the last].
    #[arg(long, value_name = "PASS", value_parser = pass_name())]
    pub after: Option<String>,
}

/// How to train a model.
#[derive(Clone, Debug, Args)]
pub struct TrainingArgs {
    /// The training method; a report of memory shows all three.
    #[arg(long, value_enum, default_value_t = MethodArg::LoraFa)]
    pub method: MethodArg,

    /// The precision to train in [default: the model's].
    #[arg(long, value_parser = dtype, value_name = "bf16|f16|f32")]
    pub dtype: Option<DType>,

    /// The loss to attach if the model has none [default: what its logits and inputs suggest].
    #[arg(long, value_enum)]
    pub loss: Option<LossArg>,

    /// Of a training graph, leave the backward pass out and differentiate the forward pass anew: then ops are fused and
    /// less is kept, and `--dtype`, `--method full` and new adapters are possible.
    #[arg(long)]
    pub differentiate: bool,

    /// Seed of what is drawn: the first values of A, and in `train` dropout and the order of the data.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,

    /// Number of sequences, for a symbolic dimension [default: 1].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..=MAX_DIM), help_heading = "Dimensions")]
    pub batch: Option<i64>,

    /// Number of positions, for a symbolic dimension [default: 1024].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..=MAX_DIM), help_heading = "Dimensions")]
    pub seq: Option<i64>,

    /// A number for any other symbolic dimension; may be repeated.
    #[arg(long = "dim", value_name = "NAME=N", value_parser = pair::<i64>, help_heading = "Dimensions")]
    pub dims: Vec<(String, i64)>,

    /// The optimizer.
    #[command(flatten)]
    pub optimizer: OptimizerArgs,

    /// The adapters.
    #[command(flatten)]
    pub lora: LoraArgs,

    /// The passes.
    #[command(flatten)]
    pub passes: PassArgs,
}

/// The largest number that a dimension may stand for: products of a few stay in range.
pub const MAX_DIM: i64 = 1 << 31;

/// How to inject adapters.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Adapters")]
pub struct LoraArgs {
    /// Rank of the adapters; needed for a model that has none.
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u64).range(1..))]
    pub rank: Option<u64>,

    /// Numerator of the scale alpha/rank [default: twice the rank].
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub alpha: Option<f64>,

    /// Scale by alpha/√rank.
    #[arg(long)]
    pub rslora: bool,

    /// First values of A; B starts at zero [default: kaiming].
    #[arg(long, value_enum)]
    pub init_a: Option<InitArg>,

    /// The share of a layer's input that its adapter drops while it trains [default: 0].
    #[arg(long, value_name = "P", value_parser = share)]
    pub lora_dropout: Option<f64>,

    /// Layers to adapt: `all-linear`, names such as `q_proj,v_proj`, or a regular expression for
    /// the whole module path, as in PEFT [default: all-linear].
    #[arg(long, value_name = "WHICH")]
    pub targets: Option<String>,

    /// Layers not to adapt, in the same notation.
    #[arg(long, value_name = "WHICH")]
    pub exclude: Option<String>,

    /// Numbers of the layers to adapt: PEFT's `layers_to_transform`.
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    pub layers: Vec<usize>,

    /// Rank of the layers whose path ends in PATTERN; may be repeated.
    #[arg(long, value_name = "PATTERN=R", value_parser = pair::<u64>)]
    pub rank_pattern: Vec<(String, u64)>,

    /// Alpha of the layers whose path ends in PATTERN; may be repeated.
    #[arg(long, value_name = "PATTERN=X", value_parser = pair::<f64>)]
    pub alpha_pattern: Vec<(String, f64)>,

    /// Precision of the adapters [default: their layer's].
    #[arg(long, value_parser = dtype, value_name = "bf16|f16|f32")]
    pub adapter_dtype: Option<DType>,

    /// Remove the model's adapters and inject new ones.
    #[arg(long)]
    pub replace_adapters: bool,
}

/// [`Method`] on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum MethodArg {
    Full,
    Lora,
    LoraFa,
}

impl From<MethodArg> for Method {
    fn from(method: MethodArg) -> Self {
        match method {
            MethodArg::Full => Method::Full,
            MethodArg::Lora => Method::Lora,
            MethodArg::LoraFa => Method::LoraFa,
        }
    }
}

/// [`LossKind`] on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LossArg {
    /// The next token at each position.
    CausalLm,
    /// One class a sequence.
    SeqCls,
    /// A target sequence.
    Seq2seq,
    /// One class a token.
    TokenCls,
}

impl From<LossArg> for LossKind {
    fn from(loss: LossArg) -> Self {
        match loss {
            LossArg::CausalLm => LossKind::CausalLm,
            LossArg::SeqCls => LossKind::SeqCls,
            LossArg::Seq2seq => LossKind::Seq2Seq,
            LossArg::TokenCls => LossKind::TokenCls,
        }
    }
}

/// [`Init`] on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum InitArg {
    /// Uniform in ±1/√in.
    Kaiming,
    /// Normal with standard deviation 1/rank.
    Gaussian,
    /// Orthonormal rows.
    Orthogonal,
}

impl From<InitArg> for Init {
    fn from(init: InitArg) -> Self {
        match init {
            InitArg::Kaiming => Init::Kaiming,
            InitArg::Gaussian => Init::Gaussian,
            InitArg::Orthogonal => Init::Orthogonal,
        }
    }
}

/// Reads an element type that training supports.
fn dtype(text: &str) -> Result<DType, String> {
    match text {
        "bf16" | "bfloat16" => Ok(DType::BF16),
        "f16" | "fp16" | "float16" => Ok(DType::F16),
        "f32" | "fp32" | "float32" => Ok(DType::F32),
        other => Err(format!("cannot train in {other}; give bf16, f16 or f32")),
    }
}

/// Reads `NAME=NUMBER`; the name may hold `=` itself.
fn pair<T: std::str::FromStr>(text: &str) -> Result<(String, T), String> {
    let (name, number) = text.rsplit_once('=').ok_or("expected NAME=NUMBER")?;
    let number = number
        .parse()
        .map_err(|_| format!("`{number}` is no such number"))?;
    Ok((name.to_owned(), number))
}

/// Reads a share: from 0 on, less than 1.
fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..1.0).contains(&share) => Ok(share),
        _ => Err("expected a number from 0 on, less than 1".into()),
    }
}

/// Reads a number of bytes with an optional unit.
fn size(text: &str) -> Result<u64, String> {
    const UNITS: &[(&str, u64)] = &[
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("B", 1),
    ];
    let (number, unit) = UNITS
        .iter()
        .find_map(|(name, unit)| Some((text.strip_suffix(name)?.trim(), *unit)))
        .unwrap_or((text, 1));
    let number: f64 = number
        .parse()
        .map_err(|_| "expected a size such as 544MiB".to_owned())?;
    if !(0.0..=1e18).contains(&(number * unit as f64)) {
        return Err("expected a size such as 544MiB".into());
    }
    Ok((number * unit as f64) as u64)
}

/// The name of a pass, or `import`.
fn pass_name() -> clap::builder::PossibleValuesParser {
    let passes = lorafa_passes::registry::all();
    let names = passes.iter().map(|pass| pass.name());
    std::iter::once("import")
        .chain(names)
        .collect::<Vec<_>>()
        .into()
}
