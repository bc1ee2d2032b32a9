//! `lorafa-opt train`, `bench` and `check`: what runs a step.

use super::{TrainingArgs, size};
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// `lorafa-opt train MODEL`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// The model, as for the main job.
    #[arg(value_name = "MODEL")]
    pub model: PathBuf,

    /// How to train it.
    #[command(flatten)]
    pub training: TrainingArgs,

    /// What to train on.
    #[command(flatten)]
    pub data: DataArgs,

    /// How long, and how fast.
    #[command(flatten)]
    pub run: RunArgs,

    /// Where, and on which weights.
    #[command(flatten)]
    pub machine: MachineArgs,

    /// Folder for checkpoints, the metrics log and the trained adapter.
    #[arg(long, value_name = "DIR", help_heading = "Results")]
    pub save: PathBuf,

    /// Go on from the last checkpoint in the --save folder, bit for bit if the schedule stays the same;
    /// `--resume=auto` begins where there is none.
    #[arg(long, value_enum, value_name = "last|auto", num_args = 0..=1, require_equals = true, default_missing_value = "last", hide_possible_values = true, help_heading = "Results")]
    pub resume: Option<ResumeArg>,

    /// Updates between checkpoints [default: at the end only].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Results")]
    pub save_every: Option<u64>,

    /// Checkpoints to keep.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..), help_heading = "Results")]
    pub keep: u64,

    /// Keep the checkpoint of the lowest loss in evaluation, too.
    #[arg(long, requires = "evaluation", help_heading = "Results")]
    pub keep_best: bool,

    /// Write the adapter or model of that checkpoint at the end, not of the last update.
    #[arg(long, requires = "keep_best", help_heading = "Results")]
    pub load_best_at_end: bool,

    /// Write the whole model with the adapters added to its weights, too.
    #[arg(long, help_heading = "Results")]
    pub merge: bool,

    /// What the adapter's configuration calls the base model [default: the --weights folder].
    #[arg(long, value_name = "NAME", help_heading = "Results")]
    pub base_model: Option<String>,
}

/// What to do about the checkpoints of the --save folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ResumeArg {
    /// Go on from the last one.
    Last,
    /// Go on from the last one, or begin if there is none.
    Auto,
}

/// What to train on.
#[derive(Debug, Args)]
#[command(next_help_heading = "Data")]
pub struct DataArgs {
    /// Training data: JSONL with text, prompt and completion, or chat messages; or safetensors
    /// with token ids. May be repeated.
    #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
    pub data: Vec<PathBuf>,

    /// The `tokenizer.json` of the model; needed for text.
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,

    /// Today, for chat templates that ask: YYYY-MM-DD.
    #[arg(long, value_name = "DATE", requires = "tokenizer")]
    pub date: Option<String>,

    /// What the lines of JSONL files are, where their keys leave a choice: text, prompt-completion,
    /// messages, conversations, instruction, text-label, source-target or input-ids.
    #[arg(long, value_name = "FORM")]
    pub form: Option<String>,

    /// Put several short examples into one row.
    #[arg(long)]
    pub pack: bool,

    /// Count lines that cannot be used instead of stopping at the first.
    #[arg(long)]
    pub skip_bad: bool,

    /// Examples to evaluate on and not to train on: a number, or a share such as 0.05.
    #[arg(long, value_name = "X", value_parser = held_out, conflicts_with = "eval_data", group = "evaluation")]
    pub eval_split: Option<HeldOut>,

    /// Data to evaluate on, in the same forms. May be repeated.
    #[arg(long, value_name = "FILE", num_args = 1.., group = "evaluation")]
    pub eval_data: Vec<PathBuf>,

    /// Updates between evaluations [default: at the end only].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub eval_every: Option<u64>,

    /// Stop after so many evaluations in a row that had no lower loss than one before.
    #[arg(long, value_name = "N", requires_all = ["evaluation", "eval_every"], value_parser = clap::value_parser!(u64).range(1..))]
    pub patience: Option<u64>,

    /// Take the rows in the order of the files.
    #[arg(long)]
    pub no_shuffle: bool,
}

/// What of the data is for evaluation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum HeldOut {
    /// So many examples.
    Count(usize),
    /// This share of them.
    Share(f64),
}

/// How long, and how fast.
#[derive(Debug, Args)]
#[command(next_help_heading = "Schedule")]
pub struct RunArgs {
    /// Passes over the data [default: 1, or as many as --max-steps takes].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub epochs: Option<u64>,

