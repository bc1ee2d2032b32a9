//! The Rust side of `shim/`.
// The only foreign functions of the project.
#![allow(unsafe_code)]

mod placed;

pub(crate) use placed::PlacedCall;

use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr::NonNull;

use tch::Tensor;

unsafe extern "C" {
    fn lorafa_error() -> *const c_char;
    fn lorafa_out_of_memory() -> bool;
    fn lorafa_call_new(name: *const c_char, overload: *const c_char) -> *mut c_void;
    fn lorafa_call_free(call: *mut c_void);
    fn lorafa_push_tensor(call: *mut c_void, tensor: *const c_void) -> bool;
    fn lorafa_push_tensors(call: *mut c_void, tensors: *const *const c_void, count: usize) -> bool;
    fn lorafa_push_int(call: *mut c_void, value: i64) -> bool;
    fn lorafa_push_ints(call: *mut c_void, values: *const i64, count: usize) -> bool;
    fn lorafa_push_double(call: *mut c_void, value: f64) -> bool;
    fn lorafa_push_bool(call: *mut c_void, value: bool) -> bool;
    fn lorafa_push_string(call: *mut c_void, value: *const c_char) -> bool;
    fn lorafa_push_none(call: *mut c_void) -> bool;
    fn lorafa_push_undefined(call: *mut c_void) -> bool;
    fn lorafa_call_check(call: *mut c_void) -> bool;
    fn lorafa_call_run(call: *mut c_void) -> bool;
    fn lorafa_inference_new() -> *mut c_void;
    fn lorafa_inference_free(guard: *mut c_void);
    fn lorafa_trace_start() -> *mut c_void;
    fn lorafa_trace_take(tracer: *mut c_void, out: *mut i64);
    fn lorafa_trace_stop(tracer: *mut c_void);
    fn lorafa_cuda_open() -> bool;
    fn lorafa_cuda_devices(count: *mut i64) -> bool;
    fn lorafa_cuda_prepare(index: i64, out: *mut i64) -> bool;
    fn lorafa_cuda_name(index: i64, out: *mut c_char, size: usize) -> bool;
    fn lorafa_cuda_capability(index: i64, out: *mut i64) -> bool;
    fn lorafa_memory(index: i64, out: *mut i64) -> bool;
    fn lorafa_peaks(index: i64, out: *mut i64) -> bool;
    fn lorafa_synchronize(index: i64) -> bool;
    fn lorafa_seed(index: i64, seed: u64) -> bool;
}

/// What the shim says about the failure that it just reported.
fn last_error() -> String {
    // SAFETY: the string is of this thread and is copied before another call could change it.
    let text = unsafe { CStr::from_ptr(lorafa_error()) };
    text.to_string_lossy().into_owned()
}

/// Whether the failure that the shim just reported was that a device has no memory left.
pub(crate) fn out_of_memory() -> bool {
    // SAFETY: no preconditions.
    unsafe { lorafa_out_of_memory() }
}

