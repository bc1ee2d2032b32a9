//! Attention and rotary embeddings of opset 23.

use super::{Fail, Handler, Importer, Node};
use lorafa_ir::build::Built;
use lorafa_ir::ops::{
    Activation, ActivationKind, BinaryKind, Concat, Gather, Iota, Rotary, Slice, SliceAxis, Softmax,
};
use lorafa_ir::{DType, Dim, Patch, Shape, ValueId};

pub(super) const OPS: &[(&str, Handler)] = &[("Attention", attention), ("RotaryEmbedding", rotary)];

/// The mask's value for "not this one": finite, so that a row masked as a whole gives no NaN.
const MASKED: f64 = -3.402_823_466_385_288_6e38;

fn attention<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    if (4..7).any(|slot| node.input(slot).is_some()) {
        return Err("past keys and values are not supported: export with use_cache=False".into());
    }
    if (1..4).any(|slot| node.output(slot).is_some()) {
        return Err("only its first output is supported".into());
    }
    let flat = {
        let q = im.input(node, 0)?;
        im.patch.ty(q).rank() == 3
    };
    let mut heads = [ValueId::clone(&im.input(node, 0)?); 3];
    for (slot, name) in [(0, "q_num_heads"), (1, "kv_num_heads"), (2, "kv_num_heads")] {
        let x = im.input(node, slot)?;
        heads[slot] = if flat {
            split_heads(&mut im.patch, x, node.int(name, 0))?
        } else {
            x
        };
    }
    let mask = match node.input(3) {
        Some(name) => Some(im.value(name)?),
        None => None,
    };
    let p = &mut im.patch;
    let (q, q_type) = (heads[0], p.ty(heads[0]).clone());
    let (k, v) = (
        repeat(p, heads[1], &q_type.shape)?,
        repeat(p, heads[2], &q_type.shape)?,
    );
    let [_, _, rows, width] = q_type.shape.as_slice() else {
        return Err("expected four axes".into());
    };
    let width = width
        .known()
        .filter(|w| *w > 0)
        .ok_or("its head size is symbolic")?;
    let scale = match node.float("scale", 0.0) {
        0.0 => 1.0 / (width as f64).sqrt(),
        scale => f64::from(scale),
    };
    let q = p.scaled(q, scale)?;
    let mut scores = p.matmul(q, k, false, true)?;
    let cap = f64::from(node.float("softcap", 0.0));
    if cap != 0.0 {
        let part = p.scaled(scores, 1.0 / cap)?;
        let tanh = p.add1(Activation(ActivationKind::Tanh).into(), &[part])?;
        scores = p.scaled(tanh, cap)?;
    }
    if node.int("is_causal", 0) != 0 {
        let cols = p.ty(scores).shape[3].clone();
        let causal = causal(p, rows, &cols)?;
        scores = masked(p, scores, causal)?;
    }
    if let Some(mask) = mask {
        scores = masked(p, scores, mask)?;
    }
    let weights = p.add1(
        Softmax {
            axis: 3,
            log: false,
        }
        .into(),
        &[scores],
    )?;
    let mut y = p.matmul(weights, v, false, false)?;
    if flat {
        y = p.transpose(y, [0, 2, 1, 3])?;
        let s = p.ty(y).shape.clone();
        y = p.reshape(y, [s[0].clone(), s[1].clone(), s[2].times(&s[3])])?;
    }
    im.result(node, y)
}

/// `[b, s, h·d]` as `[b, h, s, d]`.
fn split_heads(p: &mut Patch<'_>, x: ValueId, heads: i64) -> Result<ValueId, Fail> {
    let s = p.ty(x).shape.clone();
    let width = s[2]
        .exact_div(&Dim::Known(heads))
        .ok_or("its width is no multiple of its heads")?;
    let x = p.reshape(x, [s[0].clone(), s[1].clone(), Dim::Known(heads), width])?;
    Ok(p.transpose(x, [0, 2, 1, 3])?)
}

