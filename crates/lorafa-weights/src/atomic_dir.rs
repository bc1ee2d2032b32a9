//! A folder written whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

/// Names tried for the temporary folder before giving up; another is only needed after a crash of a process that had our
/// process id.
const NAME_ATTEMPTS: usize = 100;

/// Temporary names are these around the process id, `-` and a number.
const PREFIX: &str = ".lorafa-";
const SUFFIX: &str = ".tmp";

/// Tells the temporary folders of one process apart.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Whether a folder that is to be replaced may have an entry of this name.
pub type Ours = fn(&str) -> bool;

/// A folder under another name until it is committed. It is removed when dropped before that.
#[derive(Debug)]
pub struct StagedDir {
    target: PathBuf,
    staging: PathBuf,
    ours: Ours,
}

impl StagedDir {
    /// Makes an empty folder next to `target`, which either is not there, is empty, or is a folder whose entries all have
    /// names of `ours`: anything else is not ours to replace.
    ///
    /// # Errors
    ///
    /// [`StageError`], which names `target`.
    pub fn new(target: impl AsRef<Path>, ours: Ours) -> Result<Self, StageError> {
        let target = target.as_ref();
        // A link stays: what it points to is replaced.
        let resolved = target.canonicalize().unwrap_or_else(|_| target.to_owned());
        let failed = |kind| fail(target, kind);
        if resolved.file_name().is_none() {
            return Err(failed(StageErrorKind::NoName));
        }
        check_replaceable(&resolved, ours).map_err(failed)?;
        let staging = temporary(parent_of(&resolved)).map_err(failed)?;
        Ok(StagedDir {
            target: resolved,
            staging,
            ours,
        })
    }

    /// The folder that this will be.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Writes a file, and to the disk.
    ///
    /// # Errors
    ///
    /// [`StageError`], which names the file.
    pub fn file(&self, name: &str, bytes: &[u8]) -> Result<(), StageError> {
        let mut file = self.create(name)?;
        file.write(bytes)?;
        file.finish()
    }

    /// Starts a file that is written piece by piece.
    ///
    /// # Errors
    ///
    /// [`StageError`], which names the file; one of that name that is there already.
    pub fn create(&self, name: &str) -> Result<StagedFile, StageError> {
        let target = self.target.join(name);
        let path = self.staging.join(name);
        let file = OpenOptions::new().write(true).create_new(true).open(path);
        match file {
            Ok(file) => Ok(StagedFile {
                target,
                writer: BufWriter::new(file),
            }),
            Err(error) => Err(fail(&target, StageErrorKind::Io(error))),
        }
    }

    /// Gives the folder its name. At every moment the name stands for the whole old folder or the whole new one; on a file
    /// system that cannot exchange two names, for neither during the moment between two renames.
    ///
    /// # Errors
    ///
    /// [`StageError`], which names the folder. The old one is where it was then.
    pub fn commit(self) -> Result<(), StageError> {
        let failed = |kind| fail(&self.target, kind);
        check_replaceable(&self.target, self.ours).map_err(failed)?;
        let io = |error| failed(StageErrorKind::Io(error));
        sync(&self.staging).map_err(io)?;
        if self.target.exists() {
            self.replace().map_err(io)?;
        } else {
            fs::rename(&self.staging, &self.target).map_err(io)?;
        }
        sync(parent_of(&self.target)).map_err(io)
        // What is left under the temporary name, the old folder, goes when this is dropped.
    }

    fn replace(&self) -> io::Result<()> {
        match exchange(&self.staging, &self.target) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
            done => return done,
        }
        let old = temporary(parent_of(&self.target)).map_err(|kind| match kind {
            StageErrorKind::Io(error) => error,
            other => io::Error::other(other.to_string()),
        })?;
        fs::rename(&self.target, &old)?;
        if let Err(error) = fs::rename(&self.staging, &self.target) {
            fs::rename(&old, &self.target)?;
            return Err(error);
        }
        fs::remove_dir_all(old)
    }
}

impl Drop for StagedDir {
    fn drop(&mut self) {
        // Nothing to do about a folder that will not go; the error that brought us here is the one to report.
        let _ = fs::remove_dir_all(&self.staging);
    }
}

/// Removes the folders and files that processes which were killed left in `parent` under temporary names. There need be no `parent`.
/// Not while another process writes there.
///
/// # Errors
///
/// What the operating system says.
pub fn clean(parent: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(parent) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let numbers = name.to_str().and_then(|name| {
            let inner = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
            inner.split_once('-')
        });
        let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if numbers.is_some_and(|(process, n)| number(process) && number(n)) {
            let folder = entry.file_type()?.is_dir();
            let remove = if folder {
                fs::remove_dir_all
            } else {
                fs::remove_file
            };
            remove(entry.path())?;
        }
    }
    Ok(())
}

