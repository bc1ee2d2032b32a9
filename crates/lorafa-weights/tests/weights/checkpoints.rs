//! Checkpoints that are spelled differently, and checkpoints that do not fit.

use crate::common::{self, Given, f32s, parse};
use lorafa_ir::ops::Data;
use lorafa_ir::{DType, Graph};
use lorafa_onnx::external::ExternalStore;
use lorafa_weights::error::TensorProblem;
use lorafa_weights::shards::Shards;
use lorafa_weights::{WeightsError, bind, missing};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// A model in small, with a tied embedding whose name in the graph is the head's.
const TIED: &str = r#"graph @tied {
  param %ids : i64[4] input
  param %lm_head.weight : f32[16,8] frozen {external="w.bin", offset=0, length=512}
  param %transformer.h.0.ln.weight : f32[8] frozen {external="w.bin", offset=512, length=32}
  param %transformer.h.0.fc.weight : f32[8,8] frozen {digest=0000000000000003}
  v0 = gather %lm_head.weight, %ids {axis=0} : f32[4,8] @transformer.wte
  v1 = mul v0, %transformer.h.0.ln.weight : f32[4,8] @transformer.h.0.ln
  v2 = matmul v1, %transformer.h.0.fc.weight : f32[4,8] @transformer.h.0.fc
  v3 = matmul v2, %lm_head.weight {trans_b} : f32[4,16] @lm_head
  out "logits" = v3
}"#;

/// A model whose head has a weight of its own.
const APART: &str = r#"graph @apart {
  param %ids : i64[4] input
  param %model.embed_tokens.weight : f32[16,8] frozen {digest=0000000000000001}
  param %model.fc.weight : f32[8,8] frozen {digest=0000000000000002}
  param %lm_head.weight : f32[16,8] frozen {digest=0000000000000003}
  v0 = gather %model.embed_tokens.weight, %ids {axis=0} : f32[4,8] @model.embed_tokens
  v1 = matmul v0, %model.fc.weight {trans_b} : f32[4,8] @model.fc
  v2 = matmul v1, %lm_head.weight {trans_b} : f32[4,16] @lm_head
  out "logits" = v2
}"#;

/// A checkpoint whose tensors each hold a number of their own.
fn checkpoint(folder: &Path, tensors: &[(&str, &[usize])]) -> Shards {
    let tensors = tensors.iter().enumerate().map(|(i, (name, shape))| {
        let n = shape.iter().product();
        (
            name.to_string(),
            f32s(shape, std::iter::repeat_n(i as f32, n)),
        )
    });
    write(folder, tensors.collect());
    Shards::open(folder).unwrap()
}

fn write(folder: &Path, tensors: BTreeMap<String, Given>) {
    common::write(&folder.join("model.safetensors"), &tensors);
}

/// The number that a weight's values start with.
fn number(graph: &Graph, name: &str) -> f32 {
    let (_, param) = graph.params().find(|(_, p)| &*p.name == name).unwrap();
    match &param.stored.data {
        Data::Inline(bytes) => f32::from_le_bytes(bytes[..4].try_into().unwrap()),
        other => panic!("{other:?}"),
    }
}

fn problems(text: &str, shards: &Shards) -> Vec<TensorProblem> {
    match bind(&mut parse(text), shards).unwrap_err() {
        WeightsError::Tensors { problems, .. } => problems,
        other => panic!("{other}"),
    }
}

