//! Elementwise operators on known integers.

use super::{Known, Node};
use lorafa_ir::{DType, Dim};

/// A number as an element type holds it; `None` for an expression that the type may wrap.
pub(crate) fn wrapped(dim: Dim, dtype: DType) -> Option<Dim> {
    match dim {
        Dim::Known(n) => Some(Dim::Known(dtype.wrap(n))),
        Dim::Expr(_) if matches!(dtype, DType::I64 | DType::I32) || dim.is_size() => Some(dim),
        Dim::Expr(_) => None,
    }
}

/// An operator of two operands, by the node's name.
pub(super) fn binary(node: &Node<'_>, x: &Known, y: &Known) -> Option<Known> {
    let (op, fmod) = (node.op(), node.int("fmod", 0) != 0);
    let arithmetic = matches!(op, "Add" | "Sub" | "Mul" | "Div" | "Max" | "Min" | "Mod");
    let dtype = if arithmetic { x.dtype } else { DType::Bool };
    let value = |(a, b): (&Dim, &Dim)| {
        let value = match op {
            "Mod" => Dim::Known(remainder(a.known()?, b.known()?, fmod)?),
            _ => apply(op, a, b)?,
        };
        wrapped(value, dtype)
    };
    let shape = broadcast([x, y])?;
    let values = x.spread(&shape).zip(y.spread(&shape)).map(value);
    Some(Known {
        dtype,
        values: values.collect::<Option<_>>()?,
        shape,
    })
}

/// The shape that tensors broadcast to, by NumPy's rule; `None` if they do not, or to too many
/// elements.
fn broadcast<const N: usize>(operands: [&Known; N]) -> Option<Vec<usize>> {
    let rank = operands.iter().map(|k| k.shape.len()).max()?;
    let mut shape = vec![1; rank];
    for k in operands {
        for (to, from) in shape[rank - k.shape.len()..].iter_mut().zip(&k.shape) {
            match (*to, *from) {
                (to, from) if to == from => {}
                (1, from) => *to = from,
                (_, 1) => {}
                _ => return None,
            }
        }
    }
    Known::count(&shape).map(|_| shape)
}

fn apply(op: &str, a: &Dim, b: &Dim) -> Option<Dim> {
    let truth = |t: bool| Some(Dim::Known(i64::from(t)));
    match op {
        "Add" => return Some(a.plus(b)),
        "Sub" => return Some(a.minus(b)),
        "Mul" => return Some(a.times(b)),
        "Div" => return divide(a, b),
        "Max" => return Some(a.larger(b)),
        "Min" => return Some(a.smaller(b)),
        "And" => return truth(a.known()? != 0 && b.known()? != 0),
        "Or" => return truth(a.known()? != 0 || b.known()? != 0),
        _ => {}
    }
    let negative = |d: &Dim| d.known().is_some_and(|n| n < 0);
    let difference = match a.minus(b) {
        Dim::Known(n) => n,
        Dim::Expr(_) if a.is_size() && negative(b) => 1,
        Dim::Expr(_) if negative(a) && b.is_size() => -1,
        Dim::Expr(_) => return None,
    };
    match op {
        "Equal" => truth(difference == 0),
        "Less" => truth(difference < 0),
        "Greater" => truth(difference > 0),
        "LessOrEqual" => truth(difference <= 0),
        "GreaterOrEqual" => truth(difference >= 0),
        _ => None,
    }
}

/// ONNX rounds quotients of integers towards zero; sizes have no sign, so for them it is all one.
fn divide(a: &Dim, b: &Dim) -> Option<Dim> {
    match (a, b) {
        (Dim::Known(a), Dim::Known(b)) => a.checked_div(*b).map(Dim::Known),
        _ if a.is_size() && b.is_size() => a.floor_div(b),
        _ => a.exact_div(b),
    }
}

/// The remainder, with the sign of the dividend if `fmod` and of the divisor otherwise.
fn remainder(a: i64, b: i64, fmod: bool) -> Option<i64> {
    let rest = a.checked_rem(b)?;
    let floor = !fmod && rest != 0 && (rest < 0) != (b < 0);
    Some(if floor { rest + b } else { rest })
}

/// `condition ? a : b`.
pub(super) fn select(condition: &Known, a: &Known, b: &Known) -> Option<Known> {
    let shape = broadcast([condition, a, b])?;
    let branches = a.spread(&shape).zip(b.spread(&shape));
    let choices = condition.spread(&shape).zip(branches);
    let choose =
        |(c, (a, b)): (&Dim, (&Dim, &Dim))| Some(if c.known()? != 0 { a } else { b }.clone());
    let values = choices.map(choose).collect::<Option<_>>()?;
    Some(Known {
        dtype: a.dtype,
        shape,
        values,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::NodeProto;

    fn known(shape: &[usize], values: impl IntoIterator<Item = i64>) -> Known {
        Known {
            dtype: DType::I64,
            shape: shape.to_vec(),
            values: values.into_iter().map(Dim::Known).collect(),
        }
    }

    fn by_name(op: &str, x: &Known, y: &Known) -> Option<Known> {
        let proto = NodeProto {
            op_type: Some(op.into()),
            ..NodeProto::default()
        };
        let node = Node {
            proto: &proto,
            seq: 0,
            opset: 20,
        };
        binary(&node, x, y)
    }

    #[test]
    fn integers_are_divided_as_onnx_divides_them() {
        let of = |op, a, b| by_name(op, &known(&[], [a]), &known(&[], [b]))?.numbers();
        assert_eq!(of("Div", -7, 2), Some(vec![-3]));
        assert_eq!(of("Mod", -7, 2), Some(vec![1]));
        assert_eq!(of("Mod", 7, -2), Some(vec![-1]));
        assert_eq!(remainder(-7, 2, true), Some(-1));
        assert_eq!(of("Div", 1, 0), None);
        assert_eq!(of("Mod", i64::MIN, -1), None);
    }

    #[test]
    fn a_row_and_a_column_of_one_length_make_a_matrix() {
        let (row, column) = (known(&[1, 3], 0..3), known(&[3, 1], 0..3));
        let mask = by_name("LessOrEqual", &row, &column).unwrap();
        assert_eq!(mask.shape, [3, 3]);
        assert_eq!(mask.numbers().unwrap(), [1, 0, 0, 1, 1, 0, 1, 1, 1]);
    }

    #[test]
    fn shapes_broadcast_by_numpys_rule_or_not_at_all() {
        let sum = |x: &Known, y: &Known| by_name("Add", x, y)?.numbers();
        let row = known(&[2], [10, 20]);
        assert_eq!(sum(&row, &known(&[], [1])), Some(vec![11, 21]));
        assert_eq!(sum(&known(&[1], [1]), &row), Some(vec![11, 21]));
        assert_eq!(sum(&known(&[2, 2], 0..4), &row), Some(vec![10, 21, 12, 23]));
        assert_eq!(sum(&known(&[3], 0..3), &row), None);
        let wide = known(&[1, 200], 0..200);
        assert_eq!(
            sum(&wide, &known(&[200, 1], 0..200)),
            None,
            "more than are tracked"
        );
    }
}
