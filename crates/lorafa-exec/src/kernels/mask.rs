//! Drawing masks where the step runs: each element's counter, mixed by libtorch's integer kernels.
//!
//! ```text
//!   z    = start + Σ gamma·stride·i         over the axes of the places
//!   z    = (z xor z >>> shift)·factor       in each round of SplitMix64
//!   mask = z ≥ least
//! ```
//!
//! Integers wrap around alike everywhere, so that a step drops the same elements on every device. All numbers are the
//! host's, which kernels of any device take as arguments; of these, only where a counter starts depends on the step. It has
//! run on the CPU only.
// Runs kernels over raw pointers.
#![allow(unsafe_code)]

use lorafa_ir::DType;
use lorafa_ir::layout::SCRATCH_ALIGN;
use lorafa_ir::ops::{DrawnMask, Dropout, Survivors};
use tch::{Kind, Tensor};

use super::{Cx, Emitted, In, Work};
use crate::device::OpenDevice;
use crate::error::KernelError;
use crate::shim::{Arg, Call};
use crate::transfer;
use crate::view::View;

type Done = Result<(), String>;

/// A mask to draw, or a part of one.
#[derive(Debug)]
pub(crate) struct Mask {
    of: Dropout,
    out: View,
    /// A view of no memory that has the place in the whole mask of each element.
    places: View,
    room: Room,
}

/// Scratch to draw in.
#[derive(Debug, Clone)]
pub(super) struct Room {
    /// 0, 1, 2 and so on.
    ramp: View,
    /// The counters of what is drawn at once, and what comes between.
    numbers: [View; 2],
}

impl Room {
    /// Takes scratch for as many numbers as the longest axis of what is drawn at once, and fills it. Counters will be where
    /// `over` is, as many as fit twice.
    pub(super) fn new(cx: &mut Cx<'_>, longest: u64, over: &View) -> Result<Self, KernelError> {
        let ramp = cx.scratch(DType::I64, &[longest]);
        let end = In::Int(longest as i64);
        let args = [In::Int(0), end, In::Int(1), (&ramp).into()];
        cx.call("arange", "start_out", &args)?;
        let half = (over.bytes() as u64).next_multiple_of(SCRATCH_ALIGN) / 2;
        let numbers = [0, half].map(|from| {
            let start = over.start.wrapping_add(from as usize);
            View::contiguous(start, DType::I64, &[half / DType::I64.size()])
        });
        Ok(Room { ramp, numbers })
    }

    /// Draws the part of an op's mask that has these places in the whole.
    pub(super) fn draw(&self, of: Dropout, out: View, places: View, cx: &mut Cx<'_>) {
        let room = self.clone();
        cx.push(Work::Mask(Box::new(Mask {
            of,
            out,
            places,
            room,
        })));
    }
}

/// The places of a whole mask, as a view of no memory: its parts are views of parts.
pub(super) fn places(shape: &[u64]) -> View {
    View::contiguous(std::ptr::null_mut(), DType::Bool, shape)
}

/// Draws an op's whole mask: rows, and what is left.
pub(super) fn whole(of: Dropout, out: &View, cx: &mut Cx<'_>) -> Emitted {
    let elements = out.elements();
    let DrawnMask { row, at_once } = DrawnMask::new(elements);
    let over = cx.scratch(DType::I64, &[2 * at_once]);
    let room = Room::new(cx, row, &over)?;
    let (out, places) = (out.reshaped(&[elements])?, places(&[elements]));
    let rows = elements / row.max(1);
    let in_rows = |x: &View| x.narrow(0, 0, rows * row).reshaped(&[rows, row]);
    let left = |x: &View| x.narrow(0, rows * row, elements - rows * row);
    room.draw(of, in_rows(&out)?, in_rows(&places)?, cx);
    room.draw(of, left(&out), left(&places), cx);
    Ok(())
}