#[test]
fn names_match_with_and_without_prefix_and_under_tied_names() {
    let dir = tempfile::tempdir().unwrap();
    let spellings: [(&str, [&str; 3], Option<&str>); 6] = [
        (
            "whole",
            [
                "transformer.wte",
                "transformer.h.0.ln",
                "transformer.h.0.fc",
            ],
            None,
        ),
        (
            "head's name",
            ["lm_head", "transformer.h.0.ln", "transformer.h.0.fc"],
            None,
        ),
        (
            "bare",
            ["wte", "h.0.ln", "h.0.fc"],
            Some("nothing for `transformer.`"),
        ),
        (
            "part of a larger model",
            [
                "text.transformer.wte",
                "text.transformer.h.0.ln",
                "text.transformer.h.0.fc",
            ],
            Some("`text.` for nothing"),
        ),
        (
            "compiled and adapted",
            [
                "_orig_mod.base_model.model.transformer.wte",
                "_orig_mod.base_model.model.transformer.h.0.ln",
                "_orig_mod.base_model.model.transformer.h.0.fc.base_layer",
            ],
            None,
        ),
        (
            "other prefix",
            ["model.wte", "model.h.0.ln", "model.h.0.fc"],
            Some("`model.` for `transformer.`"),
        ),
    ];
    for (what, modules, renamed) in spellings {
        let names = modules.map(|m| format!("{m}.weight"));
        let shards = checkpoint(
            dir.path(),
            &[
                (&names[0], &[16, 8]),
                (&names[1], &[8]),
                (&names[2], &[8, 8]),
                ("extra.bias", &[1]),
            ],
        );
        let mut graph = parse(TIED);
        let bound = bind(&mut graph, &shards).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(bound.renamed.as_deref(), renamed, "{what}");
        assert_eq!(
            (bound.weights, &bound.unused[..]),
            (3, &["extra.bias".to_string()][..])
        );
        assert_eq!(number(&graph, "lm_head.weight"), 0.0, "{what}");
        assert_eq!(number(&graph, "transformer.h.0.ln.weight"), 1.0, "{what}");
        assert_eq!(number(&graph, "transformer.h.0.fc.weight"), 2.0, "{what}");
    }
}

#[test]
fn two_ways_that_both_fit_are_not_guessed_between() {
    let dir = tempfile::tempdir().unwrap();
    let shards = checkpoint(
        dir.path(),
        &[
            ("a.wte.weight", &[16, 8]),
            ("a.h.0.ln.weight", &[8]),
            ("a.h.0.fc.weight", &[8, 8]),
            ("b.wte.weight", &[16, 8]),
            ("b.h.0.ln.weight", &[8]),
            ("b.h.0.fc.weight", &[8, 8]),
        ],
    );
    let problems = problems(TIED, &shards);
    assert_eq!(problems.len(), 3);
    let text = problems[0].to_string();
    assert!(
        text.contains("could be a.wte.weight or b.wte.weight"),
        "{text}"
    );
}

#[test]
fn a_missing_head_is_the_embedding_unless_the_model_says_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    let tensors: [(&str, &[usize]); 2] = [
        ("model.fc.weight", &[8, 8]),
        ("model.embed_tokens.weight", &[16, 8]),
    ];
    let mut graph = parse(APART);
    bind(&mut graph, &checkpoint(dir.path(), &tensors)).unwrap();
    assert_eq!(number(&graph, "lm_head.weight"), 1.0);
    fs::write(
        dir.path().join("config.json"),
        r#"{"tie_word_embeddings": false}"#,
    )
    .unwrap();
    let problems = problems(APART, &Shards::open(dir.path()).unwrap());
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].to_string(), "lm_head.weight: missing");
}

#[test]
fn tied_names_with_different_values_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let layers: [(&str, &[usize]); 4] = [
        ("transformer.wte.weight", &[16, 8]),
        ("lm_head.weight", &[16, 8]),
        ("transformer.h.0.ln.weight", &[8]),
        ("transformer.h.0.fc.weight", &[8, 8]),
    ];
    let problems = problems(TIED, &checkpoint(dir.path(), &layers));
    let text = problems[0].to_string();
    assert!(
        text.contains("shares this weight") && problems.len() == 1,
        "{text}"
    );
}

#[test]
fn everything_that_does_not_fit_is_listed_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let shards = checkpoint(dir.path(), &[("model.fc.weight", &[8, 4]), ("x", &[1])]);
    let before = parse(APART)
        .params()
        .map(|(_, p)| p.clone())
        .collect::<Vec<_>>();
    let mut graph = parse(APART);
    let text = bind(&mut graph, &shards).unwrap_err().to_string();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].ends_with("does not fit the model:"), "{text}");
    assert_eq!(
        lines[1..],
        [
            "  model.embed_tokens.weight: missing",
            "  model.fc.weight: expected shape [8, 8], found [8, 4]",
            "  lm_head.weight: missing"
        ]
    );
    let after = graph.params().map(|(_, p)| p.clone()).collect::<Vec<_>>();
    assert_eq!(before, after, "a graph that does not fit is not changed");

    let conv = APART.replace("%model.fc.weight : f32[8,8]", "%model.fc.weight : f32[4,8]");
    let conv = conv.replace(
        "{trans_b} : f32[4,8] @model.fc",
        "{trans_b} : f32[4,4] @model.fc",
    );
    let conv = conv.replace("%lm_head.weight : f32[16,8]", "%lm_head.weight : f32[16,4]");
    let problems = problems(&conv, &shards);
    assert!(
        problems[1]
            .to_string()
            .contains("found [8, 4], the transpose"),
        "{}",
        problems[1]
    );
}

