//! What is saved, read back: adapters on a plain model, and merged models in place of one, give the answers that PyTorch
//! gave for the model with adapters.

use crate::common::{self, Given, PAIRS, difference, example, expected, given, logits, store};
use bytes::Bytes;
use lorafa_ir::ops::Param;
use lorafa_ir::{DType, Graph};
use lorafa_onnx::dtype::decode;
use lorafa_passes::attach_loss::LossKind;
use lorafa_passes::inject_lora::InjectLora;
use lorafa_passes::pass::{Options, Pass};
use lorafa_passes::{Manager, PassCx};
use lorafa_weights::shards::Shards;
use lorafa_weights::{Trained, Values, bind, merge, peft, side_files};
use safetensors::Dtype;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::Path;

/// PyTorch computes in fp32, the reference interpreter in f64.
const TOLERANCE: f64 = 2e-6;

const INFO: peft::Info<'static> = peft::Info {
    base_model: Some("base"),
    loss: Some(LossKind::CausalLm),
    rslora: false,
};

/// Adapters on every layer of a plain graph.
fn inject(graph: &mut Graph, mut options: Options, rank: u64, alpha: f64) {
    options.inject.rank = Some(rank);
    options.inject.alpha = Some(alpha);
    let passes: [&dyn Pass; 1] = [&InjectLora];
    let mut cx = PassCx::new(options);
    Manager::new().run(&passes, graph, &mut cx).unwrap();
}

fn config(dir: &Path) -> Value {
    serde_json::from_slice(&fs::read(dir.join("adapter_config.json")).unwrap()).unwrap()
}

/// The model's weights under the names of a checkpoint on the Hub: of the bare model where that is what there is, without
/// a classifier, tied weights once.
fn as_on_the_hub(family: &str, weights: BTreeMap<String, Given>) -> BTreeMap<String, Given> {
    let name = |name: String| match family {
        "gpt2" if name == "lm_head.weight" => "wte.weight".to_string(),
        "gpt2" => name.strip_prefix("transformer.").unwrap().to_string(),
        "roberta" if name.starts_with("classifier") => "pooler.".to_string() + &name,
        "roberta" => name.strip_prefix("roberta.").unwrap().to_string(),
        "t5" if name == "lm_head.weight" => "shared.weight".to_string(),
        _ => name,
    };
    weights.into_iter().map(|(n, t)| (name(n), t)).collect()
}

#[test]
fn an_adapter_folder_on_a_plain_model_gives_pytorchs_logits() {
    for (family, lora, plain) in PAIRS {
        let (dir, store) = (tempfile::tempdir().unwrap(), store());
        let (trained, _) = example(lora);
        let adapter = dir.path().join("adapter");
        peft::write(&adapter, &trained, given(&store), INFO).unwrap();
        let base = dir.path().join("model.safetensors");
        common::write(&base, &as_on_the_hub(family, common::weights_of(&trained)));

        let (mut graph, options) = example(plain);
        inject(&mut graph, options, 4, 8.0);
        let bound = bind(&mut graph, &Shards::open(dir.path()).unwrap());
        let bound = bound.unwrap_or_else(|e| panic!("{family}: {e}"));
        let saved = peft::read(&adapter).unwrap();
        peft::bind(&mut graph, &saved).unwrap_or_else(|e| panic!("{family}: {e}"));
        let kept = if family == "roberta" { 4 } else { 0 };
        assert_eq!(
            (bound.kept.len(), bound.unused.len()),
            (kept, kept),
            "{family}: {bound}"
        );

        let expected = expected(family, "lora");
        let off = difference(&logits(&graph, &expected), &expected["logits"]);
        assert!(off < TOLERANCE, "{family}: {off:e}");
    }
}

/// A folder that PEFT 0.21.2 itself wrote: `build("llama", True).save_pretrained(FOLDER)` with examples/export.py.
#[test]
fn pefts_own_adapter_folder_on_a_plain_model_gives_pytorchs_logits() {
    let (family, lora, plain) = PAIRS[0];
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("model.safetensors");
    common::write(&base, &common::weights_of(&example(lora).0));
    let (mut graph, options) = example(plain);
    inject(&mut graph, options, 4, 8.0);
    bind(&mut graph, &Shards::open(&base).unwrap()).unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peft-0.21.2");
    peft::bind(&mut graph, &peft::read(folder).unwrap()).unwrap();
    let expected = expected(family, "lora");
    let off = difference(&logits(&graph, &expected), &expected["logits"]);
    assert!(off < TOLERANCE, "{off:e}");
}

