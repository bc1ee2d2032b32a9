//! References that try to read what is not theirs.

use std::fs;

use lorafa_onnx::external::{ExternalError as E, ExternalRef, ExternalStore};
use lorafa_onnx::tensor;
use tempfile::TempDir;

use crate::samples::{self, entries};

fn reference(pairs: &[(&str, &str)]) -> Result<ExternalRef, E> {
    ExternalRef::from_entries(&entries(pairs))
}

fn at(location: &str) -> Result<ExternalRef, E> {
    reference(&[("location", location)])
}

/// A folder `model/` with ten bytes in `w.bin`, and next to it the file it must not reach.
fn folders() -> (TempDir, ExternalStore) {
    let root = tempfile::tempdir().expect("a temporary folder");
    let model = root.path().join("model");
    fs::create_dir_all(model.join("sub")).expect("folders");
    fs::write(model.join("w.bin"), b"0123456789").expect("a file");
    fs::write(model.join("empty.bin"), b"").expect("a file");
    fs::write(root.path().join("secret"), b"0123456789").expect("a file");
    let store = ExternalStore::new(model);
    (root, store)
}

#[test]
fn locations_stay_in_the_folder() {
    assert!(matches!(at(""), Err(E::NoLocation)));
    assert!(matches!(reference(&[("offset", "1")]), Err(E::NoLocation)));
    for absolute in [
        "/etc/passwd",
        "\\\\server\\share",
        "C:\\w.bin",
        "c:w.bin",
        "//w",
    ] {
        assert!(
            matches!(at(absolute), Err(E::Absolute { .. })),
            "{absolute}"
        );
    }
    for climbing in [
        "..",
        "../secret",
        "sub/../../secret",
        "sub\\..\\..\\secret",
        "a/..",
    ] {
        assert!(matches!(at(climbing), Err(E::Climbs { .. })), "{climbing}");
    }
    for fine in ["w.bin", "./w.bin", "sub/w.bin", "..w", "a..b", "…"] {
        assert_eq!(at(fine).expect(fine).location(), fine);
    }
}

#[test]
fn numbers_are_plain_decimals() {
    for bad in [
        "-1",
        "+1",
        "",
        " 1",
        "1 ",
        "0x10",
        "1e3",
        "१",
        "18446744073709551616",
    ] {
        for key in ["offset", "length"] {
            let error = reference(&[("location", "w.bin"), (key, bad)]).expect_err(bad);
            assert!(matches!(error, E::BadNumber { .. }), "{key} {bad}: {error}");
        }
    }
    let huge = [
        ("location", "w"),
        ("offset", "18446744073709551615"),
        ("length", "1"),
    ];
    assert!(matches!(reference(&huge), Err(E::Overflow { .. })));
}

#[test]
fn a_key_has_one_value() {
    let twice = reference(&[("location", "w.bin"), ("location", "x.bin")]);
    assert!(matches!(twice, Err(E::DuplicateKey { key }) if key == "location"));
    let checksum = [
        ("location", "w.bin"),
        ("checksum", "wrong"),
        ("basepath", "/"),
    ];
    assert_eq!(
        reference(&checksum).expect("ignored"),
        at("w.bin").expect("fine")
    );
}

#[test]
fn entries_survive_a_round_trip() {
    for (offset, length) in [(0, None), (64, Some(16)), (u64::MAX, Some(0))] {
        let reference = ExternalRef::new("sub/w.bin", offset, length).expect("valid");
        let again = ExternalRef::from_entries(&reference.to_entries()).expect("valid");
        assert_eq!(again, reference);
    }
}