#[test]
fn quantized_checkpoints_are_called_that() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = |shape: &[usize]| {
        let n = shape.iter().product();
        (DType::U8, shape.to_vec(), vec![0u8; n].into())
    };
    let embedding = f32s(&[16, 8], [0.0; 128]);
    let ints: Given = (DType::I32, vec![1, 8], vec![0u8; 32].into());
    let gptq = [
        ("model.embed_tokens.weight".to_string(), embedding.clone()),
        ("model.fc.qweight".to_string(), ints),
    ];
    write(dir.path(), gptq.into());
    let text = problems(APART, &Shards::open(dir.path()).unwrap())[0].to_string();
    assert!(text.contains("quantized (model.fc.qweight)"), "{text}");
    let int4 = [
        ("model.embed_tokens.weight".to_string(), embedding),
        ("model.fc.weight".to_string(), bytes(&[32, 1])),
        ("model.fc.weight.absmax".to_string(), bytes(&[1])),
    ];
    write(dir.path(), int4.into());
    let text = problems(APART, &Shards::open(dir.path()).unwrap())[0].to_string();
    assert!(
        text.contains("quantized (model.fc.weight has type U8)"),
        "{text}"
    );
    // fp8, which the crate's own writer has, too.
    let header = br#"{"model.fc.weight":{"dtype":"F8_E4M3","shape":[8,8],"data_offsets":[0,64]}}"#;
    fs::write(dir.path().join("model.safetensors"), file(header, 64)).unwrap();
    let text = problems(APART, &Shards::open(dir.path()).unwrap())[1].to_string();
    assert!(
        text.contains("quantized (model.fc.weight has type F8_E4M3)"),
        "{text}"
    );
}

#[test]
fn halves_stay_halves_and_share_the_map() {
    let dir = tempfile::tempdir().unwrap();
    let half = |shape: &[usize]| {
        let n: usize = shape.iter().product();
        (DType::BF16, shape.to_vec(), [0x80u8, 0x3f].repeat(n).into())
    };
    let tensors: [(String, Given); 3] = [
        ("model.embed_tokens.weight".into(), half(&[16, 8])),
        ("model.fc.weight".into(), half(&[8, 8])),
        ("lm_head.weight".into(), half(&[16, 8])),
    ];
    write(dir.path(), tensors.into());
    let shards = Shards::open(dir.path()).unwrap();
    let mut graph = parse(APART);
    bind(&mut graph, &shards).unwrap();
    for (_, param) in graph.params().filter(|(_, p)| p.is_weight()) {
        assert_eq!(
            (param.stored.dtype, param.ty.dtype),
            (DType::BF16, DType::F32)
        );
        let Data::Inline(bytes) = &param.stored.data else {
            panic!("{}", param.name)
        };
        let tensor = shards.get(&param.name).unwrap();
        assert_eq!(
            bytes.as_ptr(),
            tensor.bytes.as_ptr(),
            "{} is no copy",
            param.name
        );
        let store = ExternalStore::new(dir.path());
        let values = lorafa_onnx::export::weights::values(param, &store).unwrap();
        assert_eq!(values[..4], 1f32.to_le_bytes());
    }
}

#[test]
fn parameters_without_values_are_listed_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = ExternalStore::new(dir.path());
    let text = missing(&parse(TIED), &store).unwrap_err().to_string();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines[0],
        "3 parameters have no values; give the model's folder with --weights:"
    );
    assert_eq!(lines[1], "  lm_head.weight: there is no file `w.bin`");
    assert!(lines[3].contains("only the digest"), "{text}");
    // Long enough for the first, not for the second.
    fs::write(dir.path().join("w.bin"), [0; 520]).unwrap();
    let text = missing(&parse(TIED), &store).unwrap_err().to_string();
    assert!(
        text.starts_with("2 parameters") && text.contains("ln.weight: external"),
        "{text}"
    );
    let layers: [(&str, &[usize]); 3] = [
        ("wte.weight", &[16, 8]),
        ("h.0.ln.weight", &[8]),
        ("h.0.fc.weight", &[8, 8]),
    ];
    let mut graph = parse(TIED);
    bind(&mut graph, &checkpoint(dir.path(), &layers)).unwrap();
    missing(&graph, &ExternalStore::new("nowhere")).unwrap();
}

