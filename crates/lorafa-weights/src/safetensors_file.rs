//! Safetensors files, written tensor by tensor.

use crate::atomic_dir::StagedFile;
use crate::dtype::to_file;
use crate::error::SaveError;
use lorafa_ir::DType;
use safetensors::tensor::{Metadata, TensorInfo};
use std::collections::HashMap;

/// What a file says of a tensor before its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: DType,
    /// Its shape.
    pub shape: Vec<u64>,
}

impl Entry {
    /// Bytes of its values.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.shape.iter().product::<u64>() * self.dtype.size()
    }
}

/// Writes a file of tensors in the order that safetensors itself gives them: the largest elements first, then by name.
/// `write` writes the values of one, which it is given by the number that came with its entry.
///
/// # Errors
///
/// [`SaveError`], of the file or of `write`.
pub fn write(
    mut file: StagedFile,
    mut entries: Vec<(Entry, usize)>,
    mut write: impl FnMut(usize, &mut StagedFile) -> Result<(), SaveError>,
) -> Result<(), SaveError> {
    entries.sort_by(|(a, _), (b, _)| {
        let key = |e: &Entry| std::cmp::Reverse(to_file(e.dtype));
        (key(a), &a.name).cmp(&(key(b), &b.name))
    });
    file.write(&header(entries.iter().map(|(entry, _)| entry))?)?;
    for (_, index) in entries {
        write(index, &mut file)?;
    }
    Ok(file.finish()?)
}

/// The length and the header, padded to whole words.
fn header<'e>(entries: impl Iterator<Item = &'e Entry>) -> Result<Vec<u8>, SaveError> {
    let mut end = 0;
    let infos = entries.map(|entry| {
        let start = end;
        end += entry.bytes() as usize;
        let info = TensorInfo {
            dtype: to_file(entry.dtype),
            shape: entry.shape.iter().map(|n| *n as usize).collect(),
            data_offsets: (start, end),
        };
        (entry.name.clone(), info)
    });
    let infos: Vec<(String, TensorInfo)> = infos.collect();
    let format = HashMap::from([("format".to_string(), "pt".to_string())]);
    let header = Metadata::new(Some(format), infos).map_err(SaveError::Header)?;
    let mut json = serde_json::to_vec(&header).map_err(SaveError::Json)?;
    json.resize(json.len().next_multiple_of(size_of::<u64>()), b' ');
    let length = (json.len() as u64).to_le_bytes();
    Ok([length.as_slice(), &json].concat())
}
