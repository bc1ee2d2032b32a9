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
    let advice = match largest_batch(training, single, |smaller| {
        Ok(needs(&compile::single(model, smaller)?) <= free)
    })? {
        Some(flag) => format!("{flag} fits"),
        None if single.dims.batch_symbols.is_empty() => {
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

/// The flag that gives the largest batch that fits, if one does.
fn largest_batch(
    training: &TrainingArgs,
    single: &Single,
    fits: impl Fn(&TrainingArgs) -> Result<bool, Error>,
) -> Result<Option<String>, Error> {
    let symbols = &single.dims.batch_symbols;
    if symbols.is_empty() {
        return Ok(None);
    }
    let mut smaller = training.clone();
    let of_batch = |name: &String| symbols.contains(name.as_str());
    let given = training
        .dims
        .iter()
        .map(|(name, _)| name)
        .find(|name| of_batch(name));
    smaller.dims.retain(|(name, _)| !of_batch(name));
    // By bisection: fewer sequences never need more.
    let (mut least, mut most) = (0, single.dims.batch.unwrap_or(1));
    while most - least > 1 {
        let middle = least + (most - least) / 2;
        smaller.batch = Some(middle);
        if fits(&smaller)? {
            least = middle;
        } else {
            most = middle;
        }
    }
    Ok((least > 0).then(|| match given {
        Some(name) => format!("--dim {name}={least}"),
        None => format!("--batch {least}"),
    }))
}
