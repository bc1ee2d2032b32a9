//! `lorafa-opt check`: a training graph's gradients beside our own, and finite differences.

mod compare;
mod inputs;
mod report;

use crate::args::CheckArgs;
use crate::artifacts::Files;
use crate::compile;
use crate::error::Error;
use crate::{file_name, machine, output, weights};
use compare::{Apart, Slope, Verdict, norm, rounding};
use inputs::Batch;
use lorafa_exec::{Mode, Program};
use lorafa_ir::ops::Role;
use lorafa_ir::{Graph, Op, OutputKind};
use lorafa_onnx::dtype::{decode, encode};
use lorafa_onnx::external::ExternalStore;
use lorafa_onnx::file::ModelFile;
use lorafa_onnx::import::import;
use lorafa_passes::compare_gradients::OWN;
use serde::Serialize;
use std::io::Write;
use std::sync::Arc;

/// The step of finite differences, as a share of the parameter's norm.
const STEP: f64 = 1e-4;

/// What a loss in f64 is off by, as a share of it.
const ROUNDING: f64 = 1e-14;

/// What was compared.
#[derive(Debug, Serialize)]
struct Figures {
    model: String,
    dtype: Option<String>,
    loss: f64,
    wrong: usize,
    gradients: Vec<Checked>,
}

/// One gradient.
#[derive(Debug, Serialize)]
struct Checked {
    parameter: String,
    #[serde(flatten)]
    apart: Apart,
    #[serde(rename = "finite_differences")]
    verdict: Verdict,
}

impl Checked {
    /// Whether nothing speaks against it.
    fn right(&self) -> bool {
        self.apart.agree() && matches!(self.verdict, Verdict::Both | Verdict::Unclear)
    }
}

/// Compares, and says what came of it.
///
/// # Errors
///
/// [`Error`]; [`Error::Wrong`] where gradients differ, when that has been said.
pub fn check(args: &CheckArgs, out: &mut dyn Write) -> Result<(), Error> {
    let files = Files::of(&args.model)?;
    let model = ModelFile::open(&files.model)?;
    let batch = Batch::open(&args.inputs)?;
    let graph = import(&model)?;
    let bindings = batch.bindings(&graph)?;
    let mut graph = compile::given_gradients(graph, bindings)?;
    let dtype = compile::dtype(&graph);
    // Of the types that the file has, before they become f64, and before weights are read.
    for (_, param) in graph.params().filter(|(_, p)| p.role == Role::Input) {
        batch.bytes(param)?;
    }
    let store = ExternalStore::new(model.folder());
    weights::bind(
        &mut graph,
        &args.weights,
        files.checkpoint.as_deref(),
        &store,
    )?;
    let (graph, plan) = compile::with_own_gradients(graph)?;
    let graph = Arc::new(graph);
    let device = machine::open(&args.device)?;
    let mut program = Program::compile(graph.clone(), &plan, Mode::Arena, device)?;
    program.load(&store)?;
    for (_, param) in graph.params().filter(|(_, p)| p.role == Role::Input) {
        program.write(&param.name, &batch.bytes(param)?)?;
    }
    let figures = compared(&graph, &mut program, file_name(&args.model), dtype)?;
    output::figures(args.json.as_deref(), &figures, &report::text(&figures), out)?;
    match figures.wrong {
        0 => Ok(()),
        wrong => Err(Error::Wrong {
            wrong,
            of: figures.gradients.len(),
        }),
    }
}

fn compared(
    graph: &Graph,
    program: &mut Program,
    model: String,
    dtype: Option<String>,
) -> Result<Figures, Error> {
    program.step()?;
    let mut gradients = Vec::new();
    for output in graph.outputs() {
        let OutputKind::Gradient(value) = output.kind else {
            continue;
        };
        let parameter = graph.param(value).map_or("", |p| &*p.name).to_owned();
        let given = numbers(program, &output.name)?;
        let own = format!("{OWN}{parameter}");
        let ours = match program.outputs().any(|name| name == own) {
            true => numbers(program, &own)?,
            // The loss does not depend on it.
            false => vec![0.0; given.len()],
        };
        gradients.push((parameter, given, ours));
    }
    let all = gradients.iter().flat_map(|(_, given, ours)| [given, ours]);
    let rounding = rounding(all);
    let mut forward = Forward::new(graph, program)?;
    let mut checked = Vec::new();
    for (parameter, given, ours) in gradients {
        let apart = Apart::new(&given, &ours, rounding);
        let direction = apart.direction(&given, &ours);
        let slope = forward.slope(&parameter, &direction)?;
        checked.push(Checked {
            apart,
            verdict: apart.verdict(&given, &ours, &direction, slope),
            parameter,
        });
    }
    Ok(Figures {
        model,
        dtype,
        loss: forward.at_start,
        wrong: checked.iter().filter(|g| !g.right()).count(),
        gradients: checked,
    })
}

fn numbers(program: &Program, output: &str) -> Result<Vec<f64>, Error> {
    let (ty, bytes) = program.output(output)?;
    Ok(decode(ty.dtype, &bytes))
}

/// The loss as a function of the parameters.
struct Forward<'p> {
    program: &'p mut Program,
    loss: String,
    /// Whether it depends on what is drawn, which evaluation leaves out.
    draws: bool,
    at_start: f64,
}

impl<'p> Forward<'p> {
    fn new(graph: &Graph, program: &'p mut Program) -> Result<Self, Error> {
        let drawn = |op: &Op| matches!(op, Op::Dropout(_) | Op::DropoutMask(_));
        let loss = graph.loss().map_or("", |loss| &*loss.name).to_owned();
        let mut forward = Forward {
            program,
            loss,
            draws: graph.ops().any(|op| drawn(&op.kind)),
            at_start: f64::NAN,
        };
        forward.at_start = forward.loss()?;
        Ok(forward)
    }

    fn loss(&mut self) -> Result<f64, Error> {
        if self.draws {
            // The masks of the first step, of which the gradients are.
            self.program.set_steps(0);
            self.program.step()?;
        } else {
            self.program.evaluate()?;
        }
        let loss = numbers(self.program, &self.loss)?;
        Ok(loss.first().copied().unwrap_or(f64::NAN))
    }

    /// The derivative of the loss along a direction in which a parameter moves: central differences of two steps, whose
    /// error is extrapolated from one to the other.
    fn slope(&mut self, parameter: &str, direction: &[f64]) -> Result<Slope, Error> {
        let (ty, bytes) = self.program.param(parameter)?;
        let start = decode(ty.dtype, &bytes);
        let length = Some(norm(&start)).filter(|length| *length > 0.0 && *length < 1.0);
        let step = STEP * length.unwrap_or(1.0);
        let mut central = |step: f64| -> Result<f64, Error> {
            let mut at = |step: f64| -> Result<f64, Error> {
                let moved = start.iter().zip(direction).map(|(x, d)| x + step * d);
                self.program.write(parameter, &encode(ty.dtype, moved))?;
                self.loss()
            };
            Ok((at(step)? - at(-step)?) / (2.0 * step))
        };
        let (near, far) = (central(step)?, central(2.0 * step)?);
        self.program.write(parameter, &bytes)?;
        Ok(Slope {
            value: near + (near - far) / 3.0,
            error: (near - far).abs() / 3.0 + ROUNDING * self.at_start.abs().max(1.0) / step,
        })
    }
}