    /// Updates; the end comes with the last of --epochs if that is earlier.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub max_steps: Option<u64>,

    /// The highest learning rate.
    #[arg(long, value_name = "X", default_value_t = 2e-4, value_parser = positive)]
    pub lr: f64,

    /// The learning rate after the warm-up.
    #[arg(long, value_enum, default_value_t = DecayArg::Linear)]
    pub schedule: DecayArg,

    /// Updates over which the learning rate rises from zero.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub warmup: u64,

    /// Updates between lines of the log.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub log_every: u64,
}

/// How the learning rate goes on after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum DecayArg {
    Constant,
    Linear,
    Cosine,
}

/// Where a step runs, and on which weights.
#[derive(Debug, Args)]
#[command(next_help_heading = "Machine")]
pub struct MachineArgs {
    /// `cpu`, or `cuda:0`.
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub device: String,

    /// What the weights are.
    #[command(flatten)]
    pub weights: WeightArgs,

    /// Memory to leave free for what is not planned.
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = size)]
    pub reserve: u64,

    /// Begin although the plan does not fit into the device's free memory.
    #[arg(long)]
    pub force: bool,

    /// Stop if libtorch allocates anything beside the arena in an update.
    #[arg(long)]
    pub check_memory: bool,

    /// Stop at the first op that makes a NaN or an infinity, and name it. Slow.
    #[arg(long, conflicts_with = "check_memory")]
    pub check_finite: bool,
}

/// The weights that a step begins with.
#[derive(Debug, Args)]
pub struct WeightArgs {
    /// Hugging Face weights, a folder with `*.safetensors` or one such file; or the `checkpoint` of
    /// onnxruntime-training [default: the model's own].
    #[arg(long, value_name = "PATH")]
    pub weights: Option<PathBuf>,

    /// A PEFT adapter folder to begin with.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
}

/// `lorafa-opt check MODEL`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The training graph, whose outputs are the loss and `grad::<parameter>` or `<parameter>_grad`; or a folder of
    /// onnxruntime-training's artifacts.
    #[arg(value_name = "MODEL")]
    pub model: PathBuf,

    /// A batch: a safetensors file with a tensor for each input of the model, called as the input,
    /// `input::<name>` or `input.<name>`. Symbolic dimensions are what its shapes say.
    #[arg(long, value_name = "FILE")]
    pub inputs: PathBuf,

    /// What the weights are.
    #[command(flatten)]
    pub weights: WeightArgs,

    /// `cpu`, or `cuda:0`.
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub device: String,

    /// Write all that was compared as JSON; `-` is standard output, in place of the text.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

#[cfg(feature = "torch")]
impl MachineArgs {
    /// What to look for in every step.
    pub fn check(&self) -> lorafa_train::Check {
        match (self.check_finite, self.check_memory) {
            (true, _) => lorafa_train::Check::Finite,
            (false, true) => lorafa_train::Check::Memory,
            (false, false) => lorafa_train::Check::Nothing,
        }
    }
}

/// `lorafa-opt bench MODEL`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// The model, as for the main job.
    #[arg(value_name = "MODEL")]
    pub model: PathBuf,

    /// How to train it.
    #[command(flatten)]
    pub training: TrainingArgs,

    /// Where, and on which weights.
    #[command(flatten)]
    pub machine: MachineArgs,

    /// Fill the weights with random numbers, made on the device: the model's need not be there.
    #[arg(long, conflicts_with_all = ["weights", "adapter"])]
    pub random_weights: bool,

    /// Steps to measure.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    pub steps: u64,

    /// Steps before the measured ones.
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub warmup: u64,

    /// Write the figures as JSON; `-` is standard output, in place of the text.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Reads a share below one or a whole number.
fn held_out(text: &str) -> Result<HeldOut, String> {
    if let Ok(count) = text.parse::<usize>()
        && count > 0
    {
        return Ok(HeldOut::Count(count));
    }
    match text.parse::<f64>() {
        Ok(share) if share > 0.0 && share < 1.0 => Ok(HeldOut::Share(share)),
        _ => Err("expected a number of examples, or a share between 0 and 1".into()),
    }
}

/// Reads a number above zero.
fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if x > 0.0 && x.is_finite() => Ok(x),
        _ => Err("expected a number above zero".into()),
    }
}
