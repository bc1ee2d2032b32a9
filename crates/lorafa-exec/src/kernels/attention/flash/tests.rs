//! The flash kernels of the CPU, which have the conventions of those of a GPU, against blocks.

mod case;

use lorafa_ir::ValueId;
use lorafa_ir::ops::{Dropout, Scalar};
use lorafa_plan::Scratch;

use super::super::backward::backward as blocks_backward;
use super::super::forward::forward as blocks_forward;
use super::super::{backward_by, forward_by};
use super::*;
use crate::device::OpenDevice;
use crate::kernels::{Looks, Task};
use crate::shim::InferenceMode;
use case::*;

#[test]
fn flash_kernels_give_what_blocks_give() {
    let grouped = Case {
        heads: 6,
        groups: 2,
        ..SMALL
    };
    let full = Attention {
        causal: false,
        ..PLAIN
    };
    let cases = [
        SMALL,
        Case { op: full, ..SMALL },
        Case {
            op: full,
            rows: 5,
            keys: 23,
            ..SMALL
        },
        grouped,
        Case {
            op: full,
            ..grouped
        },
        Case {
            heads: 5,
            groups: 1,
            batch: 1,
            ..SMALL
        },
        Case {
            rows: 1,
            keys: 1,
            ..grouped
        },
    ];
    for case in cases {
        for dtype in [DType::F32, DType::BF16] {
            let both = Case { dtype, ..case }.both();
            assert_eq!(both.calls([PLENTY; 2]), [1, 1], "{case:?}");
        }
    }
}

/// With less memory it is one sequence at a time, then some heads of one, then nothing. With a byte less than a part takes,
/// parts are smaller.
#[test]
fn parts_are_as_large_as_the_scratch_lets_them() {
    let both = LONG.both();
    let mut bytes = [PLENTY; 2];
    // Four query heads have 4096 rows.
    for calls in [1, 2, 4] {
        let ran = both.check(bytes);
        assert_eq!(ran.map(|(calls, _)| calls), [calls; 2]);
        let taken = ran.map(|(_, taken)| taken);
        assert_eq!(both.check(taken), ran);
        bytes = taken.map(|n| n - 1);
    }
    assert_eq!(both.calls(bytes), [0, 0]);
}

#[test]
fn what_they_do_not_take_is_left_to_blocks() {
    let with = |op: Attention| Case { op, ..SMALL };
    let dropout = Dropout {
        ratio: Scalar(0.1),
        seed: 1,
    };
    for case in [
        with(Attention {
            window: Some(4),
            ..PLAIN
        }),
        with(Attention {
            dropout: Some(dropout),
            ..PLAIN
        }),
        with(Attention {
            scale: Scalar(-0.3),
            ..PLAIN
        }),
        with(Attention {
            scale: Scalar(0.0),
            ..PLAIN
        }),
        Case { width: 12, ..SMALL },
        Case { rows: 7, ..SMALL },
        Case {
            width: 264,
            ..SMALL
        },
        Case {
            dtype: DType::F16,
            ..SMALL
        },
    ] {
        assert_eq!(case.both().calls([PLENTY; 2]), [0, 0], "{case:?}");
    }
    // Only its gradient is none for them.
    let wide = Case {
        width: 208,
        ..SMALL
    }
    .both();
    assert_eq!(wide.calls([PLENTY; 2]), [1, 0]);
    assert_eq!(SMALL.both().calls([0, 0]), [0, 0]);
}

/// A bias, operands that begin or go on at odd places, or whose last axis is not dense.
#[test]
fn what_they_cannot_read_is_left_to_blocks() {
    let both = SMALL.both();
    let taken = |ins: &[View]| {
        let emit: Emit<'_> = &|cx| took(CPU.forward(SMALL.op, cx), cx);
        run(ins, &like(&both.given), PLENTY, emit).is_some()
    };
    assert!(taken(&both.forward));
    let bias = value(DType::F32, &[13, 13], |_| 0.5);
    let mut biased = both.forward.clone();
    biased.push(bias.0.clone());
    assert!(!taken(&biased));
    let other = |q: View| [q, both.forward[1].clone(), both.forward[2].clone()];
    let whole = value(DType::F32, &[3, 4, 13, 20], |i| i as f64);
    assert!(taken(&other(whole.0.narrow(3, 4, 16))));
    assert!(!taken(&other(whole.0.narrow(3, 2, 16))));
    let odd = value(DType::F32, &[3, 4, 13, 18], |i| i as f64);
    assert!(!taken(&other(odd.0.narrow(3, 0, 16))));
    let across = value(DType::F32, &[3, 4, 16, 13], |i| i as f64);
    assert!(!taken(&other(across.0.swapped())));
}

