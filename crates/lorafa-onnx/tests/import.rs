//! Every example model imports into a graph that verifies, and keeps doing so when bound.

#[path = "import/functions.rs"]
mod functions;
#[path = "import/microsoft.rs"]
mod microsoft;

use lorafa_ir::Graph;
use lorafa_onnx::file::ModelFile;
use lorafa_onnx::import::import;
use std::path::{Path, PathBuf};

/// The models of `examples/` and of the folder that `LORAFA_EXTRA_MODELS` names.
fn models() -> Vec<PathBuf> {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let extra = std::env::var_os("LORAFA_EXTRA_MODELS").map(PathBuf::from);
    let mut models = Vec::new();
    let artifacts = std::fs::read_dir(examples.join("ort")).unwrap();
    let artifacts = artifacts.map(|entry| entry.unwrap().path());
    let artifacts = artifacts.map(|folder| folder.join("training_model.onnx"));
    models.extend(artifacts.filter(|path| path.exists()));
    let folders = [examples.join("joint"), examples];
    for folder in folders.into_iter().chain(extra) {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "onnx") {
                models.push(path);
            }
        }
    }
    models.sort();
    assert!(!models.is_empty());
    models
}

#[test]
fn examples_import_and_verify() {
    let mut failed = Vec::new();
    for path in models() {
        let model = ModelFile::open(&path).unwrap();
        match import(&model) {
            Ok(graph) => {
                if let Err(violations) = graph.verify() {
                    failed.push(format!("{}: {violations}", path.display()));
                } else if let Err(error) = lir_round_trip(&graph) {
                    failed.push(format!("{}: {error}", path.display()));
                }
            }
            Err(error) => failed.push(format!("{}: {error}", path.display())),
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

fn lir_round_trip(graph: &Graph) -> Result<(), String> {
    let text = graph.to_string();
    let again = lorafa_ir::text::parse(&text)
        .map_err(|e| e.to_string())?
        .to_string();
    if again == text {
        Ok(())
    } else {
        Err("its text form does not round-trip".into())
    }
}
