//! A small model with something of everything that can be damaged.

use lorafa_onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto,
    TensorProto, ValueInfoProto,
};

/// A tensor `w` with no elements yet.
pub fn tensor(data_type: i32, dims: &[i64]) -> TensorProto {
    TensorProto {
        name: Some("w".into()),
        data_type: Some(data_type),
        dims: dims.to_vec(),
        ..TensorProto::default()
    }
}

/// A tensor's `external_data`.
pub fn entries(pairs: &[(&str, &str)]) -> Vec<StringStringEntryProto> {
    pairs
        .iter()
        .map(|&(key, value)| StringStringEntryProto {
            key: Some(key.into()),
            value: Some(value.into()),
        })
        .collect()
}

/// About 65 kB: a large weight in front, then weights in every form, nodes and a nested graph.
pub fn model() -> ModelProto {
    let mut raw = tensor(1, &[128, 128]);
    raw.raw_data = Some(
        (0..65_536u32)
            .map(|i| i.to_le_bytes()[0])
            .collect::<Vec<_>>()
            .into(),
    );
    let mut halves = tensor(16, &[3]);
    halves.int32_data = vec![16_256, 1, 65_535];
    let mut longs = tensor(7, &[2]);
    longs.int64_data = vec![-1, i64::MAX];
    let mut outside = tensor(1, &[2, 2]);
    outside.data_location = Some(1);
    outside.external_data = entries(&[("location", "w.bin"), ("offset", "64"), ("length", "16")]);

    let inner = AttributeProto {
        name: Some("body".into()),
        g: Some(GraphProto {
            initializer: vec![halves.clone()],
            ..GraphProto::default()
        }),
        ..AttributeProto::default()
    };
    let constant = AttributeProto {
        name: Some("value".into()),
        t: Some(longs.clone()),
        ..AttributeProto::default()
    };
    let node = NodeProto {
        op_type: Some("If".into()),
        input: vec!["x".into()],
        output: vec!["y".into()],
        attribute: vec![inner, constant],
        ..NodeProto::default()
    };
    ModelProto {
        ir_version: Some(10),
        graph: Some(GraphProto {
            node: vec![node],
            name: Some("sample".into()),
            initializer: vec![raw, halves, longs, outside],
            output: vec![ValueInfoProto::default()],
            ..GraphProto::default()
        }),
        opset_import: vec![OperatorSetIdProto {
            domain: None,
            version: Some(20),
        }],
        ..ModelProto::default()
    }
}
