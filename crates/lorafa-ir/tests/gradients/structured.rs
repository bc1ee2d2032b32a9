//! For every other op, cases of its gradient or the reason why it has none.

use crate::elementwise::Coverage::{self, Cases, Elsewhere, Refuses};
use crate::elementwise::{LAST, SECOND_ORDER};

/// Two dimensions each, then batches that agree, broadcast, or are on one side only.
const MATMUL: Coverage = Cases(&[
    "f64[3,4], f64[4,2]",
    "f64[4,3], f64[4,2] {trans_a}",
    "f64[3,4], f64[2,4] {trans_b}",
    "f64[4,3], f64[2,4] {trans_a, trans_b}",
    "f64[2,3,4], f64[2,4,5]",
    "f64[2,4,3], f64[2,4,5] {trans_a}",
    "f64[2,3,4], f64[2,5,4] {trans_b}",
    "f64[2,4,3], f64[2,5,4] {trans_a, trans_b}",
    "f64[2,1,3,4], f64[3,4,2]",
    "f64[2,1,4,3], f64[3,2,4] {trans_a, trans_b}",
    "f64[1,3,4], f64[2,4,5]",
    "f64[2,3,4], f64[1,4,5] {}",
    "f64[2,3,4], f64[4,5]",
    "f64[2,4,3], f64[4,5] {trans_a}",
    "f64[2,3,4], f64[5,4] {trans_b}",
    "f64[2,4,3], f64[5,4] {trans_a, trans_b}",
    "f64[3,4], f64[4,2], f64[3,2] {alpha=-0.5}",
    "f64[2,3,4], f64[5,4], f64[2,3,5] {trans_b, alpha=2.0}",
    "~f64[3,4], f64[4,2], ~f64[3,2] {alpha=3.0}",
    "f64[2,2,3,4], f64[4,5]",
    "f64[3,4], f64[2,4,5]",
    "f64[4,3], f64[2,4,5] {trans_a}",
    "f64[3,4], f64[2,5,4] {trans_b}",
    "f64[4,3], f64[2,5,4] {trans_a, trans_b}",
    "f64[2,3,4], ~f64[4,5]",
    "~f64[2,3,4], f64[4,5]",
]);

const REDUCE: Coverage = Cases(&[
    "f64[2,3] {axes=[1]}",
    "f64[2,3] {axes=[0], keep_dims}",
    "f64[2,3,4] {axes=[0,2]}",
    "f64[2,3,4] {axes=[0,2], keep_dims}",
    "f64[2,3] {axes=[0,1]}",
    "f64[2,1,3] {axes=[1]}",
    "f64[2,3] {axes=[]}",
]);

const SOFTMAX: Coverage = Cases(&[
    "f64[3,4] {axis=1}",
    "f64[3,4] {axis=0}",
    "f64[2,3,4] {axis=1}",
    "f64[5] {axis=0}",
]);

