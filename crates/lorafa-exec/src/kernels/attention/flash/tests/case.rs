//! An attention and its gradient on memory of the host, by flash kernels of the CPU and by blocks.

use lorafa_ir::layout::Layout;
use lorafa_ir::ops::Scalar;
use lorafa_ir::{Op, TensorType, ValueId};
use lorafa_onnx::dtype::{decode, encode};
use lorafa_plan::{ALIGN, Scratch};

use super::super::*;
use super::{blocks_backward, blocks_forward};
use crate::device::OpenDevice;
use crate::kernels::{Emitted, Looks};
use crate::run::work;
use crate::shim::InferenceMode;

pub(super) static CPU: Kernels = Kernels {
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
pub(super) struct Bytes(Vec<u8>);

impl Bytes {
    pub(super) fn new(bytes: u64) -> Self {
        Bytes(vec![0xff; (bytes + ALIGN) as usize])
    }

    pub(super) fn start(&mut self) -> *mut u8 {
        let start = self.0.as_mut_ptr();
        start.wrapping_add(start.align_offset(ALIGN as usize))
    }
}

/// A row-major value and its memory.
pub(super) struct Value(pub(super) View, #[allow(dead_code)] Bytes);

pub(super) fn value(dtype: DType, shape: &[u64], number: impl Fn(usize) -> f64) -> Value {
    let count = shape.iter().product::<u64>();
    let mut bytes = Bytes::new(count * dtype.size());
    let view = View::contiguous(bytes.start(), dtype, shape);
    let numbers = encode(dtype, (0..count as usize).map(number));
    // SAFETY: there is room for as many numbers.
    unsafe { view.start.copy_from(numbers.as_ptr(), numbers.len()) };
    Value(view, bytes)
}

pub(super) fn numbers(value: &Value) -> Vec<f64> {
    // SAFETY: so many bytes are there, and all were written.
    let bytes = unsafe { std::slice::from_raw_parts(value.0.start, value.0.bytes()) };
    decode(value.0.dtype, bytes)
}

/// An op's results, and how many flash calls gave them.
pub(super) struct Ran {
    pub(super) results: Vec<Value>,
    pub(super) calls: usize,
    /// How often it was looked at a mask.
    pub(super) looks: usize,
    /// Bytes that each flash call takes.
    pub(super) taken: u64,
}

/// How a kernel is set up; whether it was.
pub(super) type Emit<'a> = &'a dyn Fn(&mut Cx<'_>) -> Made<bool>;

/// Whether flash kernels do all of an op.
pub(super) fn took(does: Made<Does>, cx: &mut Cx<'_>) -> Made<bool> {
    let all = matches!(does?, Does::All);
    if all {
        cx.take_all();
    }
    Ok(all)
}

/// Runs a kernel in so many bytes of scratch; `None` if it is none for the op.
pub(super) fn run(
    ins: &[View],
    outs: &[(DType, Vec<u64>)],
    bytes: u64,
    emit: Emit<'_>,
) -> Option<Ran> {
    run_sharing(ins, outs, bytes, None, emit)
}

/// As [`run`], of operands with names, after ops that looked at some.
pub(super) fn run_sharing(
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
pub(super) fn scratch(op: &Op, ins: &[View]) -> u64 {
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
pub(super) struct Case {
    pub(super) dtype: DType,
    pub(super) batch: u64,
    pub(super) heads: u64,
    pub(super) groups: u64,
    pub(super) rows: u64,
    pub(super) keys: u64,
    pub(super) width: u64,
    pub(super) op: Attention,
}

pub(super) const PLAIN: Attention = Attention {
    scale: Scalar(0.3),
    causal: true,
    window: None,
    dropout: None,
};

pub(super) const SMALL: Case = Case {
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
pub(super) const LONG: Case = Case {
    batch: 2,
    heads: 8,
    groups: 4,
    rows: 1024,
    keys: 1024,
    width: 8,
    ..SMALL
};

/// Enough for any of these at once.
pub(super) const PLENTY: u64 = 16 << 20;

/// What an attention and its gradient read, and what blocks give.
pub(super) struct Both {
    pub(super) case: Case,
    pub(super) forward: Vec<View>,
    pub(super) given: Ran,
    pub(super) backward: Vec<View>,
    pub(super) grads: Ran,
    #[allow(dead_code)]
    pub(super) memory: Vec<Value>,
}

/// Element types and shapes of results.
pub(super) fn like(ran: &Ran) -> Vec<(DType, Vec<u64>)> {
    let views = ran.results.iter().map(|value| &value.0);
    views.map(|x| (x.dtype, x.shape().to_vec())).collect()
}

impl Case {
    /// Queries lie as they are read; keys, values and what is given have rows before heads.
    pub(super) fn both(self) -> Both {
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

    pub(super) fn grad(&self) -> AttentionGrad {
        AttentionGrad {
            of: self.op,
            bias: false,
        }
    }
}

pub(super) fn blocks(
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
    pub(super) fn check(&self, bytes: [u64; 2]) -> [(usize, u64); 2] {
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

    pub(super) fn compare(&self, flash: &Ran, blocks: &Ran) {
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
    pub(super) fn calls(&self, bytes: [u64; 2]) -> [usize; 2] {
        self.check(bytes).map(|(calls, _)| calls)
    }
}
