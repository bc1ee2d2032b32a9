//! A compiled step on a device.

use crate::args::{MachineArgs, TrainingArgs};
use crate::compile::Single;
use crate::error::Error;
use crate::fit::{self, Axis};
use crate::units;
use lorafa_exec::{Device, OpenDevice};
use lorafa_onnx::file::ModelFile;

/// Opens the device that `--device` names.
///
/// # Errors
///
/// No such device, or libtorch cannot use it.
pub fn open(device: &str) -> Result<OpenDevice, Error> {
    let device: Device = device.parse()?;
    Ok(device.open()?)
}

/// Compares what a step needs with what the device has free, before anything is allocated.
///
/// # Errors
///
/// [`Error::DoesNotFit`] with the largest batch that fits, unless `--force`.
pub fn check_fits(
    args: &MachineArgs,
    device: OpenDevice,
    model: &ModelFile,
    training: &TrainingArgs,
    single: &Single,
) -> Result<(), Error> {
    if args.force {
        return Ok(());
    }
    let free = device.memory()?.free;
    let needed = fit::needed(single, args.reserve);
    if needed <= free {
        return Ok(());
    }
    let largest = fit::largest(Axis::Batch, free, args.reserve, model, training, single)?;
    let advice = match largest {
        Some(flag) => format!("{flag} fits"),
        None if single.dims.symbols(Axis::Batch).is_empty() => {
            "the model's batch is fixed; export it with a dynamic one, or take another device"
                .into()
        }
        None => "no smaller --batch fits; lower --seq or the rank, or take another device".into(),
    };
    Err(Error::DoesNotFit(format!(
        "needs {}, {} has {} free: {advice} (--force tries all the same)",
        units::bytes(needed),
        args.device,
        units::bytes(free),
    )))
}
