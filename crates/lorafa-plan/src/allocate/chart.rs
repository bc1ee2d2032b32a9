//! First fit in any order: which bytes are taken at which positions.
//!
//! Positions are first reduced to *sections*, between which a buffer dies and another is born; within one, everything
//! overlaps. A binary tree over sections then holds taken bytes as sorted, merged intervals:
//!
//! ```text
//!                 [0,4)                  `throughout`: bytes of buffers that live in all of the node's sections
//!              /         \                             (and not in all of its parent's)
//!         [0,2)           [2,4)          `sometimes`:  bytes of buffers that live in any of them
//!         /   \           /   \
//!      [0,1) [1,2)     [2,3) [3,4)
//! ```
//!
//! A life is O(log n) nodes that it covers. The bytes taken at some time of it are those taken `sometimes` in these nodes,
//! and `throughout` in the nodes above. Where buffers are packed well, intervals merge and a node holds a few.

use crate::problem::{Buffer, BufferId, Layout, Problem};

/// How an attempt to place all buffers ended.
pub(super) enum Attempt {
    /// All placed, with an arena below the limit.
    Placed(Layout),
    /// The buffer at this index of the order would have reached the limit.
    TooHigh(usize),
    /// No steps are left.
    OutOfSteps,
}

/// A problem and the bytes taken in the attempt under way.
pub(super) struct Chart<'p> {
    buffers: &'p [Buffer],
    /// Half-open range of sections in which each buffer lives.
    lives: Vec<(u32, u32)>,
    /// Sections, rounded up to a power of two.
    width: u32,
    /// The tree: the root is 1, the children of `n` are `2n` and `2n + 1`.
    nodes: Vec<Node>,
    /// Nodes with taken bytes.
    used: Vec<u32>,
    steps: u64,
}

#[derive(Default, Clone)]
struct Node {
    throughout: Intervals,
    sometimes: Intervals,
}

/// A node that a life touches, and whether the life covers it.
#[derive(Clone, Copy)]
struct Touched {
    node: u32,
    covered: bool,
}

impl<'p> Chart<'p> {
    /// A chart for attempts that take at most so many steps together.
    pub(super) fn new(problem: &'p Problem, steps: u64) -> Self {
        let (lives, sections) = sections(problem);
        let width = sections.next_power_of_two();
        let nodes = vec![Node::default(); 2 * width as usize];
        Self {
            buffers: problem.buffers(),
            lives,
            width,
            nodes,
            used: Vec::new(),
            steps,
        }
    }

    /// Places the buffers in this order, each as low as it can, in an arena smaller than `limit`.
    pub(super) fn first_fit(&mut self, order: &[BufferId], limit: u64) -> Attempt {
        self.clear();
        let mut layout = Layout {
            offsets: vec![0; self.buffers.len()],
            arena: 0,
        };
        let (mut touched, mut taken) = (Vec::new(), Vec::new());
        for (index, id) in order.iter().enumerate() {
            touched.clear();
            self.touch(1, (0, self.width), self.lives[id.index()], &mut touched);
            taken.clear();
            taken.extend(
                touched
                    .iter()
                    .copied()
                    .filter(|&touch| !self.taken(touch).0.is_empty()),
            );
            let size = self.buffers[id.index()].size;
            let Some(start) = self.lowest(&taken, size, touched.len() as u64) else {
                return Attempt::OutOfSteps;
            };
            let end = start + size;
            if end >= limit {
                return Attempt::TooHigh(index);
            }
            layout.offsets[id.index()] = start;
            layout.arena = layout.arena.max(end);
            for Touched { node, covered } in touched.drain(..) {
                let taken = &mut self.nodes[node as usize];
                if taken.sometimes.0.is_empty() {
                    self.used.push(node);
                }
                taken.sometimes.add(start, end);
                if covered {
                    taken.throughout.add(start, end);
                }
            }
        }
        Attempt::Placed(layout)
    }

    fn clear(&mut self) {
        for node in self.used.drain(..) {
            let node = &mut self.nodes[node as usize];
            node.throughout.0.clear();
            node.sometimes.0.clear();
        }
    }

    /// Collects the nodes below `node`, which spans these sections, that the life touches down to those it covers.
    fn touch(&self, node: u32, span: (u32, u32), life: (u32, u32), touched: &mut Vec<Touched>) {
        let covered = life.0 <= span.0 && span.1 <= life.1;
        touched.push(Touched { node, covered });
        if covered {
            return;
        }
        let middle = span.0.midpoint(span.1);
        if life.0 < middle {
            self.touch(2 * node, (span.0, middle), life, touched);
        }
        if life.1 > middle {
            self.touch(2 * node + 1, (middle, span.1), life, touched);
        }
    }

