//! Graphs of Llama-2-7B's size with any number of layers.

use lorafa_onnx::proto::tensor_proto::{DataLocation, DataType};
use lorafa_onnx::proto::tensor_shape_proto::{Dimension, dimension};
use lorafa_onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto,
    TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, attribute_proto, type_proto,
};

/// Llama-2-7B.
const HIDDEN: i64 = 4096;
const FFN: i64 = 11008;
const HEADS: i64 = 32;
const VOCABULARY: i64 = 32000;
const RANK: i64 = 64;

/// A Llama with LoRA adapters, as PyTorch's exporter writes it, weights elsewhere.
#[derive(Default)]
pub struct Builder {
    graph: GraphProto,
    module: String,
}

impl Builder {
    /// A model with so many layers, whose loss is its output.
    pub fn model(layers: usize) -> ModelProto {
        let mut b = Builder::default();
        b.graph.name = Some("llama".into());
        for input in ["input_ids", "labels"] {
            b.graph
                .input
                .push(info(input, DataType::Int64, &["batch", "seq"]));
        }
        b.scalar("two", 2.0);
        b.scalar("eps", 1e-5);
        b.ints("heads", &[0, 0, HEADS, HIDDEN / HEADS]);
        b.ints("merged", &[0, 0, HIDDEN]);
        b.ints("rows", &[-1, VOCABULARY]);
        b.ints("row", &[-1]);
        b.ints("last", &[-1]);
        b.weight("model.embed_tokens.weight", &[VOCABULARY, HIDDEN]);
        let mut x = b.node("Gather", &["model.embed_tokens.weight", "input_ids"], &[]);
        for layer in 0..layers {
            x = b.layer(layer, &x);
        }
        let y = b.norm("model.norm", &x);
        let logits = b.linear("lm_head", &y, HIDDEN, VOCABULARY);
        let logits = b.node("Reshape", &[&logits, "rows"], &[]);
        let labels = b.node("Reshape", &["labels", "row"], &[]);
        let loss = b.node("SoftmaxCrossEntropyLoss", &[&logits, &labels], &[]);
        b.graph.output.push(info(&loss, DataType::Float, &[]));
        let opset = OperatorSetIdProto {
            domain: None,
            version: Some(20),
        };
        ModelProto {
            ir_version: Some(10),
            opset_import: vec![opset],
            graph: Some(b.graph),
            ..ModelProto::default()
        }
    }

    fn layer(&mut self, layer: usize, x: &str) -> String {
        let path = |module: &str| format!("model.layers.{layer}.{module}");
        let normal = self.norm(&path("input_layernorm"), x);
        let [q, k, v] = ["q_proj", "k_proj", "v_proj"].map(|name| {
            let y = self.adapted(&path(&format!("self_attn.{name}")), &normal, HIDDEN, HIDDEN);
            let y = self.node("Reshape", &[&y, "heads"], &[]);
            self.node("Transpose", &[&y], &[ints("perm", &[0, 2, 1, 3])])
        });
        let k = self.node("Transpose", &[&k], &[ints("perm", &[0, 1, 3, 2])]);
        let scores = self.node("MatMul", &[&q, &k], &[]);
        let weights = self.node("Softmax", &[&scores], &[]);
        let y = self.node("MatMul", &[&weights, &v], &[]);
        let y = self.node("Transpose", &[&y], &[ints("perm", &[0, 2, 1, 3])]);
        let y = self.node("Reshape", &[&y, "merged"], &[]);
        let y = self.adapted(&path("self_attn.o_proj"), &y, HIDDEN, HIDDEN);
        let x = self.node("Add", &[x, &y], &[]);
        let normal = self.norm(&path("post_attention_layernorm"), &x);
        let gate = self.adapted(&path("mlp.gate_proj"), &normal, HIDDEN, FFN);
        let up = self.adapted(&path("mlp.up_proj"), &normal, HIDDEN, FFN);
        let sigmoid = self.node("Sigmoid", &[&gate], &[]);
        let silu = self.node("Mul", &[&gate, &sigmoid], &[]);
        let product = self.node("Mul", &[&silu, &up], &[]);
        let y = self.adapted(&path("mlp.down_proj"), &product, FFN, HIDDEN);
        self.node("Add", &[&x, &y], &[])
    }

