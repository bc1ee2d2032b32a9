//! Kernels: what each op calls, one op family a file, as in [`lorafa_ir::ops`].
//!
//! A kernel appends [`Task`]s to the program. It writes results where the plan put them, overwrites an operand if
//! result and operand are the same place, and takes temporaries from the op's planned scratch, all of it: what the op's
//! [`Operator::scratch`](lorafa_ir::Operator::scratch) says is exactly what its kernel takes. No kernel allocates; where
//! an operator cannot but return fresh tensors, and there is no other, its allocations are served from that scratch.
//! Operators that do although they have an out-variant, and how that is avoided:
//!
//! | operator | allocates | instead |
//! |---|---|---|
//! | anything with a `Scalar` in place of a tensor | 8 B for the number | a tensor of no axes in scratch or on the host, or `alpha` |
//! | `mean.out`, for its division | 8 B | `sum`, then `div` by such a tensor |
//! | `mm`, `bmm` on matrices that BLAS cannot read | a copy | a copy in scratch |
//! | softmax and others on what is not row-major | a copy | a copy into the result or scratch |
//! | `gather`, `scatter` of 16-bit floats | f32 copies | the same of 16-bit integers |
//! | `scatter_add_` of 16-bit floats | f32 copies | f32 copies in scratch |
//! | `index_add_` of 16-bit rows | sums | an axis more, which makes it go element by element |
//! | `copy_` of a large transpose | a tile of 60×60 | an axis more, which turns the tiling off |
//! | `sum`, `amax` of much to one number | a part for each thread | parts in scratch, or a product with itself |
//! | `var` of everything | the result | the norm of each row, squared |
//! | `scaled_dot_product_attention` | its results | blocks of rows, `baddbmm_` and softmax in scratch; on a GPU flash kernels, whose memory is the scratch |
//! | `native_layer_norm.out`, `_fused_rms_norm`, `native_dropout.out`, `isnan.out`, `embedding.out` | the result | written out |

mod accumulate;
mod activation;
mod adamw;
mod attention;
mod binary;
mod copies;
mod cross_entropy;
mod cumsum;
mod dropout;
mod gated;
mod gather;
mod indices;
mod layer_norm;
mod linear_cross_entropy;
mod mask;
mod matmul;
mod reduce;
mod rms_norm;
mod rotary;
mod scatter;
mod select;
mod softmax;
mod source;
mod unary;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

use lorafa_ir::layout::SCRATCH_ALIGN;
use lorafa_ir::{DType, Op, ValueId};
use lorafa_plan::Scratch;
use tch::Tensor;

use crate::device::OpenDevice;
use crate::error::KernelError;
use crate::shim::{Arg, Call, PlacedCall};
use crate::view::{View, code};

pub(crate) use mask::Mask;

/// One thing that a program does.
#[derive(Debug)]
pub(crate) struct Task {
    pub work: Work,
    pub when: When,
    /// What was looked at, and what it has to have shown.
    pub given: Option<(Rc<Cell<bool>>, bool)>,
}

impl Task {
    /// Whether it is done after what was looked at last.
    pub(crate) fn is_due(&self) -> bool {
        let given = self.given.as_ref();
        given.is_none_or(|(shown, wanted)| shown.get() == *wanted)
    }
}

/// What a task does.
#[derive(Debug)]
pub(crate) enum Work {
    /// Calls libtorch.
    Call(Call),
    /// Calls libtorch, which allocates in the op's scratch.
    Placed(PlacedCall),
    /// Draws a mask, some elements after the other.
    Mask(Box<Mask>),
    /// Looks whether all of a value is true. Waits for what computes it.
    Look(View, Rc<Cell<bool>>),
}

/// What is looked at, by value.
pub(crate) type Looks = BTreeMap<ValueId, Rc<Cell<bool>>>;

/// Which runs a task belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// All that the op is part of.
    Always,
    /// Those that train.
    Training,
    /// Those that only evaluate the loss.
    Evaluation,
}

/// Whether a kernel could be set up.
pub(crate) type Emitted = Result<(), KernelError>;

/// An op's operands and results, and where its tasks go.
pub(crate) struct Cx<'a> {
    pub ins: &'a [View],
    pub outs: &'a [View],
    /// For operands that are scalar constants, their value.
    pub constants: &'a [Option<f64>],
    /// Where everything lies.
    pub device: OpenDevice,
    scratch: Option<(*mut u8, Scratch)>,
    used: u64,
    when: When,
    given: Option<(Rc<Cell<bool>>, bool)>,
    looks: Option<(&'a [ValueId], &'a mut Looks)>,
    tasks: &'a mut Vec<Task>,
}

