//! Runs passes: verifies after each, counts, stops.

use crate::pass::{Changed, Method, Pass, PassCx, PassError, PassKind};
use crate::registry;
use lorafa_ir::Graph;
use lorafa_ir::verify::Violations;
use thiserror::Error;

/// Why a run of passes ended early.
#[derive(Clone, Debug, Error)]
pub enum RunError {
    /// A pass refused the model or the options.
    #[error("{error}")]
    Pass {
        /// The pass.
        pass: &'static str,
        /// What it said.
        error: PassError,
    },
    /// A pass left a graph that does not verify: a defect of the pass, not of the model.
    #[error("{pass} left a graph that does not verify; please report this\n{violations}")]
    Broken {
        /// The pass.
        pass: &'static str,
        /// What is wrong with the graph.
        violations: Violations,
    },
}

/// Runs passes one after the other.
#[derive(Clone, Debug, Default)]
pub struct Manager {
    stop_after: Option<String>,
    stopped: bool,
}

impl Manager {
    /// A manager that runs everything it is given.
    pub fn new() -> Self {
        Self::default()
    }

    /// A manager that does nothing more once the pass `name` has run.
    pub fn stopping_after(name: impl Into<String>) -> Self {
        Manager {
            stop_after: Some(name.into()),
            ..Self::default()
        }
    }

    /// Whether the pass to stop after has run.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Runs `passes` in order and verifies the graph after each one that changed it. What changes
    /// training runs only where the method asks for it, and what is disabled does not run.
    pub fn run(
        &mut self,
        passes: &[&dyn Pass],
        graph: &mut Graph,
        cx: &mut PassCx,
    ) -> Result<(), RunError> {
        for pass in passes {
            if self.stopped {
                break;
            }
            let name = pass.name();
            cx.pass = name;
            if pass.kind() == PassKind::ChangesTraining && cx.options.method != Method::LoraFa {
                cx.note("left out: the method does not ask for it");
                continue;
            }
            if pass.kind() == PassKind::Equivalence && cx.options.disabled.contains(name) {
                cx.note("left out: it is disabled");
                continue;
            }
            let before = graph.op_count();
            let changed = pass
                .run(graph, cx)
                .map_err(|error| RunError::Pass { pass: name, error })?;
            if changed == Changed::Yes {
                let verified = graph.verify();
                verified.map_err(|violations| RunError::Broken {
                    pass: name,
                    violations,
                })?;
                cx.note(format_args!(
                    "{before} ops before, {} after",
                    graph.op_count()
                ));
            } else {
                cx.note("changed nothing");
            }
            self.stopped = self.stop_after.as_deref() == Some(name);
        }
        Ok(())
    }

    /// Makes an imported graph the training step of the method that `cx` asks for, as [`run`](Self::run) does.
    pub fn build(&mut self, graph: &mut Graph, cx: &mut PassCx) -> Result<(), RunError> {
        self.run(registry::PREPARE, graph, cx)?;
        let mut stages = registry::stages(graph, cx.options.method).into_iter();
        stages.try_for_each(|passes| self.run(passes, graph, cx))
    }
}
