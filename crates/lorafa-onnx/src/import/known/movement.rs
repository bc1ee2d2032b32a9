//! Operators that move known integers, or make them from nothing.

use super::{Fail, Known, MAX_KNOWN, Node, axes, sorted};
use lorafa_ir::ops::axis;
use lorafa_ir::{DType, Dim};

/// Axes of one at the places given.
pub(super) fn unsqueeze(
    node: &Node<'_>,
    x: &Known,
    given: Option<&Known>,
) -> Result<Option<Known>, Fail> {
    let axes = axes(node, given)?;
    let rank = x.shape.len() + axes.len();
    let mut shape = x.shape.clone();
    for a in sorted(&axes, rank)? {
        shape.insert(a.min(shape.len()), 1);
    }
    Ok(Some(Known {
        dtype: x.dtype,
        shape,
        values: x.values.clone(),
    }))
}

/// One number, repeated.
pub(super) fn expand(x: &Known, to: &Known) -> Option<Known> {
    let value = x.as_scalar()?;
    let sizes = to.numbers()?;
    let sizes = sizes.iter().map(|d| usize::try_from(*d).ok());
    let shape: Vec<usize> = sizes.collect::<Option<_>>()?;
    let n = Known::count(&shape)?;
    Some(Known {
        dtype: x.dtype,
        shape,
        values: vec![value.clone(); n],
    })
}

/// Numbers in a row, one apart.
pub(super) fn range(start: &Known, limit: &Known, step: &Known) -> Option<Known> {
    let dtype = start.dtype;
    let number = |known: &Known| known.as_scalar()?.known();
    let (start, limit) = (number(start)?, number(limit)?);
    let few = limit.saturating_sub(start) <= MAX_KNOWN as i64;
    (number(step)? == 1 && few).then(|| Known {
        dtype,
        ..Known::list((start..limit).map(Dim::Known))
    })
}

/// The axes given, or else every axis of one.
pub(super) fn squeeze(
    node: &Node<'_>,
    x: &Known,
    ins: &[Option<Known>],
) -> Result<Option<Known>, Fail> {
    let rank = x.shape.len();
    let given = node.ints("axes").is_some() || ins.len() > 1;
    let gone = if given {
        sorted(&axes(node, ins.get(1).and_then(Option::as_ref))?, rank)?
    } else {
        (0..rank).filter(|axis| x.shape[*axis] == 1).collect()
    };
    if gone.iter().any(|axis| x.shape[*axis] != 1) {
        return Err("it squeezes an axis that is not one".into());
    }
    let kept = (0..rank).filter(|axis| !gone.contains(axis));
    Ok(Some(Known {
        dtype: x.dtype,
        shape: kept.map(|axis| x.shape[axis]).collect(),
        values: x.values.clone(),
    }))
}

pub(super) fn gather(x: &Known, indices: &Known) -> Option<Known> {
    if x.shape.len() != 1 {
        return None;
    }
    let n = x.values.len() as i64;
    let pick = |i: i64| {
        x.values
            .get(usize::try_from(if i < 0 { i + n } else { i }).ok()?)
            .cloned()
    };
    let values = indices
        .numbers()?
        .into_iter()
        .map(pick)
        .collect::<Option<_>>()?;
    Some(Known {
        dtype: x.dtype,
        shape: indices.shape.clone(),
        values,
    })
}

pub(super) fn concat(node: &Node<'_>, ins: &[Option<Known>]) -> Result<Option<Known>, Fail> {
    let Some(parts) = ins.iter().cloned().collect::<Option<Vec<Known>>>() else {
        return Ok(None);
    };
    if parts.iter().any(|p| p.shape.len() != 1) {
        return Ok(None);
    }
    axis(node.int("axis", 0), 1)?;
    let dtype = parts.first().map_or(DType::I64, |p| p.dtype);
    Ok(Some(Known {
        dtype,
        ..Known::list(parts.into_iter().flat_map(|p| p.values))
    }))
}

