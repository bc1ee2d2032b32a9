//! What a pass is.

use lorafa_ir::grad::GradientError;
use lorafa_ir::{Bindings, DType, Graph, PatchError};
use std::collections::BTreeSet;
use thiserror::Error;

use crate::attach_loss::LossKind;
use crate::attach_optimizer::OptimizerOptions;
use crate::freeze_lora_a::Certificate;
use crate::inject_lora::InjectOptions;
use crate::rematerialize::Rematerialized;

/// What a pass may do to the meaning of a graph.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PassKind {
    /// Brings equal graphs to one form, which the passes after it need.
    Canonicalize,
    /// Computes the same from the same inputs, in less memory or time. No other pass needs it.
    Equivalence,
    /// Builds what was not there, or takes out what was: adapters, a loss, gradients, an optimizer.
    Extends,
    /// Changes what training does. Runs only because the method asks for it.
    ChangesTraining,
}

/// Whether a pass changed the graph.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Changed {
    /// It did.
    Yes,
    /// It did not.
    No,
}

impl Changed {
    /// From a number of edits.
    pub fn from_count(edits: usize) -> Self {
        if edits == 0 {
            Changed::No
        } else {
            Changed::Yes
        }
    }
}

/// Which parameters are trained.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Method {
    /// Every parameter.
    Full,
    /// The adapters.
    Lora,
    /// The adapters' B.
    LoraFa,
}

impl Method {
    /// Every method with its spelling.
    pub const ALL: [(Method, &'static str); 3] = [
        (Method::Full, "full"),
        (Method::Lora, "lora"),
        (Method::LoraFa, "lora-fa"),
    ];

    /// The spelling.
    pub fn name(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(m, _)| *m == self)
            .map_or("?", |(_, n)| n)
    }
}

/// What the user asked for, as passes read it.
#[derive(Clone, Debug)]
pub struct Options {
    /// What to train.
    pub method: Method,
    /// Numbers for symbolic dimensions.
    pub bindings: Bindings,
    /// The precision to train in; the model's own if none.
    pub dtype: Option<DType>,
    /// The loss to attach; chosen by the graph's shape if none.
    pub loss: Option<LossKind>,
    /// How to inject adapters where the model has none.
    pub inject: InjectOptions,
    /// Leave the backward pass of a training graph out, and differentiate its forward pass.
    pub differentiate: bool,
    /// Remove the adapters in the model and inject new ones.
    pub replace_adapters: bool,
    /// The optimizer and what happens to gradients before it.
    pub optimizer: OptimizerOptions,
    /// Whether `pack-frozen` does anything.
    pub pack_frozen: bool,
    /// Names of passes to leave out, of kind [`PassKind::Equivalence`].
    pub disabled: BTreeSet<&'static str>,
}

impl Default for Options {
    /// LoRA-FA in the model's own precision, with nothing bound and nothing injected.
    fn default() -> Self {
        Options {
            method: Method::LoraFa,
            bindings: Bindings::new(),
            dtype: None,
            loss: None,
            inject: InjectOptions::default(),
            differentiate: false,
            replace_adapters: false,
            optimizer: OptimizerOptions::default(),
            pack_frozen: false,
            disabled: BTreeSet::new(),
        }
    }
}

/// What passes read and leave behind.
#[derive(Debug)]
pub struct PassCx {
    /// What the user asked for.
    pub options: Options,
    /// Lines for `--explain`: what a pass did or did not do, and why.
    pub notes: Vec<String>,
    /// What the user should know though nothing is wrong, for the report.
    pub warnings: Vec<String>,
    /// What `freeze-lora-a` proved.
    pub certificate: Option<Certificate>,
    /// What `rematerialize` did.
    pub rematerialized: Option<Rematerialized>,
    /// The pass under way, for notes.
    pub(crate) pass: &'static str,
}

impl PassCx {
    /// A context for `options`.
    pub fn new(options: Options) -> Self {
        PassCx {
            options,
            notes: Vec::new(),
            warnings: Vec::new(),
            certificate: None,
            rematerialized: None,
            pass: "",
        }
    }

    /// Says what the user should know though nothing is wrong.
    pub fn warn(&mut self, what: impl std::fmt::Display) {
        self.warnings.push(what.to_string());
    }

    /// Says why a rule fired or did not.
    pub fn note(&mut self, what: impl std::fmt::Display) {
        self.notes.push(format!("{}: {what}", self.pass));
    }
}

/// Why a pass failed. The manager adds the pass's name.
#[derive(Clone, Debug, Error)]
pub enum PassError {
    /// The model or the options do not allow it; says what would.
    #[error("{0}")]
    Refused(String),
    /// An op on the way to a trained parameter has no gradient.
    #[error("op `{line}`{place}: {error}")]
    NoGradient {
        /// The op's line in the text form.
        line: String,
        /// Its module, as ` in …`, or nothing.
        place: String,
        /// Why.
        error: Box<GradientError>,
    },
    /// The pass built something ill-typed.
    #[error(transparent)]
    Patch(#[from] PatchError),
}

/// A pass over a graph.
pub trait Pass: Sync {
    /// Kebab-case: the CLI's spelling and the fixture folder.
    fn name(&self) -> &'static str;

    /// What it may do to the graph's meaning.
    fn kind(&self) -> PassKind;

    /// Changes the graph.
    fn run(&self, graph: &mut Graph, cx: &mut PassCx) -> Result<Changed, PassError>;
}

/// The module of an op as an error prints it: ` in model.layers.0`, or nothing.
pub(crate) fn in_module(module: &str) -> String {
    if module.is_empty() {
        String::new()
    } else {
        format!(" in {module}")
    }
}

/// A module path with `*` for the numbers of layers: `model.layers.*.mlp`.
pub fn layer_pattern(module: &str) -> String {
    let number = |part: &str| part.bytes().all(|b| b.is_ascii_digit()) && !part.is_empty();
    let parts = module.split('.');
    let parts = parts.map(|part| if number(part) { "*" } else { part });
    parts.collect::<Vec<_>>().join(".")
}
