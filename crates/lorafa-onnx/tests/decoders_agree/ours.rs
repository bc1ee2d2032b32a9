//! The walk over prost's types.

use lorafa_onnx::proto::attribute_proto::AttributeType;
use lorafa_onnx::proto::tensor_shape_proto::dimension;
use lorafa_onnx::proto::{self as p, type_proto};
use lorafa_onnx::tensor::{self, TensorPayload};

use crate::facts::Facts;

pub fn model(model: &p::ModelProto) -> Facts {
    let mut facts = Facts::default();
    let f = &mut facts;
    f.numbers("versions", [model.ir_version(), model.model_version()]);
    f.note("producer_name", model.producer_name());
    f.note("producer_version", model.producer_version());
    f.note("domain", model.domain());
    f.note("doc_string", model.doc_string());
    f.each("opset_import", &model.opset_import, opset);
    f.each("metadata_props", &model.metadata_props, entry);
    f.each("graph", &model.graph, graph);
    f.each("functions", &model.functions, function);
    f.each("training_info", &model.training_info, |f, info| {
        f.each("initialization", &info.initialization, graph);
        f.each("algorithm", &info.algorithm, graph);
        f.each(
            "initialization_binding",
            &info.initialization_binding,
            entry,
        );
        f.each("update_binding", &info.update_binding, entry);
    });
    facts
}

fn opset(f: &mut Facts, opset: &p::OperatorSetIdProto) {
    f.note("domain", opset.domain());
    f.numbers("version", [opset.version()]);
}

fn entry(f: &mut Facts, entry: &p::StringStringEntryProto) {
    f.note("key", entry.key());
    f.note("value", entry.value());
}

fn graph(f: &mut Facts, graph: &p::GraphProto) {
    f.note("name", graph.name());
    f.note("doc_string", graph.doc_string());
    f.each("node", &graph.node, node);
    f.each("initializer", &graph.initializer, tensor);
    f.each("sparse_initializer", &graph.sparse_initializer, sparse);
    f.each("input", &graph.input, value_info);
    f.each("output", &graph.output, value_info);
    f.each("value_info", &graph.value_info, value_info);
    f.each("quantization", &graph.quantization_annotation, |f, q| {
        f.note("tensor_name", q.tensor_name());
        f.each("parameter", &q.quant_parameter_tensor_names, entry);
    });
    f.each("metadata_props", &graph.metadata_props, entry);
}

fn function(f: &mut Facts, function: &p::FunctionProto) {
    f.note("name", function.name());
    f.note("domain", function.domain());
    f.note("overload", function.overload());
    f.note("doc_string", function.doc_string());
    f.strings("input", &function.input);
    f.strings("output", &function.output);
    f.strings("attribute", &function.attribute);
    f.each("attribute_proto", &function.attribute_proto, attribute);
    f.each("node", &function.node, node);
    f.each("opset_import", &function.opset_import, opset);
    f.each("value_info", &function.value_info, value_info);
    f.each("metadata_props", &function.metadata_props, entry);
}

fn node(f: &mut Facts, node: &p::NodeProto) {
    f.note("name", node.name());
    f.note("op_type", node.op_type());
    f.note("domain", node.domain());
    f.note("overload", node.overload());
    f.note("doc_string", node.doc_string());
    f.strings("input", &node.input);
    f.strings("output", &node.output);
    f.each("attribute", &node.attribute, attribute);
    f.each("metadata_props", &node.metadata_props, entry);
}

