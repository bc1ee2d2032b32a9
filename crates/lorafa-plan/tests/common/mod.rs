//! Small graphs as text, for the tests.

#![allow(dead_code, reason = "each test binary uses a part")]

use lorafa_ir::text::{ValueDisplay, parse};
use lorafa_ir::{Graph, ValueId};
use lorafa_plan::{Plan, PlanDisplay, check, peak, plan};

/// The verified graph of these lines.
pub fn graph(lines: &str) -> Graph {
    let graph = parse(&format!("graph @test {{\n{lines}\n}}")).expect("the test's text is a graph");
    graph.verify().expect("the test's graph verifies");
    graph
}

/// A graph with its checked plan.
pub struct Planned {
    pub graph: Graph,
    pub plan: Plan,
}

/// Plans these lines.
pub fn planned(lines: &str) -> Planned {
    let graph = graph(lines);
    let plan = plan(&graph).expect("the test's graph has a plan");
    check(plan.problem(), plan.layout()).expect("a plan's layout is right");
    let peak = peak(&graph).expect("what has a plan has a peak");
    let bound = plan.lower_bound();
    assert_eq!(peak.bytes, plan.persistent_bytes() + bound.bytes);
    assert_eq!(
        (peak.position, &peak.schedule),
        (bound.position, plan.schedule())
    );
    Planned { graph, plan }
}

impl Planned {
    /// The value that operands spell so: `%w`, `v3`.
    pub fn value(&self, name: &str) -> ValueId {
        let mut values = self.graph.ops().flat_map(|op| op.results.iter().copied());
        values
            .find(|value| ValueDisplay(&self.graph, *value).to_string() == name)
            .expect("the test names a value of its graph")
    }

    /// Whether one value was written over the other, or is a view of it.
    pub fn share(&self, a: &str, b: &str) -> bool {
        self.start(a) == self.start(b)
    }

    /// The first byte of a value.
    pub fn start(&self, name: &str) -> u64 {
        let place = self.plan.place(self.value(name));
        place.expect("every value has a place").start()
    }

    /// Offset and strides of a value in its storage, in elements.
    pub fn strides(&self, name: &str) -> (u64, Vec<u64>) {
        let place = self.plan.place(self.value(name));
        let layout = place.expect("every value has a place").layout;
        (layout.offset, layout.strides.to_vec())
    }

    /// The plan as text.
    pub fn text(&self) -> String {
        PlanDisplay(&self.graph, &self.plan).to_string()
    }
}
