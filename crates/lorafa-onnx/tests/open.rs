//! Every way a file can fail to be a model, and what the user is told.

use std::fs;
use std::path::Path;

use lorafa_onnx::file::{MAX_IR_VERSION, MAX_OPSET, ModelFile};
use lorafa_onnx::proto::{FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto};
use lorafa_onnx::write::write_atomic;
use prost::Message as _;

fn opset(domain: &str, version: i64) -> OperatorSetIdProto {
    OperatorSetIdProto {
        domain: Some(domain.into()),
        version: Some(version),
    }
}

fn model() -> ModelProto {
    ModelProto {
        ir_version: Some(MAX_IR_VERSION),
        opset_import: vec![opset("", MAX_OPSET), opset("com.microsoft", 1)],
        graph: Some(GraphProto {
            node: vec![NodeProto::default()],
            ..GraphProto::default()
        }),
        ..ModelProto::default()
    }
}

/// What is said about a file with these bytes, after the path.
fn told(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("m.onnx");
    fs::write(&path, bytes).expect("it can be written");
    told_of(&path)
}

fn told_of(path: &Path) -> String {
    let error = ModelFile::open(path)
        .expect_err("this is no usable model")
        .to_string();
    let prefix = format!("{}: ", path.display());
    error
        .strip_prefix(&prefix)
        .expect("the path comes first")
        .to_owned()
}

fn told_after(change: impl FnOnce(&mut ModelProto)) -> String {
    let mut model = model();
    change(&mut model);
    told(&model.encode_to_vec())
}

#[test]
fn a_good_model_opens() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("m.onnx");
    write_atomic(&path, &model()).expect("it writes");
    let file = ModelFile::open(&path).expect("it opens");
    assert_eq!(file.proto(), &model());
    assert_eq!(file.graph().node.len(), 1);
    assert_eq!(file.path(), path);
    assert_eq!(file.folder(), folder.path());
    assert_eq!(file.opset(""), Some(MAX_OPSET));
    assert_eq!(file.opset("ai.onnx"), Some(MAX_OPSET));
    assert_eq!(file.opset("com.microsoft"), Some(1));
    assert_eq!(file.opset("org.example"), None);
    assert_eq!(*file.proto(), model());
}

#[test]
fn what_is_no_file() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    assert_eq!(told_of(&folder.path().join("absent")), "no such file");
    assert_eq!(
        told_of(folder.path()),
        "this is a folder; give the .onnx file inside it"
    );
    #[cfg(unix)]
    assert!(told_of(Path::new("/dev/null")).starts_with("this is not a regular file; "));
    assert!(told(b"").starts_with("the file is empty; "));
}

#[test]
fn what_is_something_else() {
    let safetensors = [&[0x40, 0, 0, 0, 0, 0, 0, 0], &b"{\"w\":{}}"[..]].concat();
    for (bytes, hint) in [
        (
            &b"version https://git-lfs.github.com/spec/v1\n"[..],
            "it is a git-lfs pointer; run `git lfs pull`",
        ),
        (
            b"PK\x03\x04....",
            "it is a zip archive, perhaps a PyTorch checkpoint; ",
        ),
        (b"\x80\x04\x95....", "it is a Python pickle; "),
        (b"\x1f\x8b\x08\x00", "it is gzip-compressed; "),
        (b"<!DOCTYPE html>", "it is an HTML or XML document"),
        (b"{\"model\": 1}", "it is JSON; "),
        (&safetensors, "it is a safetensors file; "),
        (
            b"Dear reader, this is plain text.",
            "it does not begin as an ONNX protobuf does",
        ),
        // Decodes as a message of unknown fields.
        (
            b"z\x01az\x02bc",
            "it does not begin as an ONNX protobuf does",
        ),
        (b"\0\0\0\0", "it does not begin as an ONNX protobuf does"),
        (b"\n\n\n\n", "it does not begin as an ONNX protobuf does"),
    ] {
        let told = told(bytes);
        assert!(
            told.starts_with(&format!("not an ONNX model: {hint}")),
            "{told}"
        );
    }
    assert_eq!(
        told_after(|model| model.ir_version = Some(0)),
        "not an ONNX model: it has no `ir_version`"
    );
}

#[test]
fn what_is_damaged() {
    let whole = model().encode_to_vec();
    let last = whole.len() - 1;
    assert_eq!(
        told(&whole[..last]),
        format!("the file ends inside `opset_import` after {last} bytes; copy or export it again")
    );
    let mut bytes = whole;
    // The graph's first field, made one of a wire type that is none.
    bytes[4] = 0x0f;
    let told = told(&bytes);
    assert!(
        told.starts_with("damaged: failed to decode Protobuf message: ModelProto.graph"),
        "{told}"
    );
}

#[test]
fn what_is_too_new() {
    let told = told_after(|model| model.ir_version = Some(99));
    assert!(
        told.starts_with("IR version 99 is newer than 14, the newest supported; "),
        "{told}"
    );
    let told = told_after(|model| model.opset_import[0].version = Some(99));
    assert!(
        told.starts_with(
            "the model imports ai.onnx opset 99, newer than 28, the newest supported; "
        ),
        "{told}"
    );
    let told = told_after(|model| {
        model.functions.push(FunctionProto {
            name: Some("f".into()),
            opset_import: vec![opset("ai.onnx", 99)],
            ..FunctionProto::default()
        });
    });
    assert!(
        told.starts_with("function `f` imports ai.onnx opset 99, "),
        "{told}"
    );
}

#[test]
fn what_is_missing() {
    assert!(told_after(|model| model.graph = None).starts_with("the model has no graph; "));
    assert_eq!(
        told_after(|model| {
            model.graph = None;
            model.functions.push(FunctionProto::default());
        }),
        "the model has 1 function(s) and no graph; give the model that calls them"
    );
    assert!(
        told_after(|model| model.graph = Some(GraphProto::default()))
            .starts_with("the graph has no nodes and no outputs; ")
    );
    assert_eq!(
        told_after(|model| drop(model.opset_import.remove(0))),
        "no opset is imported for the default domain ai.onnx; add an `opset_import` for it"
    );
    assert_eq!(
        told_after(|model| model.opset_import[0].version = None),
        "the model imports ai.onnx opset 0; opsets begin at 1"
    );
    assert_eq!(
        told_after(|model| model.opset_import.push(opset("ai.onnx", 20))),
        "the model imports ai.onnx opset 28 and 20; keep one"
    );
}
