//! The matrices that PEFT's LoRA-FA optimizer projects gradients with.

use lorafa_ir::DType;
use lorafa_ir::optimizer::{INVERSE, RIDGE};
use lorafa_onnx::dtype::{decode, encode};
use tch::{Device, Kind, TchError, Tensor};

use crate::error::ExecError;
use crate::program::Program;

/// Writes every `optim::inverse::A`, `f32[rank,rank]`: `pinv(A·Aᵀ + 1e-8·I)` of the A that the program holds.
///
/// Once after A is loaded is enough, as A never changes; of a step without such state nothing is written. It is computed
/// in f64. Directions of A that f32 could not tell from none count as none, as in PEFT, whose arithmetic is f32.
///
/// # Errors
/// There is no such A, or libtorch finds no singular values, as of what is no number.
pub fn write_inverses(program: &mut Program) -> Result<(), ExecError> {
    let names = program
        .params()
        .filter_map(|name| name.strip_prefix(INVERSE));
    let names: Vec<String> = names.map(str::to_owned).collect();
    for name in names {
        let (ty, bytes) = program.param(&name)?;
        let rank = ty.shape.first().and_then(|dim| dim.known()).unwrap_or(1);
        let inverse = inverse(&decode(ty.dtype, &bytes), rank);
        let inverse = inverse.map_err(|error| ExecError::Torch {
            line: format!("{INVERSE}{name}"),
            message: error.to_string(),
        })?;
        program.write(&format!("{INVERSE}{name}"), &encode(DType::F32, inverse))?;
    }
    Ok(())
}

/// Of a matrix with `rank` rows.
fn inverse(a: &[f64], rank: i64) -> Result<Vec<f64>, TchError> {
    let a = Tensor::f_from_slice(a)?.f_reshape([rank, -1])?;
    let ridge = Tensor::f_eye(rank, (Kind::Double, Device::Cpu))?.f_mul_scalar(RIDGE)?;
    let gram = a.f_matmul(&a.f_transpose(0, 1)?)?.f_add(&ridge)?;
    let smallest = rank as f64 * f64::from(f32::EPSILON);
    let inverse = gram.f_linalg_pinv(smallest, true)?;
    Vec::try_from(inverse.f_reshape([-1])?)
}
