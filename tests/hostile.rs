//! Graphs that nobody exports: what a pass looks for lies behind a chain of a hundred thousand ops, or behind ops that read
//! what is before them twice, sixty times over. A walk that recurses as deep, or takes every path, does not come back.

use lorafa_ir::{DType, Graph, text};
use lorafa_passes::pass::Options;
use lorafa_passes::{Manager, PassCx, RunError, registry};
use std::fmt::Write;

/// Deeper than any stack.
const LONG: usize = 100_000;

/// More paths than can be taken: two to this power.
const DOUBLED: usize = 60;

/// Operands of one op: the fourth power of this is more than can be looked at.
const MANY: usize = 400;

/// Lines of a graph under way.
struct Lines {
    text: String,
    next: usize,
}

impl Lines {
    fn new(params: &[&str]) -> Self {
        let mut text = String::from("graph @hostile {\n");
        params
            .iter()
            .for_each(|param| writeln!(text, "  param {param}").unwrap());
        Lines { text, next: 0 }
    }

    /// An op with one result; its name.
    fn op(&mut self, op: &str, ty: &str) -> String {
        let value = format!("v{}", self.next);
        writeln!(self.text, "  {value} = {op} : {ty}").unwrap();
        self.next += 1;
        value
    }

    /// So many ops, each of what the one before it gives, which stands for `@`.
    fn chain(&mut self, start: &str, ty: &str, op: &str, count: usize) -> String {
        (0..count).fold(start.to_owned(), |value, _| {
            self.op(&op.replace('@', &value), ty)
        })
    }

    /// The graph with one output, once a pass has run.
    fn after(&mut self, value: &str, pass: &str, options: Options) -> Result<Graph, RunError> {
        writeln!(self.text, "  out \"y\" = {value}\n}}").unwrap();
        let mut graph = text::parse(&self.text).unwrap();
        run(&mut graph, pass, options)?;
        Ok(graph)
    }
}

fn run(graph: &mut Graph, pass: &str, options: Options) -> Result<(), RunError> {
    let all = registry::all();
    let pass = all.iter().find(|found| found.name() == pass).unwrap();
    Manager::new().run(&[*pass], graph, &mut PassCx::new(options))
}

fn count(graph: &Graph, op: &str) -> usize {
    graph.ops().filter(|found| found.kind.name() == op).count()
}

/// Attention whose scores are masked as `mask` says; how many there are once they are fused.
#[track_caller]
fn fuses(mask: impl FnOnce(&mut Lines, &str) -> String) {
    let ty = "f32[1,2,4,4]";
    let mut g = Lines::new(&[
        "%q : f32[1,2,4,4] input",
        "%k : f32[1,2,4,4] input",
        "%v : f32[1,2,4,4] input",
        "%seen : bool[4,4] input",
        "%bias : f32[4,4] input",
    ]);
    let scores = g.op("matmul %q, %k {trans_b}", ty);
    let masked = mask(&mut g, &scores);
    let weights = g.op(&format!("softmax {masked} {{axis=3}}"), ty);
    let y = g.op(&format!("matmul {weights}, %v"), ty);
    let graph = g.after(&y, "fuse-attention", Options::default()).unwrap();
    assert_eq!(count(&graph, "attention"), 1);
}

/// Where keys are compared with these rows.
fn compared(g: &mut Lines, scores: &str, chain: &str, ops: usize) -> String {
    let keys = g.op("iota {dtype=i64, len=4}", "i64[4]");
    let rows = g.op(&format!("reshape {keys} {{shape=[4,1]}}"), "i64[4,1]");
    let zero = g.op("constant {dtype=i64, value=0}", "i64[]");
    let rows = g.chain(&rows, "i64[4,1]", &chain.replace("zero", &zero), ops);
    let seen = g.op(&format!("le {keys}, {rows}"), "bool[4,4]");
    select(g, &seen, scores)
}

fn select(g: &mut Lines, seen: &str, scores: &str) -> String {
    let never = g.op("constant {dtype=f32, value=-inf}", "f32[]");
    g.op(&format!("select {seen}, {scores}, {never}"), "f32[1,2,4,4]")
}

#[test]
fn positions_that_a_mask_compares() {
    fuses(|g, scores| compared(g, scores, "add @, zero", LONG));
    fuses(|g, scores| compared(g, scores, "add @, @", DOUBLED));
}

#[test]
fn conditions_of_a_mask() {
    for (op, ops) in [
        ("and @, %seen", LONG),
        ("not @", LONG),
        ("and @, @", DOUBLED),
        ("reshape @ {shape=[4,4]}", LONG),
    ] {
        fuses(|g, scores| {
            let seen = g.chain("%seen", "bool[4,4]", op, ops);
            select(g, &seen, scores)
        });
    }
}

#[test]
fn what_is_added_to_scores() {
    for (op, ops) in [("add @, %bias", LONG), ("add @, @", DOUBLED)] {
        // On either side, one of which is looked at for the scores first.
        fuses(|g, scores| {
            let bias = g.chain("%bias", "f32[4,4]", op, ops);
            g.op(&format!("add {scores}, {bias}"), "f32[1,2,4,4]")
        });
        fuses(|g, scores| {
            let bias = g.chain("%bias", "f32[4,4]", op, ops);
            g.op(&format!("add {bias}, {scores}"), "f32[1,2,4,4]")
        });
    }
    fuses(|g, scores| {
        let never = g.op("constant {dtype=f32, value=-inf}", "f32[]");
        let op = format!("select %seen, @, {never}");
        let bias = g.chain("%bias", "f32[4,4]", &op, LONG);
        g.op(&format!("add {scores}, {bias}"), "f32[1,2,4,4]")
    });
}

