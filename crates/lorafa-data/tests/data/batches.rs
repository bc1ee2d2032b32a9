//! Rows of a fixed shape: padding, cutting, packing, splitting, fingerprints.

use crate::common::{causal, load, refusal, row, spec, tokenizer};
use lorafa_data::{Dataset, EvalSize, InputSpec, Options, Task};
use serde_json::json;

fn lines(rows: &[&[i64]]) -> String {
    rows.iter()
        .map(|ids| json!({ "input_ids": ids }).to_string() + "\n")
        .collect()
}

fn packed() -> Options {
    Options {
        pack: true,
        ..Options::default()
    }
}

#[test]
fn short_batches_are_filled_with_rows_that_weigh_nothing() {
    let data = load(
        &lines(&[&[1, 2, 3], &[4, 5]]),
        &causal(4, 4),
        None,
        &Options::default(),
    )
    .expect("rows");
    let batch = data.batch(&[0, 1]).expect("a batch");
    assert_eq!(
        batch.inputs["input_ids"],
        [1, 2, 3, 0, 4, 5, 0, 0, 4, 5, 0, 0, 4, 5, 0, 0]
    );
    assert_eq!(
        batch.inputs["attention_mask"],
        [1, 1, 1, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0]
    );
    let ignored = [-100; 8];
    assert_eq!(
        batch.inputs["labels"][..8],
        [1, 2, 3, -100, 4, 5, -100, -100]
    );
    assert_eq!(batch.inputs["labels"][8..], ignored);
    // Labels 2, 3 and 5: the first of a row is predicted by nothing.
    assert_eq!((batch.trained_tokens, batch.tokens), (3, 5));

    let classes = spec(Task::SeqCls, &["input_ids", "labels"], 3, 2, 0);
    let data = load(
        "{\"input_ids\": [1], \"labels\": 1}",
        &classes,
        None,
        &Options::default(),
    )
    .expect("a row");
    let batch = data.batch(&[0]).expect("a batch");
    assert_eq!(batch.inputs["labels"], [1, -100, -100]);
    assert_eq!((batch.trained_tokens, batch.tokens), (1, 1));
}

#[test]
fn batches_of_rows_that_do_not_exist_are_refused() {
    let data = load(&lines(&[&[1, 2]]), &causal(2, 4), None, &Options::default()).expect("a row");
    let refused = |rows: &[usize]| data.batch(rows).expect_err("a bad batch").to_string();
    assert_eq!(refused(&[1]), "row 1 is out of range: there are 1");
    assert_eq!(refused(&[]), "a batch takes 1 to 2 rows, not 0");
    assert_eq!(refused(&[0, 0, 0]), "a batch takes 1 to 2 rows, not 3");
    assert!(data.batch(&[0, 0]).is_ok());
}

#[test]
fn what_is_cut_and_dropped_is_counted() {
    let text = lines(&[&[1, 2, 3, 4, 5, 6], &[7, 8], &[9], &[]])
        + "{\"input_ids\": [1, 2, 3, 4, 5], \"labels\": [-100, -100, -100, -100, 5]}\n";
    let data = load(&text, &causal(1, 4), None, &Options::default()).expect("rows");
    let summary = data.summary();
    assert_eq!((summary.examples, summary.rows), (2, 2));
    assert_eq!((summary.tokens, summary.trained_tokens), (6, 4));
    assert_eq!(
        (summary.truncated, summary.tokens_lost, summary.dropped),
        (1, 2, 3)
    );
    let message = refusal("{\"input_ids\": [1]}", &causal(1, 4), None);
    assert!(
        message
            .starts_with("no example is left: all 1 have no label that is trained within 4 tokens"),
        "{message}"
    );
}

#[test]
fn pads_with_the_tokenizers_token() {
    let line = r#"{"text": "you"}"#;
    let spec = causal(1, 12);
    for (name, pad) in [("roberta", 1), ("llama2", 2), ("t5", 0)] {
        let tokenizer = tokenizer(name);
        let data = load(line, &spec, Some(&tokenizer), &Options::default()).expect("a row");
        assert_eq!(row(&data, 0, "input_ids").last(), Some(&pad), "{name}");
        assert_eq!(row(&data, 0, "attention_mask").last(), Some(&0), "{name}");
    }
}

#[test]
fn packed_examples_do_not_predict_each_other() {
    let spec = spec(
        Task::CausalLm,
        &["input_ids", "attention_mask", "position_ids", "labels"],
        1,
        6,
        0,
    );
    let text = lines(&[&[1, 2, 3], &[4, 5, 6, 7, 8, 9, 9], &[6, 7]]);
    let data = load(&text, &spec, None, &packed()).expect("rows");
    assert_eq!(data.len(), 2);
    assert_eq!(row(&data, 0, "input_ids"), [1, 2, 3, 6, 7, 0]);
    assert_eq!(row(&data, 0, "labels"), [-100, 2, 3, -100, 7, -100]);
    assert_eq!(row(&data, 0, "position_ids"), [0, 1, 2, 0, 1, 1]);
    assert_eq!(row(&data, 0, "attention_mask"), [1, 1, 1, 1, 1, 0]);
    assert_eq!(row(&data, 1, "input_ids"), [4, 5, 6, 7, 8, 9]);
    let batch = data.batch(&[0]).expect("a batch");
    assert_eq!((batch.trained_tokens, batch.tokens), (3, 5));
    let summary = data.summary();
    assert_eq!(
        (
            summary.examples,
            summary.rows,
            summary.trained_tokens,
            summary.truncated
        ),
        (3, 2, 8, 1)
    );

    let classes = crate::common::spec(Task::SeqCls, &["input_ids", "labels"], 1, 2, 0);
    let error = load(&text, &classes, None, &packed()).expect_err("no packing");
    assert_eq!(
        error.to_string(),
        "only causal-lm rows can be packed, not seq-cls"
    );
}

