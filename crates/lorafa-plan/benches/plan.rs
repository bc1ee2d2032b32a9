//! How the time to plan a step grows with its ops: `cargo bench -p lorafa-plan --bench plan`.
//!
//! Llama-2-7B with LoRA is some 30,000 ops. Three plans of it, one a method, are made for every report.

use divan::Bencher;
use divan::counter::ItemsCount;
use lorafa_ir::ops::{Activation, ActivationKind, Param, Role, Softmax};
use lorafa_ir::{DType, Graph, Op, Patch, Region, Site, TensorType, ValueId};
use lorafa_plan::plan;

fn main() {
    divan::main();
}

const TOKENS: i64 = 1024;
const WIDTH: i64 = 4096;
const RANK: i64 = 64;

#[divan::bench(args = [32, 128, 512])]
fn layers(bencher: Bencher<'_, '_>, layers: usize) {
    let graph = step(layers);
    bencher
        .counter(ItemsCount::new(graph.op_count()))
        .bench(|| plan(divan::black_box(&graph)));
}

/// Adds a parameter.
fn param(patch: &mut Patch<'_>, role: Role, shape: [i64; 2]) -> ValueId {
    let name = format!("p{}", patch.graph().op_count());
    let ty = TensorType::new(DType::BF16, shape.map(Into::into));
    patch
        .add1(Op::Param(Box::new(Param::runtime(name, role, ty))), &[])
        .expect("a parameter")
}

/// The shape of a training step: layers of adapted products, views and elementwise ops, and a backward pass in reverse.
fn step(layers: usize) -> Graph {
    let mut graph = Graph::new("step");
    let mut patch = graph.patch("bench");
    let stand = |patch: &mut Patch<'_>, region, seq| {
        patch.at_site(Site {
            region,
            seq,
            module: "layers".into(),
            of: None,
        });
    };
    stand(&mut patch, Region::Forward, 0);
    let mut x = param(&mut patch, Role::Input, [TOKENS, WIDTH]);
    let mut saved = Vec::new();
    for layer in 0..layers {
        stand(&mut patch, Region::Forward, layer as i64);
        for _ in 0..7 {
            let w = param(&mut patch, Role::Frozen, [WIDTH, WIDTH]);
            let a = param(&mut patch, Role::Frozen, [RANK, WIDTH]);
            let b = param(&mut patch, Role::Trained, [WIDTH, RANK]);
            x = linear(&mut patch, x, [w, a, b], &mut saved).expect("it type-checks");
        }
    }
    stand(&mut patch, Region::Backward, 0);
    let mut dy = x;
    for (w, a, b, xa, y) in saved.into_iter().rev() {
        dy = backward(&mut patch, dy, [w, a, b], [xa, y]).expect("it type-checks");
    }
    graph
}

type Saved = (ValueId, ValueId, ValueId, ValueId, ValueId);

fn linear(
    p: &mut Patch<'_>,
    x: ValueId,
    [w, a, b]: [ValueId; 3],
    saved: &mut Vec<Saved>,
) -> Result<ValueId, lorafa_ir::PatchError> {
    let base = p.matmul(x, w, false, true)?;
    let xa = p.matmul(x, a, false, true)?;
    let xab = p.matmul(xa, b, false, true)?;
    let scaled = p.scaled(xab, 2.0)?;
    let y = p.plus(base, scaled)?;
    let heads = p.reshape(y, [TOKENS, WIDTH / 128, 128].map(Into::into))?;
    let turned = p.transpose(heads, [1, 0, 2])?;
    let soft = p.add1(
        Softmax {
            axis: 2,
            log: false,
        }
        .into(),
        &[turned],
    )?;
    let back = p.transpose(soft, [1, 0, 2])?;
    let flat = p.reshape(back, [TOKENS, WIDTH].map(Into::into))?;
    let silu = p.add1(Activation(ActivationKind::Sigmoid).into(), &[flat])?;
    let y = p.times(silu, flat)?;
    saved.push((w, a, b, xa, y));
    p.plus(x, y)
}

fn backward(
    p: &mut Patch<'_>,
    dy: ValueId,
    [w, a, b]: [ValueId; 3],
    [xa, y]: [ValueId; 2],
) -> Result<ValueId, lorafa_ir::PatchError> {
    let gated = p.times(dy, y)?;
    let db = p.matmul(gated, xa, true, false)?;
    let name = format!("grad{db}");
    p.output(name, db, lorafa_ir::OutputKind::Gradient(b));
    let dxa = p.matmul(gated, b, false, false)?;
    let dxa = p.scaled(dxa, 2.0)?;
    let through = p.matmul(dxa, a, false, false)?;
    let dx = p.matmul(gated, w, false, false)?;
    let dx = p.plus(dx, through)?;
    p.plus(dx, dy)
}