impl Mask {
    /// Draws it for a step.
    pub(crate) fn draw(&self, step: u64, device: OpenDevice) -> Done {
        self.part(&self.out, &self.places, &self.of.survivors(step), device)
    }

    /// Draws a part of it, as much at a time as there is room for.
    fn part(&self, out: &View, places: &View, who: &Survivors, device: OpenDevice) -> Done {
        let (all, most) = (out.elements(), self.room.numbers[0].elements());
        let axis = out.shape().iter().position(|n| *n > 1);
        let Some(axis) = axis.filter(|_| all > most) else {
            return match all {
                0 => Ok(()),
                _ => self.at_once(&squeezed(out), &squeezed(places), who, device),
            };
        };
        let n = out.shape()[axis];
        let len = (most / (all / n)).max(1);
        for from in (0..n).step_by(len as usize) {
            let some = |x: &View| x.narrow(axis, from, len.min(n - from));
            self.part(&some(out), &some(places), who, device)?;
        }
        Ok(())
    }

    fn at_once(&self, out: &View, places: &View, who: &Survivors, device: OpenDevice) -> Done {
        let [z, shifted] = &self.room.numbers;
        self.counters(places, who, device)?;
        let [z, shifted] = [z, shifted].map(|room| {
            let view = View::contiguous(room.start, DType::I64, places.shape());
            view.tensor_of(Kind::Int64, device)
        });
        let (z, shifted) = (z?, shifted?);
        for (shift, factor) in Survivors::ROUNDS {
            // A shift repeats the sign, which these bits are without.
            let (by, kept) = (i64::from(shift), (u64::MAX >> shift) as i64);
            let [by, kept] = [&by, &kept].map(transfer::number);
            let factor = factor as i64;
            binary("bitwise_right_shift", "Tensor_out", [&z, &by?, &shifted])?;
            binary("bitwise_and", "Tensor_out", [&shifted, &kept?, &shifted])?;
            binary("bitwise_xor", "Tensor_out", [&z, &shifted, &z])?;
            binary("mul", "out", [&z, &transfer::number(&factor)?, &z])?;
        }
        let (least, out) = (who.least(), out.tensor_of(Kind::Bool, device)?);
        binary("ge", "Tensor_out", [&z, &transfer::number(&least)?, &out])
    }

    /// Counts the places, axis by axis.
    fn counters(&self, places: &View, who: &Survivors, device: OpenDevice) -> Done {
        let start = who.counter(places.layout.offset) as i64;
        let mut counted = transfer::number(&start)?;
        let axes = places.shape().iter().zip(&places.layout.strides);
        for (axis, (n, stride)) in axes.enumerate() {
            // To and fro, so that the last are where they are mixed.
            let room = &self.room.numbers[(places.rank() - 1 - axis) % 2];
            let sum = View::contiguous(room.start, DType::I64, &places.shape()[..=axis]);
            let ramp = self.room.ramp.narrow(0, 0, *n);
            let each = Survivors::GAMMA.wrapping_mul(*stride) as i64;
            let args = [
                Arg::Tensor(&counted),
                Arg::Tensor(&ramp.tensor_of(Kind::Int64, device)?),
                Arg::Int(each),
                Arg::Tensor(&sum.tensor_of(Kind::Int64, device)?),
            ];
            run("add", "out", &args)?;
            counted = sum.unsqueeze(axis + 1).tensor_of(Kind::Int64, device)?;
        }
        Ok(())
    }
}

/// Without axes of length one, as long as there are others.
fn squeezed(x: &View) -> View {
    (0..x.rank()).rev().fold(x.clone(), |x, axis| {
        if x.rank() > 1 && x.shape()[axis] == 1 {
            x.select(axis, 0)
        } else {
            x
        }
    })
}

fn binary(name: &str, overload: &str, [a, b, out]: [&Tensor; 3]) -> Done {
    run(name, overload, &[a, b, out].map(Arg::Tensor))
}

