//! Bytes between the host and the memory of a program: the one place where either reaches the other.
// Reads and writes through the raw pointers of views.
#![allow(unsafe_code)]

use tch::{Kind, Tensor};

use crate::device::OpenDevice;
use crate::shim::{Arg, Call};
use crate::view::View;

/// A row-major tensor over bytes of the host.
fn host(bytes: *const u8, view: &View) -> Result<Tensor, String> {
    let shape: Vec<i64> = view.shape().iter().map(|n| *n as i64).collect();
    // SAFETY: the caller has as many bytes there, and drops the tensor before them.
    let tensor = unsafe { Tensor::f_from_blob(bytes, &shape, &[], bits(view)?, tch::Device::Cpu) };
    tensor.map_err(|error| error.to_string())
}

/// An element type of the same size: elements are moved, whatever they are.
fn bits(view: &View) -> Result<Kind, String> {
    Ok(match view.dtype.size() {
        1 => Kind::Uint8,
        2 => Kind::Int16,
        4 => Kind::Int,
        8 => Kind::Int64,
        size => return Err(format!("elements of {size} B")),
    })
}

/// Writes the elements of a view from as many bytes in row-major order. Waits for a device that is not the host.
pub(crate) fn write(view: &View, bytes: &[u8], device: OpenDevice) -> Result<(), String> {
    if bytes.len() != view.bytes() {
        return Err(format!("{} B into {} B", bytes.len(), view.bytes()));
    }
    if bytes.is_empty() {
        return Ok(());
    }
    let from = host(bytes.as_ptr(), view)?;
    let mut to = view.tensor_of(bits(view)?, device)?;
    to.f_copy_(&from).map_err(|error| error.to_string())
}

/// The elements of a view in row-major order. Waits for what computes them.
pub(crate) fn read(view: &View, device: OpenDevice) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; view.bytes()];
    if !bytes.is_empty() {
        let mut to = host(bytes.as_mut_ptr(), view)?;
        let from = view.tensor_of(bits(view)?, device)?;
        to.f_copy_(&from).map_err(|error| error.to_string())?;
    }
    Ok(bytes)
}

/// A number of the host as a tensor without axes, which kernels of any device take as an argument. It is read before a call
/// returns; it stays where it is as long as the tensor is used.
pub(crate) fn number(number: &i64) -> Result<Tensor, String> {
    let start: *const i64 = number;
    // SAFETY: the caller has the number there, and drops the tensor before it; what is written to is never a number.
    let tensor =
        unsafe { Tensor::f_from_blob(start.cast(), &[], &[], Kind::Int64, tch::Device::Cpu) };
    tensor.map_err(|error| error.to_string())
}

/// Sets bytes that are the program's own.
pub(crate) fn fill(
    start: *mut u8,
    bytes: u64,
    value: u8,
    device: OpenDevice,
) -> Result<(), String> {
    let view = View::contiguous(start, lorafa_ir::DType::U8, &[bytes]);
    let tensor = view.tensor_of(Kind::Uint8, device)?;
    let args = [Arg::Tensor(&tensor), Arg::Int(i64::from(value))];
    // SAFETY: nobody else uses the bytes while the program is set up.
    unsafe { Call::new("aten::fill_", "Scalar", &args)?.run() }
}