#[test]
fn a_merged_model_gives_pytorchs_logits() {
    for (family, lora, plain) in PAIRS {
        let (dir, store) = (tempfile::tempdir().unwrap(), store());
        let merged = dir.path().join("merged");
        let (trained, _) = example(lora);
        for limit in [merge::MAX_SHARD_BYTES, 20_000] {
            merge::write(&merged, &trained, given(&store), limit, &[]).unwrap();
            let shards = Shards::open(&merged).unwrap();
            let (mut graph, _) = example(plain);
            let bound = bind(&mut graph, &shards).unwrap_or_else(|e| panic!("{family}: {e}"));
            assert_eq!(bound.renamed, None, "{family}");
            assert!(
                bound.kept.is_empty() && bound.unused.is_empty(),
                "{family}: {bound}"
            );
            let expected = expected(family, "lora");
            let off = difference(&logits(&graph, &expected), &expected["logits"]);
            assert!(off < TOLERANCE, "{family}: {off:e}");
        }
        let names = fs::read_dir(&merged)
            .unwrap()
            .map(|e| e.unwrap().file_name());
        let files: Vec<String> = names.map(|n| n.into_string().unwrap()).collect();
        assert!(files.len() > 3 && files.contains(&"model.safetensors.index.json".to_string()));
        for file in files.iter().filter(|f| f.ends_with(".safetensors")) {
            let bytes = fs::read(merged.join(file)).unwrap();
            let (header, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
            let format = metadata.metadata().as_ref().unwrap()["format"].as_str();
            assert_eq!((format, header % 8), ("pt", 0));
            assert!(metadata.data_len() <= 20_000, "{file}");
        }
    }
}

/// T5 and GPT-2 share a weight between embedding and head, under another name in the graph.
#[test]
fn shared_weights_are_saved_once_by_hugging_faces_name() {
    for (family, shared) in [("t5", "shared.weight"), ("gpt2", "transformer.wte.weight")] {
        let (dir, store) = (tempfile::tempdir().unwrap(), store());
        let lora = PAIRS.iter().find(|p| p.0 == family).unwrap().1;
        let merged = dir.path().join("merged");
        merge::write(&merged, &example(lora).0, given(&store), u64::MAX, &[]).unwrap();
        let shards = Shards::open(merged.join("model.safetensors")).unwrap();
        assert!(shards.get(shared).is_some() && shards.get("lm_head.weight").is_none());
    }
}

#[test]
fn configurations_are_pefts() {
    let (dir, store) = (tempfile::tempdir().unwrap(), store());
    let write = |family: &str| {
        let lora = PAIRS.iter().find(|p| p.0 == family).unwrap().1;
        let path = dir.path().join(family);
        peft::write(&path, &example(lora).0, given(&store), INFO).unwrap();
        config(&path)
    };
    let llama = write("llama");
    let names = [
        "down_proj",
        "gate_proj",
        "k_proj",
        "o_proj",
        "q_proj",
        "up_proj",
        "v_proj",
    ];
    assert_eq!(llama["target_modules"], json!(names));
    assert_eq!((&llama["r"], &llama["lora_alpha"]), (&json!(4), &json!(8)));
    assert_eq!(llama["task_type"], "CAUSAL_LM");
    assert_eq!(llama["base_model_name_or_path"], "base");
    assert_eq!(
        (&llama["lora_dropout"], &llama["inference_mode"]),
        (&json!(0.0), &json!(true))
    );
    assert_eq!(
        (&llama["rank_pattern"], &llama["fan_in_fan_out"]),
        (&json!({}), &json!(false))
    );
    assert_eq!(llama["modules_to_save"], Value::Null);
    let gpt2 = write("gpt2");
    assert_eq!(gpt2["target_modules"], json!(["c_attn", "c_fc", "c_proj"]));
    assert_eq!(gpt2["fan_in_fan_out"], true);
    let roberta = write("roberta");
    assert_eq!(roberta["modules_to_save"], json!(["classifier"]));
    assert_eq!(
        roberta["target_modules"],
        json!(["dense", "key", "query", "value"])
    );
}

/// A dropout before A alone is the adapters'; those of the model before A and the layer itself are not.
#[test]
fn what_was_trained_with_is_in_the_configuration() {
    let (dir, store) = (tempfile::tempdir().unwrap(), store());
    let path = dir.path().join("adapter");
    let dropped = "llama-tiny-lora-r4-drop0.05-dynamo-noopt-sdpa-fp32-train-loss-dyn";
    peft::write(&path, &example(dropped).0, given(&store), INFO).unwrap();
    assert_eq!(config(&path)["lora_dropout"], json!(0.05));

    for (given_alpha, written) in [(16.0, json!(16)), (12.3, json!(12.3))] {
        let (mut graph, mut options) = example(PAIRS[0].2);
        options.inject.rslora = true;
        inject(&mut graph, options, 3, given_alpha);
        let info = peft::Info {
            rslora: true,
            ..INFO
        };
        peft::write(&path, &graph, given(&store), info).unwrap();
        let config = config(&path);
        assert_eq!(config["lora_alpha"], written);
        assert_eq!(
            (&config["r"], &config["use_rslora"]),
            (&json!(3), &json!(true))
        );
        peft::bind(&mut graph, &peft::read(&path).unwrap()).unwrap();
    }
}

/// What people put beside a model stays, what belongs to its weights is copied, and anything else is refused.
#[test]
fn side_files_stay_or_are_written_anew() {
    let (dir, store) = (tempfile::tempdir().unwrap(), store());
    let base = dir.path().join("base");
    fs::create_dir(&base).unwrap();
    for name in ["config.json", "tokenizer.json", "pytorch_model.bin"] {
        fs::write(base.join(name), name).unwrap();
    }
    let files = side_files::of(Some(&base), None);
    let merged = dir.path().join("merged");
    fs::create_dir(&merged).unwrap();
    fs::write(merged.join("README.md"), "card").unwrap();
    fs::write(merged.join("config.json"), "old").unwrap();
    let (graph, _) = example(PAIRS[0].1);
    merge::check(&merged, &graph, given(&store)).unwrap();
    merge::write(&merged, &graph, given(&store), u64::MAX, &files).unwrap();
    let read = |name: &str| fs::read_to_string(merged.join(name)).unwrap();
    assert_eq!(read("README.md"), "card");
    assert_eq!(read("config.json"), "config.json");
    assert_eq!(read("tokenizer.json"), "tokenizer.json");
    assert_eq!(fs::read_dir(&merged).unwrap().count(), 4);

    fs::write(merged.join("notes.txt"), "").unwrap();
    let checked = merge::check(&merged, &graph, given(&store)).unwrap_err();
    let written = merge::write(&merged, &graph, given(&store), u64::MAX, &files).unwrap_err();
    assert_eq!(checked.to_string(), written.to_string());
    assert!(checked.to_string().contains("notes.txt"), "{checked}");
}

#[test]
fn adapters_have_pefts_keys_and_shapes() {
    let (dir, store) = (tempfile::tempdir().unwrap(), store());
    let path = dir.path().join("adapter");
    let (trained, _) = example(PAIRS[2].1);
    peft::write(&path, &trained, given(&store), INFO).unwrap();
    let file = Shards::open(path.join("adapter_model.safetensors")).unwrap();
    let shape = |name: &str| file.get(name).unwrap().shape.clone();
    let layer = "base_model.model.roberta.encoder.layer.1.intermediate.dense";
    assert_eq!(shape(&format!("{layer}.lora_A.weight")), [4, 32]);
    assert_eq!(shape(&format!("{layer}.lora_B.weight")), [88, 4]);
    assert_eq!(shape("base_model.model.classifier.out_proj.bias"), [3]);
    assert_eq!(file.iter().count(), 2 * 6 * 2 + 4);
}

/// One B of ones.
struct Ones;

impl Trained for Ones {
    fn dtype(&self, name: &str) -> Option<DType> {
        let b = name.ends_with("q_proj.lora_B.default.weight");
        b.then_some(DType::BF16)
    }

    fn read(&self, _: &str) -> Result<Bytes, Box<dyn Error + Send + Sync>> {
        Ok([0x80, 0x3f].repeat(32 * 4).into())
    }
}

/// One number for every parameter.
struct Short;

impl Trained for Short {
    fn dtype(&self, _: &str) -> Option<DType> {
        Some(DType::F32)
    }

    fn read(&self, _: &str) -> Result<Bytes, Box<dyn Error + Send + Sync>> {
        Ok(Bytes::from_static(&[0; 4]))
    }
}

/// Parameters that cannot be read.
struct Lost;

impl Trained for Lost {
    fn dtype(&self, _: &str) -> Option<DType> {
        Some(DType::F32)
    }

    fn read(&self, _: &str) -> Result<Bytes, Box<dyn Error + Send + Sync>> {
        Err("the device is gone".into())
    }
}

#[test]
fn trained_values_go_before_those_of_the_model() {
    let (dir, store) = (tempfile::tempdir().unwrap(), store());
    let (trained, _) = example(PAIRS[0].1);
    let values = Values {
        store: &store,
        trained: Some(&Ones),
    };
    let path = dir.path().join("adapter");
    peft::write(&path, &trained, values, INFO).unwrap();
    let file = Shards::open(path.join("adapter_model.safetensors")).unwrap();
    let b = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";
    let b = file.get(b).unwrap();
    assert_eq!((b.dtype, &b.bytes[..2]), (Dtype::BF16, &[0x80, 0x3f][..]));

    let refused = |from: &dyn Trained| {
        let values = Values {
            store: &store,
            trained: Some(from),
        };
        let error = peft::write(dir.path().join("refused"), &trained, values, INFO);
        error.unwrap_err().to_string()
    };
    let text = refused(&Short);
    assert!(
        text.contains("lora_A.default.weight") && text.contains("4 given"),
        "{text}"
    );
    let text = refused(&Lost);
    assert!(
        text.contains("lora_A.default.weight` cannot be read: the device is gone"),
        "{text}"
    );
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        1,
        "nothing is left behind"
    );
}

