//! A model file: opened, memory-mapped, decoded and checked.

mod error;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::{DecodeError, Message};

use crate::map::map_file;
use crate::proto::{GraphProto, ModelProto, OperatorSetIdProto, StringStringEntryProto, Version};
use crate::wire::{self, Verdict};

pub use error::{FileError, FileErrorKind};

/// The newest IR version that `proto/onnx.proto` describes. prost drops fields it does not know, so a newer file
/// would lose content without a word: it is refused.
pub const MAX_IR_VERSION: i64 = Version::IrVersion as i64;

/// The newest `ai.onnx` operator set of the release the schema comes from (onnx 1.23).
pub const MAX_OPSET: i64 = 28;

/// prost's own limit on nested messages, named here for the error that reports it.
const NESTING_LIMIT: u32 = 100;

/// How prost ends the text of an error about [`NESTING_LIMIT`]; it has no other way to tell.
const NESTING_ERROR: &str = "recursion limit reached";

/// A model that decoded, has a graph, and asks for nothing newer than this crate knows.
///
/// Weights inside the file are slices of its memory map. Nothing may truncate or rewrite the file while the model, or
/// any [`Bytes`] taken from it, is alive; replacing it by a rename is safe.
#[derive(Clone, Debug)]
pub struct ModelFile {
    path: PathBuf,
    proto: ModelProto,
}

impl ModelFile {
    /// Opens and checks the model at `path`.
    ///
    /// # Errors
    ///
    /// [`FileError`], which names the path and one of the [`FileErrorKind`]s.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, FileError> {
        let path = path.into();
        match map(&path).and_then(decode) {
            Ok(proto) => Ok(Self { path, proto }),
            Err(kind) => Err(FileError { path, kind }),
        }
    }

    /// Where the model was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder that holds the model, against which the locations of external data are resolved.
    pub fn folder(&self) -> &Path {
        folder_of(&self.path)
    }

    /// The decoded protobuf.
    pub fn proto(&self) -> &ModelProto {
        &self.proto
    }

    /// The model's graph.
    pub fn graph(&self) -> &GraphProto {
        match &self.proto.graph {
            Some(graph) => graph,
            None => unreachable!("`open` refuses a model with no graph"),
        }
    }

    /// The files that hold weights or constants of the model, as it names them.
    pub fn external_files(&self) -> BTreeSet<&str> {
        let graph = self.graph();
        let functions = self.proto.functions.iter().flat_map(|f| &f.node);
        let constants = graph.node.iter().chain(functions);
        let constants = constants.flat_map(|node| &node.attribute);
        let constants = constants.filter_map(|attribute| attribute.t.as_ref());
        let entries = graph.initializer.iter().chain(constants);
        let entries = entries.flat_map(|tensor| &tensor.external_data);
        let locations = entries.filter(|entry| entry.key() == "location");
        locations.map(StringStringEntryProto::value).collect()
    }

    /// Version of the operator set the model imports for `domain`; `""` and `"ai.onnx"` are the same domain.
    pub fn opset(&self, domain: &str) -> Option<i64> {
        let same = |set: &&OperatorSetIdProto| {
            set.domain() == domain || is_default(set.domain()) && is_default(domain)
        };
        self.proto
            .opset_import
            .iter()
            .find(same)
            .map(OperatorSetIdProto::version)
    }
}

fn map(path: &Path) -> Result<Bytes, FileErrorKind> {
    let refused = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => FileErrorKind::NotFound,
        _ => FileErrorKind::Io(error),
    };
    // Before opening: opening a pipe waits for a writer.
    let metadata = fs::metadata(path).map_err(refused)?;
    if metadata.is_dir() {
        return Err(FileErrorKind::Directory);
    }
    if !metadata.is_file() {
        return Err(FileErrorKind::NotAFile);
    }
    map_file(&File::open(path).map_err(refused)?).map_err(refused)
}

/// Decodes and checks a model held in memory, exactly as [`ModelFile::open`] does; weights are slices of `bytes`.
///
/// # Errors
///
/// Every [`FileErrorKind`] that is not about opening a file.
pub fn decode(bytes: Bytes) -> Result<ModelProto, FileErrorKind> {
    if bytes.is_empty() {
        return Err(FileErrorKind::Empty);
    }
    let model = ModelProto::decode(bytes.clone()).map_err(|error| explain(error, &bytes))?;
    if model.ir_version() > MAX_IR_VERSION {
        return Err(FileErrorKind::NewerIr {
            found: model.ir_version(),
        });
    }
    // prost takes many a text for a message of unknown fields.
    if model.ir_version() < 1 {
        return Err(match wire::diagnose(&bytes) {
            Verdict::Foreign { hint } => FileErrorKind::NotOnnx { hint },
            _ => FileErrorKind::NotOnnx {
                hint: "it has no `ir_version`",
            },
        });
    }
    match &model.graph {
        None if model.functions.is_empty() => return Err(FileErrorKind::NoGraph),
        None => {
            return Err(FileErrorKind::OnlyFunctions {
                functions: model.functions.len(),
            });
        }
        Some(graph) if graph.node.is_empty() && graph.output.is_empty() => {
            return Err(FileErrorKind::EmptyGraph);
        }
        Some(_) => {}
    }
    if check_opsets("the model", &model.opset_import)?.is_none() {
        return Err(FileErrorKind::NoOpset);
    }
    for function in &model.functions {
        check_opsets(
            &format!("function `{}`", function.name()),
            &function.opset_import,
        )?;
    }
    Ok(model)
}

fn explain(error: DecodeError, bytes: &[u8]) -> FileErrorKind {
    if error.to_string().ends_with(NESTING_ERROR) {
        return FileErrorKind::TooDeep;
    }
    match wire::diagnose(bytes) {
        Verdict::Foreign { hint } => FileErrorKind::NotOnnx { hint },
        Verdict::Truncated { field } => FileErrorKind::Truncated {
            field,
            size: bytes.len(),
        },
        Verdict::Model => FileErrorKind::Malformed(error),
    }
}

/// The default domain's opset among `imports`, if there is one.
fn check_opsets(whose: &str, imports: &[OperatorSetIdProto]) -> Result<Option<i64>, FileErrorKind> {
    let whose = || whose.to_owned();
    let mut first = None;
    for import in imports.iter().filter(|import| is_default(import.domain())) {
        let found = import.version();
        if found > MAX_OPSET {
            return Err(FileErrorKind::NewerOpset {
                whose: whose(),
                found,
            });
        }
        if found < 1 {
            return Err(FileErrorKind::BadOpset {
                whose: whose(),
                found,
            });
        }
        let first = *first.get_or_insert(found);
        if first != found {
            return Err(FileErrorKind::TwoOpsets {
                whose: whose(),
                first,
                second: found,
            });
        }
    }
    Ok(first)
}

fn is_default(domain: &str) -> bool {
    matches!(domain, "" | "ai.onnx")
}

/// The folder a file is in; the current one for a bare name.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
