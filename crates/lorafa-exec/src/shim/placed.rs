//! Operators that return fresh tensors, run in memory that is planned: the Rust side of `shim/placed.cpp`.

use std::ffi::c_void;

use tch::Tensor;

use super::{Call, checked};

unsafe extern "C" {
    fn lorafa_call_placed(
        call: *const c_void,
        device: i64,
        start: *mut c_void,
        bytes: usize,
        outs: *const *const c_void,
        count: usize,
        taken: *mut i64,
    ) -> bool;
}

/// An operator without an out-variant, where its results go, and the memory that it has meanwhile.
#[derive(Debug)]
pub(crate) struct PlacedCall {
    pub call: Call,
    /// For its first results, which are copied there.
    pub outs: Vec<Tensor>,
    /// A CUDA device, or -1 for the CPU.
    pub device: i64,
    pub start: *mut u8,
    pub bytes: u64,
    /// How many of these it takes.
    pub taken: u64,
}

impl PlacedCall {
    /// Runs it, whatever it takes, and says what that is; `None` if there is too little.
    ///
    /// # Safety
    /// As of [`Call::run`], and the same for the memory that it has.
    pub(crate) unsafe fn measure(&self) -> Result<Option<u64>, String> {
        let outs: Vec<*const c_void> = self.outs.iter().map(|out| out.as_ptr().cast()).collect();
        let mut taken = 0i64;
        // SAFETY: the call and the tensors are alive, there is room for a number, and the caller vouches for the memory.
        let done = unsafe {
            lorafa_call_placed(
                self.call.0.as_ptr(),
                self.device,
                self.start.cast(),
                self.bytes as usize,
                outs.as_ptr(),
                outs.len(),
                &mut taken,
            )
        };
        match (checked(done), u64::try_from(taken)) {
            (Err(_), Err(_)) => Ok(None),
            (done, taken) => done.map(|()| taken.ok()),
        }
    }

    /// Runs it; another amount of memory than it is to take is an error.
    ///
    /// # Safety
    /// As of [`measure`](Self::measure).
    pub(crate) unsafe fn run(&self) -> Result<(), String> {
        // SAFETY: the caller vouches for the same.
        match unsafe { self.measure() }? {
            Some(taken) if taken == self.taken => Ok(()),
            taken => Err(format!(
                "it takes {} of {} planned bytes, not {}",
                taken.map_or_else(|| "more".into(), |taken| taken.to_string()),
                self.bytes,
                self.taken
            )),
        }
    }
}
