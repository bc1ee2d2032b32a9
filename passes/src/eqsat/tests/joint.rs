//! Gradients of random adapters that share what they are made of: the choice costs as much as the best of all there are.

use super::super::extract::Cost;
use super::super::language::{Kind, Leaf, Source, Tensor, Term, Terms, leaf, terms};
use super::super::{saturate, write};
use super::{Rng, values};
use egg::Id;
use lorafa_ir::{DType, ValueId};
use std::collections::{BTreeMap, BTreeSet};

struct Draw {
    terms: Terms,
    values: std::vec::IntoIter<ValueId>,
}

impl Draw {
    /// A value of the graph; what keeping it takes is none of weights and of what is kept anyway.
    fn leaf(&mut self, dims: [u64; 2], kept: bool) -> Id {
        let value = self.values.next().unwrap();
        let dims = dims.as_slice().into();
        let ty = Tensor {
            dtype: DType::F32,
            dims,
        };
        let bytes = 4 * ty.elements();
        let keeps = kept.then_some((value, bytes));
        leaf(&mut self.terms, Leaf::Value(Source { value, ty, keeps }))
    }

    fn add(&mut self, term: Term) -> Id {
        self.terms.add_uncanonical(term)
    }

    fn product(&mut self, a: Id, b: Id) -> Id {
        self.add(Term::Product([a, b]))
    }

    fn turned(&mut self, x: Id) -> Id {
        self.add(Term::Transpose(x))
    }
}

/// Adapters of one x, with dy of their own or shared, in random spellings of their gradients.
fn component(rng: &mut Rng) -> (Terms, Vec<Id>) {
    let mut draw = Draw {
        terms: terms(),
        values: values(16).into_iter(),
    };
    let (n, d, o) = (
        rng.pick(&[2, 6, 12]),
        rng.pick(&[3, 5, 8]),
        rng.pick(&[2, 4, 7]),
    );
    let anyway = rng.below(2) == 0;
    let x = draw.leaf([n, d], !anyway);
    let shared = draw.leaf([n, o], false);
    let mut roots = Vec::new();
    for _ in 0..2 {
        let r = rng.pick(&[1, 2, 3]);
        let a = draw.leaf([d, r], false);
        let dy = match rng.below(2) {
            0 => shared,
            _ => draw.leaf([n, o], false),
        };
        let kept = rng.below(4) > 0;
        let xa = draw.leaf([n, r], kept);
        let again = draw.product(x, a);
        draw.terms.union_trusted(again, xa, "saved-value");
        let turned = draw.turned(dy);
        roots.push(match rng.below(4) {
            0 => draw.product(turned, xa),
            1 => draw.product(turned, again),
            2 => {
                let weight = draw.product(turned, x);
                draw.product(weight, a)
            }
            _ => {
                let (x, a) = (draw.turned(x), draw.turned(a));
                let weight = draw.product(x, dy);
                let gradient = draw.product(a, weight);
                draw.turned(gradient)
            }
        });
    }
    draw.terms.rebuild();
    (draw.terms, roots)
}

/// One way to have a class: what it costs by itself, what it keeps, and what it is made of.
struct Way {
    flops: u64,
    ops: u64,
    keeps: Option<(ValueId, u64)>,
    of: Vec<Id>,
}

fn dims(terms: &Terms, id: Id) -> &[u64] {
    &terms[id].data.tensor().unwrap().dims
}

/// All ways to have a class, straight from its terms.
fn ways(terms: &Terms, id: Id) -> Vec<Way> {
    let mut ways = Vec::new();
    for term in &terms[id].nodes {
        match term {
            Term::Leaf(number) => {
                if let Some(Leaf::Value(source)) = terms.analysis.leaf(*number) {
                    ways.push(Way {
                        flops: 0,
                        ops: 0,
                        keeps: source.keeps,
                        of: vec![],
                    });
                }
            }
            Term::Product([a, b]) => {
                let inner = *dims(terms, *a).last().unwrap();
                let flops = 2 * inner * dims(terms, id).iter().product::<u64>();
                // A product reads a factor as it is, or turns what is its transpose.
                let factor = |id: Id| {
                    let turned = terms[id].nodes.iter().filter_map(|term| match term {
                        Term::Transpose(x) => Some(terms.find(*x)),
                        _ => None,
                    });
                    BTreeSet::from_iter(turned.chain([terms.find(id)]))
                };
                for a in factor(*a) {
                    for b in factor(*b) {
                        ways.push(Way {
                            flops,
                            ops: 1,
                            keeps: None,
                            of: vec![a, b],
                        });
                    }
                }
            }
            Term::Transpose(x) => ways.push(Way {
                flops: 0,
                ops: 1,
                keeps: None,
                of: vec![terms.find(*x)],
            }),
            other => panic!("no rule makes {other} of these"),
        }
    }
    ways
}

/// All choices for all classes that the roots need, one after the other.
struct Exhaustive<'t> {
    terms: &'t Terms,
    chosen: BTreeMap<Id, Vec<Id>>,
    best: Option<Cost>,
    tried: usize,
}

impl Exhaustive<'_> {
    fn go(&mut self, mut open: Vec<Id>, kept: &BTreeSet<ValueId>, cost: Cost) {
        let Some(id) = open.pop() else {
            self.tried += 1;
            if !self.has_cycle() {
                self.best = Some(self.best.map_or(cost, |best| best.min(cost)));
            }
            return;
        };
        if self.chosen.contains_key(&id) {
            return self.go(open, kept, cost);
        }
        for way in ways(self.terms, id) {
            let (mut cost, mut kept) = (cost, kept.clone());
            cost.flops += way.flops;
            cost.ops += way.ops;
            if let Some((value, bytes)) = way.keeps
                && kept.insert(value)
            {
                cost.bytes += bytes;
            }
            // Costs only grow.
            if self.best.is_some_and(|best| cost > best) {
                continue;
            }
            let more = open.iter().chain(&way.of).copied().collect();
            self.chosen.insert(id, way.of);
            self.go(more, &kept, cost);
            self.chosen.remove(&id);
        }
    }

    fn has_cycle(&self) -> bool {
        // Takes away what is made of nothing that is left, until nothing changes.
        let mut left = self.chosen.clone();
        loop {
            let before = left.len();
            let there = left.clone();
            left.retain(|_, of| of.iter().any(|of| there.contains_key(of)));
            if left.len() == before {
                return before > 0;
            }
        }
    }
}

#[test]
fn adapters_are_chosen_together_as_well_as_trying_everything() {
    let mut rng = Rng(17);
    let (mut joint, mut tried) = (0, 0);
    for _ in 0..120 {
        let (terms, roots) = component(&mut rng);
        let terms = saturate(terms, roots.len());
        assert!(terms.classes().all(|class| class.data != Kind::IllTyped));
        let found = write::Plan::of(&terms, roots.clone()).unwrap().found;
        let mut all = Exhaustive {
            terms: &terms,
            chosen: BTreeMap::new(),
            best: None,
            tried: 0,
        };
        let open = roots.iter().map(|root| terms.find(*root)).collect();
        all.go(open, &BTreeSet::new(), Cost::default());
        assert_eq!(Some(found.cost), all.best);
        assert!(found.proven);
        tried += all.tried;
        let apart = roots.iter().map(|root| {
            let found = write::Plan::of(&terms, vec![*root]).unwrap().found;
            found.cost
        });
        joint += usize::from(apart.fold(Cost::default(), |sum, cost| sum + cost) > found.cost);
    }
    assert!(joint > 10 && tried > 1_000, "{joint} {tried}");
}
