//! Against what transformers, TRL and T5 make of the same texts; `oracle/make.py` has asked them.

use crate::common::{Files, answers, causal, load, numbers, oracle, row, spec, tokenizer};
use lorafa_data::{Options, Task, Tokenizer};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

const FAMILIES: [&str; 6] = ["gpt2", "roberta", "llama2", "llama3", "bert", "t5"];

fn text<'a>(case: &'a Value, key: &str) -> &'a str {
    case[key].as_str().expect("a string")
}

#[test]
fn texts_have_the_ids_of_transformers() {
    let answers = answers("encode.json");
    for family in FAMILIES {
        let tokenizer = tokenizer(family);
        let cases = answers["texts"].as_array().expect("cases").iter();
        let cases: Vec<&Value> = cases.filter(|case| case["tokenizer"] == family).collect();
        assert!(cases.len() > 15);
        for case in cases {
            let ids = tokenizer.encode(text(case, "text")).expect("ids");
            let ids: Vec<i64> = ids.into_iter().map(i64::from).collect();
            assert_eq!(ids, numbers(&case["ids"]), "{family}: {:?}", case["text"]);
        }
    }
}

#[test]
fn pairs_are_cut_and_typed_as_in_transformers() {
    let inputs = ["input_ids", "attention_mask", "token_type_ids", "labels"];
    let answers = answers("encode.json");
    for case in answers["cut"].as_array().expect("cases") {
        let tokenizer = tokenizer(text(case, "tokenizer"));
        let limit = case["limit"].as_u64().expect("a limit");
        let spec = spec(Task::SeqCls, &inputs, 1, limit, 0);
        let mut line = json!({"text": case["text"], "label": 1});
        if !case["pair"].is_null() {
            line["text_pair"] = case["pair"].clone();
        }
        let data = load(
            &line.to_string(),
            &spec,
            Some(&tokenizer),
            &Options::default(),
        )
        .expect("a row");
        let (ids, types) = (numbers(&case["ids"]), numbers(&case["types"]));
        assert_eq!(row(&data, 0, "input_ids")[..ids.len()], ids, "{case}");
        assert_eq!(
            row(&data, 0, "token_type_ids")[..ids.len()],
            types,
            "{case}"
        );
        assert_eq!(
            row(&data, 0, "attention_mask").iter().sum::<i64>(),
            ids.len() as i64
        );
        assert_eq!(
            data.summary().tokens_lost,
            case["lost"].as_u64().expect("a count"),
            "{case}"
        );
    }
}

/// Messages and tools are raw, because templates print them in the order of their keys.
#[derive(Deserialize)]
struct Chat {
    family: String,
    chat: String,
    tokenizer: String,
    template: Option<String>,
    marked: String,
    messages: Box<RawValue>,
    tools: Box<RawValue>,
    text: String,
    prompt: String,
    ids: Vec<i64>,
    mask: Vec<i64>,
}

