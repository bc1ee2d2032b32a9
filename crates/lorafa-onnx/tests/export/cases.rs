//! For every op, what its export is tried on. Floats in attributes are numbers that f32 holds.

/// Mnemonic and cases.
pub const CASES: &[(&str, &[&str])] = &[
    (
        "constant",
        &[
            "{dtype=T, value=1}",
            "{dtype=T, shape=[2,2], value=[1,0,1,1]}",
            "{dtype=f32, shape=[3], value=[inf,-inf,NaN]}",
            "{dtype=i64, shape=[2], value=[4503599627370497,-3]}",
            "{dtype=T, shape=[0], value=[]}",
        ],
    ),
    (
        "iota",
        &[
            "{dtype=T, len=4}",
            "{dtype=T, len=3, start=5, step=2}",
            "{dtype=f32, len=4, start=1, step=-2}",
            "{dtype=i64, len=3, start=7, step=0}",
            "{dtype=i32, len=0, start=7}",
        ],
    ),
    (
        "fill",
        &[
            "{dtype=T, shape=[2,3], value=1.0}",
            "{dtype=f32, shape=[2], value=-0.5}",
            "{dtype=f32, shape=[], value=0.5}",
            "{dtype=T, shape=[2,0], value=0.0}",
        ],
    ),
    (
        "dims",
        &["{shape=[2], value=[4,-1]}", "{shape=[], value=[7]}"],
    ),
    ("neg", &["T[2,3]"]),
    ("abs", &["T[2,3]"]),
    ("sqrt", &["+T[2,3]"]),
    ("reciprocal", &["T[2,3]"]),
    ("exp", &["T[2,3]"]),
    ("log", &["+T[2,3]"]),
    ("sin", &["T[2,3]"]),
    ("cos", &["T[2,3]"]),
    ("erf", &["T[2,3]"]),
    ("not", &["T[2,3]"]),
    ("is_nan", &["T[3]=(1,NaN,0.5)"]),
    ("relu", &["T[2,3]"]),
    ("sigmoid", &["T[2,3]"]),
    ("tanh", &["T[2,3]"]),
    ("silu", &["T[2,3]"]),
    ("gelu", &["T[2,3]"]),
    ("gelu_tanh", &["T[2,3]"]),
    ("relu_grad", &["T[2,3], T[2,3]"]),
    ("sigmoid_grad", &["T[2,3], T[2,3]"]),
    ("tanh_grad", &["T[2,3], T[2,3]"]),
    ("silu_grad", &["T[2,3], T[2,3]"]),
    ("gelu_grad", &["T[2,3], T[2,3]"]),
    ("gelu_tanh_grad", &["T[2,3], T[2,3]"]),
    ("add", &["T[2,3], T[2,3]", "T[2,1], T[3]", "T[], T[2]"]),
    ("sub", &["T[2,3], T[2,3]"]),
    ("mul", &["T[2,3], T[1,3]"]),
    (
        "div",
        &["T[2,3], T[2,3]", "i64[4]=(7,-7,7,-7), i64[4]=(2,2,-2,-2)"],
    ),
    ("pow", &["+T[2,3], +T[2,3]"]),
    ("max", &["T[2,3], T[2,3]"]),
    ("min", &["T[2,3], T[2,3]"]),
    (
        "mod",
        &[
            "T[2,3], T[2,3]",
            "f32[4]=(7,-7,7,-7), f32[4]=(2,2,-2,-2)",
            "i32[4]=(7,-7,7,-7), i32[4]=(2,2,-2,-2)",
        ],
    ),
    ("and", &["T[2,3], T[2,3]"]),
    ("or", &["T[2,3], T[2,3]"]),
    ("xor", &["T[2,3], T[2,3]"]),
    ("eq", &["T[6], T[6]"]),
    ("lt", &["T[6], T[6]"]),
    ("le", &["T[6], T[6]"]),
    ("gt", &["T[6], T[6]"]),
    ("ge", &["T[6], T[6]"]),
    ("select", &["bool[2,1], T[2,3], T[3]"]),
    (
        "cast",
        &[
            "T[2,3] {to=f32}",
            "T[2,3] {to=bf16}",
            "T[2,3] {to=i64}",
            "T[2,3] {to=bool}",
            "+f32[2,3] {to=T}",
        ],
    ),
    (
        "matmul",
        &[
            "T[3,4], T[4,2]",
            "T[4,3], T[4,2] {trans_a}",
            "T[3,4], T[2,4] {trans_b}",
            "T[4,3], T[2,4] {trans_a, trans_b}",
            "T[2,3,4], T[4,2]",
            "T[2,3,4], T[2,4] {trans_b}",
            "f32[2,1,4,3], f32[3,2,4] {trans_a, trans_b}",
            "T[3,4], T[4,2], T[3,2] {alpha=0.5}",
            "T[4,3], T[4,2] {trans_a, alpha=-2.0}",
            "T[2,3,4], T[2,4], T[2,3,2] {trans_b, alpha=2.0}",
            "f32[2,3,1,4], f32[3,4,2], f32[2,3,1,2]",
        ],
    ),
    (
        "reshape",
        &[
            "T[2,6] {shape=[3,4]}",
            "T[1] {shape=[]}",
            "T[2,0] {shape=[0,5]}",
        ],
    ),
    (
        "expand",
        &[
            "T[2,1] {shape=[2,3]}",
            "T[3] {shape=[2,3]}",
            "T[] {shape=[2]}",
        ],
    ),
    (
        "transpose",
        &[
            "T[2,3] {perm=[1,0]}",
            "T[2,3,4] {perm=[1,2,0]}",
            "T[] {perm=[]}",
        ],
    ),
    (
        "slice",
        &[
            "T[4,5] {axes=[0:1:2:1]}",
            "T[4,5] {axes=[1:4:3:-2,0:0:2:3]}",
            "f32[4] {axes=[0:3:4:-1]}",
            "f32[4] {axes=[0:1:2:-1]}",
            "f32[5] {axes=[0:0:2:3]}",
            "f32[4] {axes=[0:9:0:-1]}",
            "f32[4] {axes=[]}",
        ],
    ),
    (
        "pad",
        &[
            "T[2,3] {before=[1,0], after=[0,2], value=0.0}",
            "T[2,3] {before=[2,0], after=[0,-1], value=1.0}",
            "f32[2] {before=[1], after=[1], value=-inf}",
            "f32[] {before=[], after=[], value=0.0}",
        ],
    ),
    ("concat", &["T[2,3], T[2,1] {axis=1}", "T[2] {axis=0}"]),
    (
        "reduce_sum",
        &[
            "T[2,3] {axes=[1]}",
            "T[2,3] {axes=[0], keep_dims}",
            "T[2,3] {axes=[0,1]}",
            "T[2,3] {axes=[]}",
        ],
    ),
    (
        "reduce_mean",
        &["T[2,3] {axes=[1], keep_dims}", "T[2,3] {axes=[0,1]}"],
    ),
    (
        "reduce_max",
        &["T[2,3] {axes=[1]}", "T[2,3] {axes=[0], keep_dims}"],
    ),
    (
        "cumsum",
        &[
            "T[2,4] {axis=1}",
            "T[2,4] {axis=0, reverse}",
            "T[2,4] {axis=1, exclusive, reverse}",
        ],
    ),
    (
        "gather",
        &[
            "T[4,3], i64[2,2]=(0,3,-1,1) {axis=0}",
            "T[4,3], i32[2]=(2,0) {axis=1}",
            "T[4,3], i64[]=(1) {axis=1}",
        ],
    ),
    (
        "gather_grad",
        &[
            "i64[3]=(1,1,0), T[3,2] {shape=[4,2]}",
            "i32[2]=(1,2), T[2] {shape=[4]}",
        ],
    ),
    (
        "gather_elements",
        &[
            "T[3,3], i64[2,3]=(0,2,1,1,-1,0) {axis=0}",
            "T[3,3], i32[3,1]=(0,2,1) {axis=1}",
        ],
    ),
    (
        "gather_nd",
        &[
            "T[3,4,2], i64[3,2]=(0,1,2,3,1,1)",
            "T[3,4], i32[2,1]=(2,0)",
            "T[2,3,2], i64[2,1]=(2,0) {batch_dims=1}",
        ],
    ),
    (
        "scatter_elements",
        &[
            "T[3,3], i64[2,3]=(0,2,1,1,0,0), T[2,3] {axis=0}",
            "T[3,3], i32[3,2]=(0,0,1,2,2,2), T[3,2] {axis=1, add}",
        ],
    ),
    (
        "scatter_nd",
        &[
            "T[4,2], i64[2,1]=(3,0), T[2,2]",
            "T[4,2], i64[3,1]=(1,1,0), T[3,2] {add}",
            "T[4,2], i32[2,2]=(1,0,3,1), T[2]",
        ],
    ),
    ("softmax", &["T[2,3] {axis=1}", "T[2,3] {axis=0}"]),
    ("log_softmax", &["T[2,3] {axis=1}"]),
    ("softmax_grad", &["T[2,3], T[2,3] {axis=1}"]),
    ("log_softmax_grad", &["T[2,3], T[2,3] {axis=0}"]),
    (
        "attention",
        &[
            "T[2,2,3,4], T[2,2,5,4], T[2,2,5,3] {scale=0.5}",
            "T[1,4,5,4], T[1,2,5,4], T[1,2,5,4] {scale=0.5, causal}",
            "T[1,2,5,4], T[1,2,3,4], T[1,2,3,4] {scale=0.5, causal, window=2}",
            "T[2,3,4,2], T[2,3,4,2], T[2,3,4,2] {scale=0.5, causal, window=3}",
            "T[2,2,3,2], T[2,1,4,2], T[2,1,4,2], bool[2,1,1,4]=(1,1,0,1,0,0,0,0) {scale=0.5}",
            "T[2,2,3,2], T[2,2,4,2], T[2,2,4,2], T[2,3,4] {scale=1.0}",
            "T[2,2,4,2], T[2,2,4,2], T[2,2,4,2], bool[2,1,1,4]=(1,1,0,1,0,1,1,1), T[1,2,4,4] {scale=1.0, causal}",
            "T[2,4,3,2], T[2,2,4,2], T[2,2,4,2] {scale=0.5, dropout=0.25, seed=3}",
        ],
    ),
    (
        "attention_grad",
        &[
            "T[2,3,2,3], T[2,2,3,4], T[2,2,5,4], T[2,2,5,3], T[2,3,2,3], f32[2,2,3] {scale=0.5}",
            "T[1,5,4,4], T[1,4,5,4], T[1,2,5,4], T[1,2,5,4], T[1,5,4,4], f32[1,4,5] {scale=0.5, causal}",
            "T[2,4,3,2], T[2,3,4,2], T[2,3,4,2], T[2,3,4,2], T[2,4,3,2], f32[2,3,4] {scale=0.5, causal, window=3}",
            "T[2,3,2,2], T[2,2,3,2], T[2,1,4,2], T[2,1,4,2], T[2,3,2,2], f32[2,2,3], bool[2,1,1,4]=(1,1,0,1,0,0,1,0) {scale=0.5}",
            "T[2,3,2,2], T[2,2,3,2], T[2,2,4,2], T[2,2,4,2], T[2,3,2,2], f32[2,2,3], T[2,3,4] {scale=1.0, bias}",
            "T[2,4,2,2], T[2,2,4,2], T[2,2,4,2], T[2,2,4,2], T[2,4,2,2], f32[2,2,4], bool[4]=(1,1,0,1), T[4] {scale=1.0, causal, bias}",
        ],
    ),
    (
        "layer_norm",
        &[
            "T[2,3,4], T[4], T[4] {axis=2, eps=0.0009765625}",
            "T[2,3,4], T[3,4] {axis=1, eps=0.0009765625}",
        ],
    ),
    (
        "layer_norm_grad",
        &[
            "f64[3,4], f64[3,4], f64[4], f64[3,1], f64[3,1] {axis=1, weights}",
            "T[3,4], T[3,4], T[4], f32[3,1], f32[3,1] {axis=1, weights}",
            "T[3,4], T[3,4], T[1], f32[3,1], f32[3,1] {axis=1}",
        ],
    ),
    (
        "rms_norm",
        &[
            "T[2,3,4], T[4] {axis=2, eps=0.0009765625}",
            "T[2,3,4], T[3,4] {axis=1, eps=0.0009765625}",
        ],
    ),
    (
        "rms_norm_grad",
        &[
            "f64[3,4], f64[3,4], f64[4], f64[3,1] {axis=1, weight}",
            "T[3,4], T[3,4], T[4], f32[3,1] {axis=1, weight}",
            "T[2,3,4], T[2,3,4], T[3,4], f32[2,1,1] {axis=1}",
        ],
    ),
    (
        "gated",
        &[
            "T[2,3], T[2,3] {act=silu}",
            "T[2,3], T[2,3] {act=gelu}",
            "T[2,3], T[2,3] {act=gelu_tanh}",
            "T[2,3], T[2,3] {act=relu}",
        ],
    ),
    (
        "gated_grad",
        &[
            "T[2,3], T[2,3], T[2,3] {act=silu}",
            "T[2,3], T[2,3], T[2,3] {act=gelu}",
            "T[2,3], T[2,3], T[2,3] {act=gelu_tanh}",
            "T[2,3], T[2,3], T[2,3] {act=relu}",
        ],
    ),
    (
        "rotary",
        &[
            "T[2,2,3,4], T[1,1,3,2], T[1,1,3,2]",
            "T[2,3,4], T[3,2], T[3,2] {inverse}",
            "T[2,3,6], T[2,3,3], T[3] {interleaved}",
            "T[3,4], T[3,2], T[3,2] {interleaved, inverse}",
        ],
    ),
    (
        "cross_entropy",
        &[
            "T[4,3], i64[4]=(0,2,-100,1)",
            "T[4,3], i32[4]=(0,2,1,1) {ignore_index=1}",
            "T[4,3], i64[4]=(0,2,1,1) {ignore_index=-9223372036854775808}",
        ],
    ),
    (
        "cross_entropy_grad",
        &[
            "T[], T[4,3], i64[4]=(0,2,-100,1)",
            "T[], T[4,3], i32[4]=(0,2,1,1) {ignore_index=1}",
        ],
    ),
    (
        "linear_cross_entropy",
        &[
            "T[4,2], T[2,3], i64[4]=(0,2,-100,1)",
            "T[4,2], T[3,2], i32[4]=(0,2,1,1) {ignore_index=1, trans_b}",
        ],
    ),
    (
        "linear_cross_entropy_grad",
        &[
            "T[4,2], T[2,3], i64[4]=(0,2,-100,1) {weight}",
            "T[4,2], T[3,2], i32[4]=(0,2,1,1) {ignore_index=1, trans_b, weight}",
            "T[4,2], T[2,3], i64[4]=(0,2,-100,1)",
        ],
    ),
    ("dropout", &["T[2,3] {ratio=0.25, seed=3}"]),
    // Written as the mask of the dropout that draws it first.
    ("dropout_mask", &[]),
    ("dropout_grad", &["T[2,3], bool[2,3] {ratio=0.25}"]),
    (
        "accumulate",
        &[
            "f32[3,2], T[3,2], +f32[], +f32[]",
            "f32[3]=(NaN,inf,1), T[3], f32[]=(0), +f32[]",
        ],
    ),
    (
        "adamw",
        &[
            "T[3], f32[3], f32[3], +f32[3], i64[]=(3), +f32[]",
            "T[3], T[3], f32[3], +f32[3], i64[]=(3), +f32[] {beta1=0.5, eps=0.0625, weight_decay=0.25}",
            "T[3], f32[3], f32[3], +f32[3], i64[]=(3), +f32[] {form=peft}",
            "T[3], T[3], f32[3], +f32[3], i64[]=(3), +f32[] {beta1=0.5, eps=0.0625, form=peft, weight_decay=0.25}",
        ],
    ),
    (
        "onnx",
        &[
            "f32[3] {op=\"Ceil\", domain=\"\", opset=13, attributes=\"\", inputs=[1], results=[f32[3]]}",
            "f32[3] {op=\"Foo\", domain=\"a.b\", opset=3, attributes=\"2a080a01611801a00102\", inputs=[0,1,0], results=[f32[3],f32[2]]}",
        ],
    ),
];
