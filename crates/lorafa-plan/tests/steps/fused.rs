//! One random op of those that stand for several.

use lorafa_ir::ops::{
    ActivationKind, Gated, GatedGrad, RmsNorm, RmsNormGrad, Rotary, Scalar, Slice, SliceAxis,
};
use lorafa_ir::{Dim, ValueId};

use super::Steps;

impl Steps<'_> {
    /// Tries to add a fused op on random operands.
    pub fn fused(&mut self, x: ValueId) {
        match self.rng.below(3) {
            0 => self.gated(x),
            1 => self.rotary(x),
            _ => self.rms_norm(x),
        }
    }

    fn gated(&mut self, x: ValueId) {
        use ActivationKind::{Gelu, GeluTanh, Relu, Silu};
        let act = self.rng.pick(&[Silu, Gelu, GeluTanh, Relu]);
        let (gate, up) = (self.like(x), self.like(x));
        if self.rng.below(2) == 0 {
            self.add(Gated(act), &[gate, up]);
        } else {
            self.add(GatedGrad(act), &[x, gate, up]);
        }
    }

    /// By angles that are parts of other values.
    fn rotary(&mut self, x: ValueId) {
        let shape = self.shape(x);
        let Some(last) = shape.len().checked_sub(1) else {
            return;
        };
        let mut tables = Vec::new();
        for _ in 0..2 {
            let half = SliceAxis {
                axis: last,
                start: Dim::Known(self.rng.below(2) as i64),
                len: Dim::Known(shape[last] / 2),
                step: 1,
            };
            let axes = [half].into_iter().collect();
            let other = self.like(x);
            tables.extend(self.add(Slice { axes }, &[other]));
        }
        let op = Rotary {
            interleaved: self.rng.below(2) == 0,
            inverse: self.rng.below(2) == 0,
        };
        if let [cos, sin] = tables[..] {
            self.add(op, &[x, cos, sin]);
        }
    }

    fn rms_norm(&mut self, x: ValueId) {
        for _ in 0..6 {
            let axis = self.rng.below(self.shape(x).len().max(1));
            let scale = if axis == 0 {
                self.like(x)
            } else {
                self.value()
            };
            let eps = Scalar(0.01);
            if let [_, rstd] = self.add(RmsNorm { axis, eps }, &[x, scale])[..] {
                let (dy, weight) = (self.like(x), self.rng.below(2) == 0);
                self.add(RmsNormGrad { axis, weight }, &[dy, x, scale, rstd]);
                return;
            }
        }
    }
}
