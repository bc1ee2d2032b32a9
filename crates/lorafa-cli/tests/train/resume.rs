//! A run that was stopped goes on as if it had not been.

use crate::common::Job;
use crate::*;
use lorafa_weights::peft;
use lorafa_weights::shards::Shards;
use rustix::pipe::fcntl_setpipe_size;
use rustix::process::{Pid, Signal, kill_process};
use std::io::{self, BufRead, BufReader, PipeReader, Read};
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

/// Dropout, shuffling, accumulation over the ends of passes of six updates, a schedule that depends on the update.
const RUN: &str = "--accumulate 2 --seed 3 --clip 1 --lr 1e-2 --schedule cosine --warmup 5";

/// More lines than a stopped reader lets the command write.
const LONG: &str = "--epochs 50 --max-steps 300";

/// A command under way that comes no further than a pipe of a page lets it, if nobody reads what it says.
struct Running {
    child: Child,
    said: BufReader<PipeReader>,
}

impl Running {
    fn start(job: &Job, args: &[String]) -> Self {
        let (reader, writer) = io::pipe().unwrap();
        fcntl_setpipe_size(&reader, 4096).unwrap();
        let mut command = command(job, args);
        let child = command
            .stdout(Stdio::null())
            .stderr(writer)
            .spawn()
            .unwrap();
        Running {
            child,
            said: BufReader::with_capacity(64, reader),
        }
    }

    /// Reads what the command says up to a line that begins like this; false if it ends before.
    fn read_to(&mut self, start: &str) -> bool {
        let mut line = String::new();
        while self.said.read_line(&mut line).unwrap() > 0 {
            if line.starts_with(start) {
                return true;
            }
            line.clear();
        }
        false
    }

    fn send(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Its exit status, none if a signal ended it, and the rest of what it says.
    fn end(mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        self.said.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap().code(), rest)
    }
}

/// Checkpoints in a folder, every one of which must be whole.
fn checkpoints(job: &Job, save: &str) -> Vec<u64> {
    let Ok(entries) = fs::read_dir(job.path(save)) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for path in entries.map(|entry| entry.unwrap().path()) {
        let name = path.file_name().unwrap().to_str().unwrap();
        let Some(updates) = name.strip_prefix("checkpoint-") else {
            continue;
        };
        let updates: u64 = updates.parse().unwrap();
        let state = fs::read(path.join("state.json")).unwrap();
        let state: Value = serde_json::from_slice(&state).unwrap();
        assert_eq!(state["progress"]["updates"], updates);
        for file in ["trained.safetensors", "optimizer.safetensors"] {
            assert!(Shards::open(path.join(file)).unwrap().iter().count() > 0);
        }
        peft::read(&path).unwrap();
        found.push(updates);
    }
    found.sort_unstable();
    found
}

/// Two runs must have come to the same, in every byte.
fn same(job: &Job, a: &str, b: &str, updates: u64) {
    assert_eq!(losses(job, a).len() as u64, updates);
    assert_eq!(losses(job, a), losses(job, b));
    for file in [
        format!("checkpoint-{updates}/trained.safetensors"),
        format!("checkpoint-{updates}/optimizer.safetensors"),
        format!("checkpoint-{updates}/state.json"),
        "adapter/adapter_model.safetensors".to_owned(),
    ] {
        let read = |save: &str| fs::read(job.path(save).join(&file)).unwrap();
        assert!(read(a) == read(b), "{file}");
    }
}

/// Interrupts a run after some updates, goes on, and compares with a run that was not.
fn goes_on_after_an_interrupt(model: &str, on: &str, flags: &str) {
    let job = Job::new();
    done(
        &job,
        &train(model, on, &format!("{flags} {LONG} --save straight")),
    );
    let args = train(model, on, &format!("{flags} {LONG}"));
    let mut running = Running::start(&job, &args);
    assert!(running.read_to("update 8/"));
    running.send(Signal::INT);
    let (status, said) = running.end();
    assert_eq!(status, Some(130), "{said}");
    assert!(said.contains("--resume"), "{said}");
    let at = checkpoints(&job, "save");
    assert!(at.len() == 1 && (8..300).contains(&at[0]), "{at:?}");
    assert!(!job.path("save/adapter").exists());
    let resumed = done(&job, &[&args[..], &["--resume".to_owned()]].concat());
    let said = String::from_utf8(resumed.stdout).unwrap();
    assert!(said.contains(&format!("update {}\n", at[0])), "{said}");
    same(&job, "straight", "save", 300);
}