/// Keys or values of grouped heads, one for each query head.
fn repeat(p: &mut Patch<'_>, x: ValueId, q: &Shape) -> Result<ValueId, Fail> {
    let s = p.ty(x).shape.clone();
    if s.len() != 4 || q.len() != 4 {
        return Err("expected four axes".into());
    }
    if s[1] == q[1] {
        return Ok(x);
    }
    let group = q[1]
        .exact_div(&s[1])
        .ok_or("its query heads are no multiple of its key heads")?;
    let x = p.unsqueeze(x, 2)?;
    let wide: Shape = [
        s[0].clone(),
        s[1].clone(),
        group,
        s[2].clone(),
        s[3].clone(),
    ]
    .into_iter()
    .collect();
    let x = p.expand(x, &wide)?;
    Ok(p.reshape(x, [s[0].clone(), q[1].clone(), s[2].clone(), s[3].clone()])?)
}

fn causal(p: &mut Patch<'_>, rows: &Dim, cols: &Dim) -> Built {
    let counter = |len: &Dim| Iota {
        dtype: DType::I64,
        start: 0.into(),
        step: 1,
        len: len.clone(),
    };
    let row = p.add1(counter(rows).into(), &[])?;
    let row = p.reshape(row, [rows.clone(), Dim::Known(1)])?;
    let col = p.add1(counter(cols).into(), &[])?;
    p.binary(BinaryKind::Le, col, row)
}

fn masked(p: &mut Patch<'_>, scores: ValueId, mask: ValueId) -> Built {
    let mask = if p.ty(mask).dtype == DType::Bool {
        let (zero, low) = (p.scalar_like(scores, 0.0)?, p.scalar_like(scores, MASKED)?);
        p.select(mask, zero, low)?
    } else {
        mask
    };
    p.plus(scores, mask)
}

fn rotary<'m>(im: &mut Importer<'m, '_>, node: &Node<'m>) -> Result<(), Fail> {
    let x = im.input(node, 0)?;
    let mut tables = [im.input(node, 1)?, im.input(node, 2)?];
    if node.input(3).is_some() {
        let positions = im.input(node, 3)?;
        for table in &mut tables {
            *table = im
                .patch
                .add1(Gather { axis: 0 }.into(), &[*table, positions])?;
        }
    }
    let p = &mut im.patch;
    let shape = p.ty(x).shape.clone();
    // [batch, heads, seq, width], or [batch, seq, heads·width].
    let (whole, heads_axis) = match shape.as_slice() {
        [_, _, _, _] => (x, 1),
        [batch, seq, all] => {
            let heads = Dim::Known(node.int("num_heads", 0));
            let width = all.exact_div(&heads);
            let width = width.ok_or("its width is no multiple of its heads")?;
            (p.reshape(x, [batch.clone(), seq.clone(), heads, width])?, 2)
        }
        _ => return Err("expected three or four axes".into()),
    };
    let width = p.ty(whole).shape[3].known();
    let width = width.ok_or("its head size is symbolic")?;
    let rotated = match node.int("rotary_embedding_dim", 0) {
        0 => width,
        n => n,
    };
    if rotated % 2 != 0 || !(0..=width).contains(&rotated) {
        return Err(format!("cannot rotate {rotated} of {width}").into());
    }
    // cos and sin are [batch or 1, seq, rotated/2], or the same for all of the batch; heads broadcast.
    for table in &mut tables {
        *table = match p.ty(*table).rank() {
            3 => p.unsqueeze(*table, heads_axis)?,
            2 => p.unsqueeze(*table, heads_axis - 1)?,
            _ => return Err("expected cos and sin of two or three axes".into()),
        };
    }
    let part = |p: &mut Patch<'_>, start: i64, len: i64| -> Built {
        let axis = SliceAxis {
            axis: 3,
            start: start.into(),
            len: len.into(),
            step: 1,
        };
        let axes = [axis].into_iter().collect();
        p.add1(Slice { axes }.into(), &[whole])
    };
    let op = Rotary {
        interleaved: node.int("interleaved", 0) != 0,
        inverse: false,
    };
    let [cos, sin] = tables;
    let mut y = if rotated == width {
        p.add1(op.into(), &[whole, cos, sin])?
    } else {
        let turned = part(p, 0, rotated)?;
        let turned = p.add1(op.into(), &[turned, cos, sin])?;
        let rest = part(p, rotated, width - rotated)?;
        p.add1(Concat::new(3).into(), &[turned, rest])?
    };
    y = p.reshape(y, shape)?;
    im.result(node, y)
}
