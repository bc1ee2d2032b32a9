//! `attach-optimizer`: adds an AdamW update for every gradient, and what the user wants before it.
//!
//! ```text
//! + param %optim::step : i64[] optstate
//! + param %optim::lr : f32[] optstate
//! + param %optim::m::b : f32[4,2] optstate
//! + param %optim::v::b : f32[4,2] optstate
//! + update:
//! + v10, v11, v12 = adamw %b, v9, %optim::m::b, %optim::v::b, %optim::step, %optim::lr
//! + out "updated::b" = v10 updated %b
//! + out "optim::m_out::b" = v11 updated %optim::m::b
//! + out "optim::v_out::b" = v12 updated %optim::v::b
//! ```
//!
//! Moments are f32 whatever the parameter is. They and the parameter are updated in place.
//!
//! An update stands in the backward pass, where its gradient is there and what reads the parameter has run; where
//! gradients wait for each other or for other micro-batches, it stands after the backward pass. A gradient is no output
//! unless that is asked for, so that it lives until its update.
//!
//! A gradient goes through these, as far as they are asked for:
//!
//! | | region | what it adds |
//! |---|---|---|
//! | accumulation | backward | `optim::keep` and `optim::weight`, `f32[]`, and an f32 accumulator `optim::grad::b`, which is then the gradient: `accumulate %optim::grad::b, v9, %optim::keep, %optim::weight` |
//! | clipping | update | the output `grad_norm`, `f32[]`, over all gradients; each is multiplied by `min(1, most/(grad_norm + 1e-6))` |
//! | projection | update | for an adapter's B, `optim::inverse::a`, `f32[rank,rank]`, by which the gradient is multiplied, and by `1/scale²`; in f32, or in bf16 as PEFT does where there is bf16 |
//!
//! On all micro-batches of a large batch but the last, the ops of the update region are left out.
//! `optim::keep` is 0 on the first and 1 on the others, `optim::weight` the share of the large
//! batch's labels that the micro-batch has: then the sum is the gradient of the mean over all labels.

mod clip;
mod options;
mod place;
mod project;

pub use options::{OptimizerKind, OptimizerOptions};

use crate::pass::{Changed, Method, Pass, PassCx, PassError, PassKind};
use lorafa_ir::ops::{Accumulate, AdamW, AdamWForm, Op, Param, Role};
use lorafa_ir::optimizer::{GRADIENT_NORM, KEEP, LR, STATE, STEP, UPDATED, WEIGHT};
use lorafa_ir::{DType, Graph, OutputKind, Patch, PatchError, Region, Site, TensorType, ValueId};
use std::sync::Arc;

/// See the module.
pub struct AttachOptimizer;

/// A parameter with its gradient.
struct Trained {
    param: ValueId,
    /// The parameter's name.
    name: Arc<str>,
    gradient: ValueId,
    /// The gradient output's name.
    output: Arc<str>,
    /// From this place of the schedule on the gradient is there.
    made: i64,
    /// From this place of the schedule on nothing reads the parameter.
    read: i64,
}

impl Trained {
    fn module(&self) -> &str {
        self.name.rsplit_once('.').map_or("", |(module, _)| module)
    }
}

impl Pass for AttachOptimizer {
    fn name(&self) -> &'static str {
        "attach-optimizer"
    }

    fn kind(&self) -> PassKind {
        PassKind::Extends
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<Changed, PassError> {
        let options = cx.options.optimizer;
        let clips = options.max_grad_norm.is_some();
        refuse_taken_names(graph, clips)?;
        let mut trained = trained(graph);
        place::find(graph, &mut trained);
        let waits = options.accumulate || clips;
        if !waits {
            cx.note("parameters are updated within the backward pass");
        }
        let mut patch = graph.patch("attach-optimizer");
        let step = TensorType::scalar(DType::I64);
        let step = state(&mut patch, STEP, step)?;
        let lr = state(&mut patch, LR, TensorType::scalar(DType::F32))?;
        if options.accumulate {
            accumulate(&mut patch, &mut trained)?;
            cx.note("gradients of micro-batches are accumulated");
        }
        let projects = options.kind == OptimizerKind::LoraFa;
        let (form, projections) = if projects && cx.options.method == Method::LoraFa {
            let dtype = options.projection;
            let projections = project::Projections::new(&mut patch, &trained, dtype)?;
            cx.note(format_args!("{} gradients projected", projections.len()));
            (AdamWForm::Peft, Some(projections))
        } else {
            if projects {
                cx.note("AdamW: the LoRA-FA optimizer is for the method lora-fa");
            }
            (AdamWForm::Torch, None)
        };
        let coefficient = match options.max_grad_norm {
            Some(most) => {
                cx.note(format_args!("gradients clipped to a norm of {most}"));
                clip::coefficient(&mut patch, &trained, most)?
            }
            None => None,
        };
        if !options.keep_gradients {
            patch.retain_outputs(|o| !matches!(o.kind, OutputKind::Gradient(_)));
        }
        for one in &trained {
            let place = if waits {
                place::LAST
            } else {
                one.made.max(one.read)
            };
            patch.at_site(update_site(place, one.module()));
            let mut gradient = one.gradient;
            if let Some(coefficient) = coefficient {
                gradient = patch.cast(gradient, DType::F32)?;
                gradient = patch.times(gradient, coefficient)?;
            }
            if let Some(projections) = &projections {
                gradient = projections.apply(&mut patch, one.param, gradient)?;
            }
            update(&mut patch, one, gradient, [step, lr], options.adamw(form))?;
        }
        cx.note(format_args!("{} parameters", trained.len()));
        Ok(Changed::from_count(trained.len()))
    }
}

