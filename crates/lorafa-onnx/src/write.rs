//! A model written whole or not at all.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use prost::Message;

use crate::file::folder_of;
use crate::proto::ModelProto;

/// Protobuf implementations count a message's bytes in a signed 32-bit integer: a larger file is one that others
/// cannot read.
pub const MAX_MODEL_BYTES: u64 = i32::MAX as u64;

/// Temporary names tried before giving up; another is only needed after a crash of a process that had our process id.
const NAME_ATTEMPTS: usize = 100;

/// Temporary names are these around the process id, `-` and a number.
const PREFIX: &str = ".lorafa-";
const SUFFIX: &str = ".tmp";

/// Tells the temporary names of one process apart.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Makes a file or a folder in `folder` under a temporary name of its own, with `create`, which must refuse a name that is
/// taken. Gives what `create` gave, and the path.
///
/// # Errors
///
/// As `create`.
pub fn temporary<T>(
    folder: &Path,
    create: impl Fn(&Path) -> io::Result<T>,
) -> io::Result<(T, PathBuf)> {
    let mut attempts = 1;
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!("{PREFIX}{}-{number}{SUFFIX}", process::id()));
        match create(&path) {
            Ok(created) => return Ok((created, path)),
            Err(error)
                if error.kind() == io::ErrorKind::AlreadyExists && attempts < NAME_ATTEMPTS =>
            {
                attempts += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Whether a name is one that [`temporary`] gives, in this process or in another.
pub fn is_temporary(name: &OsStr) -> bool {
    let numbers = name.to_str().and_then(|name| {
        let inner = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
        inner.split_once('-')
    });
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    numbers.is_some_and(|(process, n)| number(process) && number(n))
}

/// Writes `model` to `path` and returns its size in bytes.
///
/// As [`Staged::new`] and [`Staged::commit`] in one. A model that is mapped from `path` itself may be written back to
/// it.
///
/// # Errors
///
/// [`WriteError`], which names the path.
pub fn write_atomic(path: impl AsRef<Path>, model: &ModelProto) -> Result<u64, WriteError> {
    let path = path.as_ref();
    let size = check_size(path, model.encoded_len())?;
    Staged::new(path, &model.encode_to_vec())?.commit()?;
    Ok(size)
}

/// A file whose content is on the disk, under another name until it is committed.
///
/// Several files can be staged before the first is committed, so that either all or none appear.
#[derive(Debug)]
pub struct Staged {
    temporary: Temporary,
    path: PathBuf,
}

impl Staged {
    /// Writes `bytes` to a temporary file in the folder of `path`, and to the disk. The temporary file is removed on
    /// every error, and when the result is dropped.
    ///
    /// # Errors
    ///
    /// [`WriteError`], which names the path.
    pub fn new(path: impl AsRef<Path>, bytes: &[u8]) -> Result<Self, WriteError> {
        let path = path.as_ref();
        let failed = |kind| WriteError {
            path: path.to_owned(),
            kind,
        };
        if path.is_dir() || path.file_name().is_none() {
            return Err(failed(WriteErrorKind::Directory));
        }
        match fs::metadata(path) {
            Ok(there) if !there.is_file() => return Err(failed(WriteErrorKind::NotAFile)),
            Ok(there) if there.permissions().readonly() => {
                return Err(failed(WriteErrorKind::ReadOnly));
            }
            _ => {}
        }
        // A link stays: what it points to is replaced.
        let path = &path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let (temporary, mut file) = Temporary::create(folder_of(path)).map_err(failed)?;
        file.write_all(bytes)
            .and_then(|()| file.sync_all())
            .map_err(|error| failed(WriteErrorKind::Io(error)))?;
        let path = path.to_owned();
        Ok(Self { temporary, path })
    }

    /// Stages a model.
    ///
    /// # Errors
    ///
    /// As [`Staged::new`]; also a model that is larger than [`MAX_MODEL_BYTES`].
    pub fn model(path: impl AsRef<Path>, model: &ModelProto) -> Result<Self, WriteError> {
        check_size(path.as_ref(), model.encoded_len())?;
        Self::new(path, &model.encode_to_vec())
    }

    /// Gives the file its name, by a rename: another process sees the old file or the new one, and so does the next
    /// start after a crash.
    ///
    /// # Errors
    ///
    /// [`WriteError`], which names the path.
    pub fn commit(self) -> Result<(), WriteError> {
        let Self { temporary, path } = self;
        temporary.rename_to(&path).map_err(|error| WriteError {
            path,
            kind: WriteErrorKind::Io(error),
        })
    }
}

fn check_size(path: &Path, size: usize) -> Result<u64, WriteError> {
    match u64::try_from(size) {
        Ok(size) if size <= MAX_MODEL_BYTES => Ok(size),
        _ => Err(WriteError {
            path: path.to_owned(),
            kind: WriteErrorKind::TooLarge { size },
        }),
    }
}

/// A temporary file that is removed unless it was renamed.
#[derive(Debug)]
struct Temporary {
    path: PathBuf,
    renamed: bool,
}

impl Temporary {
    fn create(folder: &Path) -> Result<(Self, File), WriteErrorKind> {
        let refused = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => WriteErrorKind::NoFolder {
                folder: folder.to_owned(),
            },
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                WriteErrorKind::Unwritable {
                    folder: folder.to_owned(),
                    error,
                }
            }
            _ => WriteErrorKind::Io(error),
        };
        let create = |path: &Path| OpenOptions::new().write(true).create_new(true).open(path);
        let (file, path) = temporary(folder, create).map_err(refused)?;
        let renamed = false;
        Ok((Self { path, renamed }, file))
    }

    fn rename_to(mut self, path: &Path) -> io::Result<()> {
        fs::rename(&self.path, path)?;
        self.renamed = true;
        // The rename itself reaches the disk with its folder. Not every system lets a folder be opened, and the file
        // is whole either way.
        if let Ok(folder) = File::open(folder_of(path)) {
            let _ = folder.sync_all();
        }
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.renamed {
            // Nothing to do about a file that will not go; the error that brought us here is the one to report.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A model that was not written, and why. Nothing is at the path that was not there before.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {kind}", .path.display())]
pub struct WriteError {
    /// Where it was to be written.
    pub path: PathBuf,
    /// What is in the way.
    pub kind: WriteErrorKind,
}

/// What is in the way of writing a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteErrorKind {
    /// A folder has that name.
    #[error("this is a folder; give a file name")]
    Directory,
    /// A device, a pipe or the like has that name.
    #[error("this is no regular file; give another name")]
    NotAFile,
    /// The file that is there must not be written.
    #[error("the file is read-only; give another name")]
    ReadOnly,
    /// No such folder, or a file in its place.
    #[error("there is no folder {}; create it first", .folder.display())]
    NoFolder {
        /// The folder.
        folder: PathBuf,
    },
    /// The folder takes no new files.
    #[error("the folder {} takes no new files ({error}); choose another", .folder.display())]
    Unwritable {
        /// The folder.
        folder: PathBuf,
        /// What the operating system said.
        error: io::Error,
    },
    /// More than a protobuf may be.
    #[error(
        "the model takes {size} bytes, and a protobuf holds {MAX_MODEL_BYTES}; keep the weights external"
    )]
    TooLarge {
        /// Bytes it would take.
        size: usize,
    },
    /// The operating system refused.
    #[error("{0}")]
    Io(io::Error),
}
