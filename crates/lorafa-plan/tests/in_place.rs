//! When an op may write over what it reads. Each refusal differs from a case that is allowed in one way.

mod common;

use common::planned;

const HEAD: &str = "param %x : f32[4,6] input
    param %y : f32[4,6] input
    param %row : f32[6] input
    v0 = matmul %x, %y {trans_b} : f32[4,4]
    v1 = matmul v0, %y : f32[4,6]";

/// Whether the last of these lines takes over the buffer of v1.
fn taken(lines: &str) -> bool {
    let p = planned(&format!("{HEAD}\n{lines}"));
    let last = lines
        .lines()
        .filter_map(|line| line.trim().strip_prefix('v'))
        .filter_map(|line| line.split([',', ' ']).next())
        .next_back()
        .expect("a line defines a value");
    p.share("v1", &format!("v{last}"))
}

#[test]
fn a_chain_is_one_buffer() {
    let p = planned(&format!(
        "{HEAD}
         v2 = add v1, %row : f32[4,6]
         v3 = relu v2 : f32[4,6]
         v4 = mul %x, v3 : f32[4,6]
         v5 = neg v4 : f32[4,6]
         out \"y\" = v5"
    ));
    assert_eq!(
        p.text(),
        "arena 2560 B: 1536 B persistent, 1024 B reused, at least 1024 B at 1\n\
         %x 96 B @0x000 temporaries\n\
         %y 96 B @0x200 temporaries\n\
         %row 24 B @0x400 temporaries\n\
         v0 [0,2) 64 B @0x800 temporaries\n\
         v1 > v2 > v3 > v4 > v5 [1,6) 96 B @0x600 temporaries\n"
    );
}

#[test]
fn an_elementwise_op_may_read_its_operand_twice() {
    assert!(taken("v2 = mul v1, v1 : f32[4,6]"));
    assert!(taken(
        "v2 = reshape v1 {shape=[4,6]} : f32[4,6]
         v3 = mul v1, v2 : f32[4,6]"
    ));
}

#[test]
fn refused_if_the_other_operand_is_read_through_another_layout() {
    assert!(!taken(
        "v2 = reshape v1 {shape=[6,4]} : f32[6,4]
         v3 = transpose v2 {perm=[1,0]} : f32[4,6]
         v4 = mul v1, v3 : f32[4,6]"
    ));
    assert!(!taken(
        "v2 = slice v1 {axes=[0:1:1:1]} : f32[1,6]
         v3 = mul v1, v2 : f32[4,6]"
    ));
}

#[test]
fn refused_if_an_op_that_is_not_elementwise_reads_it_twice() {
    assert!(taken("v2 = softmax_grad v1, %x {axis=1} : f32[4,6]"));
    assert!(!taken("v2 = softmax_grad v1, v1 {axis=1} : f32[4,6]"));
}

#[test]
fn refused_if_the_operand_is_read_later() {
    let line = "v2 = relu v1 : f32[4,6]";
    assert!(taken(line));
    let p = planned(&format!(
        "{HEAD}
         {line}
         v3 = matmul v2, v1 {{trans_b}} : f32[4,4]"
    ));
    assert!(!p.share("v1", "v2"));
    // Later, and through a view that was made before.
    let p = planned(&format!(
        "{HEAD}
         v2 = transpose v1 {{perm=[1,0]}} : f32[6,4]
         v3 = relu v1 : f32[4,6]
         v4 = matmul v3, v2 : f32[4,4]"
    ));
    assert!(!p.share("v1", "v3"));
}

#[test]
fn refused_if_the_backward_pass_reads_it() {
    let p = planned(&format!(
        "{HEAD}
         v2 = exp v1 : f32[4,6]
         v3 = sin v2 : f32[4,6]
         backward:
         v4 = cos v2 : f32[4,6]
         v5 = neg v1 : f32[4,6]"
    ));
    assert!(!p.share("v1", "v2") && !p.share("v2", "v3"));
    assert!(p.share("v2", "v4") && p.share("v1", "v5"));
}

#[test]
fn refused_if_the_operand_is_an_output() {
    assert!(!taken(
        "out \"y\" = v1
         v2 = relu v1 : f32[4,6]"
    ));
    assert!(!taken(
        "v2 = slice v1 {axes=[0:0:1:1]} : f32[1,6]
         out \"y\" = v2
         v3 = relu v1 : f32[4,6]"
    ));
}

#[test]
fn refused_for_a_parameter_or_constant() {
    let p = planned(&format!(
        "{HEAD}
         v2 = constant {{dtype=f32, shape=[2], value=[1.0,2.0]}} : f32[2]
         v3 = relu %row : f32[6]
         v4 = relu v2 : f32[2]"
    ));
    assert!(!p.share("%row", "v3") && !p.share("v2", "v4"));
}

#[test]
fn refused_if_the_operand_is_broadcast() {
    let p = planned(
        "param %x : f32[4,6] input
         v0 = reduce_sum %x {axes=[0]} : f32[6]
         v1 = add %x, v0 : f32[4,6]
         v2 = reduce_sum v1 {axes=[0,1]} : f32[]
         v3 = expand v2 {shape=[1]} : f32[1]
         v4 = neg v3 : f32[1]",
    );
    assert!(!p.share("v0", "v1"));
    assert!(p.share("v2", "v4"), "repeating once is not repeating");
    // As many bytes, but six elements are compared with 24.
    let p = planned(
        "param %x : f32[4,6] input
         v0 = reduce_sum %x {axes=[0]} : f32[6]
         v1 = lt %x, v0 : bool[4,6]",
    );
    assert!(!p.share("v0", "v1"));
}