fn refuse_taken_names(graph: &Graph, clips: bool) -> Result<(), PassError> {
    if let Some((_, taken)) = graph.params().find(|(_, p)| p.name.starts_with(STATE)) {
        return Err(PassError::Refused(format!(
            "the model has a parameter called {}: names that start with `{STATE}` are the \
             optimizer's; rename it",
            taken.name
        )));
    }
    if clips && graph.outputs().iter().any(|o| &*o.name == GRADIENT_NORM) {
        return Err(PassError::Refused(format!(
            "the model has an output called {}: that is where the norm of the gradients goes; \
             rename it",
            GRADIENT_NORM
        )));
    }
    Ok(())
}

/// Every parameter that has a gradient, in the gradients' order.
fn trained(graph: &Graph) -> Vec<Trained> {
    let outputs = graph.outputs().iter();
    let trained = outputs.filter_map(|o| match o.kind {
        OutputKind::Gradient(param) => Some(Trained {
            param,
            name: graph.param(param)?.name.clone(),
            gradient: o.value,
            output: o.name.clone(),
            made: i64::MIN,
            read: i64::MIN,
        }),
        _ => None,
    });
    trained.collect()
}

fn update_site(seq: i64, module: &str) -> Site {
    Site {
        region: Region::Update,
        seq,
        module: Arc::from(module),
        of: None,
    }
}

/// Adds state that is given at run time.
fn state(patch: &mut Patch<'_>, name: &str, ty: TensorType) -> Result<ValueId, PatchError> {
    patch.at_site(Site {
        region: Region::Forward,
        seq: i64::MIN,
        module: Arc::from(""),
        of: None,
    });
    let param = Param::runtime(name, Role::OptState, ty);
    patch.add1(Op::Param(Box::new(param)), &[])
}

/// Sums every gradient with those of earlier micro-batches as soon as it is there; from then on the
/// sum is the gradient.
fn accumulate(patch: &mut Patch<'_>, trained: &mut [Trained]) -> Result<(), PatchError> {
    let scalar = || TensorType::scalar(DType::F32);
    let keep = state(patch, KEEP, scalar())?;
    let weight = state(patch, WEIGHT, scalar())?;
    patch.retain_outputs(|o| !matches!(o.kind, OutputKind::Gradient(_)));
    for one in trained {
        let ty = patch.ty(one.gradient).with_dtype(DType::F32);
        let sum = state(patch, &format!("optim::grad::{}", one.name), ty)?;
        patch.at_site(Site {
            region: Region::Backward,
            ..update_site(one.made, one.module())
        });
        let operands = [sum, one.gradient, keep, weight];
        one.gradient = patch.add1(Accumulate.into(), &operands)?;
        let gradient = OutputKind::Gradient(one.param);
        patch.output(one.output.clone(), one.gradient, gradient);
        patch.output(
            format!("optim::grad_out::{}", one.name),
            one.gradient,
            OutputKind::Updated(sum),
        );
    }
    Ok(())
}

/// The next parameter and moments, where the patch stands.
fn update(
    patch: &mut Patch<'_>,
    trained: &Trained,
    gradient: ValueId,
    [step, lr]: [ValueId; 2],
    adamw: AdamW,
) -> Result<(), PatchError> {
    let Trained { param, name, .. } = trained;
    let site = patch.site().clone();
    let moment = patch.ty(*param).with_dtype(DType::F32);
    let m = state(patch, &format!("optim::m::{name}"), moment.clone())?;
    let v = state(patch, &format!("optim::v::{name}"), moment)?;
    patch.at_site(site);
    let next = patch.add(adamw.into(), &[*param, gradient, m, v, step, lr])?;
    let updated = [
        (format!("{UPDATED}{name}"), *param),
        (format!("optim::m_out::{name}"), m),
        (format!("optim::v_out::{name}"), v),
    ];
    for ((name, old), next) in updated.into_iter().zip(next) {
        patch.output(name, next, OutputKind::Updated(old));
    }
    Ok(())
}
