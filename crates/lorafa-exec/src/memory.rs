//! The memory that a step runs in.
// Kernels write through raw pointers into what is allocated here.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc, dealloc};
use std::ptr::NonNull;

use lorafa_plan::ALIGN;

use crate::error::ExecError;

/// What fresh memory is filled with: not a number in floats, and neither 0 nor 1, so that a read of what nobody wrote
/// does not go unseen.
const GARBAGE: u8 = 0xff;

/// One allocation, on a multiple of [`ALIGN`].
#[derive(Debug)]
pub(crate) struct Memory {
    start: NonNull<u8>,
    layout: Layout,
}

impl Memory {
    /// Allocates. No bytes are rounded up to one alignment, so that there is a pointer to give.
    pub(crate) fn new(bytes: u64) -> Result<Self, ExecError> {
        let failed = ExecError::OutOfMemory { bytes };
        let size = usize::try_from(bytes.max(ALIGN));
        let layout = size.map(|size| Layout::from_size_align(size, ALIGN as usize));
        let Ok(Ok(layout)) = layout else {
            return Err(failed);
        };
        // SAFETY: the size is not zero.
        let start = unsafe { alloc(layout) };
        let start = NonNull::new(start).ok_or(failed)?;
        // SAFETY: as many bytes were allocated.
        unsafe { start.write_bytes(GARBAGE, layout.size()) };
        Ok(Self { start, layout })
    }

    /// The first byte.
    pub(crate) fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}