#[test]
fn refused_if_sizes_differ() {
    assert!(taken("v2 = cast v1 {to=i32} : i32[4,6]"));
    assert!(!taken("v2 = cast v1 {to=bf16} : bf16[4,6]"));
    assert!(!taken("v2 = cast v1 {to=f64} : f64[4,6]"));
    assert!(!taken("v2 = eq v1, %x : bool[4,6]"));
}

#[test]
fn refused_if_the_operand_does_not_fill_its_storage_in_order() {
    assert!(taken(
        "v2 = reshape v1 {shape=[2,12]} : f32[2,12]
         v3 = relu v2 : f32[2,12]"
    ));
    assert!(!taken(
        "v2 = slice v1 {axes=[0:0:2:1]} : f32[2,6]
         backward:
         v3 = relu v2 : f32[2,6]
         update:
         v4 = neg v3 : f32[2,6]"
    ));
    assert!(!taken(
        "v2 = transpose v1 {perm=[1,0]} : f32[6,4]
         v3 = relu v2 : f32[6,4]"
    ));
}

#[test]
fn each_result_is_written_over_the_operand_that_is_its_own() {
    let gradients = "v2 = mul v1, %x : f32[4,6]
         v3 = mul v1, %y : f32[4,6]
         v4, v5 = gated_grad v1, v2, v3 {act=silu} : f32[4,6], f32[4,6]";
    let p = planned(&format!("{HEAD}\n{gradients}\nv6 = add v4, v5 : f32[4,6]"));
    assert!(p.share("v3", "v4") && p.share("v2", "v5") && !p.share("v1", "v4"));
    // The gate is read once more.
    let p = planned(&format!("{HEAD}\n{gradients}\nv6 = add v2, v5 : f32[4,6]"));
    assert!(p.share("v3", "v4") && !p.share("v2", "v5"));
}

#[test]
fn results_that_no_operand_makes_room_for_have_buffers() {
    let p = planned(&format!(
        "{HEAD}
         v2, v3 = dropout v1 {{ratio=0.5, seed=1}} : f32[4,6], bool[4,6]
         v4, v5, v6 = layer_norm v2, %row {{axis=1, eps=1e-5}} : f32[4,6], f32[4,1], f32[4,1]
         out \"y\" = v4"
    ));
    assert!(p.share("v1", "v2") && p.share("v2", "v4"));
    let buffers: Vec<_> = ["v3", "v4", "v5", "v6"].map(|name| p.start(name)).to_vec();
    assert!(buffers[1] != buffers[2] && buffers[2] != buffers[3] && buffers[1] != buffers[3]);
    // Of v0, of v1 and what is written over it, of three more results, and the scratch of two ops.
    assert_eq!(p.plan.buffers().len(), 7);
}

#[test]
fn an_op_does_not_write_over_what_its_kind_forbids() {
    assert!(!taken(
        "v2 = reduce_max v1 {axes=[0], keep_dims} : f32[1,6]"
    ));
    assert!(!taken("v2 = cumsum v1 {axis=0} : f32[4,6]"));
}

/// The storage of v2 is that of v1, of which it is a part; whether v4 is written over it.
fn over_part(lines: &str) -> bool {
    let head = "param %x : f32[4,6] input
        param %b : f32[2,4] input
        v0 = neg %x : f32[4,6]
        v3 = slice v0 {axes=[1:4:2:1]} : f32[4,2]";
    let whole = "v2 = slice v0 {axes=[1:0:4:1]} : f32[4,4]";
    let whole = if lines.contains("v2 = ") { "" } else { whole };
    let p = planned(&format!("{head}\n{whole}\n{lines}"));
    p.share("v4", "v2") && p.strides("v4") == p.strides("v2")
}

#[test]
fn part_of_a_storage_is_written_over_if_the_rest_is_needed_as_long() {
    let product = "v4 = matmul v3, %b, v2 : f32[4,4]";
    // Both are soon gone, and v4 is most of it.
    assert!(over_part(&format!("{product}\nv5 = neg v4 : f32[4,4]")));
    for late in ["backward:\n".into(), others(80)] {
        let late = format!("{product}\n{late}v6 = neg v4 : f32[4,4]");
        assert!(!over_part(&late));
        assert!(over_part(&format!("{late}\nv7 = neg v3 : f32[4,2]")));
    }
    // Too little of it.
    assert!(!over_part(
        "v2 = slice v0 {axes=[1:5:1:1]} : f32[4,1]\nv4 = relu v2 : f32[4,1]\nv5 = neg v4 : f32[4,1]"
    ));
}

/// So many ops.
fn others(count: usize) -> String {
    let lines = (10..10 + count).map(|n| format!("v{n} = neg %x : f32[4,6]\n"));
    lines.collect()
}

#[test]
fn part_of_a_storage_is_not_written_over_if_its_elements_are_read_again() {
    let product = "v4 = matmul v3, %b, v2 : f32[4,4]";
    for again in [
        "v5 = neg v2 : f32[4,4]",
        "v5 = neg v0 : f32[4,6]",
        "v5 = slice v0 {axes=[1:3:2:1]} : f32[4,2]",
        "v5 = transpose v0 {perm=[1,0]} : f32[6,4]",
        "out \"y\" = v2",
    ] {
        assert!(!over_part(&format!("{product}\n{again}")), "{again}");
    }
    assert!(over_part(&format!(
        "{product}\nv5 = slice v0 {{axes=[1:4:1:1]}} : f32[4,1]\nv6 = neg v5 : f32[4,1]"
    )));
    // An operand that reaches into it.
    assert!(!over_part(
        "v5 = slice v0 {axes=[1:3:2:1]} : f32[4,2]\nv4 = matmul v5, %b, v2 : f32[4,4]"
    ));
}