/// W + scale·B·A is rounded once, to the weight's type.
#[test]
fn half_weights_are_merged_in_f32_and_rounded_once() {
    let (dir, store) = (tempfile::tempdir().unwrap(), store());
    let (graph, _) = example("llama-tiny-lora-r4-dynamo-noopt-sdpa-bf16base-eval-loss-dyn");
    let merged = dir.path().join("merged");
    merge::write(&merged, &graph, given(&store), u64::MAX, &[]).unwrap();
    let shards = Shards::open(&merged).unwrap();
    let (mut checked, mut others) = (0, 0);
    for adapter in graph.adapters() {
        let module = adapter.module.strip_prefix("base_model.model.").unwrap();
        let numbers = |param: &Param| {
            let bytes = lorafa_onnx::export::weights::values(param, &store).unwrap();
            decode(param.ty.dtype, &bytes)
        };
        let name = format!("base_model.model.{module}.base_layer.weight");
        let (_, base) = graph.params().find(|(_, p)| *p.name == *name).unwrap();
        let w = numbers(base);
        let (a, b) = (
            graph.param(adapter.a).unwrap(),
            graph.param(adapter.b).unwrap(),
        );
        let (a, b, rank) = (numbers(a), numbers(b), adapter.rank as usize);
        let inputs = a.len() / rank;
        let tensor = shards.get(&format!("{module}.weight")).unwrap();
        assert_eq!(tensor.dtype, Dtype::BF16);
        for (i, found) in decode(DType::BF16, &tensor.bytes).into_iter().enumerate() {
            let (row, column) = (i / inputs, i % inputs);
            let product = (0..rank).map(|k| b[row * rank + k] * a[k * inputs + column]);
            let exact = w[i] + adapter.scale.0 * product.sum::<f64>();
            // Almost always: the sum has f32's error, which may fall across the middle between two bf16.
            others += usize::from(found != DType::BF16.round(exact));
            checked += 1;
        }
    }
    assert!(
        checked > 10_000 && others * 1000 < checked,
        "{others} of {checked}"
    );
    let other = shards.get("model.norm.weight").unwrap();
    assert_eq!(other.dtype, Dtype::BF16, "copied as it is");
}

