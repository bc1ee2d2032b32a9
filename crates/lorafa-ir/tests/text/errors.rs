//! What the parser says about texts that are no graph.

use lorafa_ir::text::parse;

/// Puts the lines after a parameter and a result to refer to, which are lines 2 and 3.
#[track_caller]
fn refused(lines: &str, expected: &str) {
    let text = format!("graph @g {{\nparam %x : f32[2] input\nv0 = neg %x : f32[2]\n{lines}\n}}\n");
    assert_eq!(parse(&text).unwrap_err().to_string(), expected, "{lines}");
}

#[test]
fn the_frame() {
    for (text, expected) in [
        ("", "line 0: expected `graph @name {` … `}`"),
        ("; nothing\n", "line 1: expected `graph @name {` … `}`"),
        (
            "grph @g {\n}",
            "line 1: expected `graph @` before `grph @g {`",
        ),
        ("graph @ {\n}", "line 1: expected a name before `{`"),
        ("graph @g\n{\n}", "line 1: expected `{` before ``"),
        ("graph @g { out\n}", "line 1: expected the end of the line"),
        ("graph @g {\n", "line 1: expected `graph @name {` … `}`"),
        ("graph @g {\n} }", "line 2: expected the end of the line"),
        (
            "graph @g {\n}\n\ngraph @h {\n}",
            "line 4: expected the end after `}`",
        ),
    ] {
        assert_eq!(parse(text).unwrap_err().to_string(), expected);
    }
}

#[test]
fn ops() {
    refused(
        "v1 neg v0 : f32[2]",
        "line 4: expected `=` before `neg v0 : f32[2]`",
    );
    refused("v1 = nag v0 : f32[2]", "line 4: no op is called `nag`");
    refused("v1 = param v0 : f32[2]", "line 4: no op is called `param`");
    refused("v1 = neg v7 : f32[2]", "line 4: `v7` is not defined above");
    refused("v1 = neg v1 : f32[2]", "line 4: `v1` is not defined above");
    refused("v1 = neg %y : f32[2]", "line 4: `%y` is not defined above");
    refused("v1 = neg x : f32[2]", "line 4: `x` is not defined above");
    refused("v0 = neg %x : f32[2]", "line 4: `v0` is defined twice");
    refused(
        "v1, v1 = dropout v0 {ratio=0.5, seed=1} : f32[2], bool[2]",
        "line 4: `v1` is defined twice",
    );
    refused("v1, v2 = neg v0 : f32[2]", "line 4: 2 results but 1 types");
    refused(
        "v1 = neg v0 : f32[2] f32[2]",
        "line 4: expected the end of the line",
    );
    refused("v1 = neg v0 : f32[2] of v9", "line 4: `v9` is not defined");
    refused(
        "v1 = neg v0 {axis=1} : f32[2]",
        "line 4: unknown attribute `axis`",
    );
    refused("v1 = neg v0 {axis=1 : f32[2]", "line 4: `{` is not closed");
    refused(
        "v1 = constant : f32[]",
        "line 4: attribute `dtype` is missing",
    );
}

#[test]
fn result_names() {
    let expected = "line 4: results are spelled `v` and a number";
    for name in [
        "x",
        "v",
        "v01",
        "v-1",
        "\"v+1\"",
        "v1048576",
        "v99999999999",
        "w1",
    ] {
        refused(&format!("{name} = neg v0 : f32[2]"), expected);
    }
}

#[test]
fn types() {
    refused("v1 = neg v0 : f32", "line 4: expected a type in `f32`");
    refused("v1 = neg v0 : f31[2]", "line 4: no type is called `f31`");
    refused("v1 = neg v0 : [2]", "line 4: no type is called ``");
    refused(
        "v1 = neg v0 : f32[2,]",
        "line 4: expected a number or a symbol at column 1 of dimension ``",
    );
    refused(
        "v1 = neg v0 : f32[2 3]",
        "line 4: expected an operator at column 3 of dimension `2 3`",
    );
    refused(
        "v1 = neg v0 : f32[(a]",
        "line 4: expected `)` at column 3 of dimension `(a`",
    );
    refused(
        "v1 = neg v0 : f32[max(a)]",
        "line 4: expected `,` at column 6 of dimension `max(a)`",
    );
    refused(
        "v1 = neg v0 : f32[2x]",
        "line 4: expected a number at column 3 of dimension `2x`",
    );
    refused(
        "v1 = neg v0 : f32[a//0]",
        "line 4: expected a non-zero divisor at column 5 of dimension `a//0`",
    );
}

#[test]
fn dimensions_without_bounds() {
    use lorafa_ir::Dim;
    let nested = format!("{}a{}", "(".repeat(500), ")".repeat(500));
    let error = nested.parse::<Dim>().unwrap_err();
    assert!(
        error.starts_with("expected less nesting at column 41"),
        "{error}"
    );
    let factors: Vec<String> = (0..40).map(|i| format!("(a{i} + 1)")).collect();
    let sum: Vec<String> = (0..500).map(|i| format!("a{i}")).collect();
    for dim in [
        format!("a{}", "//b".repeat(500)),
        factors.join("*"),
        sum.join(" + "),
        (0..17).fold("a".to_string(), |dim, i| format!("max({dim}, b{i})")),
        "9223372036854775807 + 1".to_string(),
    ] {
        let saturated: Dim = dim.parse().unwrap();
        let text = saturated.to_string();
        assert!(
            text.contains("9223372036854775807") && text.len() < 10_000,
            "{text}"
        );
        assert_eq!(text.parse(), Ok(saturated));
    }
    let deep = format!("a{}", "//b".repeat(16)).parse::<Dim>().unwrap();
    let low: Dim = "(0 - 9223372036854775807)*2*a".parse().unwrap();
    for dim in [deep, low] {
        assert_eq!(dim.to_string().parse(), Ok(dim));
    }
}

