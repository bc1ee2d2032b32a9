//! Operators that change shape, and those that make tensors from nothing.

use super::{Fail, Handler, Importer, Node};
use crate::import::known::{Known, axes, sorted};
use lorafa_ir::ops::{Concat, Constant, Fill, Iota, Literal, Pad, Scalar, Slice, SliceAxis, axis};
use lorafa_ir::types::{broadcast, product};
use lorafa_ir::{DType, Dim, Shape, TensorType, ValueId};

pub(super) const OPS: &[(&str, Handler)] = &[
    ("Concat", concat),
    ("Constant", constant),
    ("ConstantOfShape", constant_of_shape),
    ("Expand", expand),
    ("Flatten", flatten),
    ("Pad", pad),
    ("Range", range),
    ("Reshape", reshape),
    ("Shape", shape),
    ("Size", size),
    ("Slice", slice),
    ("Squeeze", squeeze),
    ("Tile", tile),
    ("Transpose", transpose),
    ("Unsqueeze", unsqueeze),
    ("com.microsoft::BroadcastGradientArgs", broadcast_axes),
    ("com.microsoft::ConcatTraining", concat),
    ("com.microsoft::SliceGrad", slice_grad),
];

/// The type of an input, without making a value of integers that are only known.
fn input_shape<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<Shape, Fail> {
    let name = node.required(0)?;
    if let Some(known) = im.known(name)? {
        return Ok(known.shape.iter().map(|d| Dim::Known(*d as i64)).collect());
    }
    let x = im.value(name)?;
    Ok(im.patch.ty(x).shape.clone())
}

fn shape<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let dims = input_shape(im, node)?;
    let rank = dims.len() as i64;
    let clamp = |i: i64| (if i < 0 { i.saturating_add(rank) } else { i }).clamp(0, rank) as usize;
    let (start, end) = (clamp(node.int("start", 0)), clamp(node.int("end", rank)));
    let part = dims.get(start..end.max(start)).unwrap_or_default();
    if let Some(name) = node.output(0) {
        im.define_known(name, Known::list(part.iter().cloned()), None);
    }
    Ok(())
}

fn size<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let dims = input_shape(im, node)?;
    if let Some(name) = node.output(0) {
        im.define_known(name, Known::scalar(product(&dims)), None);
    }
    Ok(())
}

fn constant<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let Some(name) = node.output(0) else {
        return Ok(());
    };
    if let Some(tensor) = node.tensor("value") {
        if let Some(known) = im.known_tensor(tensor)? {
            im.define_known(name, known, None);
        } else {
            let value = im.tensor(name, tensor)?;
            im.define(name, value);
        }
    } else if let Some(ints) = node.ints("value_ints") {
        im.define_known(name, Known::list(ints.iter().map(|n| Dim::Known(*n))), None);
    } else if node.has("value_int") {
        im.define_known(
            name,
            Known::scalar(Dim::Known(node.int("value_int", 0))),
            None,
        );
    } else if node.has("value_float") {
        let value = im
            .patch
            .scalar(DType::F32, f64::from(node.float("value_float", 0.0)))?;
        im.define(name, value);
    } else if let Some(floats) = node.floats("value_floats") {
        let ty = TensorType::new(DType::F32, [Dim::Known(floats.len() as i64)]);
        let literal = Literal::Floats(floats.iter().map(|x| Scalar(f64::from(*x))).collect());
        let value = im.patch.add1(Constant { ty, literal }.into(), &[])?;
        im.define(name, value);
    } else {
        return Err("its value is of a kind that is not supported".into());
    }
    Ok(())
}

fn constant_of_shape<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let shape: Shape = im.integers(node, 0, "shape")?.into_iter().collect();
    let (dtype, value) = match node.tensor("value") {
        None => (DType::F32, 0.0),
        Some(tensor) => {
            let constant = im.tensor("value", tensor)?;
            let dtype = im.patch.ty(constant).dtype;
            match &im.patch.graph().def(constant).kind {
                lorafa_ir::Op::Constant(c) => (dtype, c.as_f64().ok_or("its value is no scalar")?),
                _ => return Err("its value is no scalar".into()),
            }
        }
    };
    let fill = Fill {
        ty: TensorType { dtype, shape },
        value: Scalar(value),
    };
    let y = im.patch.add1(fill.into(), &[])?;
    im.result(node, y)
}

