//! What a checkpoint takes from a step's memory and gives back to it.

use crate::checkpoint::{Checkpoints, STATE, State};
use crate::error::TrainError;
use lorafa_exec::Program;
use lorafa_ir::ops::Role;
use lorafa_ir::optimizer::{KEEP, LR, STEP, WEIGHT};
use lorafa_ir::{DType, Graph, Op, TensorType};
use lorafa_onnx::external::ExternalStore;
use lorafa_weights::atomic_dir::StagedDir;
use lorafa_weights::safetensors_file::{self, Entry};
use lorafa_weights::shards::Shards;
use lorafa_weights::{Trained, Values, peft};
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const TRAINED: &str = "trained.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";

/// State that every update is given.
const NUMBERS: [&str; 4] = [STEP, LR, KEEP, WEIGHT];

/// What a file of a checkpoint holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Adapters, a frozen A as much as B, and every other trained parameter.
    Trained,
    /// The optimizer's state, but for what every update writes anew: numbers, and sums of gradients.
    Optimizer,
}

impl Part {
    const ALL: [Part; 2] = [Part::Trained, Part::Optimizer];

    fn file(self) -> &'static str {
        match self {
            Part::Trained => TRAINED,
            Part::Optimizer => OPTIMIZER,
        }
    }

    fn params(self, graph: &Graph) -> Vec<(Arc<str>, TensorType)> {
        let adapters = graph.adapters().iter().flat_map(|a| [a.a, a.b]);
        let adapters: BTreeSet<_> = adapters.collect();
        let sums = graph
            .ops()
            .filter(|op| matches!(op.kind, Op::Accumulate(_)));
        let sums: BTreeSet<_> = sums.filter_map(|op| op.operands.first()).collect();
        let params = graph.params().filter(|(value, param)| match self {
            Part::Optimizer => {
                let number = NUMBERS.contains(&&*param.name);
                param.role == Role::OptState && !number && !sums.contains(value)
            }
            Part::Trained => param.role == Role::Trained || adapters.contains(value),
        });
        params
            .map(|(_, p)| (p.name.clone(), p.ty.clone()))
            .collect()
    }
}

/// Values of a graph that is being trained, as files of weights are made of them.
pub fn trained_values(graph: &Graph, program: &Program) -> impl Trained {
    let params = Part::Trained.params(graph).into_iter();
    Device {
        types: params.map(|(name, ty)| (name, ty.dtype)).collect(),
        program,
    }
}

struct Device<'a> {
    types: BTreeMap<Arc<str>, DType>,
    program: &'a Program,
}

impl Trained for Device<'_> {
    fn dtype(&self, name: &str) -> Option<DType> {
        self.types.get(name).copied()
    }

    fn read(&self, name: &str) -> Result<bytes::Bytes, Box<dyn Error + Send + Sync>> {
        let (_, bytes) = self.program.param(name)?;
        Ok(bytes.into())
    }
}

impl Checkpoints {
    /// Writes a checkpoint, and removes those that are not to be kept.
    ///
    /// # Errors
    /// A full disk and the like, and parameters that are no numbers; there is no part of the checkpoint then, and those
    /// before it are as they were.
    pub fn save(
        &self,
        graph: &Graph,
        program: &Program,
        store: &ExternalStore,
        state: &State,
        info: peft::Info<'_>,
    ) -> Result<PathBuf, TrainError> {
        let failed = |error| TrainError::Folder {
            path: self.folder.clone(),
            error,
        };
        fs::create_dir_all(&self.folder).map_err(failed)?;
        let path = self.path(state.progress.updates);
        let staged = StagedDir::new(&path, |_| true)?;
        for part in Part::ALL {
            if let Some((name, value)) = write(part, graph, program, &staged)? {
                return Err(TrainError::NotFinite {
                    update: state.progress.updates,
                    what: format!("parameter `{name}`"),
                    value,
                    last: self.latest()?,
                });
            }
        }
        if !graph.adapters().is_empty() {
            let trained = trained_values(graph, program);
            let values = Values {
                store,
                trained: Some(&trained),
            };
            peft::stage(&staged, graph, values, info)?;
        }
        staged.file(STATE, &state.json()?)?;
        staged.commit()?;
        self.prune(&state.progress)?;
        Ok(path)
    }

    /// Brings a step's memory to where a checkpoint was taken, which [`state`](Self::state) has found to be of this
    /// run.
    ///
    /// # Errors
    /// Files that do not fit the step.
    pub fn restore(
        &self,
        path: &Path,
        graph: &Graph,
        program: &mut Program,
    ) -> Result<(), TrainError> {
        for part in Part::ALL {
            let file = path.join(part.file());
            let tensors = Shards::open(&file)?;
            for (name, ty) in part.params(graph) {
                let tensor = tensors.get(&name).ok_or_else(|| TrainError::Checkpoint {
                    path: file.clone(),
                    why: format!("it has no `{name}`"),
                })?;
                if ty.bytes() != Some(tensor.bytes.len() as u64) {
                    return Err(TrainError::Checkpoint {
                        path: file,
                        why: format!("`{name}` has {} B, expected {ty}", tensor.bytes.len()),
                    });
                }
                program.write(&name, &tensor.bytes)?;
            }
        }
        Ok(())
    }
}

/// Writes a part. The first trained parameter that is not finite, with the number in it, if there is one.
fn write(
    part: Part,
    graph: &Graph,
    program: &Program,
    staged: &StagedDir,
) -> Result<Option<(Arc<str>, f64)>, TrainError> {
    let params = part.params(graph);
    let entry = |(i, (name, ty)): (usize, &(Arc<str>, TensorType))| {
        let entry = Entry {
            name: name.to_string(),
            dtype: ty.dtype,
            shape: ty.known_shape().unwrap_or_default().to_vec(),
        };
        (entry, i)
    };
    let entries = params.iter().enumerate().map(entry).collect();
    let mut unread = None;
    let mut not_finite = None;
    let written = safetensors_file::write(staged.create(part.file())?, entries, |i, file| {
        let (name, ty) = &params[i];
        let bytes = match program.param(name) {
            Ok((_, bytes)) => bytes,
            Err(error) => {
                unread.get_or_insert(error);
                vec![0; ty.bytes().unwrap_or(0) as usize]
            }
        };
        if part == Part::Trained && not_finite.is_none() {
            not_finite = first_not_finite(ty.dtype, &bytes).map(|value| (name.clone(), value));
        }
        Ok(file.write(&bytes)?)
    });
    match unread {
        Some(error) => Err(error.into()),
        None => written.map(|()| not_finite).map_err(Into::into),
    }
}

/// The first number that is a NaN or an infinity.
fn first_not_finite(dtype: DType, bytes: &[u8]) -> Option<f64> {
    // Its exponent is all ones; the two highest bytes hold it.
    let mask: u16 = match dtype {
        DType::F32 | DType::BF16 => 0x7f80,
        DType::F16 => 0x7c00,
        _ => return None,
    };
    let bad = |number: &&[u8]| match number {
        [.., low, high] => u16::from_le_bytes([*low, *high]) & mask == mask,
        _ => false,
    };
    let number = bytes.chunks_exact(dtype.size() as usize).find(bad)?;
    lorafa_onnx::dtype::decode(dtype, number).first().copied()
}
