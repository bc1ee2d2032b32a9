//! Matrix products.

use super::proto::{float, int};
use super::{ExportError, Writer};
use lorafa_ir::ops::MatMul;
use lorafa_ir::{OpData, ValueId};

/// Two matrices with a flag, a factor or something to add are a `Gemm`. `MatMul`, which also takes batches, has none of
/// them: a `Transpose` before it does what the flags say.
pub(super) fn matmul(w: &mut Writer<'_>, op: &OpData, matmul: MatMul) -> Result<(), ExportError> {
    let (a, b) = (op.operands[0], op.operands[1]);
    if w.graph.ty(a).rank() == 2 && w.graph.ty(b).rank() == 2 {
        let (a, trans_a) = matrix(w, a, matmul.trans_a)?;
        let (b, trans_b) = matrix(w, b, matmul.trans_b)?;
        let flags = [("transA", trans_a), ("transB", trans_b)];
        let on = flags.iter().filter(|(_, on)| *on);
        let mut attributes: Vec<_> = on.map(|(name, _)| int(name, 1)).collect();
        if matmul.alpha.0 != 1.0 {
            attributes.push(float("alpha", matmul.alpha.0));
        }
        let mut inputs = vec![a, b];
        if let Some(c) = op.operands.get(2) {
            inputs.push(w.read(*c)?);
        }
        let plain = attributes.is_empty() && inputs.len() == 2;
        w.node(
            op,
            if plain { "MatMul" } else { "Gemm" },
            inputs,
            attributes,
        );
        return Ok(());
    }
    let mut inputs = Vec::new();
    for (value, swap) in [(a, matmul.trans_a), (b, matmul.trans_b)] {
        inputs.push(if swap {
            w.swapped(value)?
        } else {
            w.read(value)?
        });
    }
    w.node(op, "MatMul", inputs, vec![]);
    Ok(())
}

/// A matrix and whether to transpose it: a weight is read the way its source holds it.
fn matrix(w: &mut Writer<'_>, value: ValueId, swap: bool) -> Result<(String, bool), ExportError> {
    match w.transposed_weight(value) {
        Some(name) => Ok((name?, !swap)),
        None => Ok((w.read(value)?, swap)),
    }
}