fn range<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let bounds = [
        im.integers(node, 0, "start")?,
        im.integers(node, 1, "limit")?,
        im.integers(node, 2, "step")?,
    ];
    let [[start], [limit], [step]] = bounds.each_ref().map(Vec::as_slice) else {
        return Err("its bounds are no scalars".into());
    };
    let step = step
        .known()
        .filter(|s| *s != 0)
        .ok_or("its step is not a number other than zero")?;
    let span = if step > 0 {
        limit.minus(start)
    } else {
        start.minus(limit)
    };
    let stride = Dim::Known(step.saturating_abs());
    let len = span.plus(&stride).minus(&Dim::Known(1)).floor_div(&stride);
    let len = len.ok_or("its step is zero")?.larger(&Dim::Known(0));
    // `max(0, seq)` is `seq`.
    let len = if stride.is(1) && span.is_size() {
        span.clone()
    } else {
        len
    };
    let iota = Iota {
        dtype: DType::I64,
        start: start.clone(),
        step,
        len,
    };
    let dtype = im.known(node.required(0)?)?.map_or(DType::I64, |k| k.dtype);
    let y = im.patch.add1(iota.into(), &[])?;
    let y = im.patch.cast(y, dtype)?;
    im.result(node, y)
}

fn reshape<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let target = im.integers(node, 1, "shape")?;
    let x = im.input(node, 0)?;
    let from = im.patch.ty(x).shape.clone();
    let keeps_zero = node.int("allowzero", 0) != 0;
    let mut shape: Shape = target.into_iter().collect();
    for (i, dim) in shape
        .iter_mut()
        .enumerate()
        .filter(|(_, d)| d.is(0) && !keeps_zero)
    {
        *dim = from
            .get(i)
            .ok_or("a 0 in its shape has no dimension to copy")?
            .clone();
    }
    if let Some(open) = shape.iter().position(|d| d.is(-1)) {
        shape[open] = Dim::Known(1);
        let rest = product(&shape);
        let dim = product(&from).floor_div(&rest);
        shape[open] = dim.ok_or("its -1 cannot be inferred: another dimension is zero")?;
    }
    if shape.iter().any(|d| d.known().is_some_and(|n| n < 0)) {
        return Err("its shape has a negative dimension".into());
    }
    let y = im.patch.reshape(x, shape)?;
    im.result(node, y)
}

fn flatten<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let x = im.input(node, 0)?;
    let from = im.patch.ty(x).shape.clone();
    let at = node.int("axis", 1);
    let at = if at == from.len() as i64 {
        from.len()
    } else {
        axis(at, from.len())?
    };
    let y = im
        .patch
        .reshape(x, [product(&from[..at]), product(&from[at..])])?;
    im.result(node, y)
}

fn unsqueeze<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let x = im.input(node, 0)?;
    let axes = axes_of(im, node)?;
    let mut shape = im.patch.ty(x).shape.clone();
    for a in sorted(&axes, shape.len() + axes.len())? {
        shape.insert(a.min(shape.len()), Dim::Known(1));
    }
    let y = im.patch.reshape(x, shape)?;
    im.result(node, y)
}

fn squeeze<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let x = im.input(node, 0)?;
    let from = im.patch.ty(x).shape.clone();
    let gone = if node.has("axes") || node.input(1).is_some() {
        sorted(&axes_of(im, node)?, from.len())?
    } else {
        (0..from.len()).filter(|i| from[*i].is(1)).collect()
    };
    if let Some(i) = gone
        .iter()
        .find(|i| from[**i].known().is_some_and(|n| n != 1))
    {
        return Err(format!("squeezes axis {i}, which is {}", from[*i]).into());
    }
    let kept = (0..from.len())
        .filter(|i| !gone.contains(i))
        .map(|i| from[i].clone());
    let y = im.patch.reshape(x, kept)?;
    im.result(node, y)
}

fn axes_of<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<Vec<i64>, Fail> {
    let known = match node.input(1) {
        Some(name) => im.known(name)?,
        None => None,
    };
    axes(node, known.as_ref())
}

fn expand<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let target = im.integers(node, 1, "shape")?;
    let x = im.input(node, 0)?;
    let shape = broadcast(&im.patch.ty(x).shape, &target)?;
    let y = im.patch.expand(x, &shape)?;
    im.result(node, y)
}