#[test]
fn an_interrupted_run_with_dropout_goes_on_bit_for_bit() {
    goes_on_after_an_interrupt(DROPOUT, "text.jsonl", RUN);
}

#[test]
fn an_interrupted_run_with_pefts_optimizer_in_bf16_goes_on_bit_for_bit() {
    let flags = "--rank 4 --dtype bf16 --optimizer lorafa --pack --lr 1e-2";
    goes_on_after_an_interrupt(PLAIN, "text.jsonl", flags);
}

/// `train … 2>&1 | tee log` and Ctrl-C, which ends `tee`, too.
#[test]
fn a_run_that_nobody_listens_to_any_more_saves_all_the_same() {
    let job = Job::new();
    let args = train(LLAMA, "text.jsonl", LONG);
    let mut running = Running::start(&job, &args);
    assert!(running.read_to("update 8/"));
    running.send(Signal::INT);
    let Running { mut child, said } = running;
    drop(said);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(checkpoints(&job, "save").len(), 1);
    done(&job, &[&args[..], &["--resume".to_owned()]].concat());
    assert_eq!(losses(&job, "save").len(), 300);
}

/// A checkpoint is written before it is evaluated: a run that ends in between evaluates when it goes on.
#[test]
fn the_last_evaluation_is_not_lost() {
    let job = Job::new();
    let flags = "--eval-split 4 --eval-every 2 --max-steps 4 --lr 1e-2";
    let args = train(LLAMA, "text.jsonl", flags);
    done(&job, &args);
    let read = |file: &str| fs::read(job.path("save").join(file)).unwrap();
    let (log, state) = (metrics(&job, "save"), read("checkpoint-4/state.json"));
    let mut before: Value = serde_json::from_slice(&state).unwrap();
    assert_eq!(before["progress"]["evaluated"], 4);
    before["progress"]["evaluated"] = 2.into();
    before["progress"]["best"] = Value::Null;
    fs::write(job.path("save/checkpoint-4/state.json"), before.to_string()).unwrap();
    let resume = [&args[..], &["--resume".to_owned()]].concat();
    done(&job, &resume);
    assert_eq!(metrics(&job, "save"), log);
    let after: Value = serde_json::from_slice(&read("checkpoint-4/state.json")).unwrap();
    assert_eq!(after["progress"]["evaluated"], 4);
    assert_eq!(after["progress"]["best"]["updates"], 4);
    // And once more: nothing is left to do.
    done(&job, &resume);
    assert_eq!(metrics(&job, "save"), log);
}

/// Micro-batches enough for hours, so that no update is ever finished.
#[test]
fn a_signal_ends_an_update_between_its_micro_batches() {
    let job = Job::new();
    let text = fs::read_to_string(data("text.jsonl")).unwrap();
    fs::write(job.path("long.jsonl"), text.repeat(2000)).unwrap();
    let flags = "--data long.jsonl --batch 1 --accumulate 48000 --seed 3 --save-every 1";
    let args = train(DROPOUT, "", flags);
    let mut running = Running::start(&job, &args);
    // The log is opened before the first step, and signals are caught from then on.
    while !job.path("save/metrics.jsonl").exists() {
        assert!(running.child.try_wait().unwrap().is_none());
        thread::sleep(Duration::from_millis(10));
    }
    thread::sleep(Duration::from_millis(500));
    running.send(Signal::TERM);
    assert!(running.read_to("saving the updates that are done"));
    let (status, said) = running.end();
    assert_eq!(status, Some(130), "{said}");
    assert_eq!(checkpoints(&job, "save"), [0]);
    let state = fs::read(job.path("save/checkpoint-0/state.json")).unwrap();
    let state: Value = serde_json::from_slice(&state).unwrap();
    let progress = &state["progress"];
    assert_eq!(
        (&progress["steps"], &progress["tokens"]),
        (&0.into(), &0.into())
    );
    assert_eq!(
        progress["position"],
        serde_json::json!({"epoch": 0, "batch": 0})
    );
    assert!(!job.path("save/adapter").exists());
}

