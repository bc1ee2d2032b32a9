//! Random training steps: whatever ops fit what is there, in all regions, with views, outputs and updates.

mod fused;
mod joined;
mod ops;

use std::collections::BTreeSet;

use lorafa_ir::interp::Array;
use lorafa_ir::ops::{Accumulate, AdamW, Param, Role};
use lorafa_ir::{DType, Graph, Op, OutputKind, Patch, Region, Site, TensorType, ValueId};

use crate::arena::Values;

/// SplitMix64.
pub struct Rng(pub u64);

impl Rng {
    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// A random step with `count` attempts to add an op, and values for its parameters.
pub fn step(seed: u64, count: usize) -> (Graph, Values) {
    let mut rng = Rng(seed);
    let mut graph = Graph::new("random");
    let mut steps = Steps {
        patch: graph.patch("random"),
        rng: &mut rng,
        pool: Vec::new(),
        norms: Vec::new(),
        trained: Vec::new(),
        of_param: BTreeSet::new(),
        values: Values::new(),
    };
    steps.params();
    steps.joined_params();
    for n in 0..count {
        let region = if n < count * 2 / 3 {
            Region::Forward
        } else {
            Region::Backward
        };
        steps.stand(region);
        steps.op();
    }
    steps.updates();
    steps.outputs();
    let values = steps.values;
    (graph, values)
}

/// A step in the making.
pub struct Steps<'g> {
    pub patch: Patch<'g>,
    pub rng: &'g mut Rng,
    /// What there is to read.
    pub pool: Vec<ValueId>,
    /// Operands and statistics of the norms, for their gradients.
    pub norms: Vec<[ValueId; 4]>,
    trained: Vec<ValueId>,
    /// Parameters and views of them.
    of_param: BTreeSet<ValueId>,
    values: Values,
}