#[test]
fn chats_are_rendered_and_masked_as_in_transformers() {
    let text = std::fs::read_to_string(oracle("chat.json")).expect("an oracle's answers");
    let cases: Vec<Chat> = serde_json::from_str(&text).expect("cases");
    for case in cases {
        // A template may not render the same without its {% generation %} blocks.
        for template in [case.template.as_ref(), Some(&case.marked)]
            .into_iter()
            .flatten()
        {
            let name = format!("{} of {}", case.chat, case.family);
            let files = Files::new();
            let tokenizer = files.tokenizer(&case.tokenizer);
            files.write("chat_template.jinja", template);
            let tokenizer = Tokenizer::open(tokenizer).expect("a tokenizer");
            if case.tools.get() == "null" {
                let render = |prompt| {
                    tokenizer
                        .render_chat(case.messages.get(), prompt)
                        .expect("a text")
                };
                assert_eq!(render(false), case.text, "{name}");
                assert_eq!(render(true), case.prompt, "{name}");
            }
            let line = format!(r#"{{"messages":{},"tools":{}}}"#, case.messages, case.tools);
            let data = load(
                &line,
                &causal(1, 1024),
                Some(&tokenizer),
                &Options::default(),
            );
            let data = data.unwrap_or_else(|error| panic!("{name}: {error}"));
            let length = case.ids.len();
            assert_eq!(row(&data, 0, "input_ids")[..length], case.ids, "{name}");
            let pairs = case.ids.iter().zip(&case.mask);
            let trained: Vec<i64> = pairs
                .map(|(id, mask)| if *mask == 1 { *id } else { -100 })
                .collect();
            assert_eq!(row(&data, 0, "labels")[..length], trained, "{name}");
        }
    }
}

#[test]
fn completions_are_masked_as_in_trl() {
    let answers = answers("completion.json");
    for case in answers.as_array().expect("cases") {
        let tokenizer = tokenizer(text(case, "tokenizer"));
        let line = json!({"prompt": case["prompt"], "completion": case["completion"]}).to_string();
        let data =
            load(&line, &causal(1, 64), Some(&tokenizer), &Options::default()).expect("a row");
        let (ids, mask) = (numbers(&case["ids"]), numbers(&case["mask"]));
        assert_eq!(row(&data, 0, "input_ids")[..ids.len()], ids, "{case}");
        let trained = ids
            .iter()
            .zip(&mask)
            .map(|(id, mask)| if *mask == 1 { *id } else { -100 });
        assert_eq!(
            row(&data, 0, "labels")[..ids.len()],
            trained.collect::<Vec<_>>(),
            "{case}"
        );
    }
}

#[test]
fn examples_share_rows_as_in_trl() {
    let answers = answers("pack.json");
    let lines = numbers(&answers["lengths"]).into_iter().map(|length| {
        let ids = vec![7; length as usize];
        json!({ "input_ids": ids }).to_string() + "\n"
    });
    let seq = answers["seq"].as_u64().expect("a length");
    let inputs = ["input_ids", "attention_mask", "position_ids", "labels"];
    let spec = spec(Task::CausalLm, &inputs, 1, seq, 0);
    let options = Options {
        pack: true,
        ..Options::default()
    };
    let data = load(&lines.collect::<String>(), &spec, None, &options).expect("rows");
    let mut rows: Vec<Vec<i64>> = (0..data.len())
        .map(|index| {
            let length = row(&data, index, "attention_mask").iter().sum::<i64>() as usize;
            let positions = row(&data, index, "position_ids");
            let mut lengths: Vec<i64> = Vec::new();
            for position in &positions[..length] {
                match lengths.last_mut() {
                    Some(length) if *position > 0 => *length += 1,
                    _ => lengths.push(1),
                }
            }
            lengths.sort_unstable();
            lengths
        })
        .collect();
    rows.sort_unstable();
    assert_eq!(json!(rows), answers["rows"]);
}

#[test]
fn targets_are_shifted_as_in_t5() {
    let answers = answers("seq2seq.json");
    let pairs = answers["pairs"].as_array().expect("pairs");
    let lines = pairs
        .iter()
        .map(|pair| json!({"source": pair[0], "target": pair[1]}).to_string() + "\n");
    let inputs = [
        "input_ids",
        "attention_mask",
        "labels",
        "decoder_input_ids",
        "decoder_attention_mask",
    ];
    let (seq, target) = (answers["seq"].as_u64(), answers["target"].as_u64());
    let spec = spec(
        Task::Seq2Seq,
        &inputs,
        3,
        seq.expect("a length"),
        target.expect("a length"),
    );
    let tokenizer = tokenizer("t5");
    let data = load(
        &lines.collect::<String>(),
        &spec,
        Some(&tokenizer),
        &Options::default(),
    )
    .expect("rows");
    let batch = data.batch(&[0, 1, 2]).expect("a batch");
    for input in ["input_ids", "attention_mask", "labels", "decoder_input_ids"] {
        let rows = answers[input].as_array().expect("rows").iter();
        assert_eq!(
            batch.inputs[input],
            rows.flat_map(numbers).collect::<Vec<_>>(),
            "{input}"
        );
    }
    let trained = batch.inputs["labels"]
        .iter()
        .filter(|label| **label != -100)
        .count() as u64;
    assert_eq!(batch.trained_tokens, trained);
    assert_eq!(
        batch.inputs["decoder_attention_mask"].iter().sum::<i64>(),
        trained as i64
    );
    assert_eq!(
        batch.tokens,
        trained + batch.inputs["attention_mask"].iter().sum::<i64>() as u64
    );
}
