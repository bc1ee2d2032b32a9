//! Places in memory as tensors.
// Makes tensors over raw pointers.
#![allow(unsafe_code)]

use lorafa_ir::DType;
use lorafa_ir::layout::{Axes, Layout};
use tch::{Kind, Tensor};

use crate::device::OpenDevice;
use crate::error::KernelError;

/// Elements in memory, as a kernel sees them.
#[derive(Debug, Clone)]
pub(crate) struct View {
    /// Element 0 of the layout, from which its offset counts.
    pub start: *mut u8,
    pub layout: Layout,
    pub dtype: DType,
}

impl View {
    /// Elements in row-major order.
    pub(crate) fn contiguous(start: *mut u8, dtype: DType, shape: &[u64]) -> Self {
        let layout = Layout {
            strides: strides(shape),
            shape: shape.into(),
            offset: 0,
        };
        Self {
            start,
            layout,
            dtype,
        }
    }

    pub(crate) fn shape(&self) -> &[u64] {
        &self.layout.shape
    }

    pub(crate) fn rank(&self) -> usize {
        self.layout.shape.len()
    }

    pub(crate) fn elements(&self) -> u64 {
        self.layout.shape.iter().product()
    }

    pub(crate) fn is_contiguous(&self) -> bool {
        self.layout.is_contiguous()
    }

    /// Where the first element is.
    pub(crate) fn address(&self) -> *mut u8 {
        let offset = self.layout.offset * self.dtype.size();
        self.start.wrapping_add(offset as usize)
    }

    /// Whether both are the same elements in the same order.
    pub(crate) fn is(&self, other: &View) -> bool {
        self.address() == other.address()
            && self.layout.shape == other.layout.shape
            && (self.layout.strides == other.layout.strides
                || self.is_contiguous() && other.is_contiguous())
    }

    /// 16-bit floats as the integers that they are in memory, for kernels that only move elements: of floats of that
    /// size libtorch's make f32 copies first.
    pub(crate) fn as_bits(&self) -> View {
        let dtype = if self.dtype.is_half() {
            DType::I16
        } else {
            self.dtype
        };
        View {
            dtype,
            ..self.clone()
        }
    }

    /// The same elements in other dimensions, if that needs no copy.
    pub(crate) fn reshape(&self, shape: &[u64]) -> Option<View> {
        let layout = self.layout.reshape(shape.into())?;
        Some(View {
            layout,
            ..self.clone()
        })
    }

    /// The same elements in other dimensions.
    pub(crate) fn reshaped(&self, shape: &[u64]) -> Result<View, KernelError> {
        self.reshape(shape).ok_or_else(|| {
            KernelError::Unsupported(format!("{:?} as {shape:?} needs a copy", self.layout))
        })
    }

    /// Part of an axis.
    pub(crate) fn narrow(&self, axis: usize, from: u64, len: u64) -> View {
        let mut view = self.clone();
        view.layout.offset += from * view.layout.strides[axis];
        view.layout.shape[axis] = len;
        view
    }

    /// One place on an axis, which goes.
    pub(crate) fn select(&self, axis: usize, at: u64) -> View {
        let mut view = self.narrow(axis, at, 1);
        view.layout.shape.remove(axis);
        view.layout.strides.remove(axis);
        view
    }

    /// One axis more, of length one.
    pub(crate) fn unsqueeze(&self, axis: usize) -> View {
        let mut view = self.clone();
        let stride = match self.layout.shape.get(axis) {
            Some(dim) => self.layout.strides[axis] * dim.max(&1),
            None => 1,
        };
        view.layout.shape.insert(axis, 1);
        view.layout.strides.insert(axis, stride);
        view
    }

    /// The axes in another order.
    pub(crate) fn permuted(&self, order: &[usize]) -> View {
        View {
            layout: self.layout.permuted(order),
            ..self.clone()
        }
    }

    /// The last two axes swapped.
    pub(crate) fn swapped(&self) -> View {
        let mut view = self.clone();
        let n = self.rank();
        view.layout.shape.swap(n - 2, n - 1);
        view.layout.strides.swap(n - 2, n - 1);
        view
    }

    /// Repeated to a shape that it broadcasts to.
    pub(crate) fn broadcast(&self, shape: &[u64]) -> View {
        let skip = shape.len() - self.rank();
        let strides = (0..shape.len()).map(|i| match i.checked_sub(skip) {
            Some(j) if self.layout.shape[j] == shape[i] => self.layout.strides[j],
            _ => 0,
        });
        let mut view = self.clone();
        view.layout.strides = strides.collect();
        view.layout.shape = shape.into();
        view
    }

    /// As a tensor, which does not keep the memory alive.
    pub(crate) fn tensor(&self, device: OpenDevice) -> Result<Tensor, KernelError> {
        let tensor = self.tensor_of(kind(self.dtype)?, device);
        tensor.map_err(KernelError::Torch)
    }

    /// As a tensor of another element type of the same size.
    pub(crate) fn tensor_of(&self, kind: Kind, device: OpenDevice) -> Result<Tensor, String> {
        let as_i64 = |axes: &Axes| axes.iter().map(|n| *n as i64).collect::<Vec<i64>>();
        let (shape, strides) = (as_i64(&self.layout.shape), as_i64(&self.layout.strides));
        let device = device.torch();
        let tensor = if self.elements() == 0 {
            // Its place may be the end of the memory, which CUDA does not know.
            Tensor::f_empty(&shape, (kind, device))
        } else {
            // SAFETY: the tensor is used only in calls, which are run while the program's memory is alive.
            unsafe { Tensor::f_from_blob(self.address(), &shape, &strides, kind, device) }
        };
        tensor.map_err(|error| error.to_string())
    }

    /// The bytes of elements in row-major order.
    pub(crate) fn bytes(&self) -> usize {
        (self.elements() * self.dtype.size()) as usize
    }
}

/// The row-major strides of a shape.
fn strides(shape: &[u64]) -> Axes {
    let mut strides = Axes::from_elem(1, shape.len());
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i].max(1);
    }
    strides
}

/// libtorch's name of an element type.
fn kind(dtype: DType) -> Result<Kind, KernelError> {
    Ok(match dtype {
        DType::F64 => Kind::Double,
        DType::F32 => Kind::Float,
        DType::F16 => Kind::Half,
        DType::BF16 => Kind::BFloat16,
        DType::I64 => Kind::Int64,
        DType::I32 => Kind::Int,
        DType::I16 => Kind::Int16,
        DType::I8 => Kind::Int8,
        DType::U8 => Kind::Uint8,
        DType::Bool => Kind::Bool,
        DType::U64 | DType::U32 | DType::U16 => {
            return Err(KernelError::Unsupported(format!(
                "libtorch has no kernels for {dtype}"
            )));
        }
    })
}

/// libtorch's number of an element type, which tch keeps to itself.
pub(crate) fn code(dtype: DType) -> Result<i64, KernelError> {
    Ok(match kind(dtype)? {
        Kind::Uint8 => 0,
        Kind::Int8 => 1,
        Kind::Int16 => 2,
        Kind::Int => 3,
        Kind::Int64 => 4,
        Kind::Half => 5,
        Kind::Float => 6,
        Kind::Double => 7,
        Kind::Bool => 11,
        Kind::BFloat16 => 15,
        other => return Err(KernelError::Unsupported(format!("no number for {other:?}"))),
    })
}
