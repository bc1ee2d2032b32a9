//! A Llama-like training step, op by op.

use lorafa_plan::Problem;

use super::{Random, Tape, Value};

/// What a training step looks like.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    pub layers: u64,
    pub tokens: u64,
    pub hidden: u64,
    pub ffn: u64,
    pub vocab: u64,
    pub rank: u64,
    /// Keep the adapters' inputs, as LoRA does and LoRA-FA does not.
    pub keeps_x: bool,
    /// Gradients of the base weights, live from the backward pass to the update.
    pub full: bool,
    /// Keep only each layer's input and run its forward pass again.
    pub recompute: bool,
    /// Elementwise ops a norm, rotary embedding and activation are made of: 1 if fused, ~10 as PyTorch exports them.
    pub chain: u64,
    /// In `0..=100`: how much sizes differ from layer to layer, as with rank patterns and pruned heads.
    pub ragged: u64,
}

/// A 7B-like step with fused kernels and LoRA-FA.
pub const LLAMA: Step = Step {
    layers: 32,
    tokens: 4096,
    hidden: 4096,
    ffn: 11008,
    vocab: 32000,
    rank: 64,
    keeps_x: false,
    full: false,
    recompute: false,
    chain: 1,
    ragged: 0,
};

/// What a linear layer's backward pass needs: the adapter's input if it was kept, and its product with A.
struct Linear {
    x: Option<Value>,
    xa: Value,
}

/// Saved activations of a layer.
struct Saved {
    x: Value,
    stats: [Value; 2],
    q: Value,
    k: Value,
    v: Value,
    out: Value,
    lse: Value,
    middle: Value,
    gate: Value,
    up: Value,
    product: Option<Value>,
    linears: Vec<Linear>,
}

impl Step {
    /// Records the step and returns its buffers as a problem.
    pub fn problem(&self) -> Problem {
        let mut random = Random(self.layers + self.chain);
        let mut tape = Tape::default();
        let wide = self.tokens * self.hidden * 2;
        let mut x = tape.op(&[], wide);
        let mut saved = Vec::new();
        let mut layers = Vec::new();
        for _ in 0..self.layers {
            let mut layer = *self;
            let mut vary = |n: u64| n - n * random.below(self.ragged + 1) / 200;
            layer.ffn = vary(layer.ffn);
            layer.rank = vary(layer.rank);
            let (y, keep) = layer.forward(&mut tape, x);
            saved.push(keep);
            layers.push(layer);
            x = y;
        }
        let mut dy = self.loss(&mut tape, x);
        let mut gradients = Vec::new();
        for (layer, mut keep) in layers.iter().zip(saved).rev() {
            if self.recompute {
                keep = layer.forward(&mut tape, keep.x).1;
            }
            dy = layer.backward(&mut tape, &keep, dy, &mut gradients);
        }
        for gradient in gradients {
            let bytes = tape.values[gradient].2;
            let moment = tape.op(&[gradient], bytes * 2);
            tape.read(&[moment]);
        }
        tape.finish()
    }

    fn linear(&self, tape: &mut Tape, x: Value, out: u64, keep: &mut Vec<Linear>) -> Value {
        let xa = tape.op(&[x], self.tokens * self.rank * 2);
        let y = tape.op(&[x], self.tokens * out * 2);
        tape.read(&[xa, y]);
        keep.push(Linear {
            x: self.keeps_x.then_some(x),
            xa,
        });
        y
    }

    fn norm(&self, tape: &mut Tape, x: Value) -> (Value, Value) {
        let wide = self.tokens * self.hidden * 2;
        let rstd = tape.op(&[x], self.tokens * 4);
        let copy = if self.chain > 1 {
            tape.chain(x, self.chain, wide * 2)
        } else {
            x
        };
        (tape.op(&[copy, rstd], wide), rstd)
    }

