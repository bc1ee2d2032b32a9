//! Attention and rotary embeddings of opset 23, as the ops that older opsets spell them with.

use super::{Fail, Handler, Importer, Node};
use lorafa_ir::build::Built;
use lorafa_ir::ops::{
    Activation, ActivationKind, BinaryKind, Concat, Gather, Iota, Slice, SliceAxis, Softmax,
    UnaryKind,
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
    let (mut cos, mut sin) = (im.input(node, 1)?, im.input(node, 2)?);
    if node.input(3).is_some() {
        let positions = im.input(node, 3)?;
        cos = im
            .patch
            .add1(Gather { axis: 0 }.into(), &[cos, positions])?;
        sin = im
            .patch
            .add1(Gather { axis: 0 }.into(), &[sin, positions])?;
    }
    let p = &mut im.patch;
    let flat = p.ty(x).rank() == 3;
    let heads = if flat {
        split_heads(p, x, node.int("num_heads", 0))?
    } else {
        x
    };
    let shape = p.ty(heads).shape.clone();
    let [_, _, _, width] = shape.as_slice() else {
        return Err("expected three or four axes".into());
    };
    let width = width.known().ok_or("its head size is symbolic")?;
    let rotated = match node.int("rotary_embedding_dim", 0) {
        0 => width,
        n => n,
    };
    if rotated % 2 != 0 || rotated > width {
        return Err(format!("cannot rotate {rotated} of {width}").into());
    }
    if node.int("interleaved", 0) != 0 {
        return Err("interleaved pairs are not supported".into());
    }
    let half = rotated / 2;
    let part = |p: &mut Patch<'_>, start: i64, len: i64| -> Built {
        let axis = SliceAxis {
            axis: 3,
            start: start.into(),
            len: len.into(),
            step: 1,
        };
        p.add1(
            Slice {
                axes: [axis].into_iter().collect(),
            }
            .into(),
            &[heads],
        )
    };
    // cos and sin are [batch or 1, seq, half]; heads broadcast.
    let (cos, sin) = (p.unsqueeze(cos, 1)?, p.unsqueeze(sin, 1)?);
    let whole: ValueId = if rotated == width {
        heads
    } else {
        part(p, 0, rotated)?
    };
    let (x1, x2) = (part(p, 0, half)?, part(p, half, half)?);
    let minus = p.unary(UnaryKind::Neg, x2)?;
    let turned = p.add1(Concat { axis: 3 }.into(), &[minus, x1])?;
    let cos = p.add1(Concat { axis: 3 }.into(), &[cos, cos])?;
    let sin = p.add1(Concat { axis: 3 }.into(), &[sin, sin])?;
    let (a, b) = (p.times(whole, cos)?, p.times(turned, sin)?);
    let mut y = p.plus(a, b)?;
    if rotated != width {
        let rest = part(p, rotated, width - rotated)?;
        y = p.add1(Concat { axis: 3 }.into(), &[y, rest])?;
    }
    if flat {
        y = p.transpose(y, [0, 2, 1, 3])?;
        let shape = p.ty(x).shape.clone();
        y = p.reshape(y, shape)?;
    }
    im.result(node, y)
}
