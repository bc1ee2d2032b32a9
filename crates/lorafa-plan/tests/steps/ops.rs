//! One random op.

use lorafa_ir::ops::{
    Activation, ActivationGrad, ActivationKind, Binary, BinaryKind, Cast, Concat, CrossEntropy,
    CrossEntropyGrad, CumSum, Dropout, DropoutGrad, DropoutMask, Expand, Fill, Gather, LayerNorm,
    LayerNormGrad, LinearCrossEntropy, LinearCrossEntropyGrad, MatMul, Pad, Reduce, ReduceKind,
    Reshape, Scalar, ScatterElements, Select, Slice, SliceAxis, Softmax, SoftmaxGrad, Transpose,
    Unary, UnaryKind,
};
use lorafa_ir::{DType, Dim, ValueId};

use super::Steps;

impl Steps<'_> {
    /// Tries to add an op on random operands.
    pub fn op(&mut self) {
        let x = self.value();
        match self.rng.below(29) {
            0..4 => self.view(x),
            4..7 => self.unary(x),
            7..11 => self.binary(x),
            11..13 => self.matmul(x),
            13..15 => self.rowwise(x),
            15..17 => self.norm(x),
            17 => self.losses(),
            18 => self.indexed(x),
            19 => {
                let other = self.like(x);
                let mask = self.value();
                self.add(Select, &[mask, x, other]);
            }
            20 => {
                use DType::{BF16, F32, F64, I32, I64};
                let to = self.rng.pick(&[BF16, F32, F32, F64, I32, I64]);
                self.add(Cast { to }, &[x]);
            }
            21 => self.copies(x),
            24..26 => self.fused(x),
            26..28 => self.joined(x),
            23 => self.askew(x),
            22 => {
                let (ratio, seed) = (Scalar(0.5), 1);
                let results = self.add(Dropout { ratio, seed }, &[x]);
                if let [_, mask] = results[..] {
                    let dy = self.like(x);
                    self.add(DropoutGrad { ratio }, &[dy, mask]);
                    let shape = self.patch.ty(mask).shape.clone();
                    let of = Dropout { ratio, seed };
                    if let [again] = self.add(DropoutMask { of, shape }, &[])[..] {
                        self.add(DropoutGrad { ratio }, &[dy, again]);
                    }
                }
            }
            _ => {
                let kind = ReduceKind::Sum;
                let axes = self.axis(x).into_iter().collect();
                let keep_dims = self.rng.below(2) == 0;
                self.add(
                    Reduce {
                        kind,
                        axes,
                        keep_dims,
                    },
                    &[x],
                );
            }
        }
    }

    pub fn shape(&self, x: ValueId) -> Vec<i64> {
        let shape = &self.patch.ty(x).shape;
        shape.iter().filter_map(Dim::known).collect()
    }

    pub fn axis(&mut self, x: ValueId) -> Option<usize> {
        let rank = self.patch.ty(x).rank();
        (rank > 0).then(|| self.rng.below(rank))
    }

    fn view(&mut self, x: ValueId) {
        let mut shape = self.shape(x);
        match self.rng.below(4) {
            0 => {
                let elements: i64 = shape.iter().product();
                let split = self.rng.pick(&[1, 2, 3, 4, 6]);
                if elements % split == 0 {
                    let rest = elements / split;
                    let shapes: [&[i64]; 4] = [
                        &[rest, split],
                        &[elements],
                        &[split, 1, rest],
                        &[1, elements],
                    ];
                    let shape = self.rng.pick(&shapes);
                    let shape = shape.iter().map(|d| (*d).into()).collect();
                    self.add(Reshape { shape }, &[x]);
                }
            }
            1 => {
                let mut perm: Vec<usize> = (0..shape.len()).collect();
                for i in (1..perm.len()).rev() {
                    perm.swap(i, self.rng.below(i + 1));
                }
                self.add(Transpose { perm: perm.into() }, &[x]);
            }
            2 => {
                if let Some(axis) = self.axis(x) {
                    let n = shape[axis] as usize;
                    let start = self.rng.below(n);
                    let step = 1 + self.rng.below(2);
                    let len = 1 + self.rng.below((n - 1 - start) / step + 1);
                    let axis = SliceAxis {
                        axis,
                        start: (start as i64).into(),
                        len: (len as i64).into(),
                        step: step as i64,
                    };
                    let axes = [axis].into_iter().collect();
                    self.add(Slice { axes }, &[x]);
                }
            }
            _ => {
                for dim in shape.iter_mut().filter(|dim| **dim == 1) {
                    *dim = self.rng.pick(&[1, 2, 4]);
                }
                if self.rng.below(2) == 0 {
                    shape.insert(0, self.rng.pick(&[1, 2]));
                }
                let shape = shape.iter().map(|d| (*d).into()).collect();
                self.add(Expand { shape }, &[x]);
            }
        }
    }

    fn unary(&mut self, x: ValueId) {
        let kind = self.rng.pick(&[
            UnaryKind::Neg,
            UnaryKind::Abs,
            UnaryKind::Sin,
            UnaryKind::Cos,
            UnaryKind::Not,
        ]);
        self.add(Unary(kind), &[x]);
        let kind = self.rng.pick(&[
            ActivationKind::Relu,
            ActivationKind::Sigmoid,
            ActivationKind::Tanh,
        ]);
        if self.rng.below(2) == 0 {
            self.add(Activation(kind), &[x]);
        } else {
            let dy = self.like(x);
            self.add(ActivationGrad(kind), &[dy, x]);
        }
    }

    fn binary(&mut self, x: ValueId) {
        let kind = self.rng.pick(&[
            BinaryKind::Add,
            BinaryKind::Sub,
            BinaryKind::Mul,
            BinaryKind::Max,
            BinaryKind::Lt,
            BinaryKind::And,
        ]);
        let other = match self.rng.below(3) {
            0 => self.like(x),
            _ => self.value(),
        };
        let operands = if self.rng.below(2) == 0 {
            [x, other]
        } else {
            [other, x]
        };
        self.add(Binary(kind), &operands);
    }

    /// An op that reads one buffer through two layouts, and is the last to read it.
    fn askew(&mut self, x: ValueId) {
        let Some(&y) = self.add(Unary(UnaryKind::Sin), &[x]).first() else {
            return;
        };
        let shape = self.shape(y);
        let view = match shape[..] {
            [rows, columns] if rows == columns || self.rng.below(2) == 0 => {
                let shape = [columns.into(), rows.into()].into_iter().collect();
                let turned = self.add(Reshape { shape }, &[y]);
                let perm = [1, 0].into_iter().collect();
                self.add(Transpose { perm }, &turned)
            }
            [n, ..] => {
                let axis = SliceAxis {
                    axis: 0,
                    start: (n - 1).into(),
                    len: 1.into(),
                    step: 1,
                };
                let axes = [axis].into_iter().collect();
                self.add(Slice { axes }, &[y])
            }
            [] => return,
        };
        let before = self.pool.len();
        let result = self.add(Binary(BinaryKind::Sub), &[y, view[0]]);
        assert_eq!(result.len(), 1, "a view of the same shape or of one row");
        let taken = [y, view[0]];
        self.pool.truncate(before);
        self.pool.retain(|value| !taken.contains(value));
        self.pool.extend(result);
    }

    fn matmul(&mut self, x: ValueId) {
        let (trans_a, trans_b) = (self.rng.below(2) == 0, self.rng.below(2) == 0);
        for _ in 0..4 {
            let other = self.value();
            let rank = |v| self.patch.ty(v).rank();
            if rank(x) >= 2 && rank(other) >= 2 {
                let plain = self.add(MatMul::new(trans_a, trans_b), &[x, other]);
                let like = plain.first().map(|y| self.like(*y));
                if let Some(c) = like {
                    let alpha = Scalar(0.5);
                    let product = MatMul {
                        alpha,
                        ..MatMul::new(trans_a, trans_b)
                    };
                    self.add(product, &[x, other, c]);
                }
            }
        }
    }

    fn rowwise(&mut self, x: ValueId) {
        let Some(axis) = self.axis(x) else { return };
        let log = self.rng.below(2) == 0;
        if self.rng.below(2) == 0 {
            self.add(Softmax { axis, log }, &[x]);
        } else {
            // Exponentials of what is no logarithm of a probability overflow.
            let y = match log {
                true => self.add(Softmax { axis, log }, &[x]).first().copied(),
                false => Some(self.like(x)),
            };
            if let Some(y) = y {
                let dy = self.like(x);
                self.add(SoftmaxGrad { axis, log }, &[dy, y]);
            }
        }
    }

    fn norm(&mut self, x: ValueId) {
        if self.norms.is_empty() || self.rng.below(2) == 0 {
            let Some(axis) = self.axis(x) else { return };
            let scale = self.value();
            let eps = Scalar(0.01);
            if let [_, mean, rstd] = self.add(LayerNorm { axis, eps }, &[x, scale])[..] {
                self.norms.push([x, scale, mean, rstd]);
            }
        } else {
            let [x, scale, mean, rstd] = self.norms[self.rng.below(self.norms.len())];
            let dy = self.like(x);
            let axis = self
                .shape(mean)
                .iter()
                .zip(self.shape(x))
                .position(|(m, x)| *m != x);
            let weights = self.rng.below(2) == 0;
            if let Some(axis) = axis {
                let ins = [dy, x, scale, mean, rstd];
                self.add(LayerNormGrad { axis, weights }, &ins);
            }
        }
    }

    fn losses(&mut self) {
        let matrix = |v: &ValueId| self.patch.ty(*v).rank() == 2;
        let matrices: Vec<ValueId> = self.pool.iter().copied().filter(matrix).collect();
        let (x, ignore_index) = (self.rng.pick(&matrices), 5);
        for labels in self.indices() {
            let loss = self.add(CrossEntropy { ignore_index }, &[x, labels]);
            if let [loss] = loss[..] {
                self.add(CrossEntropyGrad { ignore_index }, &[loss, x, labels]);
                break;
            }
        }
        let (trans_b, w) = (self.rng.below(2) == 0, self.rng.pick(&matrices));
        let of = LinearCrossEntropy {
            ignore_index,
            trans_b,
        };
        let weight = self.rng.below(2) == 0;
        for labels in self.indices() {
            let made = self.add(LinearCrossEntropyGrad { of, weight }, &[x, w, labels]);
            if !made.is_empty() {
                return;
            }
        }
    }

    /// The parameters that index.
    fn indices(&self) -> Vec<ValueId> {
        let graph = self.patch.graph();
        let index = |v: &ValueId| graph.param(*v).is_some() && graph.ty(*v).dtype == DType::I64;
        self.pool.iter().copied().filter(index).collect()
    }

    fn indexed(&mut self, x: ValueId) {
        let Some(axis) = self.axis(x) else { return };
        if self.shape(x)[axis] < 2 {
            return;
        }
        let indices = self.indices();
        let indices = self.rng.pick(&indices);
        if self.rng.below(2) == 0 {
            self.add(Gather { axis }, &[x, indices]);
        } else {
            let add = self.rng.below(2) == 0;
            for _ in 0..6 {
                let updates = self.value();
                self.add(ScatterElements { axis, add }, &[x, indices, updates]);
            }
        }
    }

    fn copies(&mut self, x: ValueId) {
        let shape = self.shape(x);
        let Some(axis) = self.axis(x) else { return };
        match self.rng.below(4) {
            0 => {
                let other = self.like(x);
                self.add(Concat::new(axis), &[x, other]);
            }
            1 => {
                let before = shape.iter().map(|_| 1.into()).collect();
                let after = shape.iter().map(|_| 0.into()).collect();
                let value = Scalar(0.5);
                self.add(
                    Pad {
                        before,
                        after,
                        value,
                    },
                    &[x],
                );
            }
            2 => {
                let (exclusive, reverse) = (false, true);
                self.add(
                    CumSum {
                        axis,
                        exclusive,
                        reverse,
                    },
                    &[x],
                );
            }
            _ => {
                let ty = self.patch.ty(x).with_dtype(DType::F32);
                let value = Scalar(0.5);
                self.add(Fill { ty, value }, &[]);
            }
        }
    }
}
