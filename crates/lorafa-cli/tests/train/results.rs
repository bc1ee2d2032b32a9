//! What is written beside what was trained, and of which update.

use crate::common::Job;
use crate::*;

fn said(job: &Job, args: &[String]) -> String {
    String::from_utf8(done(job, args).stdout).unwrap()
}

fn config(job: &Job, path: &str) -> Value {
    let path = job.path(path).join("adapter_config.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn the_adapters_configuration_says_how_it_was_trained() {
    let job = Job::new();
    for flags in ["--method lora-fa", "--method lora --save lora"] {
        done(
            &job,
            &train(DROPOUT, "text.jsonl", &format!("--max-steps 1 {flags}")),
        );
    }
    assert_eq!(config(&job, "save/adapter")["lora_dropout"], 0.05);
    assert_eq!(config(&job, "save/checkpoint-1")["lora_dropout"], 0.05);
    assert_eq!(config(&job, "lora/adapter")["lora_dropout"], 0.05);
    let flags = "--max-steps 1 --rank 8 --alpha 16 --rslora --save rslora";
    done(&job, &train(PLAIN, "text.jsonl", flags));
    let config = config(&job, "rslora/adapter");
    assert_eq!(
        (&config["use_rslora"], &config["lora_alpha"]),
        (&true.into(), &16.into())
    );
    assert_eq!(config["lora_dropout"], 0.0);
}

/// Before the first step, and with nothing written.
#[test]
fn results_that_cannot_be_written_are_refused_at_once() {
    let job = Job::new();
    let run = |flags: &str| train(LLAMA, "text.jsonl", &format!("--max-steps 1 {flags}"));
    for folder in ["adapter", "model"] {
        let notes = job.path("save").join(folder);
        fs::create_dir_all(&notes).unwrap();
        fs::write(notes.join("notes.txt"), "").unwrap();
        refused(
            &job,
            &run("--merge"),
            &[folder, "`notes.txt`, which would be lost"],
        );
        fs::remove_file(notes.join("notes.txt")).unwrap();
        // A model card is in nobody's way.
        fs::write(notes.join("README.md"), folder).unwrap();
    }
    done(&job, &run("--merge"));
    for folder in ["adapter", "model"] {
        let card = job.path("save").join(folder).join("README.md");
        assert_eq!(fs::read_to_string(card).unwrap(), folder);
    }
    let tied = "--seq 8 --rank 4 --targets lm_head --merge --save tied --max-steps 1";
    refused(
        &job,
        &train(
            "gpt2-tiny-plain-dynamo-noopt-sdpa-fp32-eval-logits-static",
            "text.jsonl",
            tied,
        ),
        &["lm_head", "save the adapter"],
    );
    done(
        &job,
        &train(
            PLAIN,
            "text.jsonl",
            "--method full --max-steps 1 --save full",
        ),
    );
    fs::write(job.path("full/model/config.json"), "{}").unwrap();
    done(
        &job,
        &train(
            PLAIN,
            "text.jsonl",
            "--method full --max-steps 1 --save full --resume",
        ),
    );
    assert!(job.path("full/model/config.json").exists());
}

#[test]
fn a_whole_model_comes_with_its_configuration_and_tokenizer() {
    let job = Job::new();
    let run = |flags: &str| {
        let flags = format!("--method full --max-steps 1 {flags}");
        said(&job, &train(PLAIN, "text.jsonl", &flags))
    };
    let first = run("");
    assert!(first.contains("no config.json was found"), "{first}");
    fs::rename(job.path("save/model"), job.path("base")).unwrap();
    let about = |name: &str| format!("{{\"name\": \"{name}\"}}");
    for name in ["config.json", "generation_config.json"] {
        fs::write(job.path("base").join(name), about(name)).unwrap();
    }
    let second = run("--weights base --save again");
    assert!(!second.contains("no config.json"), "{second}");
    let tokenizer = fs::read(data("tokenizer.json")).unwrap();
    assert_eq!(
        fs::read(job.path("again/model/tokenizer.json")).unwrap(),
        tokenizer
    );
    for name in ["config.json", "generation_config.json"] {
        let copied = fs::read_to_string(job.path("again/model").join(name)).unwrap();
        assert_eq!(copied, about(name));
    }
}

/// A, which LoRA-FA never trains, and dropout.
#[test]
fn the_seed_is_that_of_all_that_is_drawn() {
    let job = Job::new();
    let run = |seed: u64, model: &str, flags: &str| {
        let save = format!("{seed}-{}", &model[..12]);
        let flags = format!("--seed {seed} --no-shuffle --save {save} {flags}");
        done(&job, &train(model, "text.jsonl", &flags));
        let adapter = job.path(&save).join("adapter/adapter_model.safetensors");
        (fs::read(adapter).unwrap(), losses(&job, &save))
    };
    // The rate is zero: what differs was drawn.
    let drawn = |seed| run(seed, PLAIN, "--rank 4 --warmup 9 --max-steps 1").0;
    assert!(drawn(0) != drawn(7));
    let dropped = |seed| run(seed, DROPOUT, "--max-steps 2").1;
    assert_ne!(dropped(0), dropped(7));
}

/// A rate so high that the loss rises: the first evaluation is the best.
#[test]
fn the_best_checkpoint_is_kept_and_loaded_if_asked_for() {
    let run = |flags: &str| {
        let job = Job::new();
        let flags = format!(
            "--eval-split 4 --eval-every 1 --max-steps 6 --lr 2 --schedule constant --keep 1 --keep-best {flags}"
        );
        let said = said(&job, &train(LLAMA, "text.jsonl", &flags));
        (job, said)
    };
    let (last, text) = run("");
    let lines = metrics(&last, "save");
    let evaluations: Vec<f64> = lines
        .iter()
        .filter_map(|line| line["eval_loss"].as_f64())
        .collect();
    assert_eq!(evaluations.len(), 6);
    let lowest = evaluations.iter().copied().fold(f64::INFINITY, f64::min);
    let best = 1 + evaluations.iter().position(|loss| *loss == lowest).unwrap();
    assert!(best < 6, "{evaluations:?}");
    assert!(text.contains(&format!("at update {best}")), "{text}");
    let adapter = "adapter_model.safetensors";
    let read =
        |job: &Job, folder: &str| fs::read(job.path("save").join(folder).join(adapter)).unwrap();
    let of_best = format!("checkpoint-{best}");
    let mut kept = fs::read_dir(last.path("save"))
        .unwrap()
        .map(|e| e.unwrap().file_name());
    assert_eq!(
        kept.by_ref()
            .filter(|name| name.to_str().unwrap().starts_with("checkpoint-"))
            .count(),
        2
    );
    assert!(read(&last, "adapter") == read(&last, "checkpoint-6"));
    let (loaded, _) = run("--load-best-at-end");
    assert!(read(&loaded, "adapter") == read(&loaded, &of_best));
    assert!(read(&loaded, "adapter") != read(&loaded, "checkpoint-6"));

    let (patient, _) = run("--patience 2");
    let steps = metrics(&patient, "save")
        .iter()
        .filter(|line| line.get("eval_loss").is_some())
        .count();
    let mut since = 0;
    let mut least = f64::INFINITY;
    let expected = evaluations.iter().position(|loss| {
        since = if *loss < least { 0 } else { since + 1 };
        least = least.min(*loss);
        since == 2
    });
    assert_eq!(steps, expected.map_or(6, |at| at + 1));
    assert!(steps < 6, "{evaluations:?}");
    assert!(patient.path("save/adapter").exists());
}
