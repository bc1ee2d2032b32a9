//! The memory that a step runs in.
// Kernels write through raw pointers into what is allocated here.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc, dealloc};
use std::ptr;

use lorafa_plan::ALIGN;
use tch::{Kind, Tensor};

use crate::device::{Device, OpenDevice};
use crate::error::ExecError;
use crate::transfer;

/// What fresh memory is filled with: not a number in floats, and neither 0 nor 1, so that a read of what nobody wrote
/// does not go unseen.
const GARBAGE: u8 = 0xff;

/// One allocation, on a multiple of [`ALIGN`].
#[derive(Debug)]
pub(crate) struct Memory {
    start: *mut u8,
    bytes: u64,
    owner: Owner,
}

/// Who gives the bytes back.
#[derive(Debug)]
enum Owner {
    /// There are none.
    Nobody,
    /// The process's allocator: libtorch's own on the CPU knows only 64 B of alignment.
    Host(Layout),
    /// libtorch's allocator, whose statistics count it.
    Torch(#[allow(dead_code)] Tensor),
}

impl Memory {
    /// Allocates exactly so many bytes.
    pub(crate) fn new(bytes: u64, device: OpenDevice) -> Result<Self, ExecError> {
        let (start, owner) = match device.device() {
            _ if bytes == 0 => (ptr::without_provenance_mut(ALIGN as usize), Owner::Nobody),
            Device::Cpu => host(bytes)?,
            Device::Cuda(_) => torch(bytes, device)?,
        };
        let memory = Self {
            start,
            bytes,
            owner,
        };
        let filled = transfer::fill(memory.start, bytes, GARBAGE, device);
        filled.map_err(|message| ExecError::Torch {
            line: "the arena".into(),
            message,
        })?;
        Ok(memory)
    }

    /// The first byte.
    pub(crate) fn start(&self) -> *mut u8 {
        self.start
    }

    /// How many bytes were allocated.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

fn host(bytes: u64) -> Result<(*mut u8, Owner), ExecError> {
    let failed = |why: &str| ExecError::OutOfMemory {
        device: Device::Cpu,
        bytes,
        why: why.into(),
    };
    let size = usize::try_from(bytes);
    let layout = size.map(|size| Layout::from_size_align(size, ALIGN as usize));
    let Ok(Ok(layout)) = layout else {
        return Err(failed("more than can be addressed"));
    };
    // SAFETY: the size is not zero.
    let start = unsafe { alloc(layout) };
    if start.is_null() {
        return Err(failed("the system has none to give"));
    }
    Ok((start, Owner::Host(layout)))
}

fn torch(bytes: u64, device: OpenDevice) -> Result<(*mut u8, Owner), ExecError> {
    let failed = |why: String| ExecError::OutOfMemory {
        device: device.device(),
        bytes,
        why,
    };
    let size = i64::try_from(bytes).map_err(|_| failed("more than can be addressed".into()))?;
    let tensor = Tensor::f_empty([size], (Kind::Uint8, device.torch()));
    let tensor = tensor.map_err(|error| failed(error.to_string()))?;
    let start = tensor.data_ptr().cast::<u8>();
    if !start.addr().is_multiple_of(ALIGN as usize) {
        let why = format!(
            "libtorch's allocator gave {start:?}, which is no multiple of {ALIGN}; use its native one"
        );
        return Err(ExecError::Device {
            device: device.device(),
            why,
        });
    }
    Ok((start, Owner::Torch(tensor)))
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Owner::Host(layout) = self.owner {
            // SAFETY: allocated with this layout.
            unsafe { dealloc(self.start, layout) }
        }
    }
}