/// Ops that move, reduce, multiply, index or normalize, and the rest.
pub const STRUCTURED: &[(&str, Coverage)] = &[
    ("matmul", MATMUL),
    (
        "reshape",
        Cases(&[
            "f64[2,6] {shape=[3,4]}",
            "f64[2,3] {shape=[6]}",
            "f64[1] {shape=[]}",
            "f64[2,3] {shape=[1,2,3,1]}",
        ]),
    ),
    (
        "expand",
        Cases(&[
            "f64[3] {shape=[2,3]}",
            "f64[2,1] {shape=[2,3]}",
            "f64[1,3,1] {shape=[2,4,3,2]}",
            "f64[] {shape=[2,2]}",
            "f64[2,3] {shape=[2,3]}",
            "f64[1] {shape=[1,1]}",
        ]),
    ),
    (
        "transpose",
        Cases(&[
            "f64[2,3] {perm=[1,0]}",
            "f64[2,3,4] {perm=[2,0,1]}",
            "f64[2,3,4] {perm=[1,2,0]}",
            "f64[2,3,2,2] {perm=[0,2,1,3]}",
            "f64[] {perm=[]}",
        ]),
    ),
    (
        "slice",
        Cases(&[
            "f64[5] {axes=[0:1:3:1]}",
            "f64[4,5] {axes=[0:2:2:1,1:0:3:1]}",
            "f64[3,4,2] {axes=[1:3:1:1]}",
            "f64[3,4] {axes=[1:2:0:1]}",
        ]),
    ),
    (
        "pad",
        Cases(&[
            "f64[3] {before=[1], after=[2], value=0.5}",
            "f64[2,3] {before=[0,2], after=[1,0], value=-1.0}",
        ]),
    ),
    (
        "concat",
        Cases(&[
            "f64[2,3], f64[4,3] {axis=0}",
            "f64[2,3], f64[2,1], f64[2,2] {axis=1}",
            "f64[2,1,2], ~f64[2,3,2], f64[2,2,2] {axis=1}",
            "f64[3] {axis=0}",
        ]),
    ),
    ("reduce_sum", REDUCE),
    ("reduce_mean", REDUCE),
    ("reduce_max", REDUCE),
    (
        "cumsum",
        Cases(&[
            "f64[4] {axis=0}",
            "f64[3,4] {axis=1, exclusive}",
            "f64[3,4] {axis=0, reverse}",
            "f64[2,3,2] {axis=1, exclusive, reverse}",
        ]),
    ),
    (
        "gather",
        Cases(&[
            "f64[4,3], i64[2]=(3,1) {axis=0}",
            "f64[4,3], i64[2,3]=(3,1,1,0,-1,3) {axis=0}",
            "f64[4,3], i64[]=(2) {axis=0}",
            "f64[2,4], i64[3]=(0,3,3) {axis=1}",
            "f64[2,4,3], i64[2,2]=(0,3,3,-2) {axis=1}",
            "f64[2,3,4], i64[2,1]=(1,2) {axis=2}",
            "f64[2,4,3], i32[]=(1) {axis=1}",
        ]),
    ),
    (
        "gather_grad",
        Refuses(SECOND_ORDER, "i64[2]=(0,1), f64[2,3] {shape=[4,3]}"),
    ),
    (
        "gather_elements",
        Cases(&[
            "f64[3,4], i64[3,2]=(0,3,1,1,-1,2) {axis=1}",
            "f64[3,4], i64[2,3]=(0,2,1,0,0,2) {axis=0}",
        ]),
    ),
    (
        "gather_nd",
        Cases(&[
            "f64[3,4], i64[2,1]=(2,0)",
            "f64[3,4], i64[3,2]=(2,0,1,3,1,3)",
            "f64[2,3,2], i64[2,2,2]=(0,1,1,2,1,0,0,1)",
            "f64[2,3,2], i64[2,2]=(0,1,-1,2)",
        ]),
    ),
    (
        "scatter_elements",
        Cases(&[
            "f64[3,4], i64[3,2]=(0,3,1,2,2,0), f64[3,2] {axis=1}",
            "f64[3,4], i64[3,2]=(0,3,1,1,2,0), f64[3,2] {add, axis=1}",
            "f64[3,2], i64[2,2]=(0,2,2,1), f64[2,2] {axis=0}",
            "f64[3,2], i64[2,2]=(0,-1,0,1), f64[2,2] {add, axis=0}",
        ]),
    ),
    (
        "scatter_nd",
        Cases(&[
            "f64[4,3], i64[2,1]=(2,0), f64[2,3]",
            "f64[4,3], i64[2,1]=(2,2), f64[2,3] {add}",
            "f64[4,3], i64[3,2]=(2,0,1,1,3,2), f64[3]",
            "f64[2,3,2], i64[2,1,2]=(1,2,0,-1), f64[2,1,2] {add}",
        ]),
    ),
    ("softmax", SOFTMAX),
    ("log_softmax", SOFTMAX),
    (
        "softmax_grad",
        Refuses(SECOND_ORDER, "f64[2,3], f64[2,3] {axis=1}"),
    ),
    (
        "log_softmax_grad",
        Refuses(SECOND_ORDER, "f64[2,3], f64[2,3] {axis=1}"),
    ),
    (
        "attention",
        Cases(&[
            "f64[2,2,3,4], f64[2,2,5,4], f64[2,2,5,3] {scale=0.5}",
            "f64[1,2,4,3], f64[1,2,4,3], f64[1,2,4,3] {scale=0.5, causal}",
            "f64[1,1,5,2], f64[1,1,3,2], f64[1,1,3,2] {scale=-2.0, causal}",
            "f64[1,1,5,2], f64[1,1,5,2], f64[1,1,5,2] {scale=0.7, causal, window=2}",
            // Queries beyond all keys see nothing.
            "f64[1,1,5,2], f64[1,1,3,2], f64[1,1,3,2] {scale=0.7, causal, window=1}",
            "f64[2,6,3,2], f64[2,2,3,2], f64[2,2,3,4] {scale=0.7, causal}",
            "f64[2,2,3,2], f64[2,1,4,2], f64[2,1,4,2], bool[2,1,1,4]=(1,1,0,1,0,1,1,1) {scale=0.7}",
            // A query that sees nothing.
            "f64[1,2,2,2], f64[1,2,3,2], f64[1,2,3,2], bool[2,3]=(0,0,0,1,0,1) {scale=0.7}",
            "f64[1,2,3,2], f64[1,2,3,2], f64[1,2,3,2], bool[1,1,1,3]=(0,1,1) {scale=0.7, causal}",
            "f64[2,2,3,2], f64[2,2,4,2], f64[2,2,4,2], f64[1,2,3,4] {scale=1.0}",
            "f64[2,2,3,2], f64[2,2,4,2], f64[2,2,4,2], f64[4] {scale=1.0}",
            "f64[2,4,3,2], f64[2,2,3,2], f64[2,2,3,2], f64[2,1,3,1] {scale=1.0, causal}",
            "f64[2,2,3,2], f64[2,2,4,2], f64[2,2,4,2], bool[2,1,1,4]=(1,1,0,1,1,1,1,0), f64[1,2,3,4] {scale=1.0}",
            "f64[1,2,3,2], ~f64[1,2,4,2], f64[1,2,4,2], ~f64[1,2,3,4] {scale=1.0}",
            "bf16[1,2,3,2], bf16[1,2,4,2], bf16[1,2,4,2], bf16[1,2,3,4] {scale=1.0}",
            "f64[2,4,3,2], f64[2,2,3,2], f64[2,2,3,2], f64[2,1,3,1] {scale=1.0, causal, dropout=0.3, seed=1}",
        ]),
    ),
    (
        "attention_grad",
        Refuses(
            SECOND_ORDER,
            "f64[1,3,2,2], f64[1,2,3,2], f64[1,2,4,2], f64[1,2,4,2], f64[1,3,2,2], f64[1,2,3] {scale=1.0}",
        ),
    ),
    (
        "layer_norm",
        Cases(&[
            "f64[3,4], f64[4], f64[4] {axis=1, eps=1e-5}",
            "f64[3,4], f64[4] {axis=1, eps=0.1}",
            "f64[2,3,4], f64[4], f64[4] {axis=2, eps=1e-5}",
            "f64[2,3,4], f64[3,4], f64[3,4] {axis=1, eps=1e-5}",
            "f64[2,3,4], f64[4], f64[4] {axis=1, eps=1e-5}",
            "f64[2,4], f64[1], f64[1] {axis=1, eps=1e-5}",
            "f64[2,3,4], ~f64[4], ~f64[4] {axis=2, eps=1e-5}",
            "~f64[2,3,4], f64[4], ~f64[4] {axis=2, eps=1e-5}",
            "bf16[3,4], bf16[4], bf16[4] {axis=1, eps=0.01}",
        ]),
    ),
    (
        "layer_norm_grad",
        Refuses(
            SECOND_ORDER,
            "f64[2,3], f64[2,3], f64[3], f64[2,1], f64[2,1] {axis=1}",
        ),
    ),
    (
        "rms_norm",
        Cases(&[
            "f64[3,4], f64[4] {axis=1, eps=1e-5}",
            "f64[2,3,4], f64[4] {axis=2, eps=0.1}",
            "f64[2,3,4], f64[3,4] {axis=1, eps=1e-5}",
            "f64[3,4], f64[3,4] {axis=0, eps=1e-5}",
            "f64[2,3,4], ~f64[4] {axis=2, eps=1e-5}",
            "~f64[2,3,4], f64[4] {axis=2, eps=1e-5}",
            "bf16[3,4], bf16[4] {axis=1, eps=0.01}",
        ]),
    ),
    (
        "rms_norm_grad",
        Refuses(
            SECOND_ORDER,
            "f64[2,3], f64[2,3], f64[3], f64[2,1] {axis=1}",
        ),
    ),
    (
        "gated",
        Cases(&[
            "f64[2,3], f64[2,3] {act=silu}",
            "f64[2,3], f64[2,3] {act=gelu}",
            "f64[3], f64[3] {act=gelu_tanh}",
            "f64[3], f64[3] {act=relu}",
            "f64[2,3], ~f64[2,3] {act=silu}",
            "~f64[2,3], f64[2,3] {act=silu}",
        ]),
    ),
    (
        "gated_grad",
        Refuses(SECOND_ORDER, "f64[2], f64[2], f64[2] {act=silu}"),
    ),
    (
        "rotary",
        Cases(&[
            "f64[3,4], ~f64[3,2], ~f64[3,2]",
            "f64[2,3,4,6], ~f64[1,1,4,3], ~f64[2,1,4,3] {interleaved}",
            "f64[2,3,4], f64[3,2], f64[3,2] {inverse}",
            "f64[2,3,4], f64[1,2], f64[2,1,2] {interleaved, inverse}",
            "f64[2,3,4], f64[3,2], f64[3,2]",
            "~f64[2,3,4], f64[3,2], ~f64[3,2]",
        ]),
    ),
    (
        "cross_entropy",
        Cases(&[
            "f64[3,4], i64[3]=(0,3,2)",
            "f64[4,3], i64[4]=(1,-100,0,-100)",
            "f64[4,3], i64[4]=(1,0,2,0) {ignore_index=0}",
            "f64[2,3], i32[2]=(1,1)",
        ]),
    ),
    (
        "cross_entropy_grad",
        Refuses(SECOND_ORDER, "f64[], f64[2,3], i64[2]=(0,1)"),
    ),
    (
        "linear_cross_entropy",
        Cases(&[
            "f64[3,2], f64[2,4], i64[3]=(0,3,2)",
            "f64[4,2], f64[3,2], i64[4]=(1,-100,0,-100) {trans_b}",
            "f64[4,2], ~f64[2,3], i32[4]=(1,0,2,0) {ignore_index=0}",
            "~f64[4,2], f64[3,2], i64[4]=(1,0,2,0) {trans_b}",
        ]),
    ),
    (
        "linear_cross_entropy_grad",
        Refuses(SECOND_ORDER, "f64[2,3], f64[3,4], i64[2]=(0,1)"),
    ),
    (
        "dropout",
        Cases(&["f64[5] {ratio=0.2, seed=1}", "f64[3,4] {ratio=0.5, seed=3}"]),
    ),
    ("dropout_mask", Elsewhere("has no operands")),
    (
        "dropout_grad",
        Refuses(SECOND_ORDER, "f64[2], bool[2] {ratio=0.5}"),
    ),
    ("accumulate", Refuses(LAST, "f32[2], f32[2], f32[], f32[]")),
    (
        "adamw",
        Refuses(LAST, "f32[2], f32[2], f32[2], f32[2], i64[]=(1), f32[]"),
    ),
    (
        "onnx",
        Refuses(
            "is opaque",
            r#"f64[2] {attributes="", domain="", inputs=[1], op="Det", opset=20, results=[f64[]]}"#,
        ),
    ),
];
