//! What onnxruntime-training's `optimizer_model.onnx` says.

use crate::file::ModelFile;
use crate::proto::NodeProto;
use lorafa_ir::ops::AdamWForm;
use std::fmt;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// AdamW with its numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct AdamWModel {
    /// The file that says so.
    pub path: PathBuf,
    /// The formula.
    pub form: AdamWForm,
    /// Decays of the first and the second moment.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// The norm of all gradients together beyond which they are scaled down to it.
    pub max_grad_norm: Option<f64>,
}

impl fmt::Display for AdamWModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let form = match self.form {
            AdamWForm::Torch => "PyTorch's",
            AdamWForm::Peft => "transformers'",
        };
        let [beta1, beta2] = self.betas;
        let (eps, decay) = (self.eps, self.weight_decay);
        write!(
            f,
            "AdamW, {form} form, betas {beta1} and {beta2}, eps {eps:e}, weight decay {decay}"
        )?;
        match self.max_grad_norm {
            Some(norm) => write!(f, ", clipped to {norm}"),
            None => Ok(()),
        }
    }
}

/// Why a file does not say what the optimizer is.
#[derive(Debug, Error)]
#[error("{}: {why}; --optimizer takes one of ours instead", path.display())]
pub struct OptimizerError {
    path: PathBuf,
    why: String,
}

/// Reads the optimizer of `optimizer_model.onnx`: one `AdamWOptimizer`, perhaps after one `InplaceClipGradNorm`.
///
/// # Errors
///
/// [`OptimizerError`] for any other optimizer.
pub fn read(model: &ModelFile) -> Result<AdamWModel, OptimizerError> {
    let path = model.path();
    let refused = |why: String| OptimizerError {
        path: path.into(),
        why,
    };
    let (mut adamw, mut clip) = (None, None);
    for node in &model.graph().node {
        let slot = match (node.domain(), node.op_type()) {
            ("com.microsoft", "AdamWOptimizer") => &mut adamw,
            ("com.microsoft", "InplaceClipGradNorm") => &mut clip,
            // They hand sequences of tensors on.
            ("", "SequenceConstruct" | "SequenceAt" | "Identity") => continue,
            (domain, op) => {
                let op = if domain.is_empty() {
                    op.into()
                } else {
                    format!("{domain}::{op}")
                };
                return Err(refused(format!(
                    "its operator {op} is not known; AdamWOptimizer and InplaceClipGradNorm are"
                )));
            }
        };
        if slot.replace(node).is_some() {
            return Err(refused(format!("it has more than one {}", node.op_type())));
        }
    }
    let adamw = adamw.ok_or_else(|| refused("it has no AdamWOptimizer".into()))?;
    from_node(path, adamw, clip).map_err(refused)
}

fn from_node(
    path: &Path,
    adamw: &NodeProto,
    clip: Option<&NodeProto>,
) -> Result<AdamWModel, String> {
    let form = match integer(adamw, "adam_mode", 0) {
        0 => AdamWForm::Torch,
        1 => AdamWForm::Peft,
        other => return Err(format!("its adam_mode is {other}; 0 and 1 are known")),
    };
    if integer(adamw, "correct_bias", 1) != 1 {
        return Err("it does not correct the bias of the moments, which is not supported".into());
    }
    Ok(AdamWModel {
        path: path.into(),
        form,
        betas: [float(adamw, "alpha", 0.9), float(adamw, "beta", 0.999)],
        eps: float(adamw, "epsilon", 1e-8),
        weight_decay: float(adamw, "weight_decay", 1e-2),
        max_grad_norm: clip.map(|clip| float(clip, "max_norm", 1.0)),
    })
}

fn integer(node: &NodeProto, name: &str, default: i64) -> i64 {
    let attribute = node.attribute.iter().find(|a| a.name() == name);
    attribute.map_or(default, |a| a.i())
}

/// The number that was meant: the shortest that is this f32.
fn float(node: &NodeProto, name: &str, default: f32) -> f64 {
    let attribute = node.attribute.iter().find(|a| a.name() == name);
    let number = attribute.map_or(default, |a| a.f());
    number.to_string().parse().unwrap_or(f64::from(number))
}
