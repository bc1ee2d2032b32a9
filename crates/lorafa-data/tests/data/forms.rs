//! What each form of line becomes, and what is said about lines of no form.

use crate::common::{Files, causal, load, refusal, row, spec, tokenizer};
use lorafa_data::{Dataset, Form, Options, Spec, Task, Tokenizer};
use serde_json::json;

/// The only row's ids without padding, and which of them train.
fn trained(line: &str, tokenizer: &Tokenizer) -> (Vec<i64>, Vec<i64>) {
    let data = load(line, &causal(1, 512), Some(tokenizer), &Options::default()).expect("a row");
    let length = row(&data, 0, "attention_mask").iter().sum::<i64>() as usize;
    let labels = row(&data, 0, "labels")[..length].to_vec();
    (
        row(&data, 0, "input_ids")[..length].to_vec(),
        labels.into_iter().filter(|label| *label != -100).collect(),
    )
}

fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<i64> {
    let ids = tokenizer.encode(text).expect("ids");
    ids.into_iter().map(i64::from).collect()
}

#[test]
fn text_trains_to_its_end() {
    let llama = tokenizer("llama2");
    let expected = ids(&llama, "Hello there</s>");
    assert_eq!(expected.first(), Some(&1));
    assert_eq!(expected.last(), Some(&2));
    // Neither token is doubled.
    for text in ["Hello there", "Hello there</s>"] {
        let (ids, labels) = trained(&json!({ "text": text }).to_string(), &llama);
        assert_eq!(
            (ids, labels),
            (expected.clone(), expected.clone()),
            "{text}"
        );
    }
    let (begun, _) = trained(r#"{"text": "<s>Hello"}"#, &llama);
    assert_eq!(begun.iter().filter(|id| **id == 1).count(), 1);
    // RoBERTa's post-processor ends texts already.
    let (ids, _) = trained(r#"{"text": "Hello"}"#, &tokenizer("roberta"));
    assert_eq!(ids.iter().filter(|id| **id == 2).count(), 1);
}

#[test]
fn alpaca_has_the_prompts_of_alpaca() {
    let gpt2 = tokenizer("gpt2");
    let head = "Below is an instruction that describes a task";
    let tail = "appropriately completes the request.\n\n### Instruction:\nAdd";
    let cases = [
        (
            json!({}),
            format!("{head}. Write a response that {tail}\n\n### Response:"),
        ),
        (
            json!({"input": ""}),
            format!("{head}. Write a response that {tail}\n\n### Response:"),
        ),
        (
            json!({"input": "1 and 1"}),
            format!(
                "{head}, paired with an input that provides further context. Write a response that {tail}\n\n\
                 ### Input:\n1 and 1\n\n### Response:"
            ),
        ),
    ];
    for (mut line, prompt) in cases {
        line["instruction"] = json!("Add");
        line["output"] = json!("2");
        let (all, labels) = trained(&line.to_string(), &gpt2);
        assert_eq!(all, ids(&gpt2, &format!("{prompt}2<|endoftext|>")));
        assert_eq!(labels, ids(&gpt2, "2<|endoftext|>"));
    }
}

const TEMPLATE: &str = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}\
                        {% if add_generation_prompt %}<|assistant|>{% endif %}";

fn chatting(files: &Files, template: &str) -> Tokenizer {
    let path = files.tokenizer("llama3");
    files.write("chat_template.jinja", template);
    Tokenizer::open(path).expect("a tokenizer")
}

#[test]
fn chats_train_what_the_assistant_says() {
    let files = Files::new();
    let tokenizer = chatting(&files, TEMPLATE);
    let expected = trained(
        r#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "you"}]}"#,
        &tokenizer,
    );
    let text = "<|user|>Hi<|eot_id|><|assistant|>you<|eot_id|>";
    // No beginning-of-sequence token: the template writes none.
    assert_eq!(expected.0, ids(&tokenizer, text)[1..]);
    assert_eq!(expected.1, ids(&tokenizer, "you<|eot_id|>")[1..]);
    let others = [
        r#"{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "you"}]}"#,
        r#"{"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "you"}]}"#,
    ];
    for line in others {
        assert_eq!(trained(line, &tokenizer), expected, "{line}");
    }
}

#[test]
fn answers_that_cannot_be_found_are_refused() {
    let files = Files::new();
    // Thoughts of earlier turns are left out, as many reasoning models do.
    let template = "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' and not loop.last %}\
                    {{ m.content.split('#')[-1] }}{% else %}{{ m.content }}{% endif %}{% endfor %}\
                    {% if add_generation_prompt %}<|assistant|>{% endif %}";
    let tokenizer = chatting(&files, template);
    let line = r#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "hm#you"},
                   {"role": "user", "content": "and?"}]}"#
        .replace('\n', " ");
    let message = refusal(&line, &causal(1, 64), Some(&tokenizer));
    assert_eq!(
        message,
        "data.jsonl:1: the answer in message 2 cannot be found: the chat template renders the messages up to it differently \
         when more messages follow (from `hm#you` to `you<|user|>and?`); mark answers with {% generation %} in the template"
    );
}

