//! What the README shows is what the program prints.

mod common;

use common::{Job, copy_example};

/// The first command in the README that compiles an example, and the block that follows it.
#[test]
fn the_report_in_the_readme_is_the_report() {
    let readme = include_str!("../../../README.md");
    let (_, rest) = readme
        .split_once("    cargo run --release -p lorafa-cli -- examples/")
        .expect("a command");
    let (command, rest) = rest.split_once('\n').expect("more than a command");
    let (_, rest) = rest.split_once("```text\n").expect("a block");
    let (block, _) = rest.split_once("```").expect("the end of the block");

    let job = Job::new();
    let mut words = command.split_whitespace();
    let model = words.next().expect("a model");
    copy_example(&job, model, model);
    let args: Vec<&str> = [model].into_iter().chain(words).collect();
    assert_eq!(job.done(&args), block);
}