fn attribute(f: &mut Facts, a: &p::AttributeProto) {
    f.note("name", a.name());
    f.note("ref_attr_name", a.ref_attr_name());
    f.note("doc_string", a.doc_string());
    f.numbers("type", [a.r#type.unwrap_or_default()]);
    f.numbers("f", [a.f().to_bits()]);
    f.numbers("i", [a.i()]);
    f.note("s", a.s());
    f.each("t", &a.t, tensor);
    f.each("g", &a.g, graph);
    f.each("sparse_tensor", &a.sparse_tensor, sparse);
    f.each("tp", &a.tp, type_proto);
    f.numbers("floats", a.floats.iter().map(|value| value.to_bits()));
    f.numbers("ints", &a.ints);
    f.strings("strings", &a.strings);
    f.each("tensors", &a.tensors, tensor);
    f.each("graphs", &a.graphs, graph);
    f.each("sparse_tensors", &a.sparse_tensors, sparse);
    f.each("type_protos", &a.type_protos, type_proto);
}

fn sparse(f: &mut Facts, sparse: &p::SparseTensorProto) {
    f.each("values", &sparse.values, tensor);
    f.each("indices", &sparse.indices, tensor);
    f.numbers("dims", &sparse.dims);
}

fn tensor(f: &mut Facts, tensor: &p::TensorProto) {
    f.note("name", tensor.name());
    f.note("doc_string", tensor.doc_string());
    f.numbers("data_type", [tensor.data_type()]);
    f.numbers("data_location", [tensor.data_location.unwrap_or_default()]);
    f.numbers("dims", &tensor.dims);
    f.each("external_data", &tensor.external_data, entry);
    f.each("metadata_props", &tensor.metadata_props, entry);
    f.strings("string_data", &tensor.string_data);
    match tensor::payload(tensor) {
        Ok(TensorPayload::Inline(bytes)) => f.note("elements", bytes),
        Ok(TensorPayload::External(_)) => f.note("elements", "external"),
        Err(error) => panic!("{error}"),
    }
}

fn value_info(f: &mut Facts, info: &p::ValueInfoProto) {
    f.note("name", info.name());
    f.note("doc_string", info.doc_string());
    f.each("type", &info.r#type, type_proto);
    f.each("metadata_props", &info.metadata_props, entry);
}

fn type_proto(f: &mut Facts, r#type: &p::TypeProto) {
    use type_proto::Value as V;
    f.note("denotation", r#type.denotation());
    match &r#type.value {
        Some(V::TensorType(t)) => {
            f.numbers("tensor", [t.elem_type()]);
            f.each("shape", &t.shape, shape);
        }
        Some(V::SparseTensorType(t)) => {
            f.numbers("sparse", [t.elem_type()]);
            f.each("shape", &t.shape, shape);
        }
        Some(V::SequenceType(t)) => f.each("sequence", t.elem_type.as_deref(), type_proto),
        Some(V::OptionalType(t)) => f.each("optional", t.elem_type.as_deref(), type_proto),
        Some(V::MapType(t)) => {
            f.numbers("key", [t.key_type()]);
            f.each("map", t.value_type.as_deref(), type_proto);
        }
        Some(V::OpaqueType(_)) => panic!("the other schema has no opaque types"),
        None => {}
    }
}

fn shape(f: &mut Facts, shape: &p::TensorShapeProto) {
    f.each("dim", &shape.dim, |f, dim| {
        f.note("denotation", dim.denotation());
        match &dim.value {
            Some(dimension::Value::DimValue(value)) => f.numbers("value", [value]),
            Some(dimension::Value::DimParam(name)) => f.note("param", name),
            None => {}
        }
    });
}

/// A model with an attribute of every kind, and tensors with elements in every field.
pub fn every_attribute() -> p::ModelProto {
    use AttributeType as T;
    let tensor = |data_type| p::TensorProto {
        dims: vec![2],
        data_type: Some(data_type),
        ..Default::default()
    };
    #[rustfmt::skip]
    let tensors = vec![
        p::TensorProto { float_data: vec![1.5, f32::NAN], ..tensor(1) },
        p::TensorProto { int32_data: vec![0, 255], ..tensor(2) },
        p::TensorProto { int32_data: vec![-128, 127], ..tensor(3) },
        p::TensorProto { int32_data: vec![0, 65535], ..tensor(4) },
        p::TensorProto { int32_data: vec![-32768, 32767], ..tensor(5) },
        p::TensorProto { int32_data: vec![i32::MIN, -1], ..tensor(6) },
        p::TensorProto { int64_data: vec![i64::MIN, -1], ..tensor(7) },
        p::TensorProto { int32_data: vec![0, 1], ..tensor(9) },
        p::TensorProto { int32_data: vec![15360, 65535], ..tensor(10) },
        p::TensorProto { double_data: vec![-0.0, 2.5], ..tensor(11) },
        p::TensorProto { uint64_data: vec![7, u64::from(u32::MAX)], ..tensor(12) },
        p::TensorProto { uint64_data: vec![7, u64::MAX], ..tensor(13) },
        p::TensorProto { int32_data: vec![16256, 65535], ..tensor(16) },
        p::TensorProto { raw_data: Some(vec![9; 8].into()), ..tensor(1) },
    ];
    let sparse = p::SparseTensorProto {
        values: Some(tensors[0].clone()),
        indices: Some(tensors[6].clone()),
        dims: vec![9],
    };
    let list = p::TypeProto {
        denotation: Some("list".into()),
        value: Some(type_proto::Value::SequenceType(Box::new(
            type_proto::Sequence {
                elem_type: Some(Box::default()),
            },
        ))),
    };
    let inner = p::GraphProto {
        name: Some("inner".into()),
        ..Default::default()
    };
    let of = |kind: T| p::AttributeProto {
        name: Some(kind.as_str_name().into()),
        r#type: Some(kind as i32),
        ..Default::default()
    };
    #[rustfmt::skip]
    let attribute = vec![
        p::AttributeProto { f: Some(-0.0), ..of(T::Float) },
        p::AttributeProto { i: Some(i64::MIN), ..of(T::Int) },
        p::AttributeProto { s: Some(vec![0xff, 0].into()), ..of(T::String) },
        p::AttributeProto { t: Some(tensors[0].clone()), ..of(T::Tensor) },
        p::AttributeProto { g: Some(inner.clone()), ..of(T::Graph) },
        p::AttributeProto { sparse_tensor: Some(sparse.clone()), ..of(T::SparseTensor) },
        p::AttributeProto { tp: Some(list.clone()), ..of(T::TypeProto) },
        p::AttributeProto { floats: vec![f32::INFINITY, 0.1], ..of(T::Floats) },
        p::AttributeProto { ints: vec![-1, i64::MAX], ..of(T::Ints) },
        p::AttributeProto { strings: vec!["a".into(), "".into()], ..of(T::Strings) },
        p::AttributeProto { tensors, ..of(T::Tensors) },
        p::AttributeProto { graphs: vec![inner; 2], ..of(T::Graphs) },
        p::AttributeProto { sparse_tensors: vec![sparse], ..of(T::SparseTensors) },
        p::AttributeProto { type_protos: vec![list], ..of(T::TypeProtos) },
        p::AttributeProto { ref_attr_name: Some("alpha".into()), ..of(T::Float) },
    ];
    let node = p::NodeProto {
        op_type: Some("Everything".into()),
        domain: Some("test".into()),
        attribute,
        ..Default::default()
    };
    p::ModelProto {
        ir_version: Some(10),
        opset_import: vec![p::OperatorSetIdProto {
            domain: None,
            version: Some(20),
        }],
        graph: Some(p::GraphProto {
            node: vec![node],
            ..Default::default()
        }),
        ..Default::default()
    }
}
