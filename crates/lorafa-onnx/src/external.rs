//! Weights kept outside the model: references to them, and the one place that reads them.
//!
//! A reference is a file name chosen by whoever made the model, so it is treated as hostile: it may only name a file in
//! the model's folder or below, directly or through links that stay there.

mod error;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use crate::map::map_file;
use crate::proto::StringStringEntryProto;

pub use error::ExternalError;

/// Where a tensor's bytes are: a file relative to the model's folder, and a range of it. Making one touches no disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalRef {
    location: String,
    offset: u64,
    length: Option<u64>,
}

impl ExternalRef {
    /// A reference to `length` bytes (or as many as the tensor needs) at `offset` of the file `location`.
    ///
    /// # Errors
    ///
    /// An empty, absolute or climbing location; a range that ends past 2⁶⁴.
    pub fn new(
        location: impl Into<String>,
        offset: u64,
        length: Option<u64>,
    ) -> Result<Self, ExternalError> {
        let location = location.into();
        check_location(&location)?;
        if offset.checked_add(length.unwrap_or(0)).is_none() {
            return Err(ExternalError::Overflow { location, offset });
        }
        Ok(Self {
            location,
            offset,
            length,
        })
    }

    /// Reads a tensor's `external_data`. `checksum` and keys no specification names are ignored.
    ///
    /// # Errors
    ///
    /// As [`ExternalRef::new`]; also a key given twice, no location, and a number that is not a plain decimal.
    pub fn from_entries(entries: &[StringStringEntryProto]) -> Result<Self, ExternalError> {
        let mut values = BTreeMap::new();
        for entry in entries {
            if values.insert(entry.key(), entry.value()).is_some() {
                return Err(ExternalError::DuplicateKey {
                    key: entry.key().to_owned(),
                });
            }
        }
        let number = |key| values.get(key).map(|text| parse(key, text)).transpose();
        Self::new(
            values.get("location").copied().unwrap_or_default(),
            number("offset")?.unwrap_or(0),
            number("length")?,
        )
    }

    /// The reference as a tensor's `external_data`.
    pub fn to_entries(&self) -> Vec<StringStringEntryProto> {
        let entry = |key: &str, value: String| StringStringEntryProto {
            key: Some(key.to_owned()),
            value: Some(value),
        };
        let mut entries = vec![
            entry("location", self.location.clone()),
            entry("offset", self.offset.to_string()),
        ];
        entries.extend(
            self.length
                .map(|length| entry("length", length.to_string())),
        );
        entries
    }

    /// The file, relative to the model's folder; `/` separates.
    pub fn location(&self) -> &str {
        &self.location
    }

    /// First byte.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes, if the model says.
    pub fn length(&self) -> Option<u64> {
        self.length
    }

    /// Checks the length the model gives, if it does, against what the tensor's shape and type need.
    ///
    /// # Errors
    ///
    /// [`ExternalError::Length`] if they differ; [`ExternalError::Overflow`] if the range ends past 2⁶⁴.
    pub fn check_length(&self, expected: u64) -> Result<(), ExternalError> {
        match self.length {
            Some(length) if length != expected => Err(ExternalError::Length {
                location: self.location.clone(),
                length,
                expected,
            }),
            _ if self.offset.checked_add(expected).is_none() => Err(ExternalError::Overflow {
                location: self.location.clone(),
                offset: self.offset,
            }),
            _ => Ok(()),
        }
    }
}

/// Reads references relative to one folder. Each file is mapped once, when first read.
#[derive(Debug)]
pub struct ExternalStore {
    folder: PathBuf,
    maps: Mutex<BTreeMap<PathBuf, Bytes>>,
}

impl ExternalStore {
    /// A store for a model in `folder`; touches no disk.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            maps: Mutex::default(),
        }
    }

    /// The model's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The `expected_len` bytes a reference stands for, as a slice of the file's map.
    ///
    /// # Errors
    ///
    /// [`ExternalError::Missing`] if there is no such file, which a caller that needs no values may pass over; any
    /// other variant is a reference that must not or cannot be followed.
    pub fn read(&self, reference: &ExternalRef, expected_len: u64) -> Result<Bytes, ExternalError> {
        reference.check_length(expected_len)?;
        let file = self.map(&reference.location)?;
        let range = usize::try_from(reference.offset)
            .ok()
            .zip(usize::try_from(expected_len).ok())
            .and_then(|(start, len)| Some(start..start.checked_add(len)?));
        match range {
            Some(range) if range.end <= file.len() => Ok(file.slice(range)),
            _ => Err(ExternalError::OutOfBounds {
                location: reference.location.clone(),
                offset: reference.offset,
                length: expected_len,
                size: file.len(),
            }),
        }
    }

    fn map(&self, location: &str) -> Result<Bytes, ExternalError> {
        let refused = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ExternalError::Missing {
                location: location.to_owned(),
                folder: self.folder.clone(),
            },
            _ => ExternalError::Io {
                location: location.to_owned(),
                error,
            },
        };
        let folder = self.folder.canonicalize().map_err(refused)?;
        let path = folder.join(location).canonicalize().map_err(refused)?;
        if !path.starts_with(&folder) {
            return Err(ExternalError::Escapes {
                location: location.to_owned(),
            });
        }
        // A panic while the lock is held leaves the map whole: it only ever gains complete entries.
        let mut maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bytes) = maps.get(&path) {
            return Ok(bytes.clone());
        }
        // Before opening: opening a pipe waits for a writer.
        if !path.metadata().map_err(refused)?.is_file() {
            return Err(ExternalError::NotAFile {
                location: location.to_owned(),
            });
        }
        let bytes = File::open(&path)
            .and_then(|file| map_file(&file))
            .map_err(refused)?;
        maps.insert(path, bytes.clone());
        Ok(bytes)
    }
}

/// Models travel between systems, so both separators and a drive letter count on every one of them.
fn check_location(location: &str) -> Result<(), ExternalError> {
    let owned = || location.to_owned();
    let mut parts = location.split(['/', '\\']);
    if location.is_empty() {
        Err(ExternalError::NoLocation)
    } else if location.starts_with(['/', '\\']) || location.as_bytes().get(1) == Some(&b':') {
        Err(ExternalError::Absolute { location: owned() })
    } else if parts.any(|part| part == "..") {
        Err(ExternalError::Climbs { location: owned() })
    } else {
        Ok(())
    }
}

fn parse(key: &'static str, text: &str) -> Result<u64, ExternalError> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse()
        .ok()
        .filter(|_| plain)
        .ok_or_else(|| ExternalError::BadNumber {
            key,
            value: text.to_owned(),
        })
}