/// A file of a [`StagedDir`] under way.
#[derive(Debug)]
#[must_use = "a file that is not finished may not be on the disk"]
pub struct StagedFile {
    target: PathBuf,
    writer: BufWriter<File>,
}

impl StagedFile {
    /// Appends bytes.
    ///
    /// # Errors
    ///
    /// [`StageError`], which names the file.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StageError> {
        let written = self.writer.write_all(bytes);
        written.map_err(|error| fail(&self.target, StageErrorKind::Io(error)))
    }

    /// Writes what is left, and all to the disk.
    ///
    /// # Errors
    ///
    /// [`StageError`], which names the file.
    pub fn finish(mut self) -> Result<(), StageError> {
        let flushed = self.writer.flush();
        let synced = flushed.and_then(|()| self.writer.get_ref().sync_all());
        synced.map_err(|error| fail(&self.target, StageErrorKind::Io(error)))
    }
}

/// Exchanges two folders in one step; [`io::ErrorKind::Unsupported`] where that cannot be done.
#[cfg(target_os = "linux")]
fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use rustix::io::Errno;
    match renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(()),
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            Err(io::ErrorKind::Unsupported.into())
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn exchange(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Makes entries of a folder reach the disk.
fn sync(folder: &Path) -> io::Result<()> {
    // Not every system lets a folder be opened.
    match File::open(folder) {
        Ok(folder) => folder.sync_all(),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        Err(error) => Err(error),
    }
}

fn check_replaceable(target: &Path, ours: Ours) -> Result<(), StageErrorKind> {
    let there = match fs::symlink_metadata(target) {
        Ok(there) => there,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(()),
        Err(error) => return Err(StageErrorKind::Io(error)),
    };
    if !there.is_dir() {
        return Err(StageErrorKind::NotAFolder);
    }
    let mut foreign: Option<String> = None;
    for entry in fs::read_dir(target).map_err(StageErrorKind::Io)? {
        let entry = entry.map_err(StageErrorKind::Io)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // The first by name, whatever order the file system has.
        if !ours(&name) && foreign.as_ref().is_none_or(|other| name < *other) {
            foreign = Some(name);
        }
    }
    match foreign {
        Some(name) => Err(StageErrorKind::Foreign { name }),
        None => Ok(()),
    }
}

/// A new empty folder with a name that nothing else has.
fn temporary(parent: &Path) -> Result<PathBuf, StageErrorKind> {
    let folder = parent.to_owned();
    let mut attempts = 1;
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("{PREFIX}{}-{number}{SUFFIX}", process::id()));
        match fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            Err(error) => match error.kind() {
                io::ErrorKind::AlreadyExists if attempts < NAME_ATTEMPTS => attempts += 1,
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                    return Err(StageErrorKind::NoParent { folder });
                }
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    return Err(StageErrorKind::Unwritable { folder, error });
                }
                _ => return Err(StageErrorKind::Io(error)),
            },
        }
    }
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn fail(path: &Path, kind: StageErrorKind) -> StageError {
    let path = path.to_owned();
    StageError { path, kind }
}

/// A folder that was not written, and why. What was there before is there still.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {kind}", .path.display())]
pub struct StageError {
    /// The file or folder that was to be written.
    pub path: PathBuf,
    /// What is in the way.
    pub kind: StageErrorKind,
}

/// What is in the way of writing a folder.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StageErrorKind {
    /// A path such as `/` or `..`.
    #[error("this names no folder that can be made; give another")]
    NoName,
    /// A file has that name.
    #[error("this is a file; give the name of a folder")]
    NotAFolder,
    /// A folder with something in it that another program put there.
    #[error("the folder holds `{name}`, which would be lost; give another folder")]
    Foreign {
        /// The first such entry by name.
        name: String,
    },
    /// No such folder, or a file in its place.
    #[error("there is no folder {}; create it first", .folder.display())]
    NoParent {
        /// The folder.
        folder: PathBuf,
    },
    /// The folder takes no new entries.
    #[error("the folder {} takes no new entries ({error}); choose another", .folder.display())]
    Unwritable {
        /// The folder.
        folder: PathBuf,
        /// What the operating system said.
        error: io::Error,
    },
    /// The operating system refused.
    #[error("{0}")]
    Io(io::Error),
}
