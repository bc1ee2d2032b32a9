//! Which values share bytes: views, copies, updates; and the graphs that have no plan.

mod common;

use std::path::{Path, PathBuf};

use common::{graph, planned};
use lorafa_plan::{Category, PlanDisplay, PlanError, StorageKind, plan};

#[test]
fn views_alias_their_source() {
    let p = planned(
        "param %x : f32[4,6] input
         v0 = neg %x : f32[4,6]
         v1 = reshape v0 {shape=[2,2,6]} : f32[2,2,6]
         v2 = transpose v1 {perm=[2,0,1]} : f32[6,2,2]
         v3 = slice v0 {axes=[1:2:2:2]} : f32[4,2]
         v4 = expand v3 {shape=[3,4,2]} : f32[3,4,2]
         v5 = reduce_sum v2 {axes=[0]} : f32[2,2]
         v6 = reduce_sum v4 {axes=[0]} : f32[4,2]
         out \"a\" = v5
         out \"b\" = v6",
    );
    let storage = |name| p.plan.place(p.value(name)).map(|place| place.storage);
    for view in ["v1", "v2", "v3", "v4"] {
        assert_eq!(storage(view), storage("v0"), "{view}");
    }
    assert_eq!(p.strides("v2"), (0, vec![1, 12, 6]));
    assert_eq!(p.strides("v4"), (2, vec![0, 6, 2]));
    assert_eq!(p.start("v4"), p.start("v0") + 8);
    assert_eq!(p.plan.buffers().len(), 3);
}

#[test]
fn what_strides_cannot_say_is_a_copy() {
    let p = planned(
        "param %x : f32[4,6] input
         v0 = transpose %x {perm=[1,0]} : f32[6,4]
         v1 = reshape v0 {shape=[24]} : f32[24]
         v2 = slice %x {axes=[0:3:4:-1]} : f32[4,6]
         out \"a\" = v1
         out \"b\" = v2",
    );
    assert!(p.share("v0", "%x"));
    let kind = |name| {
        let place = p.plan.place(p.value(name)).expect("planned");
        p.plan.storages().get(place.storage).kind
    };
    assert_eq!(kind("v0"), StorageKind::Parameter);
    assert_eq!(kind("v1"), StorageKind::Transient);
    assert_eq!(kind("v2"), StorageKind::Transient);
    assert_eq!(p.strides("v1"), (0, vec![1]));
}

#[test]
fn constants_are_persistent_and_have_no_position() {
    let p = planned(
        "param %x : f32[4] input
         v0 = constant {dtype=f32, value=2.0} : f32[]
         v1 = expand v0 {shape=[4]} : f32[4]
         v2 = mul %x, v1 : f32[4]
         out \"y\" = v2",
    );
    assert_eq!(p.plan.schedule().end(), 2);
    assert!(p.share("v0", "v1"));
    assert_eq!(
        (p.start("%x"), p.start("v0"), p.start("v2")),
        (0, 512, 1024)
    );
    assert_eq!(p.plan.persistent_bytes(), 1024);
}

#[test]
fn joined_values_are_made_where_they_are_joined() {
    let p = planned(
        "param %w : f32[6,4] frozen
         param %a : f32[4,2] frozen
         v0 = transpose %a {perm=[1,0]} : f32[2,4]
         v1 = concat %w, v0 {axis=0, joined} : f32[8,4]
         v2 = neg %w : f32[6,4]
         v3 = reshape v2 {shape=[2,3,4]} : f32[2,3,4]
         v4 = matmul v3, %a : f32[2,3,2]
         v5 = concat v3, v4 {axis=2, joined} : f32[2,3,6]
         v6 = matmul v5, v5 {trans_b} : f32[2,3,3]
         v7 = matmul %w, v1 {trans_b} : f32[6,8]
         out \"y\" = v6
         out \"z\" = v7",
    );
    let storage = |name| p.plan.place(p.value(name)).expect("planned").storage;
    assert!(storage("%w") == storage("v1") && storage("%a") == storage("v1"));
    assert_eq!(p.strides("%w"), (0, vec![4, 1]));
    assert_eq!(p.strides("%a"), (24, vec![1, 4]));
    assert_eq!(p.plan.persistent_bytes(), 512);
    assert!(storage("v2") == storage("v5") && storage("v4") == storage("v5"));
    assert_eq!(p.strides("v2"), (0, vec![6, 1]));
    assert_eq!(p.strides("v3"), (0, vec![18, 6, 1]));
    assert_eq!(p.strides("v4"), (4, vec![18, 6, 1]));
    // From what makes its first part to what reads the whole.
    assert_eq!(p.plan.live_range(storage("v5")).positions, 2..7);
}

