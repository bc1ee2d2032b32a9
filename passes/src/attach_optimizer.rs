//! `attach-optimizer`: adds one AdamW update for every gradient.
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

use crate::pass::{Changed, Pass, PassCx, PassError, PassKind};
use lorafa_ir::ops::{Op, Param, Role};
use lorafa_ir::{DType, Graph, OutputKind, Patch, PatchError, Region, Site, TensorType, ValueId};
use std::sync::Arc;

/// What precedes the name of the next value of a parameter among the outputs.
const UPDATED: &str = "updated::";

/// What precedes the names of the optimizer's inputs and outputs.
const STATE: &str = "optim::";

/// See the module.
pub struct AttachOptimizer;

impl Pass for AttachOptimizer {
    fn name(&self) -> &'static str {
        "attach-optimizer"
    }

    fn kind(&self) -> PassKind {
        PassKind::Extends
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<Changed, PassError> {
        let gradients: Vec<(ValueId, ValueId)> = graph
            .outputs()
            .iter()
            .filter_map(|o| match o.kind {
                OutputKind::Gradient(param) => Some((param, o.value)),
                _ => None,
            })
            .collect();
        if let Some((_, taken)) = graph.params().find(|(_, p)| p.name.starts_with(STATE)) {
            return Err(PassError::Refused(format!(
                "the model has a parameter called {}: names that start with `{STATE}` are the \
                 optimizer's; rename it",
                taken.name
            )));
        }
        let mut patch = graph.patch("attach-optimizer");
        let scalar = TensorType::scalar;
        let step = add_param(
            &mut patch,
            "optim::step",
            Role::OptState,
            scalar(DType::I64),
        )?;
        let lr = add_param(&mut patch, "optim::lr", Role::OptState, scalar(DType::F32))?;
        for (param, gradient) in &gradients {
            update(&mut patch, *param, *gradient, [step, lr], cx)?;
        }
        cx.note(format_args!("{} parameters", gradients.len()));
        Ok(Changed::from_count(gradients.len()))
    }
}

fn add_param(
    patch: &mut Patch<'_>,
    name: &str,
    role: Role,
    ty: TensorType,
) -> Result<ValueId, PatchError> {
    patch.at_site(Site {
        region: Region::Forward,
        seq: i64::MIN,
        module: Arc::from(""),
        of: None,
    });
    patch.add1(Op::Param(Box::new(Param::runtime(name, role, ty))), &[])
}

fn update(
    patch: &mut Patch<'_>,
    param: ValueId,
    gradient: ValueId,
    [step, lr]: [ValueId; 2],
    cx: &PassCx,
) -> Result<(), PatchError> {
    let Some(name) = patch.graph().param(param).map(|p| p.name.clone()) else {
        return Ok(());
    };
    let moment = patch.ty(param).with_dtype(DType::F32);
    let m = add_param(
        patch,
        &format!("optim::m::{name}"),
        Role::OptState,
        moment.clone(),
    )?;
    let v = add_param(patch, &format!("optim::v::{name}"), Role::OptState, moment)?;
    // An update waits for nothing but its gradient: updates stand in the gradients' order.
    let seq = patch.graph().def(gradient).site.seq;
    let module = name
        .rsplit_once('.')
        .map_or("", |(module, _)| module)
        .into();
    patch.at_site(Site {
        region: Region::Update,
        seq,
        module,
        of: None,
    });
    let operands = [param, gradient, m, v, step, lr];
    let next = patch.add(cx.options.adamw.into(), &operands)?;
    patch.output(
        format!("{UPDATED}{name}"),
        next[0],
        OutputKind::Updated(param),
    );
    patch.output(
        format!("optim::m_out::{name}"),
        next[1],
        OutputKind::Updated(m),
    );
    patch.output(
        format!("optim::v_out::{name}"),
        next[2],
        OutputKind::Updated(v),
    );
    Ok(())
}
