//! A compiled step on a device.

use crate::args::{MachineArgs, TrainingArgs};
use crate::compile::{self, Single};
use crate::error::Error;
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
    let needs = |single: &Single| single.step.plan.arena_bytes().saturating_add(args.reserve);
    let needed = needs(single);
    if needed <= free {
        return Ok(());
    }
    let fits = |batch: i64| {
        let training = TrainingArgs {
            batch: Some(batch),
            ..training.clone()
        };
        let smaller = compile::single(model, &training);
        smaller.is_ok_and(|single| needs(&single) <= free)
    };
    // The largest that fits, by bisection: fewer sequences never need more.
    let (mut least, mut most) = (0, single.dims.batch.unwrap_or(1));
    while most - least > 1 {
        let middle = least + (most - least) / 2;
        if fits(middle) {
            least = middle;
        } else {
            most = middle;
        }
    }
    let advice = match least {
        0 => "no smaller --batch fits; lower --seq or the rank, or take another device".to_owned(),
        n => format!("--batch {n} fits"),
    };
    Err(Error::DoesNotFit(format!(
        "needs {}, {} has {} free: {advice} (--force tries all the same)",
        units::bytes(needed),
        args.device,
        units::bytes(free),
    )))
}
