//! What is read next to a tokenizer.json, and tokenizers that do not fit.

use crate::common::{Files, causal, load, oracle, refusal, row, spec, tokenizer};
use lorafa_data::{Options, Task, Tokenizer};

fn refused(files: &Files, path: &std::path::Path) -> String {
    let error = Tokenizer::open(path)
        .expect_err("a bad tokenizer")
        .to_string();
    error.replace(&format!("{}/", files.path().display()), "")
}

#[test]
fn a_vocabulary_may_be_smaller_than_the_models_but_not_larger() {
    let gpt2 = tokenizer("gpt2");
    let vocab = gpt2.vocab();
    assert!(vocab > 256);
    let line = r#"{"text": "Hello"}"#;
    let mut spec = causal(1, 8);
    for larger in [vocab, vocab + 7] {
        spec.vocab = Some(larger);
        assert!(load(line, &spec, Some(&gpt2), &Options::default()).is_ok());
    }
    spec.vocab = Some(vocab - 1);
    let message = refusal(line, &spec, Some(&gpt2));
    let expected = format!(
        "the tokenizer has {vocab} ids and the model {} embeddings",
        vocab - 1
    );
    assert!(message.contains(&expected), "{message}");
}

#[test]
fn special_tokens_come_from_both_files() {
    let files = Files::new();
    let path = files.tokenizer("bert");
    files.write(
        "tokenizer_config.json",
        r#"{"pad_token": {"content": "[MASK]", "lstrip": false}, "bos_token": null}"#,
    );
    files.write(
        "special_tokens_map.json",
        r#"{"pad_token": "[PAD]", "eos_token": "[SEP]"}"#,
    );
    let bert = Tokenizer::open(&path).expect("a tokenizer");
    // [PAD] [UNK] [CLS] [SEP] [MASK]
    assert_eq!(bert.pad_id(), 4);
    files.write("tokenizer_config.json", "{}");
    files.write("special_tokens_map.json", r#"{"eos_token": "[SEP]"}"#);
    assert_eq!(Tokenizer::open(&path).expect("a tokenizer").pad_id(), 3);
    files.write("special_tokens_map.json", r#"{"eos_token": "[END]"}"#);
    assert_eq!(
        refused(&files, &path),
        "special_tokens_map.json: `eos_token` is `[END]`, which tokenizer.json does not have; add it there, or name another"
    );
    files.write("special_tokens_map.json", "{}");
    let bert = Tokenizer::open(&path).expect("a tokenizer");
    assert_eq!((bert.pad_id(), bert.decoder_start_id()), (0, 0));
    files.write("config.json", r#"{"decoder_start_token_id": 2}"#);
    assert_eq!(
        Tokenizer::open(&path)
            .expect("a tokenizer")
            .decoder_start_id(),
        2
    );
}

#[test]
fn a_start_token_is_one_of_the_models() {
    let files = Files::new();
    let path = files.tokenizer("t5");
    let vocab = tokenizer("t5").vocab();
    let line = r#"{"source": "Hello", "target": "there"}"#;
    let mut with = spec(
        Task::Seq2Seq,
        &["input_ids", "labels", "decoder_input_ids"],
        1,
        8,
        8,
    );
    let mut without = spec(Task::Seq2Seq, &["input_ids", "labels"], 1, 8, 8);
    (with.vocab, without.vocab) = (Some(vocab), Some(vocab));
    let digests: Vec<[String; 2]> = [vocab - 1, vocab - 2]
        .into_iter()
        .map(|start| {
            let config = format!(r#"{{"decoder_start_token_id": {start}}}"#);
            files.write("config.json", config);
            let t5 = Tokenizer::open(&path).expect("a tokenizer");
            [&with, &without].map(|spec| {
                let data = load(line, spec, Some(&t5), &Options::default()).expect("a row");
                if spec == &with {
                    assert_eq!(row(&data, 0, "decoder_input_ids")[0], start as i64);
                }
                data.digest()
            })
        })
        .collect();
    // Which token it is counts where it is read.
    assert_ne!(digests[0][0], digests[1][0]);
    assert_eq!(digests[0][1], digests[1][1]);

    let config = format!(r#"{{"decoder_start_token_id": {vocab}}}"#);
    let config = files.write("config.json", config);
    let t5 = Tokenizer::open(&path).expect("a tokenizer");
    let expected = format!(
        "{}: `decoder_start_token_id` is {vocab}, and the model's vocabulary has {vocab} entries; use the config.json \
         that belongs to the model",
        config.display()
    );
    assert_eq!(refusal(line, &with, Some(&t5)), expected);
    assert!(load(line, &without, Some(&t5), &Options::default()).is_ok());
}

#[test]
fn templates_are_found_by_name_and_by_file() {
    let files = Files::new();
    let path = files.tokenizer("bert");
    let chat = r#"[{"role": "user", "content": "x"}]"#;
    let text = || {
        Tokenizer::open(&path)
            .and_then(|tokenizer| tokenizer.render_chat(chat, false))
            .expect("a text")
    };
    files.write("tokenizer_config.json", r#"{"chat_template": "one"}"#);
    assert_eq!(text(), "one");
    let named = r#"{"chat_template": [{"name": "rag", "template": "two"}, {"name": "NAME", "template": "three"}]}"#;
    files.write("tokenizer_config.json", named.replace("NAME", "default"));
    assert_eq!(text(), "three");
    files.write("tokenizer_config.json", named);
    assert_eq!(
        refused(&files, &path),
        "tokenizer_config.json: there are chat templates `rag`, `NAME` and none is `default`; save the one to use as \
         chat_template.jinja next to tokenizer.json"
    );
    files.write("tokenizer_config.json", r#"{"chat_template": "one"}"#);
    files.write("chat_template.jinja", "file\n");
    assert_eq!(text(), "file");
    files.write("chat_template.jinja", "{% if %}");
    let message = refused(&files, &path);
    assert!(
        message.starts_with("chat_template.jinja: the chat template does not parse: "),
        "{message}"
    );
    assert!(message.ends_with("(line 1 of the template)"), "{message}");
}

#[test]
fn files_of_other_kinds_are_refused() {
    let files = Files::new();
    let path = files.write("tokenizer.json", "{}");
    let message = refused(&files, &path);
    assert!(
        message.starts_with("tokenizer.json: not a tokenizer.json: "),
        "{message}"
    );
    let path = files.tokenizer("bert");
    files.write("tokenizer_config.json", "{");
    let message = refused(&files, &path);
    assert!(
        message.starts_with("tokenizer_config.json: not JSON of the form expected: "),
        "{message}"
    );
    assert!(refused(&files, files.path()).ends_with("this is a folder; give the files inside it"));
    assert!(refused(&files, &files.path().join("none.json")).ends_with("no such file"));
}

#[test]
fn flags_that_the_post_processor_does_not_follow_are_told() {
    let files = Files::new();
    let path = files.tokenizer("llama2");
    let config = |flags| format!(r#"{{"bos_token": "<s>", "eos_token": "</s>"{flags}}}"#);
    files.write(
        "tokenizer_config.json",
        config(r#", "add_bos_token": true, "add_eos_token": false"#),
    );
    assert!(
        Tokenizer::open(&path)
            .expect("a tokenizer")
            .warnings()
            .is_empty()
    );
    files.write(
        "tokenizer_config.json",
        config(r#", "add_bos_token": false, "add_eos_token": true"#),
    );
    let warnings = Tokenizer::open(&path)
        .expect("a tokenizer")
        .warnings()
        .to_vec();
    assert_eq!(warnings.len(), 2);
    assert_eq!(
        warnings[0],
        "tokenizer_config.json says `add_bos_token`: false, but the post-processor of tokenizer.json adds it, and that \
         decides about `bos_token` (as in transformers 5)"
    );
}

#[test]
fn padding_and_cutting_by_the_tokenizer_itself_are_off() {
    let files = Files::new();
    let path = files.tokenizer("gpt2");
    let text = std::fs::read_to_string(&path).expect("a tokenizer");
    let cutting = text.replacen(
        r#""truncation":null"#,
        r#""truncation":{"direction":"Right","max_length":2,"strategy":"LongestFirst","stride":0}"#,
        1,
    );
    assert_ne!(text, cutting);
    files.write("tokenizer.json", cutting);
    let long = "Hello there, how are you today?";
    let ids = Tokenizer::open(&path)
        .and_then(|tokenizer| tokenizer.encode(long))
        .expect("ids");
    assert_eq!(ids, tokenizer("gpt2").encode(long).expect("ids"));
    assert!(ids.len() > 2);
}

#[test]
fn damaged_files_do_not_panic() {
    let files = Files::new();
    let mut opened = 0;
    let mut state = 1_u64;
    let mut below = |n: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    for family in ["llama3", "t5", "bert"] {
        let whole = std::fs::read(oracle(family).join("tokenizer.json")).expect("a tokenizer");
        for _ in 0..100 {
            let mut bytes = whole.clone();
            let at = below(bytes.len());
            match below(3) {
                0 => bytes[at] ^= 1 << below(8),
                1 => bytes[at] = whole[below(whole.len())],
                _ => drop(bytes.drain(at..whole.len().min(at + 1 + below(40)))),
            }
            let path = files.write("tokenizer.json", bytes);
            if let Ok(tokenizer) = Tokenizer::open(path) {
                opened += 1;
                drop(tokenizer.encode("the 🦊 is <s> here"));
            }
        }
    }
    assert!(opened > 20);
}

#[test]
fn a_post_processor_must_define_its_tokens() {
    let files = Files::new();
    let text =
        std::fs::read_to_string(oracle("llama2").join("tokenizer.json")).expect("a tokenizer");
    let known = r#""special_tokens":{"<s>":"#;
    assert!(text.contains(known));
    let path = files.write(
        "tokenizer.json",
        text.replace(known, r#""special_tokens":{"<t>":"#),
    );
    assert_eq!(
        refused(&files, &path),
        "tokenizer.json: not a tokenizer.json: its post-processor names the special token `<s>` and does not define it"
    );
}