#[test]
fn templates_may_refuse_and_may_not_ask_for_today() {
    let files = Files::new();
    let line = r#"{"messages": [{"role": "assistant", "content": "you"}]}"#;
    let tokenizer = chatting(
        &files,
        "{{ messages[0].role }}\n{{ raise_exception('users first') }}",
    );
    let message = refusal(line, &causal(1, 64), Some(&tokenizer));
    assert_eq!(
        message,
        "data.jsonl:1: the chat template fails: users first (line 2 of the template)"
    );

    let today = "{% generation %}{{ strftime_now('%d %b %Y, %%%B %y-%m') }}{% endgeneration %}";
    let tokenizer = chatting(&files, today);
    let message = refusal(line, &causal(1, 64), Some(&tokenizer));
    assert!(
        message.contains("would train differently tomorrow; give a date"),
        "{message}"
    );
    let tokenizer = tokenizer.with_date("2024-07-06".parse().expect("a date"));
    let messages = r#"[{"role": "assistant", "content": ""}]"#;
    let text = tokenizer.render_chat(messages, false).expect("a text");
    assert_eq!(text, "06 Jul 2024, %July 24-07");
    for bad in [
        "2024-02-30",
        "2023-02-29",
        "2024-13-01",
        "24-1-1",
        "2024-1-001",
        "2024/01/01",
        "+024-01-01",
    ] {
        assert!(bad.parse::<lorafa_data::Date>().is_err(), "{bad}");
    }
}

#[test]
fn forged_markers_are_refused() {
    let files = Files::new();
    let tokenizer = chatting(
        &files,
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}\
         {% else %}{{ m.content }}{% endif %}{% endfor %}",
    );
    let line = "{\"messages\": [{\"role\": \"user\", \"content\": \"a\u{FDD0}b\u{FDD1}\"}]}";
    let message = refusal(line, &causal(1, 64), Some(&tokenizer));
    assert!(message.contains("U+FDD0"), "{message}");
}

