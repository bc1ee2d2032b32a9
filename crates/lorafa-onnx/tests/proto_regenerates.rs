//! `src/proto.rs` is exactly what the schema in `proto/onnx.proto` generates.
//!
//! To change the schema, replace `proto/onnx.proto` and run this test once with `LORAFA_BLESS=1`.

use std::path::{Path, PathBuf};
use std::{env, fs};

const HEADER: &str = "\
// Generated from proto/onnx.proto by tests/proto_regenerates.rs; do not edit.
// SPDX-License-Identifier: Apache-2.0

";

/// Compiles the schema without protoc and renders it as the checked-in file must be.
fn generate(folder: &Path) -> String {
    let descriptors = protox::compile(["onnx.proto"], [folder]).expect("the schema compiles");
    let module = prost_build::Module::from_protobuf_package_name("onnx");
    let requests = descriptors
        .file
        .into_iter()
        .map(|file| (module.clone(), file))
        .collect();
    let code = prost_build::Config::new()
        .bytes(["."])
        .generate(requests)
        .expect("the schema generates")
        .remove(&module)
        .expect("one module is generated");
    format!("{HEADER}{code}")
}

#[test]
fn the_checked_in_module_is_what_the_schema_generates() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let checked_in = root.join("src/proto.rs");
    let generated = generate(&root.join("proto"));
    if env::var_os("LORAFA_BLESS").is_some() {
        fs::write(&checked_in, &generated).expect("src/proto.rs is writable");
    }
    let found = fs::read_to_string(&checked_in).unwrap_or_default();
    // No assert_eq: two thousand lines of each side would bury the remedy.
    assert!(
        found == generated,
        "src/proto.rs differs from what proto/onnx.proto generates; rerun with LORAFA_BLESS=1 and review the diff"
    );
}
