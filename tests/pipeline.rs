//! Every example model becomes a training step of every method.

mod common;

use common::{Model, examples, options};
use lorafa_passes::pass::Method;
use lorafa_passes::{Manager, PassCx, registry};

#[test]
fn examples_become_training_steps() {
    let mut failed = Vec::new();
    for model in examples() {
        for (method, name) in Method::ALL {
            if let Err(error) = compile(&model, method) {
                failed.push(format!("{} {name}: {error}", model.name));
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

fn compile(model: &Model, method: Method) -> Result<(), String> {
    let mut graph = model.graph.clone();
    let mut cx = PassCx::new(options(model, method));
    let mut manager = Manager::new();
    for stage in registry::stages(method) {
        manager
            .run(stage, &mut graph, &mut cx)
            .map_err(|e| e.to_string())?;
    }
    eprintln!(
        "{} {}: {} ops; {}",
        model.name,
        method.name(),
        graph.op_count(),
        cx.notes.join("; ")
    );
    if let Some(c) = cx.certificate {
        for p in c.proofs.iter().filter(|p| p.kept.is_some()) {
            eprintln!("   kept {:?}", p);
        }
    }
    Ok(())
}
