//! A folder written whole or not at all.

use crate::side_files;
use lorafa_onnx::file::folder_of;
use lorafa_onnx::write::{is_temporary, temporary};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// What the extension of a temporary name becomes for the old folder while the new one gets its name, so that [`clean`]
/// leaves it.
const SET_ASIDE: &str = "old";

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
    /// names of `ours` or are [side files](side_files): anything else is not ours to replace.
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
        let staging = make_in(folder_of(&resolved)).map_err(failed)?;
        Ok(StagedDir {
            target: resolved,
            staging,
            ours,
        })
    }

    /// Whether [`StagedDir::new`] would take `target`, whose parent need not be there yet.
    ///
    /// # Errors
    ///
    /// [`StageError`], which names `target`.
    pub fn check(target: impl AsRef<Path>, ours: Ours) -> Result<(), StageError> {
        let target = target.as_ref();
        let resolved = target.canonicalize().unwrap_or_else(|_| target.to_owned());
        check_replaceable(&resolved, ours).map_err(|kind| fail(target, kind))
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

    /// Copies the side files of the folder that is to be replaced, but for those that were written anew.
    fn keep_side_files(&self) -> Result<(), StageError> {
        if !self.target.is_dir() {
            return Ok(());
        }
        let failed = |error| fail(&self.target, StageErrorKind::Io(error));
        for entry in fs::read_dir(&self.target).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let Some(name) = name.to_str().filter(|name| !(self.ours)(name)) else {
                continue;
            };
            if side_files::is(name) && !self.staging.join(name).exists() {
                let bytes = fs::read(self.target.join(name)).map_err(failed)?;
                self.file(name, &bytes)?;
            }
        }
        Ok(())
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
        self.keep_side_files()?;
        let place = || {
            sync(&self.staging)?;
            match self.target.exists() {
                true => replace(&self.staging, &self.target),
                false => fs::rename(&self.staging, &self.target),
            }
        };
        place().map_err(|error| failed(StageErrorKind::Io(error)))?;
        // The new folder is in its place: a name that the disk may not have yet is no failure of that.
        let _ = sync(folder_of(&self.target));
        Ok(())
        // What is left under the temporary name, the old folder, goes when this is dropped.
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
        if is_temporary(&entry.file_name()) {
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

/// Puts the folder `new` in the place of `old`.
fn replace(new: &Path, old: &Path) -> io::Result<()> {
    match exchange(new, old) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => rename_twice(new, old),
        done => done,
    }
}

/// As [`replace`], where two names cannot be exchanged.
fn rename_twice(new: &Path, old: &Path) -> io::Result<()> {
    let aside = new.with_extension(SET_ASIDE);
    fs::rename(old, &aside)?;
    if let Err(error) = fs::rename(new, old) {
        return Err(match fs::rename(&aside, old) {
            Ok(()) => error,
            Err(_) => io::Error::other(format!("{error}; what was there is {}", aside.display())),
        });
    }
    // The new folder is in its place: one that is left over is no failure of that.
    let _ = fs::remove_dir_all(aside);
    Ok(())
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
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        // Not every system lets a folder be opened, nor every file system let it be synchronized.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::PermissionDenied
                    | io::ErrorKind::InvalidInput
                    | io::ErrorKind::Unsupported
            ) =>
        {
            Ok(())
        }
        done => done,
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
        let is_side_file = side_files::is(&name) && entry.path().is_file();
        if !ours(&name) && !is_side_file && foreign.as_ref().is_none_or(|other| name < *other) {
            foreign = Some(name);
        }
    }
    match foreign {
        Some(name) => Err(StageErrorKind::Foreign { name }),
        None => Ok(()),
    }
}

/// A new empty folder with a name that nothing else has.
fn make_in(parent: &Path) -> Result<PathBuf, StageErrorKind> {
    let made = temporary(parent, |path| fs::create_dir(path));
    let folder = parent.to_owned();
    made.map(|((), path)| path)
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                StageErrorKind::NoParent { folder }
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                StageErrorKind::Unwritable { folder, error }
            }
            _ => StageErrorKind::Io(error),
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_renames_leave_the_new_folder_or_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["old", "new.tmp"] {
            fs::create_dir(at(name)).unwrap();
            fs::write(at(name).join(name), "").unwrap();
        }
        rename_twice(&at("missing.tmp"), &at("old")).unwrap_err();
        assert!(at("old/old").exists() && !at("missing.old").exists());
        rename_twice(&at("new.tmp"), &at("none")).unwrap_err();
        assert!(at("new.tmp").exists() && !at("new.old").exists());
        rename_twice(&at("new.tmp"), &at("old")).unwrap();
        assert!(at("old/new.tmp").exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_set_aside_is_not_cleaned() {
        let dir = tempfile::tempdir().unwrap();
        let temporary = make_in(dir.path()).unwrap();
        let aside = temporary.with_extension(SET_ASIDE);
        fs::create_dir(&aside).unwrap();
        clean(dir.path()).unwrap();
        assert!(aside.exists() && !temporary.exists());
    }
}