#[test]
fn attributes() {
    refused(
        "v1 = softmax v0 {axis=1, axis=1} : f32[2]",
        "line 4: attribute `axis` is given twice",
    );
    refused(
        "v1 = softmax v0 {axis=a} : f32[2]",
        "line 4: attribute `axis`: expected an integer, found `a`",
    );
    refused("v1 = softmax v0 {axis=-1} : f32[2]", "line 4: bad axis -1");
    refused(
        "v1 = softmax v0 {axis} : f32[2]",
        "line 4: attribute `axis`: expected an integer, found ``",
    );
    refused(
        "v1 = softmax v0 : f32[2]",
        "line 4: attribute `axis` is missing",
    );
    refused(
        "v1 = cast v0 {to=f31} : f32[2]",
        "line 4: attribute `to`: no type is called `f31`",
    );
    refused(
        "v1 = dropout v0 {ratio=x, seed=1} : f32[2]",
        "line 4: attribute `ratio`: expected a number, found `x`",
    );
    refused(
        "v1 = transpose v0 {perm=0} : f32[2]",
        "line 4: attribute `perm`: expected `[…]`, found `0`",
    );
    refused(
        "v1 = transpose v0 {perm=[x]} : f32[2]",
        "line 4: attribute `perm`: bad item `x`",
    );
    refused(
        "v1 = slice v0 {axes=[0:1]} : f32[2]",
        "line 4: expected `axis:start:len:step`, found `0:1`",
    );
    refused(
        "v1 = slice v0 {axes=[x:0:1:1]} : f32[2]",
        "line 4: bad axis `x`",
    );
    refused(
        "v1 = slice v0 {axes=[0:0:1:x]} : f32[2]",
        "line 4: bad step `x`",
    );
    refused(
        "v1 = constant {dtype=i64, value=1.5} : i64[]",
        "line 4: attribute `value`: bad i64 `1.5`",
    );
}

#[test]
fn params() {
    refused(
        "param x : f32[2] input",
        "line 4: expected `=` before `x : f32[2] input`",
    );
    refused("param %x : f32[2] input", "line 4: `%x` is defined twice");
    refused(
        "param %y f32[2] input",
        "line 4: expected `:` before `f32[2] input`",
    );
    refused("param %\"y : f32[2] input", "line 4: a quote is not closed");
    refused("param %\"\\u{d800}\" : f32[2] input", "line 4: bad escape");
    refused("param %y : f32[2] hot", "line 4: no role is called `hot`");
    refused(
        "param %y : f32[2] input now",
        "line 4: expected the end of the line",
    );
    refused(
        "param %y : f32[2] input {digest=xyz}",
        "line 4: bad digest `xyz`",
    );
    refused(
        "param %y : f32[2] input {init=ones}",
        "line 4: no init is called `ones`",
    );
    refused(
        "param %y : f32[2] input {external=\"a\"}",
        "line 4: attribute `offset` is missing",
    );
    refused(
        "param %y : f32[2] input {external=\"a\", offset=-1}",
        "line 4: bad offset `-1`",
    );
    refused(
        "param %y : f32[2] input {external=\"a\", length=x, offset=1}",
        "line 4: bad length `x`",
    );
    refused(
        "param %y : f32[2] input {length=1}",
        "line 4: unknown attribute `length`",
    );
}

#[test]
fn outputs_and_adapters() {
    refused("out = v0", "line 4: expected a name before `= v0`");
    refused("out \"y\" v0", "line 4: expected `=` before `v0`");
    refused("out \"y\" = v1", "line 4: `v1` is not defined above");
    refused(
        "out \"y\" = v0 lose",
        "line 4: expected the end of the line",
    );
    refused(
        "out \"y\" = v0 gradient %y",
        "line 4: `%y` is not defined above",
    );
    refused(
        "adapter \"m\" {b=%x, rank=1, scale=1.0, x=%x, xa=v0}",
        "line 4: attribute `a` is missing",
    );
    refused(
        "adapter \"m\" {a=v9, b=%x, rank=1, scale=1.0, x=%x, xa=v0}",
        "line 4: `v9` is not defined above",
    );
    refused(
        "adapter \"m\" {a=%x, b=%x, rank=-1, scale=1.0, x=%x, xa=v0}",
        "line 4: negative rank",
    );
    refused(
        "adapter \"m\" {a=%x y, b=%x, rank=1, scale=1.0, x=%x, xa=v0}",
        "line 4: attribute `a`: expected a value, found `%x y`",
    );
    refused(
        "adapter \"m\" {a=%x, b=%x, c, rank=1, scale=1.0, x=%x, xa=v0}",
        "line 4: unknown attribute `c`",
    );
}
