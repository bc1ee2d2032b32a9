//! Two decoders that share no code read the same model out of every example.
//!
//! Ours is prost over a memory map; the other is rust-protobuf through the `onnx-protobuf` crate, whose schema is older
//! (IR 10) and knows every field that exporters write. Set `LORAFA_EXTRA_MODELS` to a folder to compare more models.

#[path = "decoders_agree/facts.rs"]
mod facts;
#[path = "decoders_agree/ours.rs"]
mod ours;
#[path = "decoders_agree/theirs.rs"]
mod theirs;

use std::path::{Path, PathBuf};
use std::{env, fs};

use lorafa_onnx::file::ModelFile;
use onnx_protobuf::Message as _;

/// Every `.onnx` file in the folder and below, in a fixed order.
fn models(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries =
            fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        for entry in entries {
            let path = entry.expect("the folder can be read").path();
            if path.is_dir() {
                folders.push(path);
            } else if path
                .extension()
                .is_some_and(|extension| extension == "onnx")
            {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn assert_agree(path: &Path) {
    let model = ModelFile::open(path).unwrap_or_else(|error| panic!("{error}"));
    let ours = ours::model(model.proto());
    let bytes = fs::read(path).expect("the model can be read");
    let other = onnx_protobuf::ModelProto::parse_from_bytes(&bytes)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let theirs = theirs::model(&other);
    for (ours, theirs) in ours.list.iter().zip(&theirs.list) {
        // No assert_eq: a weight's bytes would bury the place.
        assert_eq!(ours.place, theirs.place, "{}", path.display());
        assert!(
            ours.value == theirs.value,
            "{} at {}: ours has {} bytes, theirs {}, and they differ",
            path.display(),
            ours.place,
            ours.value.len(),
            theirs.value.len(),
        );
    }
    assert_eq!(ours.list.len(), theirs.list.len(), "{}", path.display());
}

#[test]
fn on_every_example() {
    let examples = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let models = models(&examples);
    assert!(
        !models.is_empty(),
        "examples/ has no .onnx file, so this test would test nothing"
    );
    models.iter().for_each(|model| assert_agree(model));
}

#[test]
fn on_models_given_by_the_environment() {
    let Some(folder) = env::var_os("LORAFA_EXTRA_MODELS") else {
        return;
    };
    let models = models(Path::new(&folder));
    assert!(
        !models.is_empty(),
        "LORAFA_EXTRA_MODELS has no .onnx file in it"
    );
    models.iter().for_each(|model| assert_agree(model));
}

#[test]
fn on_every_kind_of_attribute() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("attributes.onnx");
    lorafa_onnx::write::write_atomic(&path, &ours::every_attribute()).expect("it writes");
    assert_agree(&path);
}
