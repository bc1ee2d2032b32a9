//! Artifacts of onnxruntime-training: trained with its optimizer, losses are its losses.

use crate::common::Job;
use crate::*;
use serde_json::Map;

/// A tensor of a file: its name, type, shape and bytes.
type Tensor = (String, String, Vec<usize>, Vec<u8>);

/// onnxruntime's answers for a family, by `kind::name`.
fn answers(family: &str) -> Vec<Tensor> {
    let path = format!("examples/ort/{family}-lora.expected.safetensors");
    let bytes = fs::read(file(&path)).unwrap();
    let (length, rest) = bytes.split_first_chunk().unwrap();
    let (header, content) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let header: Map<String, Value> = serde_json::from_slice(header).unwrap();
    let number = |value: &Value| value.as_u64().unwrap() as usize;
    let tensors = header
        .into_iter()
        .filter(|(_, entry)| !entry["dtype"].is_null());
    let tensors = tensors.map(|(name, entry)| {
        let shape = entry["shape"].as_array().unwrap().iter().map(number);
        let [from, to] = [0, 1].map(|i| number(&entry["data_offsets"][i]));
        let dtype = entry["dtype"].as_str().unwrap().to_owned();
        (name, dtype, shape.collect(), content[from..to].to_vec())
    });
    tensors.collect()
}

/// Writes the tensors that have a name in the file.
fn write(path: &Path, tensors: &[Tensor], name: impl Fn(&str) -> Option<String>) {
    let named = tensors.iter().filter_map(|t| Some((name(&t.0)?, t)));
    let named: Vec<(String, &Tensor)> = named.collect();
    let tensors = named
        .iter()
        .map(|(name, (_, dtype, shape, bytes))| (&**name, &**dtype, &**shape, bytes.clone()));
    safetensors(path, &tensors.collect::<Vec<_>>());
}

/// A job with a family's batch, weights and adapter in files.
fn job(tensors: &[Tensor]) -> Job {
    let job = Job::new();
    fs::create_dir(job.path("adapter")).unwrap();
    let plain = |name: &str, kind: &str| Some(name.strip_prefix(kind)?.to_owned());
    write(&job.path("batch.safetensors"), tensors, |name| {
        plain(name, "input::")
    });
    write(&job.path("weights.safetensors"), tensors, |name| {
        plain(name, "param::").filter(|name| !name.contains("lora_"))
    });
    let adapter = job.path("adapter/adapter_model.safetensors");
    write(&adapter, tensors, |name| {
        let name = plain(name, "param::m.").filter(|name| name.contains("lora_"))?;
        Some(name.replace(".default.weight", ".weight"))
    });
    let config =
        r#"{"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": "all-linear"}"#;
    fs::write(job.path("adapter/adapter_config.json"), config).unwrap();
    job
}

/// Llama's weights are those of the folder's checkpoint.
#[test]
fn five_updates_have_its_losses() {
    let files = "--weights weights.safetensors --adapter adapter";
    for (family, weights) in [("llama", ""), ("gpt2", files)] {
        let tensors = answers(family);
        let job = job(&tensors);
        for (method, losses_of) in [("lora", "losses"), ("lora-fa", "losses-lora-fa")] {
            let line = format!(
                "train {} --method {method} --batch 2 --seq 12 --data batch.safetensors {weights} --lr 1e-3 \
                 --schedule constant --max-steps 5 --no-shuffle --check-memory --save {method}",
                file(&format!("examples/ort/{family}-lora"))
            );
            let said = String::from_utf8(done(&job, &words(&line)).stdout).unwrap();
            assert!(said.contains("AdamW, transformers' form"), "{said}");
            let (.., expected) = tensors.iter().find(|t| t.0 == losses_of).unwrap();
            let expected = expected.chunks(4);
            let expected = expected.map(|x| f64::from(f32::from_le_bytes(x.try_into().unwrap())));
            let found = losses(&job, method);
            assert_eq!(found.len(), 5, "{family} {method}");
            found
                .into_iter()
                .zip(expected)
                .for_each(|(a, b)| close(a, b, 1e-6));
        }
    }
}

/// Its weights are inputs, and those of a folder without a checkpoint have no values.
#[test]
fn weights_have_to_come_from_somewhere() {
    let tensors = answers("gpt2");
    let job = job(&tensors);
    let folder = file("examples/ort/gpt2-lora");
    let line = format!("train {folder} --batch 2 --seq 12 --data batch.safetensors --save save");
    let none = [
        "44 parameters have no values",
        "--weights",
        "transformer.wte.weight",
    ];
    refused(&job, &words(&line), &none);
    let adapters = [
        "16 parameters have no values",
        "c_attn.lora_A.default.weight",
    ];
    refused(
        &job,
        &words(&format!("{line} --weights weights.safetensors")),
        &adapters,
    );

    let line = format!(
        "bench {folder} --batch 2 --seq 12 --steps 3 --check-memory --json - --random-weights"
    );
    let figures: Value = serde_json::from_slice(&done(&job, &words(&line)).stdout).unwrap();
    let (memory, loss) = (&figures["memory"], &figures["loss"]);
    assert_eq!(memory["allocated_peak"], memory["planned_peak"]);
    assert!(loss["last"].as_f64() < loss["first"].as_f64(), "{loss}");
}
