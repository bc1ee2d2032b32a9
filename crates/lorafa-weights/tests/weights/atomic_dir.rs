//! Folders that appear whole or not at all.

use lorafa_weights::atomic_dir::{StageErrorKind, StagedDir};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

const OURS: fn(&str) -> bool = |name| name == "a" || name == "b";

fn write(target: &Path, a: &str, b: Option<&str>) {
    let staged = StagedDir::new(target, OURS).unwrap();
    staged.file("a", a.as_bytes()).unwrap();
    if let Some(b) = b {
        staged.file("b", b.as_bytes()).unwrap();
    }
    staged.commit().unwrap();
}

fn names(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().file_name());
    let mut names: Vec<String> = names.map(|n| n.into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_folder_is_made_and_replaced_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    write(&target, "1", Some("2"));
    assert_eq!(names(&target), ["a", "b"]);
    write(&target, "3", None);
    assert_eq!(names(&target), ["a"], "no file of the old one is left");
    assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "3");
    assert_eq!(names(dir.path()), ["out"]);
}

#[test]
fn nothing_is_there_before_the_commit_or_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    let staged = StagedDir::new(&target, OURS).unwrap();
    staged.file("a", b"1").unwrap();
    assert!(!target.exists());
    let twice = staged.file("a", b"2").unwrap_err();
    assert_eq!(twice.path, target.join("a"));
    drop(staged);
    assert!(names(dir.path()).is_empty());
}

#[test]
fn what_is_not_ours_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |path: &Path| StagedDir::new(path, OURS).unwrap_err();
    let target = dir.path().join("out");
    write(&target, "1", None);
    fs::write(target.join("z"), "").unwrap();
    fs::write(target.join("notes"), "").unwrap();
    let error = refused(&target);
    assert!(matches!(&error.kind, StageErrorKind::Foreign { name } if name == "notes"));
    assert!(
        error.to_string().contains("`notes`, which would be lost"),
        "{error}"
    );
    let file = target.join("a");
    assert!(matches!(refused(&file).kind, StageErrorKind::NotAFolder));
    assert!(matches!(
        refused(&file.join("x")).kind,
        StageErrorKind::NoParent { .. }
    ));
    let deep = dir.path().join("no/such");
    let text = refused(&deep).to_string();
    assert!(
        text.contains("there is no folder") && text.contains("create it first"),
        "{text}"
    );
    assert!(matches!(
        refused(Path::new("/")).kind,
        StageErrorKind::NoName
    ));
    assert_eq!(names(&target), ["a", "notes", "z"]);
}

/// Something put into the folder while the new one is written is not lost either.
#[test]
fn what_comes_while_writing_is_not_lost() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    write(&target, "1", None);
    let staged = StagedDir::new(&target, OURS).unwrap();
    staged.file("a", b"2").unwrap();
    fs::write(target.join("notes"), "").unwrap();
    let error = staged.commit().unwrap_err();
    assert!(matches!(error.kind, StageErrorKind::Foreign { .. }));
    assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "1");
    assert_eq!(names(dir.path()), ["out"]);
}

#[cfg(unix)]
#[test]
fn a_link_stays_and_what_it_points_to_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (target, link) = (dir.path().join("out"), dir.path().join("link"));
    write(&target, "1", None);
    std::os::unix::fs::symlink(&target, &link).unwrap();
    write(&link, "2", None);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "2");
}

/// A reader that opens the folder over and over while it is replaced always finds a whole one.
#[cfg(target_os = "linux")]
#[test]
fn a_reader_always_finds_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    write(&target, "0", None);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut seen = 0u32;
            while !done.load(Ordering::Relaxed) || seen == 0 {
                assert!(fs::symlink_metadata(&target).unwrap().is_dir());
                seen += 1;
            }
        });
        for i in 1..50 {
            write(&target, &i.to_string(), None);
        }
        done.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });
}

/// A disk that takes no more: a limit on the size of files stands for it, in a process of its own, which runs this test
/// again and has the folder's path from `TARGET`.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_what_was_there() {
    const TARGET: &str = "LORAFA_TEST_TARGET";
    if let Some(target) = std::env::var_os(TARGET) {
        let staged = StagedDir::new(target, OURS).unwrap();
        let error = staged.file("a", &[0; 1 << 16]).unwrap_err();
        assert!(matches!(error.kind, StageErrorKind::Io(_)), "{error}");
        assert!(error.to_string().starts_with("cannot write ") && error.path.ends_with("out/a"));
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    write(&target, "1", None);
    // 512 or 1024 bytes, as the shell counts.
    let limited = "trap '' XFSZ; ulimit -f 1; exec \"$0\" --exact atomic_dir::a_full_disk_leaves_what_was_there";
    let run = Command::new("sh")
        .args(["-c", limited])
        .arg(std::env::current_exe().unwrap())
        .env(TARGET, &target)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success() && text.contains("1 passed"), "{text}");
    assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "1");
    assert_eq!(names(dir.path()), ["out"]);
}
