//! Checkpoints of onnxruntime-training: a flatbuffer, and beside it a file with the values of models above 2 GB.

#[allow(
    missing_docs,
    unsafe_code,
    unused_imports,
    dead_code,
    unreachable_pub,
    clippy::all
)]
#[path = "ort_checkpoint/schema_generated.rs"]
mod schema;

use crate::dtype::to_file;
use crate::error::{FileProblem, WeightsError};
use crate::shards::{Tensor, file_name, map, problem};
use bytes::Bytes;
use flatbuffers::VerifierOptions;
use lorafa_onnx::dtype::from_onnx;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What stands behind the first word of such a file.
const IDENTIFIER: &[u8] = b"ODTC";

/// The verifier's bound on what offsets may make of a file: the most that a flatbuffer can hold.
const MAX_BYTES: usize = 1 << 31;

/// Whether a file is such a checkpoint.
pub(crate) fn is(bytes: &[u8]) -> bool {
    bytes.get(4..8) == Some(IDENTIFIER)
}

/// The parameters of a checkpoint: slices of its map, or of that of the file beside it.
pub(crate) fn read(path: &Path, bytes: &Bytes) -> Result<Vec<(String, Tensor)>, WeightsError> {
    let refused = |what| problem(path, FileProblem::OrtCheckpoint(what));
    let options = VerifierOptions {
        max_apparent_size: MAX_BYTES,
        ..VerifierOptions::default()
    };
    let checkpoint = schema::root_as_checkpoint_with_opts(&options, bytes)
        .map_err(|error| problem(path, FileProblem::OrtDamaged(error)))?;
    let module = checkpoint.module_state();
    let module = module.ok_or_else(|| refused("it holds no parameters".into()))?;
    if module.is_nominal_state() {
        return Err(refused(
            "it holds names alone: give the one with values, that of `artifacts.generate_artifacts` or `save_checkpoint`"
                .into(),
        ));
    }
    let trained = module.requires_grad_params().into_iter().flatten();
    let frozen = module.frozen_params().into_iter().flatten();
    let all = (trained.map(|t| (t, true))).chain(frozen.map(|t| (t, false)));
    let mut reader = Reader {
        path,
        bytes,
        file: file_name(path).into(),
        beside: None,
    };
    all.map(|(tensor, trained)| reader.tensor(tensor, trained))
        .collect()
}

struct Reader<'a> {
    path: &'a Path,
    bytes: &'a Bytes,
    file: Arc<str>,
    /// The file with the values of large models, once it is needed.
    beside: Option<(PathBuf, Bytes)>,
}

impl Reader<'_> {
    fn tensor(
        &mut self,
        tensor: schema::Tensor<'_>,
        trained: bool,
    ) -> Result<(String, Tensor), WeightsError> {
        let name = tensor.name().unwrap_or_default();
        let refused = |what| problem(self.path, FileProblem::OrtCheckpoint(what));
        let code = tensor.data_type();
        let dtype = from_onnx(code);
        let dtype = dtype.ok_or_else(|| {
            refused(format!(
                "{name:?} has elements of ONNX's type {code}, which no weight has"
            ))
        })?;
        let dims = tensor.dims().into_iter().flatten();
        let shape: Vec<u64> = dims
            .map(|n| u64::from(n.high()) << 32 | u64::from(n.low()))
            .collect();
        let mut dims = shape.iter();
        let size = dims.try_fold(dtype.size(), |size, n| size.checked_mul(*n));
        let size = size.and_then(|size| usize::try_from(size).ok());
        let size =
            size.ok_or_else(|| refused(format!("{name:?} has a shape that no tensor has")))?;
        let bytes = match usize::try_from(tensor.external_data_offset()) {
            Ok(start) => self.beside(name, start, size)?,
            Err(_) => match tensor.raw_data().map_or(&[][..], |raw| raw.bytes()) {
                raw if raw.len() == size => self.bytes.slice_ref(raw),
                raw => {
                    return Err(refused(format!(
                        "{name:?} has {} bytes in place of {size}",
                        raw.len()
                    )));
                }
            },
        };
        let tensor = Tensor {
            dtype: to_file(dtype),
            shape,
            bytes,
            file: self.file.clone(),
            requires_grad: Some(trained),
        };
        Ok((name.to_string(), tensor))
    }

    /// Values that are in the file beside the checkpoint.
    fn beside(&mut self, name: &str, start: usize, size: usize) -> Result<Bytes, WeightsError> {
        let (path, data) = match &mut self.beside {
            Some(beside) => beside,
            none => none.insert(values_of(self.path)?),
        };
        let end = start.checked_add(size).filter(|end| *end <= data.len());
        let end = end.ok_or_else(|| {
            let what = format!("{name:?} ends beyond it, so it is cut off; copy it again");
            problem(path, FileProblem::OrtCheckpoint(what))
        })?;
        Ok(data.slice(start..end))
    }
}

/// The file with the values of large models.
fn values_of(checkpoint: &Path) -> Result<(PathBuf, Bytes), WeightsError> {
    let mut path = checkpoint.as_os_str().to_owned();
    path.push(".data");
    let path = PathBuf::from(path);
    let bytes = map(&path)?;
    Ok((path, bytes))
}
