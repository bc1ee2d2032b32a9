//! The data of `tests/fixtures/data`, which other tests train on.

use std::path::{Path, PathBuf};

use crate::common::{causal, row, spec};
use lorafa_data::{Dataset, Options, Task, Tokenizer};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures/data")
        .join(name)
}

#[test]
fn fits_the_models_of_the_examples() {
    let tokenizer = Tokenizer::open(fixture("tokenizer.json")).expect("a tokenizer");
    assert_eq!(tokenizer.vocab(), 64);
    let mut causal = causal(2, 32);
    causal.vocab = Some(64);
    let mut seq_cls = spec(
        Task::SeqCls,
        &["input_ids", "attention_mask", "labels"],
        2,
        32,
        0,
    );
    seq_cls.vocab = Some(64);
    seq_cls.classes = Some(3);
    let seq2seq = spec(
        Task::Seq2Seq,
        &["input_ids", "labels", "decoder_input_ids"],
        2,
        16,
        12,
    );
    let cases = [
        ("text.jsonl", &causal, 0),
        ("completion.jsonl", &causal, 0),
        ("chat.jsonl", &causal, 8),
        ("label.jsonl", &seq_cls, 0),
        ("completion.jsonl", &seq2seq, 0),
    ];
    for (file, spec, truncated) in cases {
        let data = Dataset::load(
            &[fixture(file)],
            spec,
            Some(&tokenizer),
            &Options::default(),
        )
        .expect("rows");
        let summary = data.summary();
        assert_eq!(
            (summary.examples, summary.dropped, summary.truncated),
            (24, 0, truncated),
            "{file}"
        );
        assert!(
            summary.trained_tokens > 0 && summary.warnings.is_empty(),
            "{file}"
        );
        for index in 0..data.len() {
            let unknown = row(&data, index, "input_ids").contains(&3);
            assert!(!unknown, "{file}, row {index}");
        }
    }
}