impl Steps<'_> {
    fn params(&mut self) {
        let float: &[&[i64]] = &[
            &[4, 6],
            &[6, 4],
            &[6],
            &[4, 1],
            &[],
            &[2, 3, 4],
            &[2, 2, 3, 4],
            &[1, 1],
        ];
        for (n, shape) in float.iter().enumerate() {
            let role = [Role::Input, Role::Frozen, Role::Trained][n % 3];
            let value = self.param(&format!("p{n}"), role, DType::F32, shape);
            self.pool.push(value);
            if role == Role::Trained {
                self.trained.push(value);
            }
        }
        let index: &[&[i64]] = &[&[4], &[6], &[2, 2], &[2, 3], &[3]];
        for (n, shape) in index.iter().enumerate() {
            let value = self.param(&format!("i{n}"), Role::Input, DType::I64, shape);
            self.pool.push(value);
        }
        let scalar = self.patch.scalar(DType::F32, 0.5).expect("a constant");
        self.pool.push(scalar);
    }

    fn param(&mut self, name: &str, role: Role, dtype: DType, shape: &[i64]) -> ValueId {
        let ty = TensorType::new(dtype, shape.iter().map(|d| (*d).into()));
        let param = Param::runtime(name, role, ty.clone());
        let value = self.patch.add1(Op::Param(Box::new(param)), &[]);
        let value = value.expect("a parameter");
        let rng = &mut *self.rng;
        let array = Array::from_fn(&ty, |_| {
            if dtype == DType::F32 {
                rng.below(64) as f64 / 16.0 - 2.0
            } else {
                rng.below(2) as f64
            }
        });
        self.values.insert(value, array.expect("bound"));
        self.of_param.insert(value);
        value
    }

    /// New ops are of this region and run early or late in it, updates after all others.
    fn stand(&mut self, region: Region) {
        let place = self.rng.below(64) as i64;
        let site = Site {
            region,
            seq: if region == Region::Update {
                64 + place
            } else {
                place
            },
            module: "".into(),
            of: None,
        };
        self.patch.at_site(site);
    }

    /// Adds an op if it fits its operands and is small.
    pub fn add(&mut self, kind: impl Into<Op>, operands: &[ValueId]) -> Vec<ValueId> {
        let kind = kind.into();
        let types: Vec<&TensorType> = operands.iter().map(|v| self.patch.ty(*v)).collect();
        let small = |ty: &TensorType| ty.elements().is_some_and(|n| (1..=96).contains(&n));
        if !kind
            .infer_checked(&types)
            .is_ok_and(|types| types.iter().all(small))
        {
            return Vec::new();
        }
        let view = ["reshape", "transpose", "slice", "expand"].contains(&kind.name());
        let results = self.patch.add(kind, operands).expect("it type-checks");
        if view && self.of_param.contains(&operands[0]) {
            self.of_param.insert(results[0]);
        }
        self.pool.extend(results.iter().copied());
        results.to_vec()
    }

    /// A value, more often a young one.
    pub fn value(&mut self) -> ValueId {
        let n = self.pool.len();
        let young = self.rng.below(3) > 0;
        let from = if young { n.saturating_sub(8) } else { 0 };
        self.pool[from + self.rng.below(n - from)]
    }

    /// A value of the same type as this one, often itself or a view.
    pub fn like(&mut self, value: ValueId) -> ValueId {
        let ty = self.patch.ty(value).clone();
        let alike: Vec<ValueId> = self
            .pool
            .iter()
            .copied()
            .filter(|v| *self.patch.ty(*v) == ty)
            .collect();
        self.rng.pick(&alike)
    }

    /// An optimizer step for each trained parameter, and readers of what it gives.
    fn updates(&mut self) {
        let step = self.param("step", Role::Input, DType::I64, &[]);
        let lr = self.param("lr", Role::Input, DType::F32, &[]);
        let one = Array::new(self.patch.ty(step), vec![1.0]).expect("a scalar");
        self.values.insert(step, one);
        for param in self.trained.clone() {
            let name = format!("{param}");
            let ty = self.patch.ty(param).clone();
            let shape: Vec<i64> = ty.shape.iter().filter_map(|d| d.known()).collect();
            let m = self.param(&format!("{name}.m"), Role::OptState, DType::F32, &shape);
            let v = self.param(&format!("{name}.v"), Role::OptState, DType::F32, &shape);
            let square = Array::from_fn(&ty, |i| i.len() as f64 + 0.25).expect("bound");
            self.values.insert(v, square);
            self.stand(Region::Backward);
            let grad = self.patch.scaled(param, 0.125).expect("a product");
            let grad = self.accumulated(grad, &name, &shape, lr);
            let name = format!("grad::{name}");
            self.patch.output(name, grad, OutputKind::Gradient(param));
            self.stand(Region::Update);
            let ins = [param, grad, m, v, step, lr];
            let next = self.patch.add(AdamW::default().into(), &ins);
            let next = next.expect("an update")[self.rng.below(3)];
            let flat = self
                .patch
                .reshape(next, [ty.elements().map_or(1, |n| n as i64).into()]);
            let negative = lorafa_ir::ops::Unary(lorafa_ir::ops::UnaryKind::Neg);
            self.add(negative, &[flat.expect("a view")]);
        }
    }

    /// The gradient, or what it is added to.
    fn accumulated(
        &mut self,
        grad: ValueId,
        name: &str,
        shape: &[i64],
        weight: ValueId,
    ) -> ValueId {
        if self.rng.below(2) == 0 {
            return grad;
        }
        let sum = self.param(&format!("{name}.grad"), Role::OptState, DType::F32, shape);
        self.stand(Region::Backward);
        let ins = [sum, grad, weight, weight];
        let next = self.patch.add1(Accumulate.into(), &ins);
        next.expect("a sum")
    }

    /// Outputs that no update overwrites.
    fn outputs(&mut self) {
        for n in 0..1 + self.rng.below(4) {
            let value = self.value();
            if !self.of_param.contains(&value) {
                self.patch.output(format!("y{n}"), value, OutputKind::Value);
            }
        }
    }
}
