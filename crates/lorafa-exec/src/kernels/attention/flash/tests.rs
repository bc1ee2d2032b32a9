//! The flash kernels of the CPU, which have the conventions of those of a GPU, against blocks.

use lorafa_ir::layout::Layout;
use lorafa_ir::ops::{Dropout, Scalar};
use lorafa_ir::{Op, TensorType, ValueId};
use lorafa_onnx::dtype::{decode, encode};
use lorafa_plan::{ALIGN, Scratch};

use super::super::backward::backward as blocks_backward;
use super::super::forward::forward as blocks_forward;
use super::super::{backward_by, forward_by};
use super::*;
use crate::device::OpenDevice;
use crate::kernels::{Emitted, Looks, Task};
use crate::run::work;
use crate::shim::InferenceMode;

static CPU: Kernels = Kernels {
    dtypes: &[DType::F32, DType::BF16],
    forward: Operator {
        name: "_scaled_dot_product_flash_attention_for_cpu",
        rest: |op, _| {
            let causal = In::Bool(op.causal);
            vec![In::Double(0.0), causal, In::None, In::Double(op.scale.0)]
        },
    },
    backward: Operator {
        name: "_scaled_dot_product_flash_attention_for_cpu_backward",
        rest: |op, _| {
            let causal = In::Bool(op.causal);
            vec![In::Double(0.0), causal, In::None, In::Double(op.scale.0)]
        },
    },
};

/// Memory on a multiple of what the plan aligns to.
struct Bytes(Vec<u8>);

impl Bytes {
    fn new(bytes: u64) -> Self {
        Bytes(vec![0xff; (bytes + ALIGN) as usize])
    }

    fn start(&mut self) -> *mut u8 {
        let start = self.0.as_mut_ptr();
        start.wrapping_add(start.align_offset(ALIGN as usize))
    }
}