#[test]
fn tables_of_a_rotary_embedding() {
    // Few ops are built anew for one half of a table, many are not.
    for (op, ops, fused) in [("mul @, @", DOUBLED, 1), ("neg @", LONG, 0)] {
        let ty = "f32[2,8]";
        let mut g = Lines::new(&["%x : f32[2,8] input", "%angles : f32[2,4] input"]);
        let table = g.op("concat %angles, %angles {axis=1}", ty);
        let table = g.chain(&table, ty, op, ops);
        let straight = g.op(&format!("mul %x, {table}"), ty);
        let first = g.op("slice %x {axes=[1:0:4:1]}", "f32[2,4]");
        let second = g.op("slice %x {axes=[1:4:4:1]}", "f32[2,4]");
        let minus = g.op(&format!("neg {second}"), "f32[2,4]");
        let turned = g.op(&format!("concat {minus}, {first} {{axis=1}}"), ty);
        let turned = g.op(&format!("mul {turned}, {table}"), ty);
        let y = g.op(&format!("add {straight}, {turned}"), ty);
        let graph = g.after(&y, "fuse-rotary", Options::default()).unwrap();
        assert_eq!(count(&graph, "rotary"), fused, "{op}");
    }
}

#[test]
fn positions_that_are_looked_up() {
    // Twice seven, forty times over.
    let mut g = Lines::new(&["%wpe.weight : f32[8,4] frozen {digest=0000000000000001}"]);
    let positions = g.op("iota {dtype=i64, len=8}", "i64[8]");
    let positions = g.chain(&positions, "i64[8]", "add @, @", 40);
    let y = g.op(
        &format!("gather %wpe.weight, {positions} {{axis=0}}"),
        "f32[8,4]",
    );
    let error = g.after(&y, "bind-dims", Options::default()).unwrap_err();
    let position = (7i64 << 40).to_string();
    assert!(error.to_string().contains(&position), "{error}");
}

#[test]
fn numbers_that_are_made_anew_in_another_type() {
    for (op, ops) in [
        ("select %seen, @, least", LONG),
        ("select %seen, @, @", DOUBLED),
    ] {
        let mut g = Lines::new(&[
            "%seen : bool[4] input",
            "%x : f32[4,4] input",
            "%w.weight : f32[4,4] frozen {digest=0000000000000001}",
        ]);
        let y = g.op("matmul %x, %w.weight", "f32[4,4]");
        let least = "constant {dtype=f32, value=-3.4028234663852886e38}";
        let least = g.op(least, "f32[]");
        let zero = g.op("fill {dtype=f32, shape=[4], value=0.0}", "f32[4]");
        let mask = g.chain(&zero, "f32[4]", &op.replace("least", &least), ops);
        let y = g.op(&format!("add {y}, {mask}"), "f32[4,4]");
        let options = Options {
            dtype: Some(DType::BF16),
            ..Options::default()
        };
        let graph = g.after(&y, "convert-precision", options).unwrap();
        // Each once in f32 and once in the model's type.
        assert_eq!(count(&graph, "select"), 2 * ops);
    }
}

#[test]
fn an_input_that_is_computed_again() {
    let of_many = |start: &str, first: usize, x: &str| {
        let (mut value, mut rows, mut lines) = (start.to_owned(), 4, String::new());
        for next in first..first + 4 {
            rows *= MANY;
            let many = [value.as_str()].repeat(MANY).join(", ");
            writeln!(
                lines,
                "  v{next} = concat {many} {{axis=0}} : f32[{rows},8]"
            )
            .unwrap();
            value = format!("v{next}");
        }
        let part = format!("v{}", first + 4);
        writeln!(
            lines,
            "  {part} = slice {value} {{axes=[0:0:4:1]}} : f32[4,8]"
        )
        .unwrap();
        writeln!(lines, "  {x} = exp {part} : f32[4,8]").unwrap();
        lines
    };
    let (forward, again) = (of_many("v0", 20, "v4"), of_many("v0", 30, "v14"));
    let graph = format!(
        "graph @again {{
  param %h : f32[4,8] input
  param %labels : i64[4] input
  param %q.weight : f32[6,8] frozen {{digest=0000000000000001}}
  param %q.lora_A.default.weight : f32[2,8] frozen {{digest=0000000000000002}}
  param %q.lora_B.default.weight : f32[6,2] trained {{digest=0000000000000003}}
  v0 = neg %h : f32[4,8]
{forward}  v5 = matmul v4, %q.weight {{trans_b}} : f32[4,6]
  v6 = matmul v4, %q.lora_A.default.weight {{trans_b}} : f32[4,2]
  v7 = matmul v6, %q.lora_B.default.weight {{trans_b}} : f32[4,6]
  v8 = add v5, v7 : f32[4,6]
  v9 = cross_entropy v8, %labels : f32[]
backward:
  v10 = softmax v8 {{axis=1}} : f32[4,6]
{again}  v15 = matmul v14, %q.lora_A.default.weight {{trans_b}} : f32[4,2]
  v16 = matmul v10, v15 {{trans_a}} : f32[6,2]
  out \"loss\" = v9 loss
  out \"grad::q.lora_B.default.weight\" = v16 gradient %q.lora_B.default.weight
  adapter \"q\" {{a=%q.lora_A.default.weight, b=%q.lora_B.default.weight, rank=2, scale=1.0, x=v4, xa=v6}}
}}"
    );
    let mut graph = text::parse(&graph).unwrap();
    run(&mut graph, "simplify-lora", Options::default()).unwrap();
    assert!(graph.to_string().contains("v16 = matmul v10, v6 {trans_a}"));
}