#[test]
fn what_is_made_elsewhere_cannot_be_joined() {
    for (line, joins, wrong) in [
        ("v2 = slice v0 {axes=[0:0:2:1]} : f32[2,4]", "v2", "v2"),
        (
            "v2 = concat v0, v1 {axis=0, joined} : f32[12,4]",
            "v0",
            "v0",
        ),
        ("v2 = neg v1 : f32[6,4]", "%x", "v3"),
    ] {
        let rows = if joins == "v2" { 8 } else { 12 };
        let text = format!(
            "param %x : f32[6,4] input
             v0 = neg %x : f32[6,4]
             v1 = neg %x : f32[6,4]
             {line}
             v3 = neg %x : f32[6,4]
             v4 = concat v3, {joins} {{axis=0, joined}} : f32[{rows},4]"
        );
        let error = plan(&graph(&text)).expect_err(wrong).to_string();
        let expected = format!("{wrong} cannot be made where it is joined");
        assert!(error.starts_with(&expected), "{error}");
    }
}

const STEP: &str = "param %x : f32[4,8] input
    param %w : f32[8,2] trained
    param %m : f32[8,2] optstate
    param %v : f32[8,2] optstate
    param %step : i64[] input
    param %lr : f32[] input
    v0 = matmul %x, %w : f32[4,2]
    v1 = reduce_sum v0 {axes=[0,1]} : f32[]
  backward:
    v2 = fill {dtype=f32, shape=[4,2], value=1.0} : f32[4,2]
    v3 = matmul %x, v2 {trans_a} : f32[8,2]
  update:";

#[test]
fn an_update_lies_where_its_operand_lies() {
    let p = planned(&format!(
        "{STEP}
         v4, v5, v6 = adamw %w, v3, %m, %v, %step, %lr : f32[8,2], f32[8,2], f32[8,2]
         out \"loss\" = v1 loss
         out \"w\" = v4 updated %w
         out \"m\" = v5 updated %m
         out \"v\" = v6 updated %v"
    ));
    assert!(p.share("v4", "%w") && p.share("v5", "%m") && p.share("v6", "%v"));
    // Read by the update and nothing else: a gradient even without an output of its own.
    let gradient = p.plan.place(p.value("v3")).expect("planned").storage;
    assert_eq!(p.plan.category(gradient), Category::Gradients);
}

fn refused(update: &str) -> String {
    let error = plan(&graph(&format!("{STEP}\n{update}"))).expect_err("the update is wrong");
    error.to_string()
}

#[test]
fn what_is_overwritten_is_not_read_again() {
    let message = refused(
        "v4, v5, v6 = adamw %w, v3, %m, %v, %step, %lr : f32[8,2], f32[8,2], f32[8,2]
         v7 = neg %m : f32[8,2]",
    );
    assert_eq!(
        message,
        "%m is read after it was updated in place; read the updated value or move the reader before the update: \
         `v4, v5, v6 = adamw %w, v3, %m, %v, %step, %lr : f32[8,2], f32[8,2], f32[8,2]`, \
         then `v7 = neg %m : f32[8,2]`"
    );
    let message = refused(
        "v4 = reshape %w {shape=[16]} : f32[16]
         v5, v6, v7 = adamw %w, v3, %m, %v, %step, %lr : f32[8,2], f32[8,2], f32[8,2]
         out \"old\" = v4",
    );
    assert!(message.starts_with("v4 is read after") && message.ends_with("`out \"old\"`"));
}

