//! The binary in a folder of its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

/// A folder to run the command in.
pub struct Job {
    folder: TempDir,
}

#[allow(dead_code)]
impl Job {
    /// An empty folder.
    pub fn new() -> Self {
        Job {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs the command.
    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// The command, to be run.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lorafa-opt"));
        command.args(args).current_dir(self.folder.path());
        command
    }

    /// Runs the command, which must succeed; its standard output.
    #[track_caller]
    pub fn done(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}: {error}");
        assert_eq!(error, "", "{args:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs the command, which must end with status 2, a message that has all of `parts`, nothing
    /// on standard output, and the folder as it was.
    #[track_caller]
    pub fn refused(&self, args: &[&str], parts: &[&str]) {
        self.refused_with(2, args, parts);
    }

    /// As [`refused`](Self::refused), with another status.
    #[track_caller]
    pub fn refused_with(&self, status: i32, args: &[&str], parts: &[&str]) {
        let before = self.files();
        let output = self.run(args);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{args:?}: {message}");
        assert_eq!(output.stdout, b"", "{args:?}");
        for part in parts {
            assert!(
                message.contains(part),
                "{args:?}: no `{part}` in: {message}"
            );
        }
        assert!(!message.contains("panicked"), "{args:?}: {message}");
        assert_eq!(self.files(), before, "{args:?}");
    }

    /// Everything in the folder, with sizes.
    pub fn files(&self) -> BTreeMap<PathBuf, u64> {
        let mut files = BTreeMap::new();
        let mut folders = vec![self.folder.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()) {
                let metadata = entry.metadata().unwrap();
                files.insert(entry.path(), metadata.len());
                if metadata.is_dir() {
                    folders.push(entry.path());
                }
            }
        }
        files
    }
}

/// The bytes of an example model.
pub fn example(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../examples")
        .join(name);
    fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Puts an example model into a job's folder.
#[allow(dead_code)]
pub fn copy_example(job: &Job, name: &str, to: &str) {
    fs::write(job.path(to), example(name)).unwrap();
}

/// Models as protobuf.
#[allow(dead_code)]
pub mod onnx {
    use lorafa_onnx::proto::ModelProto;
    use prost::Message;

    pub fn decode(bytes: &[u8]) -> ModelProto {
        ModelProto::decode(bytes).unwrap()
    }

    pub fn encode(model: &ModelProto) -> Vec<u8> {
        model.encode_to_vec()
    }
}
