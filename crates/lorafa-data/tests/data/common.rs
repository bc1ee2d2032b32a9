//! What the tests share: steps, files, and a look at a data set's rows.

use std::fs;
use std::path::{Path, PathBuf};

use lorafa_data::{DataError, Dataset, InputSpec, Options, Spec, Task, Tokenizer};
use serde_json::Value;

/// A step with these inputs; `target` is the length of a seq2seq target.
pub fn spec(task: Task, names: &[&str], batch: u64, seq: u64, target: u64) -> Spec {
    let shape = |name: &str| match (task, name) {
        (Task::SeqCls, "labels") => vec![batch],
        (Task::Seq2Seq, "labels" | "decoder_input_ids" | "decoder_attention_mask") => {
            vec![batch, target]
        }
        _ => vec![batch, seq],
    };
    let input = |name: &&str| InputSpec {
        name: (*name).to_owned(),
        shape: shape(name),
    };
    Spec {
        task,
        batch,
        inputs: names.iter().map(input).collect(),
        vocab: None,
        classes: None,
    }
}

/// A causal step of ids, mask and labels.
pub fn causal(batch: u64, seq: u64) -> Spec {
    spec(
        Task::CausalLm,
        &["input_ids", "attention_mask", "labels"],
        batch,
        seq,
        0,
    )
}

/// A folder of files that goes away with it.
pub struct Files(tempfile::TempDir);

impl Files {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, content).expect("a file");
        path
    }

    /// Copies a tokenizer of the oracle's here.
    pub fn tokenizer(&self, name: &str) -> PathBuf {
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            let bytes = fs::read(oracle(name).join(file)).expect("a tokenizer");
            self.write(file, bytes);
        }
        self.0.path().join("tokenizer.json")
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

pub fn oracle(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/oracle")
        .join(name)
}

pub fn answers(name: &str) -> Value {
    let text = fs::read_to_string(oracle(name)).expect("an oracle's answers");
    serde_json::from_str(&text).expect("JSON")
}

pub fn tokenizer(name: &str) -> Tokenizer {
    Tokenizer::open(oracle(name).join("tokenizer.json")).expect("a tokenizer")
}

/// The data set of a JSONL text.
pub fn load(
    text: &str,
    spec: &Spec,
    tokenizer: Option<&Tokenizer>,
    options: &Options,
) -> Result<Dataset, DataError> {
    let files = Files::new();
    Dataset::load(&[files.write("data.jsonl", text)], spec, tokenizer, options)
}

/// The message that loading ends in, without the folder's name.
pub fn refusal(text: &str, spec: &Spec, tokenizer: Option<&Tokenizer>) -> String {
    let error = load(text, spec, tokenizer, &Options::default()).expect_err("bad data");
    let message = error.to_string();
    match message.find("data.jsonl") {
        Some(at) => message[at..].to_owned(),
        None => message,
    }
}

/// An input of the batch of one row.
pub fn row(dataset: &Dataset, index: usize, input: &str) -> Vec<i64> {
    let batch = dataset.batch(&[index]).expect("a row");
    batch.inputs[input].clone()
}

pub fn numbers(value: &Value) -> Vec<i64> {
    serde_json::from_value(value.clone()).expect("integers")
}
