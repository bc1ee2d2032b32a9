//! Operators of `com.microsoft` are ops of the core set.

use lorafa_onnx::file::ModelFile;
use lorafa_onnx::import::import;
use lorafa_onnx::proto::attribute_proto::AttributeType;
use lorafa_onnx::proto::tensor_shape_proto::{Dimension, dimension};
use lorafa_onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorShapeProto,
    TypeProto, ValueInfoProto, type_proto,
};
use prost::Message as _;

/// `x:f32[2,seq]`.
fn info(text: &str) -> ValueInfoProto {
    let (name, ty) = text.split_once(':').unwrap();
    let (dtype, shape) = ty.trim_end_matches(']').split_once('[').unwrap();
    let dims = shape.split(',').filter(|dim| !dim.is_empty());
    let dims = dims.map(|dim| Dimension {
        value: Some(match dim.parse() {
            Ok(n) => dimension::Value::DimValue(n),
            Err(_) => dimension::Value::DimParam(dim.into()),
        }),
        ..Dimension::default()
    });
    let tensor = type_proto::Tensor {
        elem_type: Some(match dtype {
            "f32" => 1,
            "i64" => 7,
            "bool" => 9,
            other => panic!("{other}"),
        }),
        shape: Some(TensorShapeProto {
            dim: dims.collect(),
        }),
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

fn attribute(text: &str) -> AttributeProto {
    let (name, value) = text.split_once('=').unwrap();
    let mut attribute = AttributeProto {
        name: Some(name.into()),
        ..AttributeProto::default()
    };
    if let Some(list) = value.strip_prefix('[') {
        let list = list.trim_end_matches(']').split(',');
        attribute.ints = list.filter_map(|n| n.parse().ok()).collect();
        attribute.r#type = Some(AttributeType::Ints as i32);
    } else if value.contains('.') {
        attribute.f = Some(value.parse().unwrap());
        attribute.r#type = Some(AttributeType::Float as i32);
    } else {
        attribute.i = Some(value.parse().unwrap());
        attribute.r#type = Some(AttributeType::Int as i32);
    }
    attribute
}

/// `Op a b -> y {axis=1}`; `_` is a name that is left out.
fn node(text: &str) -> NodeProto {
    let (text, attributes) = text.split_once(" {").unwrap_or((text, ""));
    let (left, right) = text.split_once("->").unwrap();
    let mut left = left.split_whitespace();
    let op = left.next().unwrap();
    let (domain, op) = op.split_once("::").unwrap_or(("", op));
    let name = |name: &str| name.trim_matches('_').to_owned();
    let attributes = attributes.trim_end_matches('}').split_whitespace();
    NodeProto {
        op_type: Some(op.into()),
        domain: Some(domain.into()),
        input: left.map(name).collect(),
        output: right.split_whitespace().map(name).collect(),
        attribute: attributes.map(attribute).collect(),
        ..NodeProto::default()
    }
}

/// Imports nodes on these inputs; each line of the result that computes something, without its number.
fn imported(inputs: &str, nodes: &[&str], outputs: &str) -> Result<Vec<String>, String> {
    let opset = |domain: &str, version| OperatorSetIdProto {
        domain: Some(domain.into()),
        version: Some(version),
    };
    let output = |name: &str| ValueInfoProto {
        name: Some(name.into()),
        ..ValueInfoProto::default()
    };
    let model = ModelProto {
        ir_version: Some(8),
        opset_import: vec![opset("", 17), opset("com.microsoft", 1)],
        graph: Some(GraphProto {
            name: Some("g".into()),
            input: inputs.split_whitespace().map(info).collect(),
            output: outputs.split_whitespace().map(output).collect(),
            node: nodes.iter().map(|text| node(text)).collect(),
            ..GraphProto::default()
        }),
        ..ModelProto::default()
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, model.encode_to_vec()).unwrap();
    let file = ModelFile::open(&path).map_err(|e| e.to_string())?;
    let graph = import(&file).map_err(|e| e.to_string())?;
    graph.verify().unwrap_or_else(|e| panic!("{e}\n{graph}"));
    let text = graph.to_string();
    let lines = text.lines().map(str::trim);
    let computed = lines.filter(|line| line.starts_with('v'));
    Ok(computed.map(str::to_owned).collect())
}

#[track_caller]
fn becomes(inputs: &str, nodes: &[&str], outputs: &str, expected: &[&str]) {
    assert_eq!(imported(inputs, nodes, outputs).unwrap(), expected);
}

#[track_caller]
fn refused(inputs: &str, nodes: &[&str], outputs: &str, part: &str) {
    let error = imported(inputs, nodes, outputs).unwrap_err();
    assert!(error.contains(part), "{error}");
}

/// By the operator's documentation, and as onnxruntime computes it.
#[test]
fn fused_products() {
    becomes(
        "a:f32[4,2,3,5] b:f32[2,3,4,6]",
        &["com.microsoft::FusedMatMul a b -> y {transBatchA=1 transA=1 alpha=0.5}"],
        "y",
        &[
            "v2 = transpose %a {perm=[1,2,0,3]} : f32[2,3,4,5]",
            "v3 = matmul v2, %b {trans_a} : f32[2,3,5,6]",
            "v4 = constant {dtype=f32, value=0.5} : f32[]",
            "v5 = mul v3, v4 : f32[2,3,5,6]",
        ],
    );
    becomes(
        "a:f32[2,3,5,4] b:f32[6,2,3,4]",
        &["com.microsoft::FusedMatMul a b -> y {transBatchB=1 transB=1}"],
        "y",
        &[
            "v2 = transpose %b {perm=[1,2,0,3]} : f32[2,3,6,4]",
            "v3 = matmul %a, v2 {trans_b} : f32[2,3,5,6]",
        ],
    );
    // Nothing transposes a vector, and a matrix has no batch.
    becomes(
        "a:f32[4] b:f32[5,4]",
        &["com.microsoft::FusedMatMul a b -> y {transA=1 transB=1 transBatchB=1}"],
        "y",
        &[
            "v2 = reshape %a {shape=[1,4]} : f32[1,4]",
            "v3 = matmul v2, %b {trans_b} : f32[1,5]",
            "v4 = reshape v3 {shape=[5]} : f32[5]",
        ],
    );
}

#[test]
fn activations_and_their_gradients() {
    becomes(
        "x:f32[4] b:f32[4] dy:f32[4]",
        &[
            "com.microsoft::FastGelu x b -> y",
            "com.microsoft::FastGeluGrad dy x b -> dx",
        ],
        "y dx",
        &[
            "v3 = add %x, %b : f32[4]",
            "v4 = gelu_tanh v3 : f32[4]",
            "v5 = add %x, %b : f32[4]",
            "v6 = gelu_tanh_grad %dy, v5 : f32[4]",
        ],
    );
    becomes(
        "x:f32[4] dy:f32[4]",
        &[
            "com.microsoft::QuickGelu x -> y {alpha=2.0}",
            "com.microsoft::QuickGeluGrad dy x -> dx {alpha=2.0}",
        ],
        "y dx",
        &[
            "v2 = constant {dtype=f32, value=2.0} : f32[]",
            "v3 = mul %x, v2 : f32[4]",
            "v4 = sigmoid v3 : f32[4]",
            "v5 = mul %x, v4 : f32[4]",
            "v6 = constant {dtype=f32, value=2.0} : f32[]",
            "v7 = mul %x, v6 : f32[4]",
            "v8 = silu_grad %dy, v7 : f32[4]",
        ],
    );
    for (op, grad) in [("Relu", "relu"), ("Sigmoid", "sigmoid"), ("Tanh", "tanh")] {
        becomes(
            "y:f32[4] dy:f32[4]",
            &[&format!("com.microsoft::{op}Grad dy y -> dx")],
            "dx",
            &[&format!("v2 = {grad}_grad %dy, %y : f32[4]")],
        );
    }
}

/// Where nothing is dropped, gradients pass.
#[test]
fn dropouts() {
    let nodes = |training: &str| {
        [
            "Constant -> ratio {value_float=0.25}".to_owned(),
            format!("Constant -> training {{value_int={training}}}"),
            "Dropout x ratio training -> y mask {seed=7}".to_owned(),
            "com.microsoft::DropoutGrad dy mask ratio training -> dx".to_owned(),
        ]
    };
    let run = |training: &str| {
        let nodes = nodes(training);
        let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
        imported("x:f32[4] dy:f32[4]", &nodes, "y dx").unwrap()
    };
    let dropped = run("1");
    let expected = [
        "v3, v4 = dropout %x {ratio=0.25, seed=7} : f32[4], bool[4]",
        "v5 = dropout_grad %dy, v4 {ratio=0.25} : f32[4]",
    ];
    assert_eq!(dropped[1..], expected);
    assert!(run("0").iter().all(|line| !line.contains("dropout")));
}

#[test]
fn what_was_cut_out_is_put_back() {
    let bounds = [
        "Shape x -> shape",
        "Constant -> starts {value_ints=[1]}",
        "Constant -> ends {value_ints=[-1]}",
        "Constant -> axes {value_ints=[1]}",
        "Constant -> two {value_ints=[2]}",
    ];
    let inputs = "x:f32[2,seq] dy:f32[2,rest]";
    let grad = "com.microsoft::SliceGrad dy shape starts ends axes -> dx";
    becomes(
        inputs,
        &[&bounds[..], &[grad]].concat(),
        "dx",
        &["v2 = pad %dy {after=[0,1], before=[0,1], value=0.0} : f32[2,rest + 2]"],
    );
    let step = "com.microsoft::SliceGrad dy shape starts ends axes two -> dx";
    refused(
        inputs,
        &[&bounds[..], &[step]].concat(),
        "dx",
        "step other than 1",
    );

    let inputs = "x:f32[2,5,3] dy:f32[2,3] many:f32[2,4,3] at:i64[4]";
    becomes(
        inputs,
        &[
            "Shape x -> shape",
            "Constant -> last {value_int=-1}",
            "com.microsoft::GatherGrad shape last dy -> dx {axis=1}",
        ],
        "dx",
        &[
            "v4 = reshape %dy {shape=[2,1,3]} : f32[2,1,3]",
            "v5 = pad v4 {after=[0,0,0], before=[0,4,0], value=0.0} : f32[2,5,3]",
        ],
    );
    becomes(
        inputs,
        &[
            "Shape x -> shape",
            "com.microsoft::GatherGrad shape at many -> dx {axis=1}",
        ],
        "dx",
        &[
            "v4 = transpose %many {perm=[1,0,2]} : f32[4,2,3]",
            "v5 = gather_grad %at, v4 {shape=[5,2,3]} : f32[5,2,3]",
            "v6 = transpose v5 {perm=[1,0,2]} : f32[2,5,3]",
        ],
    );
}

#[test]
fn what_was_joined_is_split_and_what_was_tiled_is_broadcast() {
    becomes(
        "a:f32[2,3] b:f32[2,seq] dy:f32[2,all]",
        &[
            "com.microsoft::ConcatTraining a b -> y lengths {axis=-1}",
            "com.microsoft::SplitTraining dy lengths -> da db {axis=-1}",
        ],
        "y da db",
        &[
            "v3 = concat %a, %b {axis=1} : f32[2,seq + 3]",
            "v4 = slice %dy {axes=[1:0:3:1]} : f32[2,3]",
            "v5 = slice %dy {axes=[1:3:seq:1]} : f32[2,seq]",
        ],
    );
    becomes(
        "x:f32[2,seq]",
        &["Constant -> n {value_ints=[3,1]}", "Tile x n -> y"],
        "y",
        &[
            "v1 = reshape %x {shape=[1,2,1,seq]} : f32[1,2,1,seq]",
            "v2 = expand v1 {shape=[3,2,1,seq]} : f32[3,2,1,seq]",
            "v3 = reshape v2 {shape=[6,seq]} : f32[6,seq]",
        ],
    );
    refused(
        "x:f32[2,seq]",
        &["Constant -> n {value_ints=[3]}", "Tile x n -> y"],
        "y",
        "1 repeats for 2 axes",
    );
}

/// As onnxruntime does it, an axis that one shape lacks is summed over whatever its size.
#[test]
fn gradients_are_summed_over_what_was_broadcast() {
    let sums = [
        "Shape a -> a_shape",
        "Shape b -> b_shape",
        "com.microsoft::BroadcastGradientArgs a_shape b_shape -> a_axes b_axes",
        "ReduceSum dy a_axes -> da {noop_with_empty_axes=1}",
        "ReduceSum dy b_axes -> db {noop_with_empty_axes=1}",
    ];
    becomes(
        "a:f32[1,3,seq] b:f32[1,seq] dy:f32[1,3,seq]",
        &sums,
        "da db",
        &["v3 = reduce_sum %dy {axes=[0,1], keep_dims} : f32[1,1,seq]"],
    );
    becomes(
        "a:f32[batch,1] b:f32[batch,seq] dy:f32[batch,seq]",
        &sums,
        "da db",
        &["v3 = reduce_sum %dy {axes=[1], keep_dims} : f32[batch,1]"],
    );
    refused(
        "a:f32[batch,3] b:f32[rows,3] dy:f32[batch,3]",
        &sums,
        "da db",
        "cannot tell whether batch or rows is broadcast",
    );
}

/// Norms and softmaxes; gradients of scales are computed where they are read.
#[test]
fn what_is_read_of_norms() {
    let inputs = "dy:f32[2,8] x:f32[2,8] w:f32[8] mean:f32[2,1] rstd:f32[2,1]";
    let norm = "com.microsoft::LayerNormalizationGrad dy x w mean rstd -> dx dw db";
    becomes(
        inputs,
        &[norm],
        "dx",
        &["v5 = layer_norm_grad %dy, %x, %w, %mean, %rstd {axis=1} : f32[2,8]"],
    );
    becomes(
        inputs,
        &[norm],
        "dx db",
        &[
            "v5, v6, v7 = layer_norm_grad %dy, %x, %w, %mean, %rstd {axis=1, weights} : f32[2,8], f32[8], f32[8]",
        ],
    );
    becomes(
        inputs,
        &[
            "SimplifiedLayerNormalization x w -> y inv {epsilon=0.5}",
            "com.microsoft::SimplifiedLayerNormalizationGrad dy x w inv -> dx dw",
        ],
        "y dx dw",
        &[
            "v5, v6 = rms_norm %x, %w {axis=1, eps=0.5} : f32[2,8], f32[2,1]",
            "v7, v8 = rms_norm_grad %dy, %x, %w, v6 {axis=1, weight} : f32[2,8], f32[8]",
        ],
    );
    for (op, name) in [("Softmax", "softmax"), ("LogSoftmax", "log_softmax")] {
        becomes(
            "y:f32[2,8] dy:f32[2,8]",
            &[&format!(
                "com.microsoft::{op}Grad_13 dy y -> dx {{axis=-1}}"
            )],
            "dx",
            &[&format!("v2 = {name}_grad %dy, %y {{axis=1}} : f32[2,8]")],
        );
    }
}

/// Probabilities are those of the logits; without these, of what is given in their place.
#[test]
fn cross_entropies() {
    let inputs = "logits:f32[2,5,3] labels:i64[2,3] d:f32[]";
    becomes(
        inputs,
        &[
            "SoftmaxCrossEntropyLoss logits labels -> loss log {ignore_index=-100}",
            "com.microsoft::SoftmaxCrossEntropyLossGrad d log labels -> dx {ignore_index=-100}",
        ],
        "loss dx",
        &[
            "v3 = log_softmax %logits {axis=1} : f32[2,5,3]",
            "v4 = transpose %logits {perm=[0,2,1]} : f32[2,3,5]",
            "v5 = reshape v4 {shape=[6,5]} : f32[6,5]",
            "v6 = reshape %labels {shape=[6]} : i64[6]",
            "v7 = cross_entropy v5, v6 : f32[]",
            "v8 = transpose %logits {perm=[0,2,1]} : f32[2,3,5]",
            "v9 = reshape v8 {shape=[6,5]} : f32[6,5]",
            "v10 = reshape %labels {shape=[6]} : i64[6]",
            "v11 = cross_entropy_grad %d, v9, v10 : f32[6,5]",
            "v12 = reshape v11 {shape=[2,3,5]} : f32[2,3,5]",
            "v13 = transpose v12 {perm=[0,2,1]} : f32[2,5,3]",
        ],
    );
    becomes(
        "log:f32[6,5] labels:i64[6] d:f32[]",
        &["com.microsoft::SoftmaxCrossEntropyLossGrad d log labels -> dx {ignore_index=0}"],
        "dx",
        &["v3 = cross_entropy_grad %d, %log, %labels {ignore_index=0} : f32[6,5]"],
    );
    refused(
        "log:f32[6,5] labels:i64[6] d:f32[] w:f32[5]",
        &["com.microsoft::SoftmaxCrossEntropyLossGrad d log labels w -> dx"],
        "dx",
        "class weights",
    );
}
