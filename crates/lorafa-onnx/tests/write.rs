//! A model is written whole or not at all, and nothing else is left behind.

use std::fs;
use std::path::Path;

use lorafa_onnx::file::ModelFile;
use lorafa_onnx::proto::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto};
use lorafa_onnx::write::{WriteErrorKind as Kind, write_atomic};
use prost::Message as _;

fn model() -> ModelProto {
    ModelProto {
        ir_version: Some(10),
        opset_import: vec![OperatorSetIdProto {
            domain: None,
            version: Some(20),
        }],
        graph: Some(GraphProto {
            node: vec![NodeProto::default()],
            ..GraphProto::default()
        }),
        ..ModelProto::default()
    }
}

/// Names in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("the folder can be read");
    let mut names: Vec<_> = entries
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .into_string()
                .expect("UTF-8")
        })
        .collect();
    names.sort();
    names
}

fn refused(path: &Path, model: &ModelProto) -> (Kind, String) {
    let error = write_atomic(path, model).expect_err("it must not be written");
    assert_eq!(error.path, path);
    let text = error.to_string();
    (error.kind, text)
}

#[test]
fn it_writes_and_replaces() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("m.onnx");
    fs::write(&path, "something older").expect("it can be written");
    let size = write_atomic(&path, &model()).expect("it writes");
    assert_eq!(
        fs::read(&path).expect("it is there"),
        model().encode_to_vec()
    );
    assert_eq!(size, model().encoded_len() as u64);
    assert_eq!(names(folder.path()), ["m.onnx"]);
}

#[test]
fn a_model_can_be_written_over_itself_while_mapped() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("m.onnx");
    let mut big = model();
    let weight = TensorProto {
        raw_data: Some(
            (0..100_000)
                .map(|i| (i % 251) as u8)
                .collect::<Vec<_>>()
                .into(),
        ),
        ..TensorProto::default()
    };
    big.graph.get_or_insert_default().initializer.push(weight);
    write_atomic(&path, &big).expect("it writes");
    let mapped = ModelFile::open(&path).expect("it opens").proto().clone();
    write_atomic(&path, &model()).expect("it writes over");
    assert_eq!(mapped, big);
    write_atomic(&path, &mapped).expect("it writes back");
    assert_eq!(
        ModelFile::open(&path).expect("it opens").proto().clone(),
        big
    );
}

#[test]
fn a_folder_is_not_overwritten() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("m.onnx");
    fs::create_dir(&path).expect("a folder");
    let (kind, text) = refused(&path, &model());
    assert!(matches!(kind, Kind::Directory));
    assert!(
        text.ends_with("m.onnx: this is a folder; give a file name"),
        "{text}"
    );
    assert!(matches!(
        refused(Path::new(".."), &model()).0,
        Kind::Directory
    ));
    assert_eq!(names(folder.path()), ["m.onnx"]);
}

#[test]
fn the_folder_must_be_there() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (kind, text) = refused(&folder.path().join("absent/m.onnx"), &model());
    assert!(matches!(kind, Kind::NoFolder { .. }));
    assert!(text.ends_with("absent; create it first"), "{text}");
    fs::write(folder.path().join("file"), "").expect("it can be written");
    let (kind, _) = refused(&folder.path().join("file/m.onnx"), &model());
    assert!(matches!(kind, Kind::NoFolder { .. }));
    assert_eq!(names(folder.path()), ["file"]);
}

#[cfg(unix)]
#[test]
fn the_folder_must_take_files() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let readable = fs::Permissions::from_mode(0o555);
    fs::set_permissions(folder.path(), readable).expect("it is ours");
    let probe = folder.path().join("probe");
    if fs::write(&probe, "").is_ok() {
        // The superuser may write anywhere, so there is nothing to test.
        return;
    }
    let (kind, text) = refused(&folder.path().join("m.onnx"), &model());
    assert!(matches!(kind, Kind::Unwritable { .. }));
    assert!(text.ends_with("choose another"), "{text}");
    assert!(names(folder.path()).is_empty());
}

#[cfg(unix)]
#[test]
fn a_failed_rename_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    // Longer than any file system's names, while the temporary file's name is short.
    let path = folder.path().join("m".repeat(300));
    assert!(matches!(refused(&path, &model()).0, Kind::Io(_)));
    assert!(names(folder.path()).is_empty());
}

#[test]
fn a_protobuf_has_a_largest_size() {
    // 129 references to one weight of 16 MiB, so that two gigabytes are never held.
    let raw = bytes::Bytes::from(vec![0; 1 << 24]);
    let weight = TensorProto {
        raw_data: Some(raw),
        ..TensorProto::default()
    };
    let mut big = model();
    big.graph.get_or_insert_default().initializer = vec![weight; 129];
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (kind, text) = refused(&folder.path().join("m.onnx"), &big);
    assert!(matches!(kind, Kind::TooLarge { size } if size > 1 << 31));
    assert!(
        text.ends_with("and a protobuf holds 2147483647; keep the weights external"),
        "{text}"
    );
    assert!(names(folder.path()).is_empty());
}
