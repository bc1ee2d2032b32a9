//! Files beside weights: what a model needs to be loaded, and what people put there.

use crate::atomic_dir::{StageError, StageErrorKind, StagedDir};
use std::fs;
use std::path::{Path, PathBuf};

/// What says how a model is made and used.
const MODEL: [&str; 2] = ["config.json", "generation_config.json"];

/// What belongs to a tokenizer.
const TOKENIZER: [&str; 12] = [
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
];

/// What people and hubs put beside these.
const OTHERS: [&str; 5] = [
    ".gitattributes",
    "LICENSE",
    "README.md",
    "preprocessor_config.json",
    "training_args.bin",
];

/// Whether a name is one of these: such a file stays when its folder is replaced.
#[must_use]
pub fn is(name: &str) -> bool {
    [&MODEL[..], &TOKENIZER, &OTHERS].concat().contains(&name)
}

/// The files of a model that go with its weights: those that say how it is made, of the folder `model`, and those of its
/// tokenizer, of the folder `tokenizer` or, where that has none, of `model`.
#[must_use]
pub fn of(model: Option<&Path>, tokenizer: Option<&Path>) -> Vec<PathBuf> {
    let there = |folder: Option<&Path>, names: &[&str]| -> Vec<PathBuf> {
        let paths = folder
            .into_iter()
            .flat_map(|folder| names.iter().map(|name| folder.join(name)));
        paths.filter(|path| path.is_file()).collect()
    };
    let mut files = there(model, &MODEL);
    let own = there(tokenizer, &TOKENIZER);
    files.extend(match own.is_empty() {
        true => there(model, &TOKENIZER),
        false => own,
    });
    files
}

/// Copies files into a folder under way.
///
/// # Errors
///
/// [`StageError`], which names the file.
pub(crate) fn copy(files: &[PathBuf], staged: &StagedDir) -> Result<(), StageError> {
    for path in files {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        let bytes = fs::read(path).map_err(|error| StageError {
            path: path.clone(),
            kind: StageErrorKind::Io(error),
        })?;
        staged.file(name, &bytes)?;
    }
    Ok(())
}