/// An argument of an operator.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Arg<'a> {
    Tensor(&'a Tensor),
    Tensors(&'a [Tensor]),
    Int(i64),
    Ints(&'a [i64]),
    Double(f64),
    Bool(bool),
    Str(&'a str),
    None,
    /// A tensor that is none, where the schema has a tensor.
    Undefined,
}

/// An operator with all of its arguments.
#[derive(Debug)]
pub(crate) struct Call(NonNull<c_void>);

impl Call {
    /// Looks the operator up and binds its arguments, in the order of its schema, `out` included.
    ///
    /// The call keeps its tensors alive, but not the memory that they are views of.
    pub(crate) fn new(name: &str, overload: &str, args: &[Arg<'_>]) -> Result<Self, String> {
        let name = CString::new(name).map_err(|error| error.to_string())?;
        let overload = CString::new(overload).map_err(|error| error.to_string())?;
        // SAFETY: both are strings that end in zero and outlive the call.
        let call = unsafe { lorafa_call_new(name.as_ptr(), overload.as_ptr()) };
        let call = Self(NonNull::new(call).ok_or_else(last_error)?);
        for arg in args {
            call.push(*arg)?;
        }
        // SAFETY: `call` is alive.
        checked(unsafe { lorafa_call_check(call.0.as_ptr()) })?;
        Ok(call)
    }

    fn push(&self, arg: Arg<'_>) -> Result<(), String> {
        let call = self.0.as_ptr();
        let text = match arg {
            Arg::Str(text) => Some(CString::new(text).map_err(|error| error.to_string())?),
            _ => None,
        };
        // SAFETY: `call` is alive; the shim copies what the pointers lead to, which is borrowed until it returns, and
        // a tensor's pointer leads to an `at::Tensor`.
        let pushed = unsafe {
            match arg {
                Arg::Tensor(tensor) => lorafa_push_tensor(call, tensor.as_ptr().cast()),
                Arg::Tensors(tensors) => {
                    let pointers: Vec<*const c_void> =
                        tensors.iter().map(|t| t.as_ptr().cast()).collect();
                    lorafa_push_tensors(call, pointers.as_ptr(), pointers.len())
                }
                Arg::Int(value) => lorafa_push_int(call, value),
                Arg::Ints(values) => lorafa_push_ints(call, values.as_ptr(), values.len()),
                Arg::Double(value) => lorafa_push_double(call, value),
                Arg::Bool(value) => lorafa_push_bool(call, value),
                Arg::Str(_) => {
                    lorafa_push_string(call, text.as_deref().map_or(c"".as_ptr(), CStr::as_ptr))
                }
                Arg::None => lorafa_push_none(call),
                Arg::Undefined => lorafa_push_undefined(call),
            }
        };
        checked(pushed)
    }

    /// Runs it.
    ///
    /// # Safety
    /// The memory that its tensors are views of is still there, and nobody else uses it meanwhile.
    pub(crate) unsafe fn run(&self) -> Result<(), String> {
        // SAFETY: `self` is alive and has as many arguments as its operator takes; the caller vouches for the memory.
        checked(unsafe { lorafa_call_run(self.0.as_ptr()) })
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        // SAFETY: it came from `lorafa_call_new` and nothing else frees it.
        unsafe { lorafa_call_free(self.0.as_ptr()) }
    }
}

/// While it lives, this thread keeps no books for autograd. From the first one on, the process does without oneDNN,
/// whose 16-bit products allocate.
#[derive(Debug)]
pub(crate) struct InferenceMode(*mut c_void);

impl InferenceMode {
    pub(crate) fn enter() -> Self {
        // SAFETY: no preconditions; not `Send`, because of the pointer, as the mode is the thread's.
        Self(unsafe { lorafa_inference_new() })
    }
}

impl Drop for InferenceMode {
    fn drop(&mut self) {
        // SAFETY: it came from `lorafa_inference_new`; null is allowed.
        unsafe { lorafa_inference_free(self.0) }
    }
}

/// What libtorch's allocators gave out between two readings of a [`Tracer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Traced {
    pub bytes: u64,
    pub allocations: u64,
    /// Most bytes at once, without what was there before.
    pub peak: u64,
    /// Most bytes at once, with what was allocated since the tracer started.
    pub held: u64,
}

/// While it lives, counts what libtorch allocates on this thread.
#[derive(Debug)]
pub(crate) struct Tracer(NonNull<c_void>);

impl Tracer {
    pub(crate) fn start() -> Result<Self, String> {
        // SAFETY: no preconditions.
        let tracer = unsafe { lorafa_trace_start() };
        NonNull::new(tracer).map(Self).ok_or_else(last_error)
    }

    /// What was allocated since the last reading.
    pub(crate) fn take(&self) -> Traced {
        let mut out = [0i64; 4];
        // SAFETY: `self` is alive and there is room for four numbers.
        unsafe { lorafa_trace_take(self.0.as_ptr(), out.as_mut_ptr()) };
        let [bytes, allocations, peak, held] = out.map(|n| n.max(0).unsigned_abs());
        Traced {
            bytes,
            allocations,
            peak,
            held,
        }
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // SAFETY: it came from `lorafa_trace_start` on this thread.
        unsafe { lorafa_trace_stop(self.0.as_ptr()) }
    }
}

fn checked(done: bool) -> Result<(), String> {
    if done { Ok(()) } else { Err(last_error()) }
}

/// Opens libtorch's CUDA part; at once if it is open.
pub(crate) fn open_cuda() -> Result<(), String> {
    // SAFETY: no preconditions.
    checked(unsafe { lorafa_cuda_open() })
}

/// Starts CUDA and counts its devices.
pub(crate) fn cuda_devices() -> Result<u64, String> {
    let mut count = 0;
    // SAFETY: there is room for a number.
    checked(unsafe { lorafa_cuda_devices(&mut count) })?;
    Ok(count.max(0).unsigned_abs())
}

/// Makes a CUDA device ready for products on this thread: bytes in use on it before, and of cuBLAS's workspace.
pub(crate) fn prepare_cuda(index: i64) -> Result<(u64, u64), String> {
    // SAFETY: there is room for two numbers.
    pair(|out| unsafe { lorafa_cuda_prepare(index, out) })
}

/// What a CUDA device is called.
pub(crate) fn cuda_name(index: i64) -> Option<String> {
    let mut name = [0u8; 256];
    // SAFETY: there is room for as many bytes as it says.
    checked(unsafe { lorafa_cuda_name(index, name.as_mut_ptr().cast(), name.len()) }).ok()?;
    let name = CStr::from_bytes_until_nul(&name).ok()?;
    Some(name.to_string_lossy().into_owned())
}

/// What a CUDA device can do: the major and the minor number.
pub(crate) fn cuda_capability(index: i64) -> Result<(u64, u64), String> {
    // SAFETY: there is room for two numbers.
    pair(|out| unsafe { lorafa_cuda_capability(index, out) })
}

fn pair(read: impl FnOnce(*mut i64) -> bool) -> Result<(u64, u64), String> {
    let mut out = [0i64; 2];
    checked(read(out.as_mut_ptr()))?;
    let [a, b] = out.map(|n| n.max(0).unsigned_abs());
    Ok((a, b))
}

/// Free and total bytes of an open CUDA device.
pub(crate) fn memory(index: i64) -> Result<(u64, u64), String> {
    // SAFETY: there is room for two numbers.
    pair(|out| unsafe { lorafa_memory(index, out) })
}

/// Most bytes allocated and reserved on an open CUDA device.
pub(crate) fn peaks(index: i64) -> Result<(u64, u64), String> {
    // SAFETY: there is room for two numbers.
    pair(|out| unsafe { lorafa_peaks(index, out) })
}

/// Waits for an open CUDA device.
pub(crate) fn synchronize(index: i64) -> Result<(), String> {
    // SAFETY: no preconditions.
    checked(unsafe { lorafa_synchronize(index) })
}

/// Seeds the random numbers of an open CUDA device, or the CPU's for -1.
pub(crate) fn seed(index: i64, seed: u64) -> Result<(), String> {
    // SAFETY: no preconditions.
    checked(unsafe { lorafa_seed(index, seed) })
}