/// Each axis is laid out that many times in a row: an axis of one before it is broadcast.
fn tile<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let repeats = im.integers(node, 1, "repeats")?;
    let x = im.input(node, 0)?;
    let from = im.patch.ty(x).shape.clone();
    if repeats.len() != from.len() {
        return Err(format!("{} repeats for {} axes", repeats.len(), from.len()).into());
    }
    let one = Dim::Known(1);
    let apart = from.iter().flat_map(|d| [one.clone(), d.clone()]);
    let apart = im.patch.reshape(x, apart)?;
    let pairs = || repeats.iter().zip(&from);
    let wide: Shape = pairs().flat_map(|(n, d)| [n.clone(), d.clone()]).collect();
    let wide = im.patch.expand(apart, &wide)?;
    let y = im.patch.reshape(wide, pairs().map(|(n, d)| n.times(d)))?;
    im.result(node, y)
}

/// Of two shapes that broadcast, the axes that each one's gradient is summed over, last to first.
fn broadcast_axes<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let shapes = [
        im.integers(node, 0, "first shape")?,
        im.integers(node, 1, "second shape")?,
    ];
    let rank = shapes[0].len().max(shapes[1].len());
    let mut over = [Vec::new(), Vec::new()];
    for axis in (0..rank).rev() {
        let own = |shape: &Vec<Dim>| Some(shape[(axis + shape.len()).checked_sub(rank)?].clone());
        let slot = match shapes.each_ref().map(own) {
            [None, _] => 0,
            [_, None] => 1,
            [a, b] if a == b => continue,
            [Some(a), _] if a.is(1) => 0,
            [_, Some(b)] if b.is(1) => 1,
            [Some(a), Some(b)] => {
                return Err(format!("cannot tell whether {a} or {b} is broadcast").into());
            }
        };
        over[slot].push(Dim::Known(axis as i64));
    }
    for (slot, axes) in over.into_iter().enumerate() {
        if let Some(name) = node.output(slot) {
            im.define_known(name, Known::list(axes), None);
        }
    }
    Ok(())
}

fn transpose<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let x = im.input(node, 0)?;
    let rank = im.patch.ty(x).rank();
    let perm: Vec<usize> = match node.ints("perm") {
        Some(perm) => perm
            .iter()
            .map(|p| axis(*p, rank))
            .collect::<Result<_, _>>()?,
        None => (0..rank).rev().collect(),
    };
    let y = im.patch.transpose(x, perm)?;
    im.result(node, y)
}

fn concat<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let parts: Vec<ValueId> = (0..node.proto.input.len())
        .map(|slot| im.input(node, slot))
        .collect::<Result<_, _>>()?;
    let first = parts.first().ok_or("it has no input")?;
    let axis = axis(node.int("axis", 0), im.patch.ty(*first).rank())?;
    if let Some(lengths) = node.output(1) {
        let lengths_of = |part: &ValueId| im.patch.ty(*part).shape.get(axis).cloned();
        let known: Option<Vec<Dim>> = parts.iter().map(lengths_of).collect();
        let known = known.ok_or("its inputs differ in their number of axes")?;
        im.define_known(lengths, Known::list(known), None);
    }
    let y = if parts.len() == 1 {
        *first
    } else {
        im.patch.add1(Concat::new(axis).into(), &parts)?
    };
    im.result(node, y)
}

fn slice<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let x = im.input(node, 0)?;
    let from = im.patch.ty(x).shape.clone();
    let cuts = cuts(im, node, &from, 1)?;
    let y = if cuts.axes.is_empty() {
        x
    } else {
        im.patch.add1(cuts.into(), &[x])?
    };
    im.result(node, y)
}

/// Given `dy`, the shape of what was sliced, then what `Slice` is given.
fn slice_grad<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let shape: Shape = im.integers(node, 1, "shape")?.into_iter().collect();
    let dy = im.input(node, 0)?;
    let cuts = cuts(im, node, &shape, 2)?;
    let pad = cuts.opposite(&shape);
    let pad = pad.ok_or("a step other than 1 is not supported")?;
    let dx = if cuts.axes.is_empty() {
        dy
    } else {
        im.patch.add1(pad.into(), &[dy])?
    };
    im.result(node, dx)
}