fn many(options: &Options) -> Dataset {
    let rows: Vec<Vec<i64>> = (0..50)
        .map(|index| vec![index; 2 + index as usize % 5])
        .collect();
    let rows: Vec<&[i64]> = rows.iter().map(Vec::as_slice).collect();
    load(&lines(&rows), &causal(1, 8), None, options).expect("rows")
}

/// The first ids of all examples.
fn names(data: &Dataset) -> Vec<i64> {
    let mut names: Vec<i64> = (0..data.len())
        .flat_map(|index| {
            let ids = row(data, index, "input_ids");
            let length = row(data, index, "attention_mask").iter().sum::<i64>() as usize;
            let mut ids = ids[..length].to_vec();
            ids.dedup();
            ids
        })
        .collect();
    names.sort_unstable();
    names
}

#[test]
fn a_split_is_a_partition() {
    for options in [Options::default(), packed()] {
        for (size, count) in [
            (EvalSize::Count(7), 7),
            (EvalSize::Fraction(0.1), 5),
            (EvalSize::Fraction(0.101), 6),
        ] {
            let (train, eval) = many(&options).split(size, 3).expect("two sides");
            let (mut all, held_out) = (names(&train), names(&eval));
            assert_eq!((all.len(), held_out.len()), (50 - count, count));
            all.extend(&held_out);
            all.sort_unstable();
            assert_eq!(all, (0..50).collect::<Vec<_>>());
            let (_, again) = many(&options).split(size, 3).expect("two sides");
            assert_eq!(again.digest(), eval.digest());
            let (_, other) = many(&options).split(size, 4).expect("two sides");
            assert_ne!(other.digest(), eval.digest());
        }
    }
    for size in [
        EvalSize::Count(0),
        EvalSize::Count(50),
        EvalSize::Fraction(0.0),
        EvalSize::Fraction(f64::NAN),
        EvalSize::Fraction(0.999),
    ] {
        assert!(
            many(&Options::default()).split(size, 0).is_err(),
            "{size:?}"
        );
    }
}

#[test]
fn the_digest_is_of_what_rows_hold() {
    let spec = causal(1, 4);
    let digest =
        |text: &str, options: &Options| load(text, &spec, None, options).expect("rows").digest();
    let plain = Options::default();
    let base = digest("{\"input_ids\": [1, 2]}\n{\"input_ids\": [3, 4]}", &plain);
    // As Python's hashlib gives it for the same bytes.
    assert_eq!(
        base,
        "2c112c99c33b475fdc40dbbec790adb67cea9f98c8958337b8712d729e6ac997"
    );
    // Equal rows in another spelling.
    assert_eq!(
        digest(
            "{\"input_ids\": [1, 2], \"labels\": [1, 2]}\n\n{\"input_ids\": [3, 4]}",
            &plain
        ),
        base
    );
    let others = [
        digest("{\"input_ids\": [3, 4]}\n{\"input_ids\": [1, 2]}", &plain),
        digest(
            "{\"input_ids\": [1, 2]}\n{\"input_ids\": [3, 4], \"labels\": [-100, 4]}",
            &plain,
        ),
        digest(
            "{\"input_ids\": [1, 2]}\n{\"input_ids\": [3, 4], \"token_type_ids\": [0, 1]}",
            &plain,
        ),
        digest("{\"input_ids\": [1, 2, 3, 4]}", &plain),
        digest(
            "{\"input_ids\": [1, 2]}\n{\"input_ids\": [3, 4]}",
            &packed(),
        ),
    ];
    for (index, other) in others.iter().enumerate() {
        assert!(
            *other != base && !others[..index].contains(other),
            "{index}"
        );
    }
}

#[test]
fn steps_that_no_data_can_fill() {
    let refused = |task, inputs: &[(&str, &[u64])]| {
        let mut spec = spec(task, &[], 2, 0, 0);
        let input = |(name, shape): &(&str, &[u64])| InputSpec {
            name: (*name).to_owned(),
            shape: shape.to_vec(),
        };
        spec.inputs = inputs.iter().map(input).collect();
        refusal("{\"input_ids\": [1, 2]}", &spec, None)
    };
    let ids: (&str, &[u64]) = ("input_ids", &[2, 8]);
    let labels: (&str, &[u64]) = ("labels", &[2, 8]);
    assert_eq!(
        refused(Task::CausalLm, &[labels]),
        "the step has no input `input_ids`, which training needs"
    );
    assert_eq!(
        refused(Task::CausalLm, &[ids]),
        "the step has no input `labels`, which training needs"
    );
    assert_eq!(
        refused(Task::CausalLm, &[ids, ids, labels]),
        "the step has two inputs `input_ids`"
    );
    assert_eq!(
        refused(Task::CausalLm, &[ids, ("labels", &[2, 9])]),
        "input `labels` is [2, 9]; causal-lm data is [2, 8]"
    );
    assert_eq!(
        refused(Task::SeqCls, &[ids, labels]),
        "input `labels` is [2, 8]; seq-cls data is [2]"
    );
    assert_eq!(
        refused(Task::CausalLm, &[("input_ids", &[2, 0]), labels]),
        "input `input_ids` is [2, 0]: every dimension must be from 1 to 2^31"
    );
    let message = refused(Task::CausalLm, &[ids, labels, ("pixel_values", &[2, 3])]);
    assert_eq!(
        message,
        "data.jsonl: the step asks for `pixel_values`; text or token ids give input_ids, attention_mask, labels, position_ids, \
         token_type_ids; a pre-tokenized .safetensors file may hold `pixel_values` as an integer tensor of that name, a row for \
         each row of `input_ids`"
    );
}
