//! Losses fall, and what is written is what was trained.

use crate::common::Job;
use crate::*;
use lorafa_weights::peft;
use lorafa_weights::shards::Shards;

/// Trains; the loss must fall by `by` from the first quarter to the last.
#[track_caller]
fn learns(model: &str, on: &str, flags: &str, by: f64) -> Job {
    let job = Job::new();
    done(&job, &train(model, on, flags));
    let losses = losses(&job, "save");
    let quarter = losses.len() / 4;
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    let (first, last) = (
        mean(&losses[..quarter]),
        mean(&losses[losses.len() - quarter..]),
    );
    assert!(last < first - by, "{first} to {last}: {losses:?}");
    job
}

/// The adapter is one that can be read again, with every B moved away from zero.
fn adapted(job: &Job, modules: usize) {
    peft::read(job.path("save/adapter")).unwrap();
    let config = fs::read(job.path("save/adapter/adapter_config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["r"], 4);
    let tensors = Shards::open(job.path("save/adapter/adapter_model.safetensors")).unwrap();
    let of = |part: &'static str| tensors.iter().filter(move |(name, _)| name.contains(part));
    assert_eq!(of("lora_A").count(), modules);
    assert_eq!(of("lora_B").count(), modules);
    assert!(of("lora_B").all(|(_, tensor)| tensor.bytes.iter().any(|byte| *byte != 0)));
}

#[test]
fn llama_from_text() {
    let job = learns(LLAMA, "text.jsonl", "--epochs 2 --lr 2e-2", 0.1);
    adapted(&job, 14);
    let lines = metrics(&job, "save");
    assert_eq!(lines.len(), 24);
    for (i, line) in lines.iter().enumerate() {
        close(
            line["epoch"].as_f64().unwrap(),
            (i as f64 + 1.0) / 12.0,
            1e-9,
        );
        close(
            line["learning_rate"].as_f64().unwrap(),
            2e-2 * (1.0 - i as f64 / 24.0),
            1e-9,
        );
        let count = |key: &str| line[key].as_u64().unwrap();
        assert!(0 < count("trained_tokens") && count("trained_tokens") < count("tokens"));
        assert!(line["seconds"].as_f64().unwrap() > 0.0);
        assert_eq!(line.get("grad_norm"), None);
    }
}

/// Whose backward pass others wrote, from where PEFT starts.
#[test]
fn llama_by_a_training_graph() {
    let flags = "--batch 2 --seq 8 --method lora --epochs 2 --lr 2e-2";
    adapted(&learns(JOINT, "text.jsonl", flags, 0.1), 14);
}

/// Every so often and at the end, of a part that is not trained on; nothing is trained by that.
#[test]
fn evaluation_is_of_what_is_held_out() {
    let job = Job::new();
    let run = |flags: &str| {
        train(
            DROPOUT,
            "text.jsonl",
            &format!("--lr 1e-2 --max-steps 8 {flags}"),
        )
    };
    let held_out = done(&job, &run("--eval-split 4 --eval-every 3"));
    let said = String::from_utf8(held_out.stdout).unwrap();
    assert!(
        said.contains("data: 20 examples") && said.contains("evaluation: 4 examples"),
        "{said}"
    );
    let lines = metrics(&job, "save");
    let at = |line: &Value| {
        line.get("eval_loss")
            .map(|_| line["step"].as_u64().unwrap())
    };
    assert_eq!(lines.iter().filter_map(at).collect::<Vec<_>>(), [3, 6, 8]);
    done(&job, &run("--eval-split 4 --save plain"));
    assert_eq!(losses(&job, "save"), losses(&job, "plain"));
    close(evaluated(&job, "save"), evaluated(&job, "plain"), 0.0);
    let share =
        String::from_utf8(done(&job, &run("--eval-split 0.25 --save share")).stdout).unwrap();
    assert!(share.contains("evaluation: 6 examples"), "{share}");
}

#[test]
fn llama_from_chats() {
    adapted(
        &learns(
            LLAMA,
            "chat.jsonl",
            "--seq 24 --method lora --epochs 2 --lr 2e-2",
            0.1,
        ),
        14,
    );
}

#[test]
fn llama_from_prompts_and_completions_with_pefts_optimizer() {
    adapted(
        &learns(
            LLAMA,
            "completion.jsonl",
            "--optimizer lora-fa --epochs 2 --lr 2e-2",
            0.1,
        ),
        14,
    );
}

#[test]
fn llama_in_full_from_packed_text() {
    let job = learns(
        PLAIN,
        "text.jsonl",
        "--pack --seq 32 --method full --epochs 4 --lr 5e-3",
        0.1,
    );
    // Without packing there are 24 rows.
    assert!(losses(&job, "save").len() < 4 * 12);
    assert!(!job.path("save/adapter").exists());
    let tensors = Shards::open(job.path("save/model")).unwrap();
    assert_eq!(tensors.iter().count(), 21);
}

#[test]
fn llama_in_bf16_with_f32_adapters() {
    let flags = "--rank 4 --dtype bf16 --adapter-dtype f32 --epochs 2 --lr 2e-2";
    let job = learns(PLAIN, "text.jsonl", flags, 0.05);
    adapted(&job, 14);
    let tensors = Shards::open(job.path("save/adapter/adapter_model.safetensors")).unwrap();
    assert!(
        tensors
            .iter()
            .all(|(_, t)| format!("{:?}", t.dtype) == "F32")
    );
}

#[test]
fn gpt2_with_accumulation_and_clipping() {
    let job = learns(
        GPT2,
        "text.jsonl",
        "--accumulate 3 --clip 0.5 --epochs 4 --lr 2e-2",
        0.05,
    );
    let lines = metrics(&job, "save");
    assert_eq!(lines.len(), 16);
    assert!(
        lines
            .iter()
            .all(|line| line["grad_norm"].as_f64().unwrap() > 0.0)
    );
}

#[test]
fn roberta_with_its_head() {
    let job = learns(ROBERTA, "label.jsonl", "--epochs 2 --lr 2e-2", 0.05);
    peft::read(job.path("save/adapter")).unwrap();
    let tensors = Shards::open(job.path("save/adapter/adapter_model.safetensors")).unwrap();
    assert!(tensors.iter().any(|(name, _)| name.contains("classifier")));
}

#[test]
fn t5_from_source_and_target() {
    learns(T5, "completion.jsonl", "--epochs 2 --lr 2e-2", 0.1);
}

/// The loss of an example on the data for evaluation, after an update that changes nothing.
fn loss(job: &Job, model: &str, save: &str, flags: &str) -> f64 {
    let eval = data("completion.jsonl");
    let flags = format!("--eval-data {eval} --max-steps 1 --lr 1e-30 --save {save} {flags}");
    done(job, &train(model, "text.jsonl", &flags));
    evaluated(job, save)
}

#[test]
fn what_is_written_is_what_was_trained() {
    let eval = data("completion.jsonl");
    for (model, flags) in [
        (LLAMA, "--merge --method lora"),
        (PLAIN, "--merge --rank 4"),
        (PLAIN, "--method full"),
    ] {
        let job = Job::new();
        let flags = format!("--lr 1e-2 --eval-data {eval} {flags}");
        done(&job, &train(model, "text.jsonl", &flags));
        let trained = evaluated(&job, "save");
        let before = loss(&job, PLAIN, "before", "--rank 4");
        assert!((trained - before).abs() > 1e-2, "{trained} and {before}");
        let merged = loss(&job, PLAIN, "merged", "--rank 4 --weights save/model");
        close(merged, trained, 1e-5);
        if job.path("save/adapter").exists() {
            let rank = if model == PLAIN { "--rank 4" } else { "" };
            let flags = format!("{rank} --adapter save/adapter");
            close(loss(&job, model, "adapter", &flags), trained, 1e-6);
        }
    }
}