/// What is sliced of a shape, by starts, ends, axes and steps, which begin at input `first`.
fn cuts<'m>(
    im: &mut Importer<'m, '_>,
    node: &Node<'m>,
    from: &Shape,
    first: usize,
) -> Result<Slice, Fail> {
    let (starts, ends) = (
        im.integers(node, first, "starts")?,
        im.integers(node, first + 1, "ends")?,
    );
    let on: Vec<i64> = match node.input(first + 2) {
        Some(_) => im.numbers(node, first + 2, "axes")?,
        None => (0..starts.len() as i64).collect(),
    };
    let steps: Vec<i64> = match node.input(first + 3) {
        Some(_) => im.numbers(node, first + 3, "steps")?,
        None => vec![1; starts.len()],
    };
    if [ends.len(), on.len(), steps.len()] != [starts.len(); 3] {
        return Err("its starts, ends, axes and steps differ in number".into());
    }
    let mut cuts = Slice {
        axes: Default::default(),
    };
    for i in 0..starts.len() {
        let at = axis(on[i], from.len())?;
        let cut = cut(&from[at], &starts[i], &ends[i], steps[i])?;
        let whole = cut.0.is(0) && cut.1 == from[at] && steps[i] == 1;
        if !whole {
            cuts.axes.push(SliceAxis {
                axis: at,
                start: cut.0,
                len: cut.1,
                step: steps[i],
            });
        }
    }
    Ok(cuts)
}

/// First index and length of a slice, by ONNX's rules for indices that are negative or too large.
fn cut(dim: &Dim, start: &Dim, end: &Dim, step: i64) -> Result<(Dim, Dim), Fail> {
    let resolve = |i: &Dim| -> Dim {
        match (i, dim) {
            (Dim::Known(i), Dim::Known(n)) => {
                Dim::Known((if *i < 0 { i.saturating_add(*n) } else { *i }).clamp(0, *n))
            }
            (Dim::Known(i), _) if *i <= i64::MIN / 2 => Dim::Known(0),
            (Dim::Known(i), _) if *i >= i64::MAX / 2 => dim.clone(),
            (Dim::Known(i), _) if *i < 0 => dim.plus(&Dim::Known(*i)),
            // An index that exporters wrote for every size is taken to be inside.
            (Dim::Known(i), _) => Dim::Known(*i),
            (i, _) => i.smaller(dim),
        }
    };
    match (step, dim) {
        (0, _) => Err("its step is zero".into()),
        (1, _) => {
            let (start, end) = (resolve(start), resolve(end));
            let len = end.minus(&start);
            let len = if len.known().is_some_and(|n| n < 0) {
                Dim::Known(0)
            } else {
                len
            };
            Ok((start, len))
        }
        (step, Dim::Known(n)) => {
            let (Some(start), Some(end)) = (start.known(), end.known()) else {
                return Err("a step other than 1 needs bounds that are numbers".into());
            };
            let (low, high) = if step > 0 { (0, *n) } else { (-1, n - 1) };
            let clamp = |i: i64| (if i < 0 { i.saturating_add(*n) } else { i }).clamp(low, high);
            let (first, last) = (clamp(start), if end < -n { low } else { clamp(end) });
            let span = if step > 0 { last - first } else { first - last };
            let stride = step.saturating_abs();
            let len = span.max(0).saturating_add(stride - 1) / stride;
            Ok((Dim::Known(first.max(0)), Dim::Known(len)))
        }
        _ => Err("a step other than 1 on a symbolic dimension is not supported".into()),
    }
}

fn pad<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let mode = node.string("mode", "constant");
    if mode != "constant" {
        return Err(format!("mode `{mode}` is not supported").into());
    }
    let pads = im.integers(node, 1, "amounts")?;
    let x = im.input(node, 0)?;
    let rank = im.patch.ty(x).rank();
    let value = match node.input(2) {
        Some(name) => im.number(name)?.ok_or("its value is not a constant")?,
        None => 0.0,
    };
    let on: Vec<usize> = match node.input(3) {
        Some(_) => {
            let axes = im.numbers(node, 3, "axes")?;
            axes.iter()
                .map(|a| axis(*a, rank))
                .collect::<Result<_, _>>()?
        }
        None => (0..rank).collect(),
    };
    if pads.len() != 2 * on.len() {
        return Err(format!("{} amounts for {} axes", pads.len(), on.len()).into());
    }
    let mut before = Shape::from_elem(Dim::Known(0), rank);
    let mut after = before.clone();
    for (i, axis) in on.iter().enumerate() {
        before[*axis] = pads[i].clone();
        after[*axis] = pads[on.len() + i].clone();
    }
    if before.iter().chain(&after).all(|d| d.is(0)) {
        return im.result(node, x);
    }
    let y = im.patch.add1(
        Pad {
            before,
            after,
            value: Scalar(value),
        }
        .into(),
        &[x],
    )?;
    im.result(node, y)
}