/// What a mask hides is looked at once for both ops, and either way they give what blocks give.
#[test]
fn a_mask_that_hides_nothing_is_none() {
    let case = Case {
        heads: 6,
        groups: 2,
        ..SMALL
    };
    let both = case.both();
    let (op, grad) = (case.op, case.grad());
    let names = "graph @names {\n param %other : f32[] input\n param %mask : bool[] input\n }";
    let names = lorafa_ir::text::parse(names).unwrap();
    let names: Vec<ValueId> = names.params().map(|(value, _)| value).collect();
    let named = |operands: usize| {
        let mut values = vec![names[0]; operands];
        values[operands - 1] = names[1];
        values
    };
    for hides in [false, true] {
        // Of the second sequence all but the first ten keys.
        let seen = |i: usize| f64::from(u8::from(!hides || i / 13 != 1 || i % 13 < 10));
        let mask = value(DType::Bool, &[3, 1, 1, 13], seen);
        let mut forward = both.forward.clone();
        forward.push(mask.0.clone());
        let outs = like(&both.given);
        let given = blocks(op.into(), &forward, &outs, &|cx| blocks_forward(op, cx));
        let mut backward = both.backward[..4].to_vec();
        backward.extend(given.results.iter().map(|value| value.0.clone()));
        backward.push(mask.0.clone());
        let outs = like(&both.grads);
        let grads = blocks(grad.into(), &backward, &outs, &|cx| {
            blocks_backward(grad, cx)
        });

        let mut looks = Looks::new();
        let bytes = scratch(&op.into(), &forward);
        let flash = run_sharing(
            &forward,
            &like(&given),
            bytes,
            Some((&named(4), &mut looks)),
            &|cx| forward_by(Some(&CPU), op, cx).map(|()| true),
        );
        let flash = flash.unwrap();
        assert_eq!((flash.calls, flash.looks), (usize::from(!hides), 1));
        both.compare(&flash, &given);
        let bytes = scratch(&grad.into(), &backward);
        let flash = run_sharing(
            &backward,
            &outs,
            bytes,
            Some((&named(7), &mut looks)),
            &|cx| backward_by(Some(&CPU), grad, cx).map(|()| true),
        );
        let flash = flash.unwrap();
        assert_eq!((flash.calls, flash.looks), (usize::from(!hides), 0));
        both.compare(&flash, &grads);
    }
}

/// A call that takes other memory than when it was set up is an error, and so is one that finds too little.
#[test]
fn memory_that_was_not_foreseen_is_an_error() {
    let _inference = InferenceMode::enter();
    let both = SMALL.both();
    let results: Vec<View> = both
        .given
        .results
        .iter()
        .map(|value| value.0.clone())
        .collect();
    let mut memory = Bytes::new(PLENTY);
    let scratch = (
        memory.start(),
        Scratch {
            offset: 0,
            bytes: PLENTY,
        },
    );
    let mut tasks = Vec::new();
    let mut cx = Cx::new(
        &both.forward,
        &results,
        &[],
        Some(scratch),
        OpenDevice::CPU,
        &mut tasks,
    );
    assert!(matches!(CPU.forward(SMALL.op, &mut cx), Ok(Does::All)));
    let [
        Task {
            work: Work::Placed(call),
            ..
        },
    ] = &mut tasks[..]
    else {
        panic!("one call");
    };
    // SAFETY: the memory is there until the test ends.
    let mut run = |change: fn(&mut PlacedCall)| unsafe {
        change(call);
        call.run()
    };
    assert_eq!(run(|_| {}), Ok(()));
    let other = run(|call| call.taken += 512).unwrap_err();
    assert!(other.starts_with("it takes "), "{other}");
    let more = run(|call| call.bytes = 512).unwrap_err();
    assert!(
        more.starts_with("it takes more of 512 planned bytes"),
        "{more}"
    );
}
