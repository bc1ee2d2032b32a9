//! A model's weights as they are kept: one safetensors file, or several with an index, as Hugging Face has them; or a
//! checkpoint of onnxruntime-training.

use crate::dtype::from_file;
use crate::error::{FileProblem, WeightsError};
use crate::ort_checkpoint;
use bytes::Bytes;
use lorafa_ir::DType;
use lorafa_onnx::map::map_file;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// The file of a checkpoint in one piece.
pub(crate) const SINGLE: &str = "model.safetensors";
/// The file that says which tensor of a checkpoint is in which piece.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// The file that holds the tensors of an adapter.
pub(crate) const ADAPTER: &str = "adapter_model.safetensors";
/// The extension of the files.
const EXTENSION: &str = "safetensors";
/// The file that says how Hugging Face builds the model.
const CONFIG: &str = "config.json";

/// A tensor in a file.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Element type, as the file says it.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<u64>,
    /// Little-endian elements, row-major: a slice of the file's map.
    pub bytes: Bytes,
    /// The file's name.
    pub file: Arc<str>,
    /// Whether it trained where it was saved; `None` where the format does not say.
    pub requires_grad: Option<bool>,
}

impl Tensor {
    /// The IR's element type for the file's, if it has one.
    #[must_use]
    pub fn ir_dtype(&self) -> Option<DType> {
        from_file(self.dtype)
    }
}

/// The tensors of a checkpoint, by name, memory-mapped.
///
/// Nothing may truncate or rewrite the files while this, or any [`Bytes`] taken from it, is alive; replacing them by a
/// rename is safe.
#[derive(Clone, Debug)]
pub struct Shards {
    path: PathBuf,
    tensors: BTreeMap<String, Tensor>,
    unties: bool,
}

/// What matters of the index.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// What matters of a model's configuration.
#[derive(Default, Deserialize)]
struct Config {
    tie_word_embeddings: Option<bool>,
}

impl Shards {
    /// Opens a checkpoint: a safetensors file, or a folder with `model.safetensors`, with
    /// `model.safetensors.index.json` and the files that it names, or with any other `*.safetensors`; or the file in which
    /// onnxruntime-training keeps parameters.
    ///
    /// # Errors
    ///
    /// [`WeightsError::File`], which names the file and what is wrong with it: not there, not a safetensors file, cut
    /// off, not in line with the index, or with a tensor that another one has, too.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, WeightsError> {
        let path = path.as_ref();
        let there = fs::metadata(path).map_err(|error| no_file(path, error))?;
        let mut shards = Shards {
            path: path.to_owned(),
            tensors: BTreeMap::new(),
            unties: false,
        };
        if !there.is_dir() {
            shards.add(path)?;
            return Ok(shards);
        }
        let index = path.join(INDEX);
        if path.join(SINGLE).is_file() {
            shards.add(&path.join(SINGLE))?;
        } else if index.is_file() {
            shards.add_indexed(path, &index)?;
        } else {
            for file in loose_files(path)? {
                shards.add(&path.join(file))?;
            }
        }
        let config = path.join(CONFIG);
        if config.is_file() {
            let config: Config = read_json(&config)?;
            shards.unties = config.tie_word_embeddings == Some(false);
        }
        Ok(shards)
    }

    /// Where they were opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A tensor by the name it has in its file.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// Every tensor with the name it has in its file, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, t)| (name.as_str(), t))
    }

    /// Whether `config.json` says that input and output embedding are two weights.
    pub(crate) fn unties(&self) -> bool {
        self.unties
    }

    fn add_indexed(&mut self, folder: &Path, index: &Path) -> Result<(), WeightsError> {
        let map: Index = read_json(index)?;
        let files: BTreeSet<&str> = map.weight_map.values().map(String::as_str).collect();
        for file in &files {
            let mut parts = Path::new(file).components();
            let plain =
                matches!(parts.next(), Some(Component::Normal(_))) && parts.next().is_none();
            if !plain || file.contains('\\') {
                return Err(problem(
                    index,
                    FileProblem::IndexPath {
                        file: (*file).to_owned(),
                    },
                ));
            }
            let path = folder.join(file);
            if !path.is_file() {
                return Err(problem(
                    index,
                    FileProblem::IndexFile {
                        file: (*file).to_owned(),
                    },
                ));
            }
            self.add(&path)?;
        }
        let misplaced = map.weight_map.iter().find(|(name, file)| {
            let found = self.tensors.get(*name).map(|t| &*t.file);
            found != Some(file.as_str())
        });
        match misplaced {
            Some((name, file)) => Err(problem(
                index,
                FileProblem::IndexTensor {
                    name: name.clone(),
                    file: file.clone(),
                },
            )),
            None => Ok(()),
        }
    }

    fn add(&mut self, path: &Path) -> Result<(), WeightsError> {
        let map = map(path)?;
        let tensors = match ort_checkpoint::is(&map) {
            true => ort_checkpoint::read(path, &map)?,
            false => read_safetensors(path, &map)?,
        };
        for (name, tensor) in tensors {
            if let Some(other) = self.tensors.insert(name.clone(), tensor) {
                let other = other.file.to_string();
                return Err(problem(path, FileProblem::Twice { name, other }));
            }
        }
        Ok(())
    }
}