/// A file with this header and so many bytes of data.
fn file(header: &[u8], data: usize) -> Vec<u8> {
    let length = (header.len() as u64).to_le_bytes();
    [&length, header, &vec![0; data]].concat()
}

fn refusal(path: &Path) -> String {
    Shards::open(path).unwrap_err().to_string()
}

#[test]
fn hostile_files_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let good = br#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    fs::write(&path, file(good, 8)).unwrap();
    assert_eq!(Shards::open(&path).unwrap().iter().count(), 1);
    let cases: [(&[u8], usize); 8] = [
        (good, 4),
        (good, 12),
        (
            br#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#,
            8,
        ),
        (
            br#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#,
            12,
        ),
        (
            br#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#,
            8,
        ),
        (
            br#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,0]}}"#,
            0,
        ),
        (
            br#"{"a":{"dtype":"F31","shape":[2],"data_offsets":[0,8]}}"#,
            8,
        ),
        (b"[1, 2]", 0),
    ];
    for (header, data) in cases {
        fs::write(&path, file(header, data)).unwrap();
        let text = refusal(&path);
        assert!(
            text.contains("model.safetensors: not a whole safetensors file"),
            "{text}"
        );
    }
    let huge = u64::MAX.to_le_bytes();
    let whole: [(&[u8], &str); 4] = [
        (b"", "the file is empty"),
        (&huge, "cut off"),
        (
            b"PK\x03\x04 and more of a zip archive",
            "PyTorch checkpoint",
        ),
        (
            b"version https://git-lfs.github.com/spec/v1",
            "git lfs pull",
        ),
    ];
    for (bytes, hint) in whole {
        fs::write(&path, bytes).unwrap();
        let text = refusal(&path);
        assert!(text.contains(hint), "{text}");
    }
}

#[test]
fn every_prefix_of_a_file_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let whole = file(
        br#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#,
        8,
    );
    for end in 0..whole.len() {
        fs::write(&path, &whole[..end]).unwrap();
        assert!(Shards::open(&path).is_err(), "{end} bytes");
    }
}

#[test]
fn the_index_is_checked() {
    let dir = tempfile::tempdir().unwrap();
    let index = dir.path().join("model.safetensors.index.json");
    let one = |name: &str| [(name.to_string(), f32s(&[1], [1.0]))].into();
    common::write(&dir.path().join("one.safetensors"), &one("a"));
    common::write(&dir.path().join("two.safetensors"), &one("b"));
    let open = |map: &str| {
        fs::write(
            &index,
            format!(r#"{{"metadata": {{}}, "weight_map": {map}}}"#),
        )
        .unwrap();
        Shards::open(dir.path())
            .map(|s| s.iter().count())
            .map_err(|e| e.to_string())
    };
    assert_eq!(
        open(r#"{"a": "one.safetensors", "b": "two.safetensors"}"#),
        Ok(2)
    );
    let gone = open(r#"{"a": "one.safetensors", "b": "three.safetensors"}"#).unwrap_err();
    assert!(
        gone.contains("index.json: the index names `three.safetensors`"),
        "{gone}"
    );
    let wrong = open(r#"{"b": "one.safetensors"}"#).unwrap_err();
    assert!(
        wrong.contains("says that `b` is in `one.safetensors`"),
        "{wrong}"
    );
    for outside in ["../one.safetensors", "/etc/passwd", "x/../../y", "a\\\\b"] {
        let text = open(&format!(r#"{{"a": "{outside}"}}"#)).unwrap_err();
        assert!(text.contains("must be next to the index"), "{text}");
    }
    fs::write(&index, "{").unwrap();
    assert!(refusal(dir.path()).contains("not the JSON"));
    fs::remove_file(&index).unwrap();
    assert_eq!(
        Shards::open(dir.path()).unwrap().iter().count(),
        2,
        "without an index, all"
    );
    common::write(&dir.path().join("three.safetensors"), &one("a"));
    assert!(refusal(dir.path()).contains("`a` is also in `one.safetensors`"));
}

#[test]
fn folders_without_a_model_say_what_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let text = refusal(dir.path());
    assert!(text.contains("no *.safetensors file"), "{text}");
    fs::write(dir.path().join("pytorch_model.bin"), "PK").unwrap();
    assert!(refusal(dir.path()).contains("pickle"));
    fs::write(dir.path().join("adapter_model.safetensors"), "").unwrap();
    assert!(refusal(dir.path()).contains("holds an adapter and no model"));
    assert!(refusal(&dir.path().join("nothing")).contains("no such file or folder"));
}