    fn taken(&self, touch: Touched) -> &Intervals {
        let node = &self.nodes[touch.node as usize];
        if touch.covered {
            &node.sometimes
        } else {
            &node.throughout
        }
    }

    /// The lowest offset with `size` bytes free in all of these, or `None` if the steps do not suffice.
    ///
    /// Goes round the nodes, each of which pushes the offset up as far as it must, until none does any more.
    fn lowest(&mut self, taken: &[Touched], size: u64, mut cost: u64) -> Option<u64> {
        let mut offset = 0;
        let mut agreed = 0;
        for &touch in taken.iter().cycle() {
            let (pushed, passed) = self.taken(touch).push(offset, size);
            cost += 1 + passed as u64;
            agreed = if pushed > offset { 1 } else { agreed + 1 };
            offset = pushed;
            if agreed == taken.len() || cost > self.steps {
                break;
            }
        }
        self.steps = self.steps.checked_sub(cost)?;
        Some(offset)
    }
}

/// The sections in which each buffer lives, and how many there are.
fn sections(problem: &Problem) -> (Vec<(u32, u32)>, u32) {
    // At one position, deaths sort before births.
    let mut events = Vec::with_capacity(2 * problem.buffers().len());
    for (id, buffer) in problem.iter().filter(|(_, buffer)| buffer.size > 0) {
        events.push((buffer.live.start, true, id));
        events.push((buffer.live.end, false, id));
    }
    events.sort_unstable();
    let mut lives = vec![(0, 0); problem.buffers().len()];
    let mut section = 0;
    let mut died = false;
    for (_, born, id) in events {
        let life = &mut lives[id.index()];
        if born {
            section += u32::from(died);
            life.0 = section;
        } else {
            life.1 = section + 1;
        }
        died = !born;
    }
    (lives, section + 1)
}

/// Byte ranges as start and end, sorted; no two touch.
#[derive(Default, Clone)]
struct Intervals(Vec<(u64, u64)>);

impl Intervals {
    fn add(&mut self, start: u64, end: u64) {
        let first = self.0.partition_point(|&(_, before)| before < start);
        let touching = self.0[first..]
            .iter()
            .take_while(|&&(after, _)| after <= end)
            .count();
        if touching == 0 {
            self.0.insert(first, (start, end));
            return;
        }
        let last = first + touching - 1;
        self.0[first] = (start.min(self.0[first].0), end.max(self.0[last].1));
        self.0.drain(first + 1..=last);
    }

    /// The lowest offset, not below `offset`, with `size` bytes free here, and how many intervals were in the way.
    fn push(&self, mut offset: u64, size: u64) -> (u64, usize) {
        let first = self.0.partition_point(|&(_, end)| end <= offset);
        let mut passed = 0;
        for &(start, end) in &self.0[first..] {
            if start >= offset + size {
                break;
            }
            offset = end;
            passed += 1;
        }
        (offset, passed)
    }
}

#[cfg(test)]
mod tests {
    use super::{Attempt, Chart};
    use crate::problem::{ALIGN, Buffer, Problem};

    /// Numbers below `limit` that look random.
    fn numbers(seed: u64) -> impl FnMut(u64) -> u64 {
        let mut state = seed;
        move |limit| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 33) % limit
        }
    }

    /// First fit as it is defined: the lowest offset no buffer placed before is in the way of.
    fn definition(buffers: &[Buffer]) -> Vec<u64> {
        let mut offsets: Vec<u64> = Vec::new();
        for buffer in buffers {
            let mut offset = 0;
            while let Some(end) = buffers.iter().zip(&offsets).find_map(|(other, &at)| {
                let meets =
                    other.live.start < buffer.live.end && buffer.live.start < other.live.end;
                let end = at + other.size;
                (meets && at < offset + buffer.size && offset < end).then_some(end)
            }) {
                offset = end;
            }
            offsets.push(offset);
        }
        offsets
    }

    #[test]
    fn first_fit_is_what_its_definition_says() {
        for seed in 0..300 {
            let mut below = numbers(seed);
            let buffers: Vec<_> = (0..2 + below(80))
                .map(|_| {
                    let start = below(40) as u32;
                    let live = start..start + 1 + below(15) as u32;
                    let size = ALIGN * (1 + below(9));
                    Buffer { live, size }
                })
                .collect();
            let expected = definition(&buffers);
            let problem = Problem::new(buffers).expect("valid by construction");
            let order: Vec<_> = problem.iter().map(|(id, _)| id).collect();
            let mut chart = Chart::new(&problem, u64::MAX);
            for attempt in ["first", "second"] {
                match chart.first_fit(&order, u64::MAX) {
                    Attempt::Placed(layout) => {
                        assert_eq!(layout.offsets, expected, "seed {seed}, {attempt} attempt");
                    }
                    _ => panic!("seed {seed}, {attempt} attempt: neither limit was set"),
                }
            }
        }
    }
}