    fn forward(&self, tape: &mut Tape, x: Value) -> (Value, Saved) {
        let (wide, tall) = (self.tokens * self.hidden * 2, self.tokens * self.ffn * 2);
        let mut linears = Vec::new();
        let (h, first) = self.norm(tape, x);
        let [q, k, v] = [0; 3].map(|_| self.linear(tape, h, self.hidden, &mut linears));
        let [q, k] = [q, k].map(|value| tape.chain(value, self.chain, wide));
        let out = tape.op(&[q, k, v], wide);
        let lse = tape.make(self.tokens * self.hidden / 32);
        tape.make(8 << 20);
        let o = self.linear(tape, out, self.hidden, &mut linears);
        tape.read(&[o, x]);
        let middle = o;
        let (h, second) = self.norm(tape, middle);
        let gate = self.linear(tape, h, self.ffn, &mut linears);
        let up = self.linear(tape, h, self.ffn, &mut linears);
        let silu = tape.chain(gate, self.chain, tall);
        let product = tape.op(&[silu, up], tall);
        let down = self.linear(tape, product, self.hidden, &mut linears);
        let y = tape.op(&[down, middle], wide);
        let product = self.keeps_x.then_some(product);
        (
            y,
            Saved {
                x,
                stats: [first, second],
                q,
                k,
                v,
                out,
                lse,
                middle,
                gate,
                up,
                product,
                linears,
            },
        )
    }

    fn loss(&self, tape: &mut Tape, x: Value) -> Value {
        let logits = tape.op(&[x], self.tokens * self.vocab * 2);
        let probabilities = tape.op(&[logits], self.tokens * self.vocab * 4);
        let dlogits = tape.op(&[probabilities], self.tokens * self.vocab * 2);
        tape.op(&[dlogits], self.tokens * self.hidden * 2)
    }

    /// dy·Wᵀ + (dy·Bᵀ)·Aᵀ, and the gradients.
    fn linear_back(
        &self,
        tape: &mut Tape,
        saved: &Linear,
        dy: Value,
        shape: [u64; 2],
        grads: &mut Vec<Value>,
    ) -> Value {
        let [input, output] = shape;
        grads.push(tape.op(&[saved.xa, dy], self.rank * output * 2));
        let narrow = tape.op(&[dy], self.tokens * self.rank * 2);
        if let Some(x) = saved.x {
            grads.push(tape.op(&[x, narrow], self.rank * input * 2));
            if self.full {
                grads.push(tape.op(&[x, dy], input * output * 2));
            }
        }
        let dx = tape.op(&[dy], self.tokens * input * 2);
        tape.read(&[narrow, dx]);
        dx
    }

    fn backward(&self, tape: &mut Tape, saved: &Saved, dy: Value, grads: &mut Vec<Value>) -> Value {
        let (d, f) = (self.hidden, self.ffn);
        let (wide, tall) = (self.tokens * d * 2, self.tokens * f * 2);
        let linears = &saved.linears;
        let dproduct = self.linear_back(tape, &linears[6], dy, [f, d], grads);
        if let Some(product) = saved.product {
            tape.read(&[product]);
        }
        let dup = tape.op(&[dproduct, saved.gate], tall);
        let dsilu = tape.op(&[dproduct, saved.up], tall);
        let dgate = tape.chain(dsilu, self.chain, tall);
        tape.read(&[dgate, saved.gate]);
        let one = self.linear_back(tape, &linears[5], dup, [d, f], grads);
        let two = self.linear_back(tape, &linears[4], dgate, [d, f], grads);
        tape.read(&[one, two]);
        let back = tape.chain(one, self.chain, wide * 2);
        let dmiddle = tape.op(&[back, saved.middle, saved.stats[1], dy], wide);
        let dout = self.linear_back(tape, &linears[3], dmiddle, [d, d], grads);
        let dq = tape.op(
            &[dout, saved.q, saved.k, saved.v, saved.out, saved.lse],
            wide,
        );
        let (dk, dv) = (tape.make(wide), tape.make(wide));
        tape.make(wide * 2);
        let [dq, dk] = [dq, dk].map(|value| tape.chain(value, self.chain, wide));
        let mut sum = self.linear_back(tape, &linears[2], dv, [d, d], grads);
        for (linear, dy) in [(1, dk), (0, dq)] {
            let part = self.linear_back(tape, &linears[linear], dy, [d, d], grads);
            sum = tape.op(&[sum, part], wide);
        }
        let back = tape.chain(sum, self.chain, wide * 2);
        tape.op(&[back, saved.x, saved.stats[0], dmiddle], wide)
    }
}
