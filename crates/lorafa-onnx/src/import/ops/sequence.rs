//! Splits, and the sequences of tensors that exporters write for them.

use super::{Fail, Handler, Importer, Node};
use lorafa_ir::ops::{Slice, SliceAxis, axis};
use lorafa_ir::{Dim, ValueId};

pub(super) const OPS: &[(&str, Handler)] = &[
    ("ConcatFromSequence", concat),
    ("SequenceAt", at),
    ("SequenceConstruct", construct),
    ("Split", split),
    ("SplitToSequence", to_sequence),
    ("com.microsoft::SplitTraining", split),
];

/// The parts of `x` along an axis, of these lengths.
fn parts(
    im: &mut Importer<'_, '_>,
    x: ValueId,
    axis: usize,
    sizes: &[Dim],
) -> Result<Vec<ValueId>, Fail> {
    let mut start = Dim::Known(0);
    let mut parts = Vec::new();
    for len in sizes {
        let part = SliceAxis {
            axis,
            start: start.clone(),
            len: len.clone(),
            step: 1,
        };
        parts.push(
            im.patch.add1(
                Slice {
                    axes: [part].into_iter().collect(),
                }
                .into(),
                &[x],
            )?,
        );
        start = start.plus(len);
    }
    Ok(parts)
}

/// `n` equal lengths, the last one smaller if need be.
fn equal(total: &Dim, n: i64) -> Result<Vec<Dim>, Fail> {
    if !(1..=1 << 16).contains(&n) {
        return Err(format!("cannot split into {n} parts").into());
    }
    if let Some(len) = total.exact_div(&Dim::Known(n)) {
        return Ok(vec![len; n as usize]);
    }
    let total = total
        .known()
        .ok_or("splits a symbolic dimension unevenly")?;
    let len = total / n + i64::from(total % n != 0);
    Ok((0..n)
        .map(|i| Dim::Known(len.min((total - i * len).max(0))))
        .collect())
}

fn split<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let x = im.input(node, 0)?;
    let shape = im.patch.ty(x).shape.clone();
    let axis = axis(node.int("axis", 0), shape.len())?;
    let sizes = match node.input(1) {
        Some(_) => im.integers(node, 1, "sizes")?,
        None => equal(
            &shape[axis],
            node.int("num_outputs", node.proto.output.len() as i64),
        )?,
    };
    for (slot, part) in parts(im, x, axis, &sizes)?.into_iter().enumerate() {
        if let Some(name) = node.output(slot) {
            im.define(name, part);
        }
    }
    Ok(())
}

fn to_sequence<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let x = im.input(node, 0)?;
    let shape = im.patch.ty(x).shape.clone();
    let axis = axis(node.int("axis", 0), shape.len())?;
    if node.input(1).is_none() {
        return Err("it is supported only with sizes".into());
    }
    let known = im
        .known(node.required(1)?)?
        .ok_or("its sizes are not known before the step runs")?;
    let sizes = match (known.shape.is_empty(), known.as_scalar()) {
        (true, Some(Dim::Known(size))) if *size > 0 => {
            let total = shape[axis].known().ok_or("splits a symbolic dimension")?;
            equal(&shape[axis], total / size + i64::from(total % size != 0))?
        }
        _ => known.values,
    };
    let items = parts(im, x, axis, &sizes)?;
    if let Some(name) = node.output(0) {
        im.define_sequence(name, items);
    }
    Ok(())
}

fn construct<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let items = (0..node.proto.input.len()).map(|slot| im.input(node, slot));
    let items: Vec<ValueId> = items.collect::<Result<_, _>>()?;
    if let Some(name) = node.output(0) {
        im.define_sequence(name, items);
    }
    Ok(())
}

fn at<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let position = im.numbers(node, 1, "position")?;
    let sequence = im
        .sequence(node.required(0)?)
        .ok_or("its input is no sequence")?;
    let [i] = position.as_slice() else {
        return Err("its position is no scalar".into());
    };
    let i = if *i < 0 {
        i + sequence.len() as i64
    } else {
        *i
    };
    let item = usize::try_from(i)
        .ok()
        .and_then(|i| sequence.get(i))
        .copied();
    im.result(node, item.ok_or("its position is outside the sequence")?)
}

fn concat<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let items = im
        .sequence(node.required(0)?)
        .ok_or("its input is no sequence")?
        .to_vec();
    let first = items.first().ok_or("the sequence is empty")?;
    if node.int("new_axis", 0) != 0 {
        return Err("new_axis is not supported".into());
    }
    let axis = axis(node.int("axis", 0), im.patch.ty(*first).rank())?;
    let y = im
        .patch
        .add1(lorafa_ir::ops::Concat::new(axis).into(), &items)?;
    im.result(node, y)
}
