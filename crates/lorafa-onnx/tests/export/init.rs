//! First values of adapter matrices.

use crate::{graph_of, parse, write};
use lorafa_ir::DType;
use lorafa_onnx::dtype::decode;

/// The values that a parameter of this name and type is written with.
fn values(name: &str, ty: &str, init: &str) -> Vec<f64> {
    let graph = parse(&format!(
        "graph @init {{\n  param %{name} : {ty} trained {{init={init}}}\n  out \"y\" = %{name}\n}}"
    ));
    let model = write(&graph);
    let tensor = &graph_of(&model).initializer[0];
    assert_eq!(tensor.name(), name);
    let dtype = lorafa_onnx::dtype::from_onnx(tensor.data_type()).unwrap();
    decode(dtype, tensor.raw_data.as_ref().unwrap())
}

/// Largest difference of `m·mᵀ` from the identity.
fn error(rows: usize, cols: usize, at: impl Fn(usize, usize) -> f64) -> f64 {
    let mut worst: f64 = 0.0;
    for i in 0..rows {
        for j in 0..rows {
            let dot: f64 = (0..cols).map(|k| at(i, k) * at(j, k)).sum();
            worst = worst.max((dot - f64::from(u8::from(i == j))).abs());
        }
    }
    worst
}

#[test]
fn zeros() {
    assert_eq!(values("b", "f32[6,3]", "zeros"), [0.0; 18]);
}

#[test]
fn kaiming_is_uniform_within_its_bound() {
    let values = values("a", "f32[8,256]", "kaiming");
    let bound = 1.0 / 256f64.sqrt();
    assert!(values.iter().all(|x| x.abs() <= bound));
    assert!(values.iter().any(|x| *x > 0.98 * bound) && values.iter().any(|x| *x < -0.98 * bound));
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let square = values.iter().map(|x| x * x).sum::<f64>() / values.len() as f64;
    assert!(mean.abs() < 0.03 * bound, "{mean}");
    assert!((square.sqrt() / (bound / 3f64.sqrt()) - 1.0).abs() < 0.03);
}

#[test]
fn gaussian_has_its_deviation() {
    let values = values("a", "f32[8,256]", "gaussian");
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let square = values.iter().map(|x| x * x).sum::<f64>() / values.len() as f64;
    assert!(mean.abs() < 0.01, "{mean}");
    assert!((square.sqrt() * 8.0 - 1.0).abs() < 0.05, "{square}");
}

#[test]
fn orthogonal_has_orthonormal_rows_or_columns() {
    let wide = values("a", "f32[6,40]", "orthogonal");
    assert!(error(6, 40, |r, c| wide[r * 40 + c]) < 1e-6);
    let tall = values("a", "f32[40,6]", "orthogonal");
    assert!(error(6, 40, |r, c| tall[c * 6 + r]) < 1e-6);
}

#[test]
fn values_depend_on_the_name_and_nothing_else() {
    for init in ["kaiming", "gaussian", "orthogonal"] {
        let first = values("layers.0.a", "f32[4,16]", init);
        assert_eq!(first, values("layers.0.a", "f32[4,16]", init));
        assert_ne!(first, values("layers.1.a", "f32[4,16]", init));
    }
    // A generator that changes with an update of its crate would change adapters.
    let first = values("layers.0.a", "f32[4,16]", "kaiming");
    for (found, expected) in first.iter().zip([0.084_915, 0.133_482, -0.210_867]) {
        assert!((found - expected).abs() < 1e-6, "{found}");
    }
}

#[test]
fn values_are_rounded_to_the_type() {
    let wide = values("a", "f32[4,16]", "kaiming");
    let narrow = values("a", "bf16[4,16]", "kaiming");
    for (x, y) in wide.iter().zip(narrow) {
        assert!((DType::BF16.round(*x) - y).abs() <= x.abs() / 128.0);
    }
}
