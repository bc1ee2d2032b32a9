//! Protobuf messages, as the writers make them.

use crate::dtype::to_onnx;
use crate::proto::attribute_proto::AttributeType;
use crate::proto::tensor_shape_proto::{Dimension, dimension};
use crate::proto::{
    AttributeProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};
use lorafa_ir::{Dim, TensorType};

fn attribute(name: &str, kind: AttributeType) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(kind as i32),
        ..AttributeProto::default()
    }
}

pub(super) fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        i: Some(value),
        ..attribute(name, AttributeType::Int)
    }
}

/// An axis. Type rules have checked it against a rank.
pub(super) fn axis(axis: usize) -> AttributeProto {
    int("axis", axis as i64)
}

pub(super) fn float(name: &str, value: f64) -> AttributeProto {
    AttributeProto {
        f: Some(value as f32),
        ..attribute(name, AttributeType::Float)
    }
}

pub(super) fn string(name: &str, value: &'static str) -> AttributeProto {
    AttributeProto {
        s: Some(bytes::Bytes::from_static(value.as_bytes())),
        ..attribute(name, AttributeType::String)
    }
}

pub(super) fn ints(name: &str, values: impl IntoIterator<Item = i64>) -> AttributeProto {
    AttributeProto {
        ints: values.into_iter().collect(),
        ..attribute(name, AttributeType::Ints)
    }
}

pub(super) fn tensor(name: &str, value: TensorProto) -> AttributeProto {
    AttributeProto {
        t: Some(value),
        ..attribute(name, AttributeType::Tensor)
    }
}

/// The dimensions of a type without symbols.
pub(super) fn dims(ty: &TensorType) -> Vec<i64> {
    ty.shape.iter().filter_map(Dim::known).collect()
}

/// A name with its type, which has no symbols.
pub(super) fn info(name: &str, ty: &TensorType) -> ValueInfoProto {
    let dim = |n| Dimension {
        value: Some(dimension::Value::DimValue(n)),
        ..Dimension::default()
    };
    let shape = TensorShapeProto {
        dim: dims(ty).into_iter().map(dim).collect(),
    };
    let tensor = type_proto::Tensor {
        elem_type: Some(to_onnx(ty.dtype)),
        shape: Some(shape),
    };
    ValueInfoProto {
        name: Some(name.into()),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(tensor)),
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    }
}