/// An argument of an operator, with views in place of tensors.
pub(crate) enum In<'a> {
    View(&'a View),
    Views(&'a [&'a View]),
    Int(i64),
    Ints(&'a [i64]),
    Double(f64),
    Bool(bool),
    Str(&'a str),
    None,
    Undefined,
}

impl<'a> From<&'a View> for In<'a> {
    fn from(view: &'a View) -> Self {
        In::View(view)
    }
}

impl<'a> Cx<'a> {
    /// `scratch` is what the plan gives the op, and where that begins.
    pub(crate) fn new(
        ins: &'a [View],
        outs: &'a [View],
        constants: &'a [Option<f64>],
        scratch: Option<(*mut u8, Scratch)>,
        device: OpenDevice,
        tasks: &'a mut Vec<Task>,
    ) -> Self {
        Cx {
            ins,
            outs,
            constants,
            device,
            scratch,
            used: 0,
            when: When::Always,
            given: None,
            looks: None,
            tasks,
        }
    }

    /// The operands by name, and those that ops before it look at.
    pub(crate) fn sharing(mut self, values: &'a [ValueId], looks: &'a mut Looks) -> Self {
        self.looks = Some((values, looks));
        self
    }

    /// Whether all of an operand will be true, which is looked at once in a run.
    pub(crate) fn look(&mut self, slot: usize) -> Rc<Cell<bool>> {
        let known = match &self.looks {
            Some((values, looks)) => looks.get(&values[slot]).cloned(),
            None => None,
        };
        known.unwrap_or_else(|| {
            let shown = Rc::new(Cell::new(false));
            if let Some((values, looks)) = &mut self.looks {
                looks.insert(values[slot], shown.clone());
            }
            self.push(Work::Look(self.ins[slot].clone(), shown.clone()));
            shown
        })
    }

    /// What has to have been shown for what follows to be done.
    pub(crate) fn given(&mut self, given: Option<(Rc<Cell<bool>>, bool)>) {
        self.given = given;
    }

    /// The runs that what follows belongs to.
    pub(crate) fn when(&mut self, when: When) {
        self.when = when;
    }

    /// Does something.
    pub(crate) fn push(&mut self, work: Work) {
        let (when, given) = (self.when, self.given.clone());
        self.tasks.push(Task { work, when, given });
    }

    /// Bytes of scratch that the kernel took.
    pub(crate) fn used(&self) -> u64 {
        self.used
    }

    /// A row-major piece of the op's scratch.
    ///
    /// One that the plan did not count has no place; [`Program::compile`](crate::Program::compile) refuses the op.
    pub(crate) fn scratch(&mut self, dtype: DType, shape: &[u64]) -> View {
        let bytes = shape.iter().product::<u64>() * dtype.size();
        let start = match self.scratch {
            Some((start, scratch)) if self.used + bytes <= scratch.bytes => {
                start.wrapping_add(self.used as usize)
            }
            _ => std::ptr::null_mut(),
        };
        self.used += bytes.next_multiple_of(SCRATCH_ALIGN);
        View::contiguous(start, dtype, shape)
    }

    /// Where all of the op's scratch is, and how many bytes.
    pub(crate) fn planned(&self) -> Option<(*mut u8, u64)> {
        self.scratch.map(|(start, scratch)| (start, scratch.bytes))
    }

    /// Takes all of the op's scratch.
    pub(crate) fn take_all(&mut self) {
        self.used = self.planned().map_or(0, |(_, bytes)| bytes);
    }