#[test]
fn what_an_update_overwrites_it_reads_once() {
    let message =
        refused("v4, v5, v6 = adamw %w, v3, %m, %m, %step, %lr : f32[8,2], f32[8,2], f32[8,2]");
    assert!(message.starts_with("%m is updated in place but operand 3 lies in the same bytes"));
    let message = refused(
        "v4 = expand %lr {shape=[8,2]} : f32[8,2]
         v5, v6, v7 = adamw %w, v3, v4, %v, %step, %lr : f32[8,2], f32[8,2], f32[8,2]",
    );
    assert!(message.starts_with("v4 is updated in place but operand 5 lies in the same bytes"));
    let message = refused(
        "v4 = fill {dtype=f32, shape=[], value=1.0} : f32[]
         v5 = expand v4 {shape=[8,2]} : f32[8,2]
         v6, v7, v8 = adamw %w, v3, v5, %v, %step, %lr : f32[8,2], f32[8,2], f32[8,2]",
    );
    assert!(message.starts_with("v5 is updated in place but repeats elements"));
}

#[test]
fn a_symbolic_size_names_the_value() {
    let error = plan(&graph("param %x : f32[batch,4] input")).expect_err("batch is not bound");
    assert_eq!(
        error.to_string(),
        "%x : f32[batch,4] has a symbolic size; bind its dimensions first: `param %x : f32[batch,4] input`"
    );
}

#[test]
fn an_arena_beyond_what_libtorch_addresses_is_refused() {
    let params = |count| -> String {
        (0..count)
            .map(|n| format!("param %w{n} : f64[72057594037927936] frozen\n"))
            .collect()
    };
    assert!(plan(&graph(&params(15))).is_ok());
    assert_eq!(
        plan(&graph(&params(16))).expect_err("2^63 bytes"),
        PlanError::TooManyBytes
    );
}

#[test]
fn an_empty_graph_has_an_empty_plan() {
    let p = planned("");
    assert_eq!(p.plan.arena_bytes(), 0);
    assert_eq!(p.plan.report(&p.graph, 7).peak_bytes, 7);
}

/// Every fixture of the project, whatever it is for.
fn fixtures(folder: &Path, found: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(folder).expect("the fixtures are there");
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.expect("readable").path())
        .collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            fixtures(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "lir") {
            found.push(path);
        }
    }
}

#[test]
fn every_graph_that_verifies_has_a_plan_or_an_error() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures");
    let mut paths = Vec::new();
    fixtures(Path::new(root), &mut paths);
    let (mut plans, mut errors) = (0, 0);
    for path in paths {
        let text = std::fs::read_to_string(&path).expect("a fixture is text");
        let Ok(graph) = lorafa_ir::text::parse(&text) else {
            continue;
        };
        if graph.verify().is_err() {
            continue;
        }
        match plan(&graph) {
            Ok(plan) => {
                plans += 1;
                let report = plan.report(&graph, 1);
                assert_eq!(report.breakdown.total(), report.peak_bytes, "{path:?}");
                assert!(!PlanDisplay(&graph, &plan).to_string().is_empty());
            }
            Err(error) => {
                errors += 1;
                assert!(
                    matches!(
                        error,
                        PlanError::Symbolic { .. } | PlanError::ReadAfterUpdate { .. }
                    ),
                    "{path:?}: {error}"
                );
            }
        }
    }
    assert!(plans > 5 && errors > 0, "{plans} plans, {errors} errors");
}

#[test]
fn views_of_views_are_followed_however_many_there_are() {
    let mut lines = String::from(
        "param %x : f32[4,4] input
         param %w : f32[4,8] input
         v0 = matmul %x, %w : f32[4,8]
         v1 = slice v0 {axes=[1:0:6:1]} : f32[4,6]\n",
    );
    // In turn, so that what is read last has the first one's shape.
    for view in 2..100_002 {
        let shape = ["[6,4]", "[4,6]"][view % 2];
        let of = view - 1;
        lines += &format!("v{view} = transpose v{of} {{perm=[1,0]}} : f32{shape}\n");
    }
    lines += "v100002 = neg v100001 : f32[4,6]
         v100003 = reduce_sum v100002 {axes=[0]} : f32[6]
         out \"y\" = v100003";
    let p = planned(&lines);
    // What the views are of is not read again, so it is written over.
    assert!(p.share("v0", "v100002"));
}
