//! `inject-lora`: adds adapters to the linear layers of a model that has none.
//!
//! ```text
//! + param %base_model.model.q_proj.lora_A.default.weight : f32[2,8] trained {init=kaiming}
//! + param %base_model.model.q_proj.lora_B.default.weight : f32[8,2] trained {init=zeros}
//!   v0 = matmul %x, %w {trans_b}  : f32[4,8] @q_proj
//! + v1 = matmul %x, %…A {trans_b} : f32[4,2] @q_proj
//! + v2 = matmul v1, %…B {trans_b} : f32[4,8] @q_proj
//! + v4 = mul v2, v3               : f32[4,8] @q_proj
//! + v5 = add v0, v4               : f32[4,8] @q_proj
//! ```
//!
//! An adapter goes on the layer's result after the bias, and with `--lora-dropout` reads what survives of its input. Which layers get one, and what it and a
//! classification head are called, follows PEFT.

mod adapter;
mod heads;
mod layers;
mod options;

use crate::attach_loss::LossKind;
use crate::convert_precision::narrows;
use crate::pass::{Changed, Method, Pass, PassCx, PassError, PassKind};
use adapter::Injector;
use layers::Linear;
use lorafa_ir::Graph;
use lorafa_ir::ops::Data;

pub use heads::in_head;
pub use options::InjectOptions;

/// How many layers a message names.
const NAMED_LAYERS: usize = 6;

/// See the module.
pub struct InjectLora;

impl Pass for InjectLora {
    fn name(&self) -> &'static str {
        "inject-lora"
    }

    fn kind(&self) -> PassKind {
        PassKind::Extends
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<Changed, PassError> {
        if cx.options.method == Method::Full {
            cx.note("nothing to inject: the method trains every parameter");
            return Ok(Changed::No);
        }
        if !graph.adapters().is_empty() {
            cx.note("nothing to inject: the model has adapters");
            return Ok(Changed::No);
        }
        let options = cx.options.inject.clone();
        let Some(rank) = options.rank else {
            return Err(PassError::Refused(
                "the model has no adapters, or they are to be replaced: give --rank".into(),
            ));
        };
        let task = heads::task(graph, cx.options.loss);
        let classifier = matches!(task, Some(LossKind::SeqCls | LossKind::TokenCls));
        let layers = layers::linear_layers(graph, task);
        if let Some(module) = options.not_linear(graph, &layers, classifier) {
            let refusal = format!(
                "`{module}` matches --targets and is no linear layer: name linear layers only, or \
                 leave it out with --exclude"
            );
            return Err(PassError::Refused(refusal));
        }
        let chosen: Vec<&Linear> = layers
            .iter()
            .filter(|l| options.selects(l) && !(classifier && heads::in_head(&l.module)))
            .collect();
        if chosen.is_empty() {
            return Err(no_target(&layers));
        }
        let others = layers
            .iter()
            .filter(|l| !chosen.iter().any(|c| c.op == l.op));
        let others: Vec<&str> = others.map(|l| &*l.module).collect();
        if !others.is_empty() {
            cx.note(format_args!("not adapted: {}", some(&others)));
        }
        for line in options.unused(&layers) {
            cx.warn(line);
        }
        // Where the model becomes narrower, adapters do with it, or keep their type.
        let dtype = match narrows(graph, cx.options.dtype) {
            true => None,
            false => options.adapter_dtype,
        };
        let init_a = Data::Init {
            init: options.init_a,
            seed: options.seed,
        };
        let mut patch = graph.patch("inject-lora");
        let mut injector = Injector::new(&mut patch, init_a, options.dropout, dtype);
        for layer in &chosen {
            let (own, scale) = options.rank_and_scale(&layer.module, rank)?;
            let width = layer.inputs.min(layer.outputs);
            if own > width {
                let module = &layer.module;
                cx.warn(format!(
                    "rank {own} is more than {module} can use, whose width is {width}"
                ));
            }
            injector.inject(layer, own, scale)?;
        }
        let trained = if classifier {
            heads::mark(&mut patch)
        } else {
            0
        };
        let changes = patch.changes();
        cx.note(format_args!(
            "{} of {} linear layers adapted",
            chosen.len(),
            layers.len()
        ));
        if trained > 0 {
            cx.note(format_args!(
                "{trained} weights of the classification head train in full"
            ));
        }
        Ok(Changed::from_count(changes))
    }
}

fn no_target(layers: &[Linear]) -> PassError {
    let names: Vec<&str> = layers.iter().map(|l| &*l.module).collect();
    PassError::Refused(if names.is_empty() {
        "no layer to adapt: the model has no linear layer with a module path".into()
    } else {
        format!(
            "no layer is left by --targets, --exclude and --layers; linear layers are {}",
            some(&names)
        )
    })
}

/// The first few of some names.
fn some(names: &[&str]) -> String {
    let shown = &names[..names.len().min(NAMED_LAYERS)];
    match names.len() - shown.len() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