/// Maps a file.
pub(crate) fn map(path: &Path) -> Result<Bytes, WeightsError> {
    let there = fs::metadata(path).map_err(|error| no_file(path, error))?;
    // Before opening: opening a pipe waits for a writer.
    if !there.is_file() {
        return Err(problem(path, FileProblem::NotAFile));
    }
    let map = File::open(path).and_then(|file| map_file(&file));
    map.map_err(|error| no_file(path, error))
}

fn read_safetensors(path: &Path, map: &Bytes) -> Result<Vec<(String, Tensor)>, WeightsError> {
    let header = SafeTensors::read_metadata(map);
    let (length, header) = header.map_err(|error| {
        let hint = hint(path, map);
        problem(path, FileProblem::Header { error, hint })
    })?;
    let file: Arc<str> = file_name(path).into();
    let data = map.slice(size_of::<u64>() + length..);
    let names = header.offset_keys().into_iter();
    let tensors = names.filter_map(|name| {
        let info = header.info(&name)?;
        let tensor = Tensor {
            dtype: info.dtype,
            shape: info.shape.iter().map(|n| *n as u64).collect(),
            bytes: data.slice(info.data_offsets.0..info.data_offsets.1),
            file: file.clone(),
            requires_grad: None,
        };
        Some((name, tensor))
    });
    Ok(tensors.collect())
}

/// Every safetensors file of a folder that has neither of the usual names.
fn loose_files(folder: &Path) -> Result<BTreeSet<String>, WeightsError> {
    let entries = fs::read_dir(folder).map_err(|error| no_file(folder, error))?;
    let mut files = BTreeSet::new();
    let mut others = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| no_file(folder, error))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        match Path::new(&name).extension() {
            Some(extension) if extension == EXTENSION && name != ADAPTER => {
                files.insert(name);
            }
            _ => others.push(name),
        }
    }
    if !files.is_empty() {
        return Ok(files);
    }
    let has = |name: &dyn Fn(&str) -> bool| others.iter().any(|n| name(n));
    Err(problem(
        folder,
        if has(&|n| n == ADAPTER) {
            FileProblem::OnlyAdapter
        } else if has(&|n| n.starts_with("pytorch_model")) {
            FileProblem::OnlyPickle
        } else {
            FileProblem::NoSafetensors
        },
    ))
}

/// Reads a JSON file as far as `T` needs it.
pub(crate) fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T, WeightsError> {
    let text = fs::read(path).map_err(|error| no_file(path, error))?;
    let value = serde_json::from_slice(&text);
    value.map_err(|error| problem(path, FileProblem::Json(error)))
}

pub(crate) fn problem(path: &Path, problem: FileProblem) -> WeightsError {
    WeightsError::File {
        path: path.to_owned(),
        problem: Box::new(problem),
    }
}

fn no_file(path: &Path, error: io::Error) -> WeightsError {
    let kind = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => FileProblem::Missing,
        _ => FileProblem::Io(error),
    };
    problem(path, kind)
}

pub(crate) fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

/// What a file that is no safetensors file looks like.
fn hint(path: &Path, bytes: &[u8]) -> &'static str {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("");
    if bytes.is_empty() {
        "the file is empty"
    } else if bytes.starts_with(b"version https://git-lfs") {
        "it is a Git LFS pointer; fetch the file itself with `git lfs pull`"
    } else if bytes.starts_with(b"PK") || matches!(extension, "bin" | "pt" | "pth") {
        "it looks like a PyTorch checkpoint; save it with safetensors"
    } else if bytes.starts_with(b"GGUF") {
        "it is a GGUF file; give the model it was made from"
    } else {
        "it may be cut off; download it again"
    }
}
