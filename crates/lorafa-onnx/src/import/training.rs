//! The training graphs of onnxruntime-training.
//!
//! `generate_artifacts` writes `training_model.onnx`, a forward and a backward pass that end in one accumulator a weight
//! that trains:
//!
//! ```text
//! inputs    input_ids, labels, …        what a step is given
//!           m.embed.weight, …           weights, frozen and trained, as the checkpoint has them
//!           m.w_grad.accumulation.buffer, …
//!           lazy_reset_grad
//! nodes     InPlaceAccumulatorV2(m.w_grad.accumulation.buffer, m.w_grad, lazy_reset_grad) → m.w_grad.accumulation.out
//! outputs   loss, logits, m.w_grad.accumulation.out, …
//! ```
//!
//! An accumulator becomes the output `grad::m.w` with the gradient of one batch, and its buffer and the reset go: summing
//! over batches is the optimizer's part (`attach-optimizer`), as it is for any other graph.
//!
//! **Which inputs are weights.** What has an accumulator trains; that there is an `m.w_grad` says nothing, as norms
//! have it always. Weights follow the data that a step is given, and buffers follow them. So weights are all from the
//! first weight on, which is the first float of fixed shape whose name is a module path. A float of fixed shape before
//! that is refused: nothing tells whether it is a weight. What follows the first weight and has a symbolic shape is
//! refused, too.
//!
//! **The loss** is the output that the backward pass begins with: there is a constant `<output>_grad`.

use super::error::ImportError;
use super::node::Node;
use crate::file::ModelFile;
use crate::proto::{NodeProto, ValueInfoProto};
use lorafa_ir::ops::is_path;
use std::collections::{BTreeMap, BTreeSet};

/// How accumulators' buffers are called: `<parameter>_grad.accumulation.buffer`.
const BUFFER: &str = "_grad.accumulation.buffer";

/// How what accumulators give is called.
const FLAG: &str = ".accumulation.out";

/// Whether a node adds a gradient to those of earlier batches.
pub(super) fn accumulates(node: &NodeProto) -> bool {
    node.op_type() == "InPlaceAccumulatorV2" && node.domain() == "com.microsoft"
}

/// What a training graph says about its inputs and outputs.
#[derive(Debug)]
pub(super) struct Training<'m> {
    /// By what an accumulator gives, the parameter and its gradient.
    accumulated: BTreeMap<&'m str, (&'m str, &'m str)>,
    /// Inputs of accumulators alone.
    buffers: BTreeSet<&'m str>,
    parameters: BTreeSet<&'m str>,
    initializers: BTreeSet<&'m str>,
}

impl<'m> Training<'m> {
    /// Reads what a model's accumulators say; `None` if it has none.
    pub(super) fn read(model: &'m ModelFile) -> Result<Option<Self>, ImportError> {
        let graph = model.graph();
        let mut training = Training {
            accumulated: BTreeMap::new(),
            buffers: BTreeSet::new(),
            parameters: BTreeSet::new(),
            initializers: graph.initializer.iter().map(|t| t.name()).collect(),
        };
        let inputs: BTreeSet<&str> = graph.input.iter().map(|i| i.name()).collect();
        let mut trained: BTreeMap<&str, String> = BTreeMap::new();
        for node in graph.node.iter().filter(|node| accumulates(node)) {
            let at = place(model, node);
            let (param, gradient) = training.accumulator(node, &inputs, &at)?;
            if let Some(first) = trained.insert(param, at.clone()) {
                let why = format!("it accumulates the gradient of {param}, as {first} does");
                return Err(ImportError::Accumulator { place: at, why });
            }
            for flag in node.output.iter().filter(|name| !name.is_empty()) {
                training.accumulated.insert(flag, (param, gradient));
            }
        }
        for output in graph.output.iter().map(|o| o.name()) {
            if output.ends_with(FLAG) && !training.accumulated.contains_key(output) {
                return Err(ImportError::Accumulator {
                    place: format!("output `{output}`"),
                    why: "no InPlaceAccumulatorV2 gives it, so nothing says whose gradient it is; give gradients as \
                          outputs called `grad::<parameter>`"
                        .into(),
                });
            }
        }
        if training.accumulated.is_empty() {
            return Ok(None);
        }
        training.refuse_other_readers(model)?;
        training.find_parameters(&graph.input)?;
        for (param, place) in trained {
            if !training.parameters.contains(param) {
                let why = format!("its parameter {param} comes before the weights, among the data");
                return Err(ImportError::Accumulator { place, why });
            }
        }
        Ok(Some(training))
    }

