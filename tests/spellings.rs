//! Training graphs whose gradients of B are spelled badly: they come out as if they were not.

#[allow(dead_code)]
mod common;

use common::{Model, joint, options};
use lorafa_ir::layout::Views;
use lorafa_ir::ops::MatMul;
use lorafa_ir::text;
use lorafa_ir::{Adapter, Graph, Op, OpId, OutputKind, Patch, PatchError, Region, ValueId};
use lorafa_passes::freeze_lora_a::Certificate;
use lorafa_passes::pass::{Method, Options};
use lorafa_passes::{Manager, PassCx, registry};
use lorafa_plan::plan;
use std::path::Path;

/// Puts another spelling in the place of a product of `dy` with `x·A`, which is its operand `slot`.
type Spoil = fn(&mut Patch<'_>, &Adapter, Product) -> Result<(), PatchError>;

#[derive(Clone, Copy)]
struct Product {
    op: OpId,
    kind: MatMul,
    slot: usize,
    operands: [ValueId; 2],
}

/// `x` as rows.
fn rows(patch: &mut Patch<'_>, adapter: &Adapter, of: ValueId) -> Result<ValueId, PatchError> {
    let rows = patch.ty(of).shape[0].clone();
    let inner = patch.ty(adapter.x).shape.last().unwrap().clone();
    patch.reshape(adapter.x, [rows, inner])
}

/// Whether the product `x·A` turns A.
fn turns_a(patch: &Patch<'_>, adapter: &Adapter) -> (ValueId, bool) {
    let op = patch.graph().def(adapter.xa);
    match op.kind {
        Op::MatMul(product) => (op.operands[1], product.trans_b),
        _ => panic!("x·A is a product"),
    }
}

/// `x·A` once more.
fn again(patch: &mut Patch<'_>, adapter: &Adapter, p: Product) -> Result<(), PatchError> {
    let (a, turned) = turns_a(patch, adapter);
    let x = rows(patch, adapter, p.operands[p.slot])?;
    let xa = patch.matmul(x, a, false, turned)?;
    patch.set_operand(p.op, p.slot, xa);
    Ok(())
}

/// The gradient of a weight first.
fn weight(patch: &mut Patch<'_>, adapter: &Adapter, p: Product) -> Result<(), PatchError> {
    let (a, turned) = turns_a(patch, adapter);
    let x = rows(patch, adapter, p.operands[p.slot])?;
    let MatMul {
        trans_a, trans_b, ..
    } = p.kind;
    match p.slot {
        0 => {
            let dw = patch.matmul(x, p.operands[1], true, trans_b)?;
            patch.rewrite(p.op, MatMul::new(!turned, false).into(), &[a, dw])
        }
        _ => {
            let dw = patch.matmul(p.operands[0], x, trans_a, false)?;
            patch.rewrite(p.op, MatMul::new(false, turned).into(), &[dw, a])
        }
    }
}

/// The product of `dy` with `x·A` that a gradient is, but for its shape.
fn product(graph: &Graph, views: &Views, adapter: &Adapter, mut value: ValueId) -> Option<Product> {
    loop {
        let op = graph.def(value);
        match &op.kind {
            Op::MatMul(kind) => {
                let saved =
                    |v: &ValueId| views.root(*v).is_some_and(|(root, _)| root == adapter.xa);
                let slot = op.operands.iter().position(saved)?;
                let flag = if slot == 0 {
                    kind.trans_a
                } else {
                    !kind.trans_b
                };
                let rank = graph.ty(op.operands[slot]).rank();
                return (flag && rank == 2).then_some(Product {
                    op: op.id,
                    kind: *kind,
                    slot,
                    operands: [op.operands[0], op.operands[1]],
                });
            }
            Op::Reshape(_) | Op::Transpose(_) => value = op.operands[0],
            _ => return None,
        }
    }
}

/// Spells the gradients of all B in another way; how many.
fn spoil(graph: &mut Graph, spoil: Spoil) -> usize {
    let mut spoiled = 0;
    for adapter in graph.adapters().to_vec() {
        let mut outputs = graph.outputs().iter();
        let gradient = outputs.find(|o| o.kind == OutputKind::Gradient(adapter.b));
        let views = Views::of(graph);
        let Some(found) = product(graph, &views, &adapter, gradient.unwrap().value) else {
            continue;
        };
        let mut patch = graph.patch("spoil");
        patch.at(found.op);
        assert_eq!(patch.site().region, Region::Backward);
        spoil(&mut patch, &adapter, found).unwrap();
        spoiled += 1;
    }
    graph.verify().unwrap();
    spoiled
}

/// The peak of a step and its certificate; `spell` has the graph before LoRA-FA is made of it.
fn compiled(model: &Model, spell: impl FnOnce(&mut Graph)) -> (u64, Certificate) {
    let mut graph = model.graph.clone();
    let mut cx = PassCx::new(options(model, Method::LoraFa));
    let mut manager = Manager::new();
    manager.run(registry::PREPARE, &mut graph, &mut cx).unwrap();
    spell(&mut graph);
    for stage in registry::stages(&graph, Method::LoraFa) {
        manager.run(stage, &mut graph, &mut cx).unwrap();
    }
    let plan = plan(&graph).unwrap();
    (plan.report(&graph, 0).peak_bytes, cx.certificate.unwrap())
}

#[test]
fn bad_spellings_take_no_more_and_release_as_much() {
    for model in joint() {
        let (peak, certificate) = compiled(&model, |_| ());
        let spellings: [(&str, Spoil); 2] = [("again", again), ("weight", weight)];
        for (name, spelling) in spellings {
            let mut count = 0;
            let found = compiled(&model, |graph| count = spoil(graph, spelling));
            assert_eq!(count, certificate.proofs.len(), "{} {name}", model.name);
            assert_eq!(found.1, certificate, "{} {name}", model.name);
            assert!(
                found.0 <= peak,
                "{} {name}: {} for {peak}",
                model.name,
                found.0
            );
        }
    }
}

/// A layer that is a product with W + s·A·B, and its backward pass, end as LoRA-FA like any other.
#[test]
fn a_merged_layer_releases_x() {
    let fixture = "tests/fixtures/passes/unmerge-lora/training.lir";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(fixture);
    let mut graph = text::parse(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut cx = PassCx::new(Options::default());
    Manager::new().build(&mut graph, &mut cx).unwrap();
    let certificate = cx.certificate.unwrap();
    assert_eq!(certificate.released().count(), 1);
    assert_eq!(certificate.proofs.len(), 1);
    // Nothing multiplies the two matrices any more.
    let adapter = &graph.adapters()[0];
    let mut products = graph.ops().filter(|op| matches!(op.kind, Op::MatMul(_)));
    assert!(!products.any(|op| op.operands.starts_with(&[adapter.b, adapter.a])));
}
