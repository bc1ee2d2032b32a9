//! For every source and elementwise op, cases of its gradient or the reason why it has none.

/// What is tested of an op.
pub enum Coverage {
    /// Operands and attributes of each case.
    Cases(&'static [&'static str]),
    /// Why it has no gradient, and a case that shows it refuse.
    Refuses(&'static str, &'static str),
    /// A test of its own, and why.
    Elsewhere(&'static str),
}

use Coverage::{Cases, Elsewhere, Refuses};

const SOURCE: &str = "reads nothing";
const DISCRETE: &str = "its result takes no values in between";
/// Why no gradient op has a gradient.
pub const LAST: &str = "is one of the last ops of a step";

pub const SECOND_ORDER: &str = "is a gradient itself: there are no second derivatives";

/// One operand, several axes, and none.
const MAPS: Coverage = Cases(&["f64[2,3]", "f64[]", "f64[2,1,4]"]);

/// One operand above zero.
const POSITIVE: Coverage = Cases(&["+f64[2,3]", "+f64[]"]);

/// Every way of broadcasting; the divisor is above zero.
const BROADCAST: Coverage = Cases(&[
    "f64[2,3], +f64[2,3]",
    "f64[2,3], +f64[3]",
    "f64[3], +f64[2,3]",
    "f64[2,1], +f64[1,3]",
    "f64[], +f64[2,2]",
    "f64[2,2], +f64[]",
    "f64[2,1,3], +f64[4,1]",
    "f64[1,1], +f64[2]",
    "~f64[2,3], +f64[3]",
    "f64[2,3], ~+f64[3]",
]);

/// Sources and elementwise ops.
pub const ELEMENTWISE: &[(&str, Coverage)] = &[
    (
        "param",
        Elsewhere("is not an operation: gradients end there"),
    ),
    ("constant", Refuses(SOURCE, "{dtype=f64, value=1.0}")),
    ("iota", Refuses(SOURCE, "{dtype=f64, len=3}")),
    ("fill", Refuses(SOURCE, "{dtype=f64, shape=[2], value=1.0}")),
    ("dims", Refuses(SOURCE, "{shape=[1], value=[2]}")),
    ("neg", MAPS),
    ("abs", MAPS),
    ("sqrt", POSITIVE),
    ("reciprocal", POSITIVE),
    ("exp", MAPS),
    ("log", POSITIVE),
    ("sin", MAPS),
    ("cos", MAPS),
    ("erf", Cases(&["f64[2,3]", "f64[4]=(-7.0,-2.6,2.4,0.0)"])),
    ("not", Refuses(DISCRETE, "bool[2]")),
    ("is_nan", Refuses(DISCRETE, "f64[2]")),
    ("relu", MAPS),
    ("sigmoid", MAPS),
    ("tanh", MAPS),
    ("silu", MAPS),
    ("gelu", MAPS),
    ("gelu_tanh", MAPS),
    ("relu_grad", Refuses(SECOND_ORDER, "f64[2], f64[2]")),
    ("sigmoid_grad", Refuses(SECOND_ORDER, "f64[2], f64[2]")),
    ("tanh_grad", Refuses(SECOND_ORDER, "f64[2], f64[2]")),
    ("silu_grad", Refuses(SECOND_ORDER, "f64[2], f64[2]")),
    ("gelu_grad", Refuses(SECOND_ORDER, "f64[2], f64[2]")),
    ("gelu_tanh_grad", Refuses(SECOND_ORDER, "f64[2], f64[2]")),
    ("add", BROADCAST),
    ("sub", BROADCAST),
    ("mul", BROADCAST),
    ("div", BROADCAST),
    (
        "pow",
        Cases(&[
            "f64[2,3], 2.0",
            "f64[2,3], 3.0",
            "+f64[2,3], 0.5",
            "+f64[3], -1.5",
        ]),
    ),
    ("max", BROADCAST),
    ("min", BROADCAST),
    ("mod", Refuses(DISCRETE, "f64[2], f64[2]")),
    ("and", Refuses(DISCRETE, "bool[2], bool[2]")),
    ("or", Refuses(DISCRETE, "bool[2], bool[2]")),
    ("xor", Refuses(DISCRETE, "bool[2], bool[2]")),
    ("eq", Refuses(DISCRETE, "f64[2], f64[2]")),
    ("lt", Refuses(DISCRETE, "f64[2], f64[2]")),
    ("le", Refuses(DISCRETE, "f64[2], f64[2]")),
    ("gt", Refuses(DISCRETE, "f64[2], f64[2]")),
    ("ge", Refuses(DISCRETE, "f64[2], f64[2]")),
    (
        "select",
        Cases(&[
            "bool[2,3], f64[2,3], f64[2,3]",
            "bool[2,3], f64[3], f64[2,1]",
            "bool[2,3], f64[], f64[1]",
            "bool[3], f64[2,3], ~f64[3]",
            "bool[2,1], ~f64[], f64[3]",
        ]),
    ),
    (
        "cast",
        Cases(&["f64[2,3] {to=f32}", "f32[3] {to=f64}", "bf16[3] {to=f32}"]),
    ),
];
