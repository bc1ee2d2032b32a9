//! The one memory map.

use std::fs::File;
use std::io;

use bytes::Bytes;
use memmap2::Mmap;

/// The file's content, paged in as it is read; empty for an empty file, which cannot be mapped.
///
/// Nothing may truncate or rewrite the file while the result, or a slice of it, is alive; replacing it by a rename is safe.
///
/// # Errors
///
/// What the operating system says.
#[allow(unsafe_code)]
pub fn map_file(file: &File) -> io::Result<Bytes> {
    if file.metadata()?.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the map is private and read-only, and lives as long as the `Bytes` that own it. What is left to the
    // caller, as for every memory map, is that no other process truncates or rewrites the file meanwhile. Our own
    // writer never does: it renames a new file over the old one, whose content stays mapped.
    let map = unsafe { Mmap::map(file)? };
    Ok(Bytes::from_owner(map))
}
