//! Saves the adapters of a model, and the model with them merged, one file and several:
//!
//! ```text
//! cargo run -p lorafa-weights --example save -- MODEL.onnx FOLDER LOSS
//! ```
//!
//! makes `FOLDER/adapter`, `FOLDER/merged` and `FOLDER/sharded`. LOSS is what the model was
//! trained for, `causal-lm`. Symbolic dimensions become 2 for the batch and 8 otherwise.

use lorafa_ir::Bindings;
use lorafa_ir::ops::Role;
use lorafa_onnx::external::ExternalStore;
use lorafa_onnx::file::ModelFile;
use lorafa_onnx::import::import;
use lorafa_passes::attach_loss::LossKind;
use lorafa_passes::pass::{Method, Options};
use lorafa_passes::registry::PREPARE;
use lorafa_passes::{Manager, PassCx};
use lorafa_weights::{Values, merge, peft};
use std::error::Error;
use std::path::Path;

/// Small enough for several files of a tiny model.
const SHARD_BYTES: u64 = 20_000;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, folder, loss] = args.as_slice() else {
        return Err("usage: save MODEL.onnx FOLDER LOSS".into());
    };
    let folder = Path::new(folder);
    let loss = LossKind::parse(loss).ok_or("no loss has this name")?;
    let file = ModelFile::open(model)?;
    let mut graph = import(&file)?;
    let mut bindings = Bindings::new();
    for (_, param) in graph.params().filter(|(_, p)| p.role == Role::Input) {
        for (axis, dim) in param.ty.shape.iter().enumerate() {
            if let Some(symbol) = dim.as_symbol() {
                bindings.insert(symbol.clone(), if axis == 0 { 2 } else { 8 });
            }
        }
    }
    let options = Options {
        method: Method::Lora,
        bindings,
        ..Options::default()
    };
    Manager::new().run(PREPARE, &mut graph, &mut PassCx::new(options))?;

    let store = ExternalStore::new(file.folder());
    let values = Values {
        store: &store,
        trained: None,
    };
    let info = peft::Info {
        loss: Some(loss),
        ..peft::Info::default()
    };
    std::fs::create_dir_all(folder)?;
    peft::write(folder.join("adapter"), &graph, values, info)?;
    merge::write(
        folder.join("merged"),
        &graph,
        values,
        merge::MAX_SHARD_BYTES,
        &[],
    )?;
    merge::write(folder.join("sharded"), &graph, values, SHARD_BYTES, &[])?;
    Ok(())
}