fn run(name: &str, overload: &str, args: &[Arg<'_>]) -> Done {
    let call = Call::new(&format!("aten::{name}"), overload, args)?;
    // SAFETY: a mask is drawn by its program, which owns the memory, and nobody else uses it.
    unsafe { call.run() }
}

#[cfg(test)]
mod tests {
    use lorafa_ir::ops::Scalar;
    use lorafa_plan::Scratch;

    use super::*;
    use crate::run::work;
    use crate::shim::InferenceMode;

    /// Draws a mask that has these places, with as much room as so many bytes, and holds it against who survives.
    fn check(of: Dropout, places: &View, room: u64, step: u64) {
        let _inference = InferenceMode::enter();
        let longest = places.shape().iter().copied().max().unwrap();
        let sizes = [room, longest * DType::I64.size()];
        let bytes = sizes
            .map(|n| n.next_multiple_of(SCRATCH_ALIGN))
            .iter()
            .sum();
        let mut memory = vec![0u64; bytes as usize / 8];
        let mut mask = vec![0xffu8; places.elements() as usize];
        let scratch = (memory.as_mut_ptr().cast(), Scratch { offset: 0, bytes });
        let mut tasks = Vec::new();
        let mut cx = Cx::new(&[], &[], &[], Some(scratch), OpenDevice::CPU, &mut tasks);
        let over = cx.scratch(DType::U8, &[room]);
        let drawn = Room::new(&mut cx, longest, &over).unwrap();
        assert_eq!(cx.used(), bytes);
        let out = View::contiguous(mask.as_mut_ptr(), DType::Bool, places.shape());
        drawn.draw(of, out, places.clone(), &mut cx);
        for task in &tasks {
            work(task, step, OpenDevice::CPU).unwrap();
        }
        let survivors = of.survivors(step);
        for (index, found) in (0..).zip(mask) {
            let axes = places.shape().iter().zip(&places.layout.strides).rev();
            let start = (index, places.layout.offset);
            let (_, place) = axes.fold(start, |(index, place), (n, stride)| {
                (index / n, place + index % n * stride)
            });
            let survives = u8::from(survivors.has(place));
            assert_eq!(found, survives, "{of:?} {step} {room} {place} {places:?}");
        }
    }

    /// Of several sequences, of some rows, of keys up to the last row or of a window, of heads that share keys.
    #[test]
    fn parts_of_a_mask_are_drawn_as_the_whole() {
        let all = places(&[3, 6, 37, 41]);
        let by_share = |x: &View| {
            let mut x = x
                .reshaped(&[x.shape()[0], 3, 2, x.shape()[2], x.shape()[3]])
                .unwrap();
            x.layout.shape[..3].rotate_right(1);
            x.layout.strides[..3].rotate_right(1);
            x
        };
        let mut far = all.clone();
        far.layout.offset = 1 << 62;
        let parts = [
            all.clone(),
            by_share(&all),
            by_share(&all.narrow(0, 1, 2)),
            by_share(&all.narrow(0, 2, 1).narrow(2, 16, 16).narrow(3, 0, 32)),
            by_share(&all.narrow(2, 36, 1).narrow(3, 20, 17)),
            by_share(&all.narrow(3, 40, 1)),
            all.narrow(0, 1, 1)
                .narrow(1, 5, 1)
                .narrow(2, 7, 1)
                .narrow(3, 3, 1),
            all.narrow(2, 5, 0),
            far.swapped(),
        ];
        let cases = [
            (0.1, 1, 0),
            (0.5, 4000, 1),
            (0.1, 40_000, 2),
            (0.0, 40_000, 1 << 40),
            (1e-9, 1 << 20, 3),
            (1.0 - 1e-3, 1 << 20, 4),
            (1.0 - f64::EPSILON / 2.0, 1 << 20, u64::MAX),
        ];
        for (seed, part) in (-4..).zip(&parts) {
            for (ratio, room, step) in cases {
                let ratio = Scalar(ratio);
                check(Dropout { ratio, seed }, part, room, step);
            }
        }
    }
}