#[test]
fn chats_need_a_template_and_text_a_tokenizer() {
    let line = r#"{"messages": [{"role": "user", "content": "Hi"}]}"#;
    let message = refusal(line, &causal(1, 64), Some(&tokenizer("llama3")));
    assert!(
        message.contains("put it in chat_template.jinja next to tokenizer.json"),
        "{message}"
    );
    let message = refusal(r#"{"text": "Hi"}"#, &causal(1, 64), None);
    assert!(message.contains("text needs a tokenizer"), "{message}");
}

#[test]
fn classes_by_number_and_by_name() {
    let files = Files::new();
    let path = files.tokenizer("bert");
    let mut spec = spec(
        Task::SeqCls,
        &["input_ids", "attention_mask", "labels"],
        1,
        16,
        0,
    );
    spec.classes = Some(3);
    let data = load(
        r#"{"text": "fox", "label": 2}"#,
        &spec,
        Some(&tokenizer("bert")),
        &Options::default(),
    );
    assert_eq!(row(&data.expect("a row"), 0, "labels"), [2]);
    let name = r#"{"text": "fox", "label": "bad"}"#;
    let message = refusal(name, &spec, Some(&tokenizer("bert")));
    assert!(
        message.contains("label `bad` is a name; give integers, or a config.json with `label2id`"),
        "{message}"
    );
    let message = refusal(
        r#"{"text": "fox", "label": 3}"#,
        &spec,
        Some(&tokenizer("bert")),
    );
    assert_eq!(
        message,
        "data.jsonl:1: label 3 is out of range: the model has 3 classes"
    );

    files.write(
        "config.json",
        r#"{"label2id": {"good": 0, "bad": 1}, "hidden_size": 3}"#,
    );
    let named = Tokenizer::open(path).expect("a tokenizer");
    let data = load(name, &spec, Some(&named), &Options::default());
    assert_eq!(row(&data.expect("a row"), 0, "labels"), [1]);
    let message = refusal(r#"{"text": "fox", "label": "so so"}"#, &spec, Some(&named));
    assert!(message.contains("it knows `bad`, `good`"), "{message}");
}

#[test]
fn ids_are_taken_as_they_are() {
    let mut spec = spec(
        Task::CausalLm,
        &[
            "input_ids",
            "attention_mask",
            "labels",
            "token_type_ids",
            "position_ids",
        ],
        1,
        6,
        0,
    );
    spec.vocab = Some(10);
    let one = |line: &str| load(line, &spec, None, &Options::default()).expect("a row");
    let data = one(
        r#"{"input_ids": [5, 6, 7, 0, 0], "attention_mask": [1, 1, 1, 0, 0], "token_type_ids": [0, 1, 1, 0, 0]}"#,
    );
    assert_eq!(row(&data, 0, "input_ids"), [5, 6, 7, 0, 0, 0]);
    assert_eq!(row(&data, 0, "attention_mask"), [1, 1, 1, 0, 0, 0]);
    assert_eq!(row(&data, 0, "labels"), [5, 6, 7, -100, -100, -100]);
    assert_eq!(row(&data, 0, "token_type_ids"), [0, 1, 1, 0, 0, 0]);
    assert_eq!(row(&data, 0, "position_ids"), [0, 1, 2, 2, 2, 2]);
    // Padded on the left: the same row.
    let left =
        one(r#"{"input_ids": [0, 5, 6], "attention_mask": [0, 1, 1], "labels": [-100, -100, 9]}"#);
    assert_eq!(row(&left, 0, "input_ids"), [5, 6, 0, 0, 0, 0]);
    assert_eq!(row(&left, 0, "labels"), [-100, 9, -100, -100, -100, -100]);

    let refused = |line: &str| refusal(line, &spec, None);
    let cases = [
        (
            r#"{"input_ids": [10]}"#,
            "token id 10 is out of range: the model's vocabulary has 10 entries",
        ),
        (
            r#"{"input_ids": [-1]}"#,
            "token id -1 is out of range: the model's vocabulary has 10 entries",
        ),
        (
            r#"{"input_ids": [1, 2], "labels": [1, 12]}"#,
            "token id 12 is out of range: the model's vocabulary has 10 entries",
        ),
        (
            r#"{"input_ids": [1, 2], "labels": [1]}"#,
            "`labels` has 1 values for 2 ids",
        ),
        (
            r#"{"input_ids": [1, 2, 3], "attention_mask": [1, 0, 1]}"#,
            "`attention_mask` must be ones, with zeros only before or after them; leave masked tokens out",
        ),
        (
            r#"{"input_ids": [1.5]}"#,
            "`input_ids`: expected a list of integers: invalid type: floating point `1.5`, expected i64",
        ),
    ];
    for (line, message) in cases {
        assert_eq!(refused(line), format!("data.jsonl:1: {message}"), "{line}");
    }
}

#[test]
fn token_classes_need_labels() {
    let mut spec = spec(
        Task::TokenCls,
        &["input_ids", "attention_mask", "labels"],
        1,
        4,
        0,
    );
    spec.classes = Some(5);
    let line = r#"{"input_ids": [1, 2, 3], "labels": [-100, 4, 0]}"#;
    let data = load(line, &spec, None, &Options::default()).expect("a row");
    assert_eq!(row(&data, 0, "labels"), [-100, 4, 0, -100]);
    assert_eq!(data.batch(&[0]).expect("a batch").trained_tokens, 2);
    let message = refusal(r#"{"input_ids": [1]}"#, &spec, None);
    assert_eq!(
        message,
        "data.jsonl:1: `input_ids` without `labels`: token-cls needs labels"
    );
    let message = refusal(r#"{"input_ids": [1], "labels": [5]}"#, &spec, None);
    assert_eq!(
        message,
        "data.jsonl:1: label 5 is out of range: the model has 5 classes"
    );
}

#[test]
fn lines_of_no_form_say_which_forms_there_are() {
    let gpt2 = tokenizer("gpt2");
    let message = refusal("\n{\"body\": \"x\"}\n", &causal(1, 8), Some(&gpt2));
    assert_eq!(
        message,
        "data.jsonl:2: found values for `body`; data for causal-lm has one of the forms {\"text\"}, {\"prompt\", \
         \"completion\"}, {\"messages\"}, {\"conversations\"}, {\"instruction\", \"output\"}, {\"input_ids\"}"
    );
    let both = r#"{"instruction": "a", "output": "b", "text": "c"}"#;
    let message = refusal(both, &causal(1, 8), Some(&gpt2));
    assert_eq!(
        message,
        "data.jsonl:1: the keys fit the forms `text`, `instruction`; choose one (`form`)"
    );
    let options = Options {
        form: Some(Form::Text),
        ..Options::default()
    };
    assert!(load(both, &causal(1, 8), Some(&gpt2), &options).is_ok());
    let cases = [
        (
            "{\"text\": \"a\"",
            "expected a JSON object: EOF while parsing an object (column 12)",
        ),
        (
            "3",
            "expected a JSON object: invalid type: integer `3`, expected a map (column 1)",
        ),
        (
            "[",
            "this begins a JSON list; write one object a line, as `jq -c '.[]' FILE > FILE.jsonl` does",
        ),
        (
            "{\"text\": 1}",
            "`text`: expected a string: invalid type: integer `1`, expected a string",
        ),
        (
            r#"{"conversations": [{"from": "alien", "value": ""}]}"#,
            "`from` is `alien`; expected human, user, gpt, assistant, chatgpt, bing, bard, system or tool",
        ),
        (r#"{"messages": []}"#, "the conversation is empty"),
        (
            r#"{"messages": [{"role": "user"}]}"#,
            "message 1: `content` must be a string (or a list, if the template takes one)",
        ),
        (
            r#"{"messages": [{"content": "x"}]}"#,
            "message 1: `role` must be a string",
        ),
        (
            r#"{"messages": ["x"]}"#,
            "message 1: expected an object with `role` and `content`",
        ),
        (
            r#"{"prompt": "x", "completion": []}"#,
            "one of `prompt` and `completion` is a string and the other a list; both must be the same",
        ),
    ];
    for (line, message) in cases {
        assert_eq!(
            refusal(line, &causal(1, 8), Some(&gpt2)),
            format!("data.jsonl:1: {message}"),
            "{line}"
        );
    }
}

#[test]
fn keys_that_are_null_are_not_there() {
    let gpt2 = tokenizer("gpt2");
    let pairs = [
        (
            r#"{"text": "a", "messages": null , "prompt":null, "completion": null}"#,
            r#"{"text": "a"}"#,
        ),
        (
            r#"{"instruction": "a", "input": null, "output": "b"}"#,
            r#"{"instruction": "a", "output": "b"}"#,
        ),
        (
            r#"{"input_ids": [1, 2], "labels": null, "attention_mask": null}"#,
            r#"{"input_ids": [1, 2]}"#,
        ),
    ];
    for (line, same) in pairs {
        assert_eq!(trained(line, &gpt2), trained(same, &gpt2), "{line}");
    }
    let message = refusal(r#"{"text": null}"#, &causal(1, 8), Some(&gpt2));
    assert!(
        message.starts_with(
            "data.jsonl:1: found values for nothing; data for causal-lm has one of the forms"
        ),
        "{message}"
    );
}

#[test]
fn bad_lines_may_be_skipped_but_not_all() {
    let options = Options {
        skip_bad: true,
        ..Options::default()
    };
    let mut text = "{\"input_ids\": [1, 2, 3]}\n\n".to_owned();
    text.push_str(&"{\n".repeat(12));
    let spec = causal(1, 8);
    let data = load(&text, &spec, None, &options).expect("a row");
    let summary = data.summary();
    assert_eq!(
        (data.len(), summary.skipped, summary.skipped_at.len()),
        (1, 12, 10)
    );
    let places: Vec<_> = summary
        .skipped_at
        .iter()
        .map(|skipped| skipped.place)
        .collect();
    let expected: Vec<_> = (3..13).map(lorafa_data::Place::Line).collect();
    assert_eq!(places, expected);
    let error = load("{\n{\n", &spec, None, &options)
        .expect_err("nothing good")
        .to_string();
    assert!(
        error.starts_with("all 2 lines or rows are bad; the first: "),
        "{error}"
    );
    assert!(
        error.ends_with(
            "data.jsonl:1: expected a JSON object: EOF while parsing an object (column 1)"
        ),
        "{error}"
    );
}

#[test]
fn files_that_cannot_be_read() {
    let files = Files::new();
    let spec = causal(1, 8);
    let refused = |name: &str, content: &[u8]| {
        let path = files.write(name, content);
        let error = Dataset::load(&[path], &spec, None, &Options::default()).expect_err("bad data");
        error
            .to_string()
            .replace(&format!("{}/", files.path().display()), "")
    };
    assert_eq!(refused("a.jsonl", b""), "a.jsonl: the file is empty");
    assert_eq!(refused("a.jsonl", b"\n  \n"), "a.jsonl: the file is empty");
    assert_eq!(
        refused("a.jsonl", b"\n{\"text\": \"\xFF\"}"),
        "a.jsonl:2: not UTF-8 from byte 10 of the line on; convert the file to UTF-8"
    );
    assert_eq!(
        refused("a.csv", b"x"),
        "a.csv: expected a name that ends in .jsonl, .json (an object a line) or .safetensors"
    );
    let load = |path: &std::path::Path, spec: &Spec| {
        let error = Dataset::load(&[path], spec, None, &Options::default()).expect_err("bad data");
        error
            .to_string()
            .replace(&files.path().display().to_string(), "DIR")
    };
    assert_eq!(
        load(files.path(), &spec),
        "DIR: this is a folder; give the files inside it"
    );
    assert_eq!(
        load(&files.path().join("none.jsonl"), &spec),
        "DIR/none.jsonl: no such file"
    );
    let none: [&str; 0] = [];
    let error = Dataset::load(&none, &spec, None, &Options::default()).expect_err("no files");
    assert_eq!(error.to_string(), "no data files were given");
}

#[test]
fn a_byte_order_mark_and_carriage_returns_are_no_text() {
    let text = "\u{FEFF}{\"input_ids\": [1, 2]}\r\n{\"input_ids\": [3, 4]}\r\n";
    assert_eq!(
        load(text, &causal(1, 8), None, &Options::default())
            .expect("rows")
            .len(),
        2
    );
}

#[test]
fn rows_come_in_the_order_of_the_file() {
    let lines = (0..20_000).map(|index| format!("{{\"input_ids\": [{index}, {}]}}\n", index % 7));
    // Long enough for several blocks.
    let text: String = lines
        .map(|line| format!("{}{line}", " ".repeat(400)))
        .collect();
    let data = load(&text, &causal(1, 2), None, &Options::default()).expect("rows");
    assert_eq!(data.len(), 20_000);
    for index in 0..data.len() {
        assert_eq!(
            row(&data, index, "input_ids"),
            [index as i64, index as i64 % 7]
        );
    }
}