#[test]
fn ranks_and_scales_that_differ_are_patterns() {
    let dir = tempfile::tempdir().unwrap();
    let store = store();
    let (mut graph, mut options) = example(PAIRS[0].2);
    let ranks = [("self_attn.q_proj", 2), ("layers.1.mlp.up_proj", 8)];
    options.inject.rank_pattern = lorafa_passes::targets::Patterns::new(ranks).unwrap();
    inject(&mut graph, options.clone(), 4, 8.0);
    let path = dir.path().join("adapter");
    peft::write(&path, &graph, given(&store), INFO).unwrap();
    let config = config(&path);
    assert_eq!(
        config["rank_pattern"],
        json!({"q_proj": 2, "1.mlp.up_proj": 8})
    );
    assert_eq!(
        (&config["lora_alpha"], &config["alpha_pattern"]),
        (&json!(8), &json!({}))
    );

    peft::bind(&mut graph, &peft::read(&path).unwrap()).unwrap();
    let (mut other, _) = example(PAIRS[0].2);
    options.inject.rank_pattern = Default::default();
    inject(&mut other, options, 4, 16.0);
    let before: Vec<Param> = other.params().map(|(_, p)| p.clone()).collect();
    let error = peft::bind(&mut other, &peft::read(&path).unwrap()).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("expected shape [4, 32], found [2, 32]"),
        "{text}"
    );
    assert!(
        text.contains("1.mlp.up_proj: expected scale 4, found 1;"),
        "{text}"
    );
    let after: Vec<Param> = other.params().map(|(_, p)| p.clone()).collect();
    assert_eq!(before, after, "a graph that does not fit is not changed");
}