#[test]
fn a_schedule_that_differs_is_said() {
    let job = Job::new();
    let run = |flags: &str| {
        let output = done(&job, &train(LLAMA, "text.jsonl", flags));
        String::from_utf8(output.stdout).unwrap()
    };
    run("--max-steps 2 --lr 1e-2");
    let same = run("--max-steps 2 --lr 1e-2 --resume");
    assert!(!same.contains("differs"), "{same}");
    let other = run("--max-steps 4 --lr 1 --schedule cosine --warmup 3 --resume");
    for part in [
        "the schedule differs",
        "--lr was 0.01 and is 1",
        "--schedule was linear and is cosine",
        "--warmup was 0 and is 3",
        "updates was 2 and is 4",
    ] {
        assert!(other.contains(part), "no `{part}` in {other}");
    }
    assert_eq!(losses(&job, "save").len(), 4);
}

/// What a restart script wants: one command, whether there is something to go on from or not.
#[test]
fn resume_auto_begins_or_goes_on() {
    let job = Job::new();
    let run = |steps: u64| {
        let flags = format!("--schedule constant --max-steps {steps} --resume=auto");
        let output = done(&job, &train(LLAMA, "text.jsonl", &flags));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(!run(2).contains("going on from"));
    assert!(run(4).contains("going on from save/checkpoint-2"));
    assert_eq!(losses(&job, "save").len(), 4);
}

#[test]
fn a_run_killed_again_and_again_goes_on_bit_for_bit() {
    let job = Job::new();
    let flags = format!("{RUN} --epochs 5 --save-every 1 --keep 1");
    done(
        &job,
        &train(DROPOUT, "text.jsonl", &format!("{flags} --save straight")),
    );
    let args = train(DROPOUT, "text.jsonl", &flags);
    let resume = |found: &[u64]| match found {
        [] => args.clone(),
        _ => [&args[..], &["--resume".to_owned()]].concat(),
    };
    let mut found = Vec::new();
    for i in 0..10 {
        let mut running = Running::start(&job, &resume(&found));
        running.read_to("update ");
        // Wherever in a save that is.
        thread::sleep(Duration::from_micros(i * 7919 % 6000));
        running.send(Signal::KILL);
        running.end();
        let before = found.last().copied().unwrap_or(0);
        found = checkpoints(&job, "save");
        assert!(
            found.last().copied().unwrap_or(0) >= before,
            "{before} and {found:?}"
        );
    }
    done(&job, &resume(&found));
    same(&job, "straight", "save", 30);
    let left: Vec<_> = fs::read_dir(job.path("save"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    let temporary = left
        .iter()
        .find(|name| name.to_str().unwrap().starts_with('.'));
    assert_eq!(temporary, None);
}

#[test]
fn a_folder_that_was_being_removed_is_no_checkpoint_and_in_nobodys_way() {
    let job = Job::new();
    let flags = "--lr 1e-2 --save-every 1 --keep 1";
    done(
        &job,
        &train(LLAMA, "text.jsonl", &format!("{flags} --max-steps 2")),
    );
    for left in [".removed-checkpoint", ".lorafa-12345-0.tmp"] {
        fs::create_dir(job.path("save").join(left)).unwrap();
        fs::write(
            job.path("save").join(left).join("trained.safetensors"),
            "half",
        )
        .unwrap();
    }
    fs::write(job.path("save/.lorafa-12345-1.tmp"), "half").unwrap();
    done(
        &job,
        &train(
            LLAMA,
            "text.jsonl",
            &format!("{flags} --max-steps 4 --resume"),
        ),
    );
    assert_eq!(checkpoints(&job, "save"), [4]);
    let mut left: Vec<_> = fs::read_dir(job.path("save"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["adapter", "checkpoint-4", "metrics.jsonl"]);
}
