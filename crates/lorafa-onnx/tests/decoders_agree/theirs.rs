//! The same walk over rust-protobuf's types. It shares no code with ours but the list both fill.

use onnx_protobuf as p;
use p::tensor_shape_proto::dimension;

use crate::facts::Facts;

pub fn model(model: &p::ModelProto) -> Facts {
    let mut facts = Facts::default();
    let f = &mut facts;
    f.numbers("versions", [model.ir_version, model.model_version]);
    f.note("producer_name", &model.producer_name);
    f.note("producer_version", &model.producer_version);
    f.note("domain", &model.domain);
    f.note("doc_string", &model.doc_string);
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
    f.note("domain", &opset.domain);
    f.numbers("version", [opset.version]);
}

fn entry(f: &mut Facts, entry: &p::StringStringEntryProto) {
    f.note("key", &entry.key);
    f.note("value", &entry.value);
}

fn graph(f: &mut Facts, graph: &p::GraphProto) {
    f.note("name", &graph.name);
    f.note("doc_string", &graph.doc_string);
    f.each("node", &graph.node, node);
    f.each("initializer", &graph.initializer, tensor);
    f.each("sparse_initializer", &graph.sparse_initializer, sparse);
    f.each("input", &graph.input, value_info);
    f.each("output", &graph.output, value_info);
    f.each("value_info", &graph.value_info, value_info);
    f.each("quantization", &graph.quantization_annotation, |f, q| {
        f.note("tensor_name", &q.tensor_name);
        f.each("parameter", &q.quant_parameter_tensor_names, entry);
    });
    f.each("metadata_props", &graph.metadata_props, entry);
}

fn function(f: &mut Facts, function: &p::FunctionProto) {
    f.note("name", &function.name);
    f.note("domain", &function.domain);
    f.note("overload", &function.overload);
    f.note("doc_string", &function.doc_string);
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
    f.note("name", &node.name);
    f.note("op_type", &node.op_type);
    f.note("domain", &node.domain);
    f.note("overload", &node.overload);
    f.note("doc_string", &node.doc_string);
    f.strings("input", &node.input);
    f.strings("output", &node.output);
    f.each("attribute", &node.attribute, attribute);
    f.each("metadata_props", &node.metadata_props, entry);
}

fn attribute(f: &mut Facts, a: &p::AttributeProto) {
    f.note("name", &a.name);
    f.note("ref_attr_name", &a.ref_attr_name);
    f.note("doc_string", &a.doc_string);
    f.numbers("type", [a.type_.value()]);
    f.numbers("f", [a.f.to_bits()]);
    f.numbers("i", [a.i]);
    f.note("s", &a.s);
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
    f.note("name", &tensor.name);
    f.note("doc_string", &tensor.doc_string);
    f.numbers("data_type", [tensor.data_type]);
    f.numbers("data_location", [tensor.data_location.value()]);
    f.numbers("dims", &tensor.dims);
    f.each("external_data", &tensor.external_data, entry);
    f.each("metadata_props", &tensor.metadata_props, entry);
    f.strings("string_data", &tensor.string_data);
    if tensor.data_location.value() == 1 {
        f.note("elements", "external");
    } else if tensor.raw_data.is_empty() {
        f.note("elements", typed(tensor));
    } else {
        f.note("elements", &tensor.raw_data);
    }
}

/// Elements of the one typed field that has any, cut to the width of the data type.
fn typed(tensor: &p::TensorProto) -> Vec<u8> {
    let width = match tensor.data_type {
        2 | 3 | 9 => 1,
        4 | 5 | 10 | 16 => 2,
        1 | 6 | 12 => 4,
        7 | 11 | 13 => 8,
        other => panic!("data type {other}"),
    };
    let mut words: Vec<[u8; 8]> = Vec::new();
    for value in &tensor.float_data {
        words.push(u64::from(value.to_bits()).to_le_bytes());
    }
    for value in &tensor.double_data {
        words.push(value.to_le_bytes());
    }
    for value in &tensor.int32_data {
        words.push(i64::from(*value).to_le_bytes());
    }
    for value in &tensor.int64_data {
        words.push(value.to_le_bytes());
    }
    for value in &tensor.uint64_data {
        words.push(value.to_le_bytes());
    }
    words
        .iter()
        .flat_map(|word| &word[..width])
        .copied()
        .collect()
}

fn value_info(f: &mut Facts, info: &p::ValueInfoProto) {
    f.note("name", &info.name);
    f.note("doc_string", &info.doc_string);
    f.each("type", &info.type_, type_proto);
    f.each("metadata_props", &info.metadata_props, entry);
}

fn type_proto(f: &mut Facts, type_: &p::TypeProto) {
    use p::type_proto::Value as V;
    f.note("denotation", &type_.denotation);
    match &type_.value {
        Some(V::TensorType(t)) => {
            f.numbers("tensor", [t.elem_type]);
            f.each("shape", &t.shape, shape);
        }
        Some(V::SparseTensorType(t)) => {
            f.numbers("sparse", [t.elem_type]);
            f.each("shape", &t.shape, shape);
        }
        Some(V::SequenceType(t)) => f.each("sequence", &t.elem_type, type_proto),
        Some(V::OptionalType(t)) => f.each("optional", &t.elem_type, type_proto),
        Some(V::MapType(t)) => {
            f.numbers("key", [t.key_type]);
            f.each("map", &t.value_type, type_proto);
        }
        Some(other) => panic!("a type the walk does not know: {other:?}"),
        None => {}
    }
}

fn shape(f: &mut Facts, shape: &p::TensorShapeProto) {
    f.each("dim", &shape.dim, |f, dim| {
        f.note("denotation", &dim.denotation);
        match &dim.value {
            Some(dimension::Value::DimValue(value)) => f.numbers("value", [value]),
            Some(dimension::Value::DimParam(name)) => f.note("param", name),
            Some(other) => panic!("a dimension the walk does not know: {other:?}"),
            None => {}
        }
    });
}