#[test]
fn other_kinds_of_adapters_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |config: Value| {
        fs::write(dir.path().join("adapter_config.json"), config.to_string()).unwrap();
        peft::read(dir.path()).unwrap_err().to_string()
    };
    let config = |extra: Value| {
        let mut config = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8});
        config
            .as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        refused(config)
    };
    assert!(config(json!({"peft_type": "IA3"})).contains("type IA3"));
    assert!(config(json!({"use_dora": true})).contains("DoRA"));
    assert!(config(json!({"bias": "all"})).contains("`bias` is all"));
    for init in [
        "pissa",
        "pissa_niter_16",
        "olora",
        "corda",
        "loftq",
        "lora_ga",
    ] {
        let text = config(json!({"init_lora_weights": init}));
        assert!(
            text.contains(&format!("`init_lora_weights` is {init}, which changes"))
                && text.contains("path_initial_model_for_weight_conversion"),
            "{text}"
        );
    }
    for (field, value) in [
        ("alora_invocation_tokens", json!([1, 2])),
        ("kasa_config", json!({"beta": 0.1})),
        ("lora_bias", json!(true)),
        ("layer_replication", json!([[0, 1], [0, 2]])),
    ] {
        let text = config(json!({ field: value }));
        assert!(text.contains(&format!("`{field}` is set")), "{text}");
    }
    for init in [
        json!(true),
        json!(false),
        json!("gaussian"),
        json!("eva"),
        json!("mica"),
    ] {
        assert!(config(json!({"init_lora_weights": init})).contains("no such file"));
    }
    assert!(config(json!({"rank_pattern": {"(": 3}})).contains("no regular expression"));
    assert!(config(json!({"r": -1})).contains("adapter_config.json"));
    assert!(config(json!({})).contains("adapter_model.safetensors: there is no such file"));
}

#[test]
fn an_adapter_on_a_shared_weight_is_not_merged() {
    let graph = common::parse(
        r#"graph @tied {
  param %ids : i64[4] input
  param %wte.weight : f32[16,8] frozen {digest=0000000000000001}
  param %head.lora_A.default.weight : f32[2,8] trained {digest=0000000000000002}
  param %head.lora_B.default.weight : f32[16,2] trained {digest=0000000000000003}
  v0 = gather %wte.weight, %ids {axis=0} : f32[4,8] @wte
  v1 = matmul v0, %wte.weight {trans_b} : f32[4,16] @wte
  v2 = matmul v0, %head.lora_A.default.weight {trans_b} : f32[4,2] @wte
  v3 = matmul v2, %head.lora_B.default.weight {trans_b} : f32[4,16] @wte
  v4 = add v1, v3 : f32[4,16] @wte
  out "logits" = v4
  adapter "wte" {a=%head.lora_A.default.weight, b=%head.lora_B.default.weight, rank=2, scale=2.0, x=v0, xa=v2}
}"#,
    );
    let dir = tempfile::tempdir().unwrap();
    let store = store();
    let write =
        |path: &str| merge::write(dir.path().join(path), &graph, given(&store), 1 << 30, &[]);
    let text = write("merged").unwrap_err().to_string();
    assert!(
        text.contains("no weight of its own for this module"),
        "{text}"
    );
}