pub(super) fn slice(x: &Known, ins: &[Option<Known>]) -> Option<Known> {
    let number = |i: usize, default: i64| match ins.get(i) {
        Some(Some(k)) => k.as_scalar()?.known(),
        Some(None) => None,
        None => Some(default),
    };
    let row = x.shape.len() == 2;
    if x.shape.len() > 2 || number(3, 0)? != 0 {
        return None;
    }
    let n = x.shape.first().copied().unwrap_or(0) as i64;
    let width = if row { x.shape[1] } else { 1 };
    let (start, end, step) = (number(1, 0)?, number(2, n)?, number(4, 1)?);
    let clamp = |i: i64, low: i64, high: i64| {
        (if i < 0 { i.saturating_add(n) } else { i }).clamp(low, high)
    };
    let mut picked = Vec::new();
    if step > 0 {
        let (mut i, end) = (clamp(start, 0, n), clamp(end, 0, n));
        while i < end {
            picked.push(i);
            i = i.saturating_add(step);
        }
    } else if step < 0 {
        let (mut i, end) = (clamp(start, -1, n - 1), clamp(end, -1, n - 1));
        let end = if ins[2].as_ref()?.as_scalar()?.known()? < -n {
            -1
        } else {
            end
        };
        while i > end {
            picked.push(i);
            i = i.saturating_add(step);
        }
    } else {
        return None;
    }
    let values: Vec<Dim> = picked
        .iter()
        .flat_map(|i| {
            x.values[*i as usize * width..(*i as usize + 1) * width]
                .iter()
                .cloned()
        })
        .collect();
    let shape = if row {
        vec![picked.len(), width]
    } else {
        vec![picked.len()]
    };
    Some(Known {
        dtype: x.dtype,
        shape,
        values,
    })
}

pub(super) fn reshape(x: &Known, to: &Known) -> Option<Known> {
    let n = x.values.len();
    let mut shape = Vec::new();
    let to = to.numbers()?;
    let sizes: Vec<usize> = to.iter().filter_map(|d| usize::try_from(*d).ok()).collect();
    let rest = Known::count(&sizes)?;
    for d in &to {
        shape.push(match d {
            -1 if rest > 0 => n / rest,
            d => usize::try_from(*d).ok()?,
        });
    }
    (Known::count(&shape)? == n).then_some(Known {
        dtype: x.dtype,
        shape,
        values: x.values.clone(),
    })
}

pub(super) fn transpose(node: &Node<'_>, x: &Known) -> Option<Known> {
    match (x.shape.as_slice(), node.ints("perm")) {
        ([rows, cols], None | Some([1, 0])) => {
            let values = (0..*cols).flat_map(|c| (0..*rows).map(move |r| (r, c)));
            let values = values
                .map(|(r, c)| x.values[r * cols + c].clone())
                .collect();
            Some(Known {
                dtype: x.dtype,
                shape: vec![*cols, *rows],
                values,
            })
        }
        ([] | [_], _) => Some(x.clone()),
        _ => None,
    }
}

pub(super) fn constant_of_shape(node: &Node<'_>, x: &Known) -> Result<Option<Known>, Fail> {
    let Some(shape) = x.numbers() else {
        return Ok(None);
    };
    let shape: Option<Vec<usize>> = shape.iter().map(|d| usize::try_from(*d).ok()).collect();
    let Some((shape, n)) = shape.and_then(|s| Known::count(&s).map(|n| (s, n))) else {
        return Ok(None);
    };
    let Some(value) = node.tensor("value") else {
        return Ok(None);
    };
    let Some(dtype) = crate::dtype::from_onnx(value.data_type()).filter(|d| !d.is_float()) else {
        return Ok(None);
    };
    let crate::tensor::TensorPayload::Inline(bytes) = crate::tensor::payload(value)? else {
        return Ok(None);
    };
    let fill = crate::dtype::decode_ints(dtype, &bytes);
    let Some(fill) = fill.first() else {
        return Ok(None);
    };
    Ok(Some(Known {
        dtype,
        shape,
        values: vec![Dim::Known(*fill); n],
    }))
}