    fn norm(&mut self, module: &str, x: &str) -> String {
        self.module = module.into();
        let weight = format!("{module}.weight");
        self.weight(&weight, &[HIDDEN]);
        let square = self.node("Pow", &[x, "two"], &[]);
        let mean = self.node("ReduceMean", &[&square, "last"], &[]);
        let sum = self.node("Add", &[&mean, "eps"], &[]);
        let root = self.node("Sqrt", &[&sum], &[]);
        let rstd = self.node("Reciprocal", &[&root], &[]);
        let normal = self.node("Mul", &[x, &rstd], &[]);
        self.node("Mul", &[&normal, &weight], &[])
    }

    fn linear(&mut self, module: &str, x: &str, inputs: i64, outputs: i64) -> String {
        self.module = module.into();
        let weight = format!("{module}.weight");
        self.weight(&weight, &[outputs, inputs]);
        let transposed = self.node("Transpose", &[&weight], &[ints("perm", &[1, 0])]);
        self.node("MatMul", &[x, &transposed], &[])
    }

    fn adapted(&mut self, module: &str, x: &str, inputs: i64, outputs: i64) -> String {
        let base = self.linear(&format!("{module}.base_layer"), x, inputs, outputs);
        let xa = self.linear(&format!("{module}.lora_A.default"), x, inputs, RANK);
        let xab = self.linear(&format!("{module}.lora_B.default"), &xa, RANK, outputs);
        self.module = module.into();
        let scaled = self.node("Mul", &[&xab, "two"], &[]);
        self.node("Add", &[&base, &scaled], &[])
    }

    /// Adds a node and names its output.
    fn node(&mut self, op: &str, inputs: &[&str], attributes: &[AttributeProto]) -> String {
        let output = format!("v{}", self.graph.node.len());
        self.graph.node.push(NodeProto {
            op_type: Some(op.into()),
            name: Some(format!("/{}/{output}", self.module)),
            input: inputs.iter().map(ToString::to_string).collect(),
            output: vec![output.clone()],
            attribute: attributes.to_vec(),
            ..NodeProto::default()
        });
        output
    }

    fn weight(&mut self, name: &str, dims: &[i64]) {
        let location = StringStringEntryProto {
            key: Some("location".into()),
            value: Some("weights.bin".into()),
        };
        self.graph.initializer.push(TensorProto {
            name: Some(name.into()),
            data_type: Some(DataType::Float as i32),
            dims: dims.to_vec(),
            data_location: Some(DataLocation::External as i32),
            external_data: vec![location],
            ..TensorProto::default()
        });
    }

    fn scalar(&mut self, name: &str, value: f32) {
        self.graph.initializer.push(TensorProto {
            name: Some(name.into()),
            data_type: Some(DataType::Float as i32),
            float_data: vec![value],
            ..TensorProto::default()
        });
    }

    fn ints(&mut self, name: &str, values: &[i64]) {
        self.graph.initializer.push(TensorProto {
            name: Some(name.into()),
            data_type: Some(DataType::Int64 as i32),
            dims: vec![values.len() as i64],
            int64_data: values.to_vec(),
            ..TensorProto::default()
        });
    }
}

fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(attribute_proto::AttributeType::Ints as i32),
        ints: values.to_vec(),
        ..AttributeProto::default()
    }
}

fn info(name: &str, data_type: DataType, dims: &[&str]) -> ValueInfoProto {
    let dim = |name: &&str| Dimension {
        value: Some(dimension::Value::DimParam(name.to_string())),
        ..Dimension::default()
    };
    let tensor = type_proto::Tensor {
        elem_type: Some(data_type as i32),
        shape: Some(TensorShapeProto {
            dim: dims.iter().map(dim).collect(),
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
