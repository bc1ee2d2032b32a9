//! Operators that read or write by index.

use super::{Fail, Handler, Importer, Node};
use lorafa_ir::ops::{
    BinaryKind, CumSum, Gather, GatherElements, GatherNd, Iota, Scalar, ScatterElements, ScatterNd,
    Slice, axis,
};
use lorafa_ir::{Dim, Shape};

pub(super) const OPS: &[(&str, Handler)] = &[
    ("CumSum", cumsum),
    ("Gather", gather),
    ("GatherElements", gather_elements),
    ("GatherND", gather_nd),
    ("ScatterElements", scatter_elements),
    ("ScatterND", scatter_nd),
    ("Trilu", trilu),
    ("com.microsoft::GatherGrad", gather_grad),
];

/// A constant scalar index is a slice: a view, and with a gradient that needs no index.
fn gather<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let x = im.input(node, 0)?;
    let shape = im.patch.ty(x).shape.clone();
    let at = axis(node.int("axis", 0), shape.len())?;
    if let Some(one) = one_of(im, node.required(1)?, at, &shape[at])? {
        let cut = im.patch.add1(one.into(), &[x])?;
        let kept = (0..shape.len())
            .filter(|a| *a != at)
            .map(|a| shape[a].clone());
        let y = im.patch.reshape(cut, kept)?;
        return im.result(node, y);
    }
    let indices = im.input(node, 1)?;
    let y = im.patch.add1(Gather { axis: at }.into(), &[x, indices])?;
    im.result(node, y)
}

/// The slice that a constant scalar index takes of an axis.
fn one_of(
    im: &mut Importer<'_, '_>,
    index: &str,
    axis: usize,
    dim: &Dim,
) -> Result<Option<Slice>, Fail> {
    let index = im.known(index)?.filter(|k| k.shape.is_empty());
    Ok(match index.as_ref().and_then(|k| k.as_scalar()) {
        Some(i @ Dim::Known(..0)) => Some(Slice::along(axis, dim.plus(i), 1)),
        Some(i @ Dim::Known(_)) => Some(Slice::along(axis, i.clone(), 1)),
        _ => None,
    })
}

/// Given the shape of what is gathered from, the indices and `dy`.
fn gather_grad<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let shape: Shape = im.integers(node, 0, "shape")?.into_iter().collect();
    let at = axis(node.int("axis", 0), shape.len())?;
    let dy = im.input(node, 2)?;
    if let Some(one) = one_of(im, node.required(1)?, at, &shape[at])? {
        let pad = one.opposite(&shape).ok_or("its axis is out of range")?;
        let row = (0..shape.len()).map(|a| match a == at {
            true => Dim::Known(1),
            false => shape[a].clone(),
        });
        let row = im.patch.reshape(dy, row)?;
        let dx = im.patch.add1(pad.into(), &[row])?;
        return im.result(node, dx);
    }
    let indices = im.input(node, 1)?;
    let gather = Gather { axis: at };
    let dx = gather.build_gradient(&mut im.patch, indices, dy, &shape)?;
    im.result(node, dx)
}

fn gather_elements<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let (x, indices) = (im.input(node, 0)?, im.input(node, 1)?);
    let axis = axis(node.int("axis", 0), im.patch.ty(x).rank())?;
    let y = im
        .patch
        .add1(GatherElements { axis }.into(), &[x, indices])?;
    im.result(node, y)
}

fn gather_nd<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let (x, indices) = (im.input(node, 0)?, im.input(node, 1)?);
    let batch_dims =
        usize::try_from(node.int("batch_dims", 0)).map_err(|_| "negative batch_dims")?;
    let y = im
        .patch
        .add1(GatherNd { batch_dims }.into(), &[x, indices])?;
    im.result(node, y)
}

fn reduction(node: &Node<'_>) -> Result<bool, Fail> {
    match &*node.string("reduction", "none") {
        "none" => Ok(false),
        "add" => Ok(true),
        other => Err(format!("reduction `{other}` is not supported").into()),
    }
}

fn scatter_elements<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let ins = [im.input(node, 0)?, im.input(node, 1)?, im.input(node, 2)?];
    let axis = axis(node.int("axis", 0), im.patch.ty(ins[0]).rank())?;
    let y = im.patch.add1(
        ScatterElements {
            axis,
            add: reduction(node)?,
        }
        .into(),
        &ins,
    )?;
    im.result(node, y)
}

fn scatter_nd<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let ins = [im.input(node, 0)?, im.input(node, 1)?, im.input(node, 2)?];
    let y = im.patch.add1(
        ScatterNd {
            add: reduction(node)?,
        }
        .into(),
        &ins,
    )?;
    im.result(node, y)
}

fn cumsum<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let [at] = im
        .numbers(node, 1, "axis")?
        .as_slice()
        .try_into()
        .map_err(|_| "its axis is no scalar")?;
    let x = im.input(node, 0)?;
    let axis = axis(at, im.patch.ty(x).rank())?;
    let (exclusive, reverse) = (node.int("exclusive", 0) != 0, node.int("reverse", 0) != 0);
    let y = im.patch.add1(
        CumSum {
            axis,
            exclusive,
            reverse,
        }
        .into(),
        &[x],
    )?;
    im.result(node, y)
}

/// Zeros below or above a diagonal, by comparing counters.
fn trilu<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let shift = match node.input(1) {
        Some(name) => im.number(name)?.ok_or("its diagonal is not a constant")? as i64,
        None => 0,
    };
    let x = im.input(node, 0)?;
    let ty = im.patch.ty(x).clone();
    let [.., rows, cols] = ty.shape.as_slice() else {
        return Err("it has less than two axes".into());
    };
    let counter = |start: i64, len: &Dim| Iota {
        dtype: lorafa_ir::DType::I64,
        start: start.into(),
        step: 1,
        len: len.clone(),
    };
    let row = im.patch.add1(counter(shift, rows).into(), &[])?;
    let row = im.patch.reshape(row, [rows.clone(), Dim::Known(1)])?;
    let col = im.patch.add1(counter(0, cols).into(), &[])?;
    let kind = if node.int("upper", 1) != 0 {
        BinaryKind::Ge
    } else {
        BinaryKind::Le
    };
    let kept = im.patch.binary(kind, col, row)?;
    let y = if ty.dtype == lorafa_ir::DType::Bool {
        im.patch.binary(BinaryKind::And, x, kept)?
    } else {
        let zero = im.patch.scalar_like(x, Scalar(0.0).0)?;
        im.patch.select(kept, x, zero)?
    };
    im.result(node, y)
}
