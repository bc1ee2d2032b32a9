//! What can be wrong with a reference to external data.

use std::io;
use std::path::PathBuf;

/// A reference to external data that must not or cannot be followed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExternalError {
    /// No `location`, or an empty one.
    #[error("external data names no file; its `location` is missing or empty")]
    NoLocation,
    /// `/etc/passwd`, `C:\…`.
    #[error(
        "external data at `{location}`: absolute paths are refused; put the file next to the model"
    )]
    Absolute {
        /// The location.
        location: String,
    },
    /// `../…`.
    #[error("external data at `{location}`: `..` is refused; put the file next to the model")]
    Climbs {
        /// The location.
        location: String,
    },
    /// A link that leads out of the model's folder.
    #[error(
        "external data at `{location}`: a link leads out of the model's folder; copy the file into the folder"
    )]
    Escapes {
        /// The location.
        location: String,
    },
    /// The same key with two values.
    #[error("external data gives `{key}` twice; keep one")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// A negative number, a sign, a word.
    #[error("external data gives `{key}` as `{value}`; a decimal number of bytes was expected")]
    BadNumber {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
    },
    /// The range ends past 2⁶⁴.
    #[error("external data at `{location}`: the range at offset {offset} ends past 2^64")]
    Overflow {
        /// The location.
        location: String,
        /// First byte.
        offset: u64,
    },
    /// The reference and the tensor's own shape and type disagree.
    #[error(
        "external data at `{location}` gives {length} bytes; the tensor's shape and type need {expected}"
    )]
    Length {
        /// The location.
        location: String,
        /// What the reference says.
        length: u64,
        /// What the tensor needs.
        expected: u64,
    },
    /// The file is too short.
    #[error(
        "external data at `{location}`: {length} bytes at offset {offset} end past the file's {size}; copy or export \
         the file again"
    )]
    OutOfBounds {
        /// The location.
        location: String,
        /// First byte.
        offset: u64,
        /// Bytes needed.
        length: u64,
        /// Bytes there are.
        size: usize,
    },
    /// No such file.
    #[error("external data at `{location}`: no such file in {}; put it next to the model", .folder.display())]
    Missing {
        /// The location.
        location: String,
        /// The model's folder.
        folder: PathBuf,
    },
    /// A folder, a pipe, a device.
    #[error("external data at `{location}` is not a regular file")]
    NotAFile {
        /// The location.
        location: String,
    },
    /// The operating system refused.
    #[error("external data at `{location}` cannot be read: {error}")]
    Io {
        /// The location.
        location: String,
        /// What it said.
        error: io::Error,
    },
}