#[test]
fn ranges_stay_in_the_file() {
    let (_root, store) = folders();
    let read = |offset, length, expected| {
        store.read(&ExternalRef::new("w.bin", offset, length)?, expected)
    };
    assert_eq!(read(0, None, 10).expect("all"), "0123456789");
    assert_eq!(read(4, Some(6), 6).expect("the rest"), "456789");
    assert_eq!(read(2, None, 3).expect("some"), "234");
    assert_eq!(read(10, Some(0), 0).expect("nothing, at the end"), "");
    assert!(matches!(
        read(11, Some(0), 0),
        Err(E::OutOfBounds { size: 10, .. })
    ));
    assert!(matches!(read(5, Some(6), 6), Err(E::OutOfBounds { .. })));
    assert!(matches!(
        read(0, None, u64::MAX),
        Err(E::OutOfBounds { .. })
    ));
    assert!(matches!(read(1, None, u64::MAX), Err(E::Overflow { .. })));
    assert!(matches!(
        read(0, Some(4), 8),
        Err(E::Length {
            length: 4,
            expected: 8,
            ..
        })
    ));
}

#[test]
fn what_is_not_a_file_is_told_apart() {
    let (_root, store) = folders();
    let read = |location, expected| store.read(&at(location)?, expected);
    assert!(matches!(read("absent.bin", 4), Err(E::Missing { .. })));
    assert!(matches!(
        read("w.bin/under-a-file", 4),
        Err(E::Missing { .. })
    ));
    assert!(matches!(read("sub", 4), Err(E::NotAFile { .. })));
    assert!(matches!(read(".", 4), Err(E::NotAFile { .. })));
    assert!(matches!(read("nul\0byte", 4), Err(E::Io { .. })));
    assert!(matches!(
        read("empty.bin", 4),
        Err(E::OutOfBounds { size: 0, .. })
    ));
    assert_eq!(read("empty.bin", 0).expect("nothing of nothing"), "");
    let nowhere = ExternalStore::new("no/such/folder");
    assert!(matches!(
        nowhere.read(&at("w.bin").expect("valid"), 4),
        Err(E::Missing { .. })
    ));
}

#[cfg(unix)]
#[test]
fn links_stay_in_the_folder() {
    use std::os::unix::fs::symlink;
    let (root, store) = folders();
    let model = store.folder();
    symlink("../secret", model.join("out")).expect("a link");
    symlink(root.path(), model.join("parent")).expect("a link");
    symlink("w.bin", model.join("in")).expect("a link");
    symlink("loop", model.join("loop")).expect("a link");
    let read = |location| store.read(&at(location)?, 10);
    assert!(matches!(read("out"), Err(E::Escapes { .. })));
    assert!(matches!(read("parent/secret"), Err(E::Escapes { .. })));
    assert!(matches!(read("loop"), Err(E::Io { .. })));
    assert_eq!(read("in").expect("it stays"), "0123456789");
    // A folder that is itself reached through a link is the model's own, whatever it is called.
    assert_eq!(read("parent/model/w.bin").expect("it stays"), "0123456789");
}

#[test]
fn a_file_is_mapped_once() {
    let (_root, store) = folders();
    let read = |location| {
        store
            .read(&at(location).expect("valid"), 10)
            .expect("there")
    };
    assert_eq!(read("w.bin").as_ptr(), read("./w.bin").as_ptr());
}

#[test]
fn a_tensor_checks_its_reference_before_the_disk_is_touched() {
    let mut tensor = samples::tensor(1, &[2, 2]);
    tensor.data_location = Some(1);
    tensor.external_data = entries(&[("location", "w.bin"), ("length", "15")]);
    let error = tensor::payload(&tensor).expect_err("2x2 f32 are 16 bytes");
    assert_eq!(
        error.to_string(),
        "tensor `w`: external data at `w.bin` gives 15 bytes; the tensor's shape and type need 16"
    );
    tensor.external_data = entries(&[("location", "absent.bin"), ("length", "16")]);
    tensor::payload(&tensor).expect("whether the file is there is asked later");
    let error = tensor::read(&tensor, &folders().1).expect_err("it is not there");
    assert!(error.is_missing_file());
    tensor.raw_data = Some(vec![0; 16].into());
    let error = tensor::payload(&tensor).expect_err("two answers");
    assert_eq!(
        error.to_string(),
        "tensor `w` has elements in both raw_data and external_data; keep one"
    );
}