    /// The parameter and the gradient of an accumulator.
    fn accumulator(
        &mut self,
        node: &'m NodeProto,
        inputs: &BTreeSet<&str>,
        place: &str,
    ) -> Result<(&'m str, &'m str), ImportError> {
        let refused = |why: String| ImportError::Accumulator {
            place: place.into(),
            why,
        };
        let [buffer, gradient, reset @ ..] = node.input.as_slice() else {
            return Err(refused("it has no buffer and gradient".into()));
        };
        let param = buffer.strip_suffix(BUFFER).ok_or_else(|| {
            refused(format!(
                "its buffer `{buffer}` is not called `<parameter>{BUFFER}`, so nothing says whose gradient it is"
            ))
        })?;
        if !inputs.contains(param) {
            return Err(refused(format!(
                "it accumulates the gradient of {param}, and the graph has no such input"
            )));
        }
        for name in reset.iter().chain([buffer]).filter(|name| !name.is_empty()) {
            if !inputs.contains(name.as_str()) {
                return Err(refused(format!("`{name}` is no input of the graph")));
            }
            self.buffers.insert(name);
        }
        Ok((param, gradient))
    }

    /// Nothing may depend on sums that we do not keep.
    fn refuse_other_readers(&self, model: &'m ModelFile) -> Result<(), ImportError> {
        let graph = model.graph();
        let others = graph.node.iter().filter(|node| !accumulates(node));
        for node in others {
            let read = node.input.iter().map(String::as_str);
            let of_accumulators =
                |name: &&str| self.buffers.contains(name) || self.accumulated.contains_key(name);
            if let Some(name) = read.into_iter().find(of_accumulators) {
                return Err(ImportError::Accumulator {
                    place: place(model, node),
                    why: format!("it reads `{name}`, which is for accumulators alone"),
                });
            }
        }
        Ok(())
    }

    /// Tells weights from what a step is given.
    fn find_parameters(&mut self, inputs: &'m [ValueInfoProto]) -> Result<(), ImportError> {
        let mut begun = false;
        for input in inputs {
            let name = input.name();
            if self.buffers.contains(name) || self.initializers.contains(name) {
                continue;
            }
            let ty = super::declared(input.r#type.as_ref()).and_then(Result::ok);
            let fixed = ty.as_ref().is_some_and(|ty| ty.known_shape().is_some());
            let float = ty.is_some_and(|ty| ty.dtype.is_float());
            begun = begun || fixed && float && is_path(name);
            match begun {
                true if fixed => {
                    self.parameters.insert(name);
                }
                true => {
                    let why =
                        "it comes after the first weight, so it is one, and its shape is not known";
                    let (name, why) = (name.into(), why.into());
                    return Err(ImportError::Dim { name, why });
                }
                false if fixed && float => {
                    return Err(ImportError::AmbiguousInput { name: name.into() });
                }
                false => {}
            }
        }
        Ok(())
    }

    /// Whether an input is for accumulators alone.
    pub(super) fn is_buffer(&self, name: &str) -> bool {
        self.buffers.contains(name)
    }

    /// Whether an input is a weight.
    pub(super) fn is_parameter(&self, name: &str) -> bool {
        self.parameters.contains(name)
    }

    /// Of what an accumulator gives, the parameter and the name of its gradient.
    pub(super) fn accumulated(&self, output: &str) -> Option<(&'m str, &'m str)> {
        self.accumulated.get(output).copied()
    }

    /// The names of all gradients that are accumulated.
    pub(super) fn gradients(&self) -> impl Iterator<Item = &'m str> {
        self.accumulated.values().map(|(_, gradient)| *gradient)
    }

    /// The output that is the loss.
    pub(super) fn loss<'n>(
        &self,
        outputs: impl Iterator<Item = &'n str>,
    ) -> Result<&'n str, ImportError> {
        let outputs: Vec<&str> = outputs.collect();
        let begins = |name: &&&str| self.initializers.contains(format!("{name}_grad").as_str());
        let found: Vec<&str> = outputs.iter().filter(begins).copied().collect();
        let names = |of: &[&str]| of.iter().map(ToString::to_string).collect();
        match found.as_slice() {
            [loss] => Ok(loss),
            [] => Err(ImportError::NoLoss {
                names: names(&outputs),
            }),
            several => Err(ImportError::Losses {
                names: names(several),
            }),
        }
    }
}

fn place(model: &ModelFile, node: &NodeProto) -> String {
    let opset = model.opset(node.domain()).unwrap_or(0);
    let (proto, seq) = (node, 0);
    Node { proto, seq, opset }.place().to_string()
}