/// A row-major value and its memory.
struct Value(View, #[allow(dead_code)] Bytes);

fn value(dtype: DType, shape: &[u64], number: impl Fn(usize) -> f64) -> Value {
    let count = shape.iter().product::<u64>();
    let mut bytes = Bytes::new(count * dtype.size());
    let view = View::contiguous(bytes.start(), dtype, shape);
    let numbers = encode(dtype, (0..count as usize).map(number));
    // SAFETY: there is room for as many numbers.
    unsafe { view.start.copy_from(numbers.as_ptr(), numbers.len()) };
    Value(view, bytes)
}

fn numbers(value: &Value) -> Vec<f64> {
    // SAFETY: so many bytes are there, and all were written.
    let bytes = unsafe { std::slice::from_raw_parts(value.0.start, value.0.bytes()) };
    decode(value.0.dtype, bytes)
}

/// An op's results, and how many flash calls gave them.
struct Ran {
    results: Vec<Value>,
    calls: usize,
    /// How often it was looked at a mask.
    looks: usize,
    /// Bytes that each flash call takes.
    taken: u64,
}

/// How a kernel is set up; whether it was.
type Emit<'a> = &'a dyn Fn(&mut Cx<'_>) -> Made<bool>;

/// Whether flash kernels do all of an op.
fn took(does: Made<Does>, cx: &mut Cx<'_>) -> Made<bool> {
    let all = matches!(does?, Does::All);
    if all {
        cx.take_all();
    }
    Ok(all)
}

/// Runs a kernel in so many bytes of scratch; `None` if it is none for the op.
fn run(ins: &[View], outs: &[(DType, Vec<u64>)], bytes: u64, emit: Emit<'_>) -> Option<Ran> {
    run_sharing(ins, outs, bytes, None, emit)
}

/// As [`run`], of operands with names, after ops that looked at some.
fn run_sharing(
    ins: &[View],
    outs: &[(DType, Vec<u64>)],
    bytes: u64,
    looks: Option<(&[ValueId], &mut Looks)>,
    emit: Emit<'_>,
) -> Option<Ran> {
    let _inference = InferenceMode::enter();
    let results: Vec<Value> = outs
        .iter()
        .map(|(dtype, shape)| value(*dtype, shape, |_| f64::NAN))
        .collect();
    let views: Vec<View> = results.iter().map(|value| value.0.clone()).collect();
    let mut memory = Bytes::new(bytes);
    let scratch = (memory.start(), Scratch { offset: 0, bytes });
    let mut tasks = Vec::new();
    let mut cx = Cx::new(ins, &views, &[], Some(scratch), OpenDevice::CPU, &mut tasks);
    if let Some((values, looks)) = looks {
        cx = cx.sharing(values, looks);
    }
    if !emit(&mut cx).unwrap() {
        assert_eq!(cx.used(), 0);
        return None;
    }
    assert_eq!(cx.used(), bytes);
    let (mut flash, mut looked) = (Vec::new(), 0);
    for task in &tasks {
        if task.is_due() {
            work(task, 0, OpenDevice::CPU).unwrap();
            match &task.work {
                Work::Placed(call) => flash.push(call.taken),
                Work::Look(..) => looked += 1,
                _ => {}
            }
        }
    }
    Some(Ran {
        results,
        calls: flash.len(),
        looks: looked,
        taken: flash.into_iter().max().unwrap_or(0),
    })
}

/// Bytes of scratch that the op has by its own account.
fn scratch(op: &Op, ins: &[View]) -> u64 {
    let of = |x: &View| {
        let ty = TensorType::new(x.dtype, x.shape().iter().map(|n| (*n as i64).into()));
        (ty, x.layout.clone())
    };
    let owned: Vec<(TensorType, Layout)> = ins.iter().map(of).collect();
    let operands: Vec<(&TensorType, &Layout)> = owned.iter().map(|(ty, at)| (ty, at)).collect();
    op.scratch(&operands, &[])
}

/// An attention of these sizes.
#[derive(Clone, Copy, Debug)]
struct Case {
    dtype: DType,
    batch: u64,
    heads: u64,
    groups: u64,
    rows: u64,
    keys: u64,
    width: u64,
    op: Attention,
}

const PLAIN: Attention = Attention {
    scale: Scalar(0.3),
    causal: true,
    window: None,
    dropout: None,
};

const SMALL: Case = Case {
    dtype: DType::F32,
    batch: 3,
    heads: 4,
    groups: 4,
    rows: 13,
    keys: 13,
    width: 16,
    op: PLAIN,
};

/// Long enough that a few heads are a part.
const LONG: Case = Case {
    batch: 2,
    heads: 8,
    groups: 4,
    rows: 1024,
    keys: 1024,
    width: 8,
    ..SMALL
};

/// Enough for any of these at once.
const PLENTY: u64 = 16 << 20;

/// What an attention and its gradient read, and what blocks give.
struct Both {
    case: Case,
    forward: Vec<View>,
    given: Ran,
    backward: Vec<View>,
    grads: Ran,
    #[allow(dead_code)]
    memory: Vec<Value>,
}

/// Element types and shapes of results.
fn like(ran: &Ran) -> Vec<(DType, Vec<u64>)> {
    let views = ran.results.iter().map(|value| &value.0);
    views.map(|x| (x.dtype, x.shape().to_vec())).collect()
}

impl Case {
    /// Queries lie as they are read; keys, values and what is given have rows before heads.
    fn both(self) -> Both {
        let Case {
            dtype,
            batch: b,
            width: w,
            ..
        } = self;
        let drawn = |shape: [u64; 4], seed: usize| {
            let number = |i: usize| ((i * i + 3 * i + seed) * 7919 % 1009) as f64 / 504.0 - 1.0;
            value(dtype, &shape, number)
        };
        let q = drawn([b, self.heads, self.rows, w], 1);
        let k = drawn([b, self.keys, self.groups, w], 2);
        let v = drawn([b, self.keys, self.groups, w], 3);
        let dy = drawn([b, self.rows, self.heads, w], 4);
        let forward = vec![q.0.clone(), heads_first(&k.0), heads_first(&v.0)];
        let by_rows = |n: u64, heads: u64| (dtype, vec![b, n, heads, w]);
        let lse = (DType::F32, vec![b, self.heads, self.rows]);
        let outs = [by_rows(self.rows, self.heads), lse];
        let given = blocks(self.op.into(), &forward, &outs, &|cx| {
            blocks_forward(self.op, cx)
        });
        let mut backward = vec![dy.0.clone()];
        backward.extend(forward.iter().cloned());
        backward.extend(given.results.iter().map(|value| value.0.clone()));
        let keys = by_rows(self.keys, self.groups);
        let outs = [by_rows(self.rows, self.heads), keys.clone(), keys];
        let grad = self.grad();
        let grads = blocks(grad.into(), &backward, &outs, &|cx| {
            blocks_backward(grad, cx)
        });
        Both {
            case: self,
            forward,
            given,
            backward,
            grads,
            memory: vec![q, k, v, dy],
        }
    }

    fn grad(&self) -> AttentionGrad {
        AttentionGrad {
            of: self.op,
            bias: false,
        }
    }
}

fn blocks(
    op: Op,
    ins: &[View],
    outs: &[(DType, Vec<u64>)],
    emit: &dyn Fn(&mut Cx<'_>) -> Emitted,
) -> Ran {
    let ran = run(ins, outs, scratch(&op, ins), &|cx| emit(cx).map(|()| true));
    ran.expect("blocks take any op")
}

impl Both {
    /// Runs both by flash kernels in so many bytes each, and holds what they give against blocks. How many calls they
    /// were, zero if they are not for them, and the bytes that a call takes.
    fn check(&self, bytes: [u64; 2]) -> [(usize, u64); 2] {
        let (op, grad) = (self.case.op, self.case.grad());
        let forward = run(&self.forward, &like(&self.given), bytes[0], &|cx| {
            took(CPU.forward(op, cx), cx)
        });
        let backward = run(&self.backward, &like(&self.grads), bytes[1], &|cx| {
            took(CPU.backward(grad, cx), cx)
        });
        [(forward, &self.given), (backward, &self.grads)].map(|(ran, blocks)| {
            let Some(ran) = ran else { return (0, 0) };
            self.compare(&ran, blocks);
            (ran.calls, ran.taken)
        })
    }

    fn compare(&self, flash: &Ran, blocks: &Ran) {
        let case = self.case;
        let tolerance = if case.dtype.is_half() { 2e-2 } else { 2e-5 };
        for (slot, (found, expected)) in flash.results.iter().zip(&blocks.results).enumerate() {
            let (found, expected) = (numbers(found), numbers(expected));
            let size = expected.iter().fold(0f64, |size, x| size.max(x.abs()));
            // Of one key, weights do not depend on queries and keys.
            assert!(
                size > 0.1 || case.keys == 1,
                "{case:?}: result {slot} is at most {size}"
            );
            for (i, (f, e)) in found.iter().zip(&expected).enumerate() {
                let near = (f - e).abs() <= tolerance * size.max(0.1);
                assert!(near, "{case:?}: result {slot} [{i}] is {f}, not {e}");
            }
        }
    }

    /// How many calls they are.
    fn calls(&self, bytes: [u64; 2]) -> [usize; 2] {
        self.check(bytes).map(|(calls, _)| calls)
    }
}

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
