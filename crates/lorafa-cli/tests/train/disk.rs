//! A disk that takes no more.

use crate::common::Job;
use crate::*;

/// Runs the command where no file may be larger than 4 KiB (8 KiB in shells that count in KiB): less than a checkpoint's.
fn limited(job: &Job, args: &[String]) -> (Option<i32>, String) {
    let program = env!("CARGO_BIN_EXE_lorafa-opt");
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "ulimit -f 8 && exec \"$0\" \"$@\"", program])
        .args(args);
    let output = shell.current_dir(job.path("")).output().unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn a_checkpoint_that_cannot_be_written_leaves_the_one_before() {
    let job = Job::new();
    let run = |flags: &str| train(LLAMA, "text.jsonl", &format!("--schedule constant {flags}"));
    done(&job, &run("--max-steps 8 --save straight"));
    done(&job, &run("--max-steps 4"));
    let checkpoint = |job: &Job| {
        let mut files = job.files();
        files.retain(|path, _| path.starts_with(job.path("save")));
        files.retain(|path, _| !path.ends_with("metrics.jsonl"));
        files
    };
    let before = checkpoint(&job);
    let rest = run("--max-steps 8 --resume");
    let (status, error) = limited(&job, &rest);
    assert_eq!(status, Some(2), "{error}");
    assert!(
        error.contains("checkpoint-8") && error.contains("too large"),
        "{error}"
    );
    assert_eq!(checkpoint(&job), before);
    done(&job, &rest);
    assert_eq!(losses(&job, "save"), losses(&job, "straight"));
}