    /// Calls an operator; the arguments are in the order of its schema, `out` last.
    pub(crate) fn call(&mut self, name: &str, overload: &str, args: &[In<'_>]) -> Emitted {
        let call = self.bind(name, overload, args)?;
        self.push(Work::Call(call));
        Ok(())
    }

    /// An operator with its arguments.
    pub(crate) fn bind(
        &self,
        name: &str,
        overload: &str,
        args: &[In<'_>],
    ) -> Result<Call, KernelError> {
        let mut tensors: Vec<Vec<Tensor>> = Vec::with_capacity(args.len());
        for arg in args {
            tensors.push(match arg {
                In::View(view) => vec![view.tensor(self.device)?],
                In::Views(views) => {
                    let tensors = views.iter().map(|view| view.tensor(self.device));
                    tensors.collect::<Result<_, _>>()?
                }
                _ => Vec::new(),
            });
        }
        let args = args.iter().zip(&tensors).map(|(arg, tensors)| match arg {
            In::View(_) => Arg::Tensor(&tensors[0]),
            In::Views(_) => Arg::Tensors(tensors),
            In::Int(value) => Arg::Int(*value),
            In::Ints(values) => Arg::Ints(values),
            In::Double(value) => Arg::Double(*value),
            In::Bool(value) => Arg::Bool(*value),
            In::Str(value) => Arg::Str(value),
            In::None => Arg::None,
            In::Undefined => Arg::Undefined,
        });
        let args: Vec<Arg<'_>> = args.collect();
        let name = format!("aten::{name}");
        Call::new(&name, overload, &args).map_err(KernelError::Torch)
    }

    /// `out = op(x)`.
    pub(crate) fn map(&mut self, name: &str, x: &View, out: &View) -> Emitted {
        self.call(name, "out", &[x.into(), out.into()])
    }

    /// `to = from`, with a change of element type if they differ; nothing if they are one place.
    pub(crate) fn copy(&mut self, to: &View, from: &View) -> Emitted {
        if to.is(from) && to.dtype == from.dtype {
            return Ok(());
        }
        // An axis more, or a large transpose is copied through a tile that is allocated.
        let (to, from) = if to.rank() == 2 {
            (to.unsqueeze(0), from.unsqueeze(0))
        } else {
            (to.clone(), from.clone())
        };
        let args = [In::View(&to), In::View(&from), In::Bool(false)];
        self.call("copy_", "", &args)
    }

    /// `to = value` everywhere.
    pub(crate) fn fill(&mut self, to: &View, value: f64) -> Emitted {
        let value = if to.dtype.is_float() {
            In::Double(to.dtype.round(value))
        } else {
            In::Int(value as i64)
        };
        self.call("fill_", "Scalar", &[to.into(), value])
    }

    /// A number in scratch.
    pub(crate) fn literal(&mut self, dtype: DType, value: f64) -> Result<View, KernelError> {
        let view = self.scratch(dtype, &[]);
        self.fill(&view, value)?;
        Ok(view)
    }

    /// `out = a + alpha·b`.
    pub(crate) fn add(&mut self, a: &View, b: &View, alpha: In<'_>, out: &View) -> Emitted {
        self.call("add", "out", &[a.into(), b.into(), alpha, out.into()])
    }

    /// `out = a - alpha·b`.
    pub(crate) fn sub(&mut self, a: &View, b: &View, alpha: i64, out: &View) -> Emitted {
        let args = [a.into(), b.into(), In::Int(alpha), out.into()];
        self.call("sub", "out", &args)
    }

    /// `out = a·b`.
    pub(crate) fn mul(&mut self, a: &View, b: &View, out: &View) -> Emitted {
        self.call("mul", "out", &[a.into(), b.into(), out.into()])
    }

    /// `out = Σ x` over axes.
    pub(crate) fn sum(&mut self, x: &View, axes: &[i64], keep: bool, out: &View) -> Emitted {
        if axes.is_empty() {
            // To libtorch, no axes are all axes.
            return self.copy(out, x);
        }
        let dtype = In::Int(code(out.dtype)?);
        let args = [x.into(), In::Ints(axes), In::Bool(keep), dtype, out.into()];
        self.call("sum", "IntList_out", &args)
    }

    /// `out = data[…, positions, …]` along an axis, one element for each position.
    pub(crate) fn pick(&mut self, data: &View, axis: usize, at: &View, out: &View) -> Emitted {
        let (data, out) = (data.as_bits(), out.as_bits());
        let args = [
            (&data).into(),
            In::Int(axis as i64),
            at.into(),
            In::Bool(false),
            (&out).into(),
        ];
        self.call("gather", "out", &args)
    }

    /// `to[…, positions, …] = updates` along an axis, one element for each position.
    pub(crate) fn put(&mut self, to: &View, axis: usize, at: &View, updates: &View) -> Emitted {
        let (to, updates) = (to.as_bits(), updates.as_bits());
        let axis = In::Int(axis as i64);
        let args = [(&to).into(), axis, at.into(), (&updates).into()];
        self.call("scatter_", "src", &args)
    }

    /// Adds each row of `updates` to the row of `to` at its position.
    pub(crate) fn add_rows(&mut self, to: &View, rows: &View, updates: &View) -> Emitted {
        if updates.elements() == 0 {
            return Ok(());
        }
        // An axis more at either end: along the first or last one, 16-bit types are summed in memory that is allocated.
        let padded = |x: &View| x.unsqueeze(0).unsqueeze(x.rank() + 1);
        let (to, updates) = (padded(to), padded(updates));
        let args = [
            (&to).into(),
            In::Int(1),
            rows.into(),
            (&updates).into(),
            In::Int(1),
        ];
        self.call("index_add_", "", &args)
    }

    /// The operand, or a row-major copy of it in scratch if it lies otherwise.
    pub(crate) fn row_major(&mut self, x: &View) -> Result<View, KernelError> {
        if x.is_contiguous() {
            return Ok(x.clone());
        }
        self.copied(x, x.dtype)
    }

    /// A row-major copy in scratch, of another element type if need be.
    pub(crate) fn copied(&mut self, x: &View, dtype: DType) -> Result<View, KernelError> {
        let copy = self.scratch(dtype, x.shape());
        self.copy(&copy, x)?;
        Ok(copy)
    }
}

/// What fills a weight with numbers of a size that keeps a step finite, on the device.
pub(crate) fn random(
    weight: &View,
    name: &str,
    device: OpenDevice,
) -> Result<Vec<Task>, KernelError> {
    let mut tasks = Vec::new();
    let mut cx = Cx::new(&[], &[], &[], None, device, &mut tasks);
    if weight.rank() > 1 && weight.dtype.is_float() {
        let (mean, deviation) = (In::Double(0.0), In::Double(0.02));
        cx.call("normal_", "", &[weight.into(), mean, deviation, In::None])?;
    } else {
        let zero = name.ends_with("bias") || !weight.dtype.is_float();
        cx.fill(weight, f64::from(u8::from(!zero)))?;
    }
    Ok(tasks)
}

/// Sets up an op's kernel.
pub(crate) fn emit(op: &Op, cx: &mut Cx<'_>) -> Emitted {
    match op {
        Op::Param(_) | Op::Constant(_) => Ok(()),
        Op::Iota(op) => source::iota(op, cx),
        Op::Fill(op) => source::fill(op, cx),
        Op::Unary(op) => unary::unary(*op, cx),
        Op::Activation(op) => activation::forward(op.0, cx),
        Op::ActivationGrad(op) => activation::backward(op.0, cx),
        Op::Binary(op) => binary::binary(op.0, cx),
        Op::Select(_) => select::select(cx),
        Op::Cast(_) | Op::Expand(_) | Op::Transpose(_) => copies::copy(cx),
        Op::Reshape(_) => copies::reshape(cx),
        Op::Slice(op) => copies::slice(op, cx),
        Op::Pad(op) => copies::pad(op, cx),
        Op::Concat(op) => copies::concat(op.axis, cx),
        Op::MatMul(op) => matmul::matmul(*op, cx),
        Op::Reduce(op) => reduce::reduce(op, cx),
        Op::CumSum(op) => cumsum::cumsum(*op, cx),
        Op::Gather(op) => gather::gather(op.axis, cx),
        Op::GatherGrad(_) => gather::gather_grad(cx),
        Op::GatherElements(op) => gather::gather_elements(op.axis, cx),
        Op::GatherNd(op) => gather::gather_nd(op.batch_dims, cx),
        Op::ScatterElements(op) => scatter::scatter_elements(*op, cx),
        Op::ScatterNd(op) => scatter::scatter_nd(op.add, cx),
        Op::Softmax(op) => softmax::forward(*op, cx),
        Op::SoftmaxGrad(op) => softmax::backward(*op, cx),
        Op::Attention(op) => attention::forward(*op, cx),
        Op::AttentionGrad(op) => attention::backward(*op, cx),
        Op::LayerNorm(op) => layer_norm::forward(*op, cx),
        Op::LayerNormGrad(op) => layer_norm::backward(*op, cx),
        Op::RmsNorm(op) => rms_norm::forward(*op, cx),
        Op::RmsNormGrad(op) => rms_norm::backward(*op, cx),
        Op::Gated(op) => gated::forward(op.0, cx),
        Op::GatedGrad(op) => gated::backward(op.0, cx),
        Op::Rotary(op) => rotary::rotary(*op, cx),
        Op::CrossEntropy(op) => cross_entropy::forward(op.ignore_index, cx),
        Op::CrossEntropyGrad(op) => cross_entropy::backward(op.ignore_index, cx),
        Op::LinearCrossEntropy(op) => linear_cross_entropy::forward(*op, cx),
        Op::LinearCrossEntropyGrad(op) => linear_cross_entropy::backward(*op, cx),
        Op::Dropout(op) => dropout::forward(*op, cx),
        Op::DropoutMask(op) => dropout::mask(op.of, cx),
        Op::DropoutGrad(op) => dropout::backward(*op, cx),
        Op::Accumulate(_) => accumulate::accumulate(cx),
        Op::AdamW(op) => adamw::adamw(op, cx),
        Op::DimValue(op) => source::dims(op, cx),
        Op::Onnx(op) => Err(KernelError::Unsupported(format!(
            "there is no kernel for the ONNX operator {}",
            op.op
        ))),
    }
}
