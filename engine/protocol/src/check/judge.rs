//! The judge: do the values that were returned, and what is left, equal those of some failure-free
//! sequential run that is consistent with program order?

use std::collections::{BTreeMap, BTreeSet};

use super::program::{NO_OBJECT, Observed, Op, Scenario};
use super::stage::When;
use crate::Protocol;

/// One operation in the partial order of all programs.
struct Node {
    /// Reads and writes, in order; those of a transaction happen at once.
    effects: Vec<(usize, bool, u32)>,
    /// What must come before it.
    after: Vec<usize>,
}

/// Where a program has got to: what the next operation follows, and the log-free writes that may
/// still take effect later (`order = relaxed` only).
#[derive(Clone, Default)]
struct Front {
    after: Vec<usize>,
    late: Vec<usize>,
}

struct Poset<'a> {
    scenario: &'a Scenario,
    observed: BTreeMap<(u8, u8), Vec<Observed>>,
    nodes: Vec<Node>,
}

impl Poset<'_> {
    fn function(&mut self, function: u8, mut front: Front) -> Front {
        let scenario = self.scenario;
        for (at, op) in scenario.functions[usize::from(function)].iter().enumerate() {
            let at = u8::try_from(at).expect("programs are short");
            front = match *op {
                Op::R(object) => self.one(function, at, object, false, front),
                Op::W(object, _) | Op::D(object) => self.one(function, at, object, true, front),
                Op::Txn(_) => self.add(function, at, true, false, front),
                Op::Call(callee) | Op::CallRo(callee) => self.function(callee, front),
                Op::Par(one, other) | Op::First(one, other) => {
                    let mut joined = self.function(one, front.clone());
                    let second = self.function(other, front);
                    joined.after.extend(second.after);
                    joined.late.extend(second.late);
                    joined
                }
                Op::Side | Op::Fence | Op::Detach(_) => {
                    front.after.append(&mut front.late);
                    front
                }
                Op::Draw => front,
            };
        }
        front
    }

    fn one(&mut self, function: u8, at: u8, object: u8, write: bool, front: Front) -> Front {
        let protocol = self.scenario.tables[usize::from(object)].effective();
        let log_free = match protocol {
            Protocol::HalfmoonWrite => write,
            Protocol::HalfmoonRead | Protocol::Auto => !write,
            Protocol::Boki | Protocol::Unlogged => false,
        };
        let may_be_late = self.scenario.relaxed && write && log_free;
        self.add(function, at, !log_free, may_be_late, front)
    }

    fn add(&mut self, function: u8, at: u8, step: bool, may_be_late: bool, front: Front) -> Front {
        let Some(observed) = self.observed.get(&(function, at)) else { return front };
        let real = observed.iter().filter(|one| one.object != NO_OBJECT);
        let effects: Vec<_> =
            real.map(|one| (usize::from(one.object), one.write, one.value)).collect();
        let Some((object, ..)) = effects.first().copied() else { return front };
        let Front { mut after, mut late } = front;
        let same = |node: &&usize| self.nodes[**node].effects.iter().any(|one| one.0 == object);
        let waits_for: Vec<usize> = match step {
            true => late.clone(),
            false => late.iter().filter(same).copied().collect(),
        };
        let node = self.nodes.len();
        let mut before = after.clone();
        before.extend(waits_for);
        self.nodes.push(Node { effects, after: before });
        if may_be_late {
            late.push(node);
        } else {
            if step {
                late.clear();
            }
            after = vec![node];
        }
        Front { after, late }
    }
}

/// Is there a sequential run with these observations (one list per root) and this final state?
pub(crate) fn is_sequential(scenario: &Scenario, observed: &[Vec<Observed>], last: &[u32]) -> bool {
    let mut poset = Poset { scenario, observed: BTreeMap::new(), nodes: Vec::new() };
    for one in observed.iter().flatten() {
        poset.observed.entry((one.function, one.op)).or_default().push(*one);
    }
    let mut ends: Vec<Front> = Vec::new();
    for spec in &scenario.roots {
        let entry = match spec.attempts.first() {
            Some(When::After(root) | When::AtTailAfter(root)) => ends[*root].after.clone(),
            Some(_) | None => Vec::new(),
        };
        let mut end = poset.function(spec.function, Front { after: entry, late: Vec::new() });
        end.after.append(&mut end.late);
        ends.push(end);
    }
    let mut state = vec![0; scenario.tables.len()];
    search(&poset.nodes, 0, &mut state, last, &mut BTreeSet::new())
}

fn search(
    nodes: &[Node],
    done: u64,
    state: &mut Vec<u32>,
    last: &[u32],
    tried: &mut BTreeSet<(u64, Vec<u32>)>,
) -> bool {
    if done.count_ones() as usize == nodes.len() {
        return state == last;
    }
    if !tried.insert((done, state.clone())) {
        return false;
    }
    for (index, node) in nodes.iter().enumerate() {
        let ready = node.after.iter().all(|before| done >> before & 1 == 1);
        if done >> index & 1 == 1 || !ready {
            continue;
        }
        let before = state.clone();
        if apply(node, state) && search(nodes, done | 1 << index, state, last, tried) {
            return true;
        }
        *state = before;
    }
    false
}

fn apply(node: &Node, state: &mut [u32]) -> bool {
    node.effects.iter().all(|(object, write, value)| {
        if *write {
            state[*object] = *value;
        }
        state[*object] == *value
    })
}
