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
//! An adapter goes on the layer's result after the bias. Which layers get one, and what it and a
//! classification head are called, follows PEFT.

mod heads;
mod layers;

use crate::attach_loss::LossKind;
use crate::pass::{Changed, Method, Pass, PassCx, PassError, PassKind};
use crate::targets::{Matched, Patterns, Targets, selects};
use layers::Linear;
use lorafa_ir::ops::{Data, Init, Op, Param, Role, Scalar};
use lorafa_ir::{Adapter, DType, Dim, Graph, Patch, TensorType, ValueId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How many layers an error names.
const NAMED_LAYERS: usize = 6;

/// How to inject adapters.
#[derive(Clone, Debug)]
pub struct InjectOptions {
    /// The rank, where no pattern gives another.
    pub rank: Option<u64>,
    /// The numerator of the scale, where no pattern gives another; twice [`rank`](Self::rank) if
    /// none, so that the scale is 2. (PEFT's default is 8 whatever the rank.)
    pub alpha: Option<f64>,
    /// Scale by `alpha/√rank` and not `alpha/rank`.
    pub rslora: bool,
    /// The first values of A; those of B are zero.
    pub init_a: Init,
    /// The layers to adapt.
    pub targets: Targets,
    /// Of those, the layers not to adapt.
    pub exclude: Option<Targets>,
    /// Of those, the layers by number; all if empty.
    pub layers_to_transform: Vec<usize>,
    /// Ranks by layer.
    pub rank_pattern: Patterns<u64>,
    /// Alphas by layer.
    pub alpha_pattern: Patterns<f64>,
    /// The adapters' element type; the layer's if none.
    pub adapter_dtype: Option<DType>,
}

impl Default for InjectOptions {
    fn default() -> Self {
        InjectOptions {
            rank: None,
            alpha: None,
            rslora: false,
            init_a: Init::Kaiming,
            targets: Targets::AllLinear,
            exclude: None,
            layers_to_transform: Vec::new(),
            rank_pattern: Patterns::default(),
            alpha_pattern: Patterns::default(),
            adapter_dtype: None,
        }
    }
}

impl InjectOptions {
    /// The rank and the scale of the adapter of a module.
    fn rank_and_scale(&self, module: &str, rank: u64) -> Result<(u64, f64), PassError> {
        let alpha = self
            .alpha_pattern
            .get(module)
            .or(self.alpha)
            .unwrap_or(2.0 * rank as f64);
        let rank = self.rank_pattern.get(module).unwrap_or(rank);
        let divisor = if self.rslora {
            (rank as f64).sqrt()
        } else {
            rank as f64
        };
        let scale = alpha / divisor;
        if rank == 0 || i64::try_from(rank).is_err() || !scale.is_finite() {
            let refusal = format!("{module}: no adapter has rank {rank} and alpha {alpha}");
            return Err(PassError::Refused(refusal));
        }
        Ok((rank, scale))
    }

    fn selects(&self, layer: &Linear) -> bool {
        let (targets, exclude) = (&self.targets, self.exclude.as_ref());
        let chosen = selects(targets, exclude, &self.layers_to_transform, &layer.module);
        match targets {
            Targets::AllLinear => chosen == Some(Matched::ByRule) && !layer.is_output,
            _ => chosen.is_some(),
        }
    }

    /// A module that is named as a target and cannot be one. PEFT refuses these, too, except
    /// embeddings, which it adapts by look-ups.
    fn not_linear(&self, graph: &Graph, layers: &[Linear], classifier: bool) -> Option<String> {
        if matches!(self.targets, Targets::AllLinear) {
            return None;
        }
        let linear: BTreeSet<&str> = layers.iter().map(|l| &*l.module).collect();
        let (exclude, numbers) = (self.exclude.as_ref(), &self.layers_to_transform);
        let apart = |module: &str| {
            linear.contains(module) || classifier && heads::in_head(module) || module.is_empty()
        };
        let mut others = layers::module_paths(graph).into_iter();
        others.find(|module| {
            !apart(module) && selects(&self.targets, exclude, numbers, module).is_some()
        })
    }
}

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
                "the model has no adapters: give --rank".into(),
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
        let mut patch = graph.patch("inject-lora");
        let mut params = BTreeMap::new();
        for layer in &chosen {
            let (rank, scale) = options.rank_and_scale(&layer.module, rank)?;
            inject(&mut patch, &options, layer, rank, scale, &mut params)?;
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
    let names: Vec<&str> = layers
        .iter()
        .take(NAMED_LAYERS)
        .map(|l| &*l.module)
        .collect();
    let more = if layers.len() > names.len() {
        ", …"
    } else {
        ""
    };
    PassError::Refused(if names.is_empty() {
        "no layer to adapt: the model has no linear layer with a module path".into()
    } else {
        format!(
            "no layer is left by --targets, --exclude and --layers; linear layers are {}{more}",
            names.join(", ")
        )
    })
}

/// A and B by the weight that they adapt: a layer that runs twice has one adapter.
type Params = BTreeMap<ValueId, (ValueId, ValueId)>;

fn inject(
    patch: &mut Patch<'_>,
    options: &InjectOptions,
    layer: &Linear,
    rank: u64,
    scale: f64,
    params: &mut Params,
) -> Result<(), PassError> {
    let own = patch.ty(layer.y).dtype;
    let dtype = options.adapter_dtype.unwrap_or(own);
    let (a, b) = match params.get(&layer.weight) {
        Some(known) => *known,
        None => *params.entry(layer.weight).or_insert(new_params(
            patch,
            options.init_a,
            layer,
            rank,
            dtype,
        )?),
    };
    patch.at(layer.op);
    let mut site = patch.site().clone();
    let prefix = &*site.module;
    site.module = prefix.strip_suffix(".base_layer").unwrap_or(prefix).into();
    patch.at_site(site);

    // Read here: the adapter of the layer before may have changed it.
    let x = patch.graph().op(layer.product).operands[0];
    let x = patch.cast(x, dtype)?;
    let xa = patch.matmul(x, a, false, true)?;
    let product = patch.matmul(xa, b, false, true)?;
    let mut delta = patch.scaled(product, scale)?;
    let mut base = layer.y;
    // The sum is taken in the wider type, as PyTorch promotes.
    if dtype.size() > own.size() {
        base = patch.cast(base, dtype)?;
    } else {
        delta = patch.cast(delta, own)?;
    }
    let sum = patch.plus(base, delta)?;
    let result = patch.cast(sum, own)?;

    let reader = if base == layer.y { sum } else { base };
    let reader = patch.graph().value(reader).op;
    patch.replace(layer.y, result)?;
    patch.set_operand(reader, 0, layer.y);
    let (module, scale) = (patch.site().module.clone(), Scalar(scale));
    let module = if module.is_empty() {
        layer.module.clone()
    } else {
        module
    };
    patch.adapter(Adapter {
        module,
        x,
        a,
        b,
        xa,
        scale,
        rank,
    });
    Ok(())
}

fn new_params(
    patch: &mut Patch<'_>,
    init: Init,
    layer: &Linear,
    rank: u64,
    dtype: DType,
) -> Result<(ValueId, ValueId), PassError> {
    // Parameters stand where the layer's weight stands.
    let weight = patch.graph().value(layer.weight).op;
    patch.at(weight);
    let mut add = |which: &str, rows: u64, columns: u64, init: Init| {
        let dim = |n: u64| Dim::Known(i64::try_from(n).unwrap_or(i64::MAX));
        let ty = TensorType::new(dtype, [dim(rows), dim(columns)]);
        let path = &layer.module;
        let name: Arc<str> = format!("base_model.model.{path}.lora_{which}.default.weight").into();
        let param = Param::new(name.clone(), Role::Trained, ty, Data::Init(init));
        let value = patch.add1(Op::Param(Box::new(param)), &[])?;
        patch.name(value, Some(name));
        Ok::<ValueId, PassError>(value)
    };
    let a = add("A", rank, layer.inputs, init)?;
    Ok((a, add("B", layer.outputs, rank, Init::Zeros)?))
}
