//! Every interleaving: depth first, by running the strands again from the start along each path,
//! and turning back where a state has been seen.

use std::collections::{BTreeMap, HashSet};
use std::rc::Rc;

use halfmoon_wire::{RecordRef, tag};

use super::judge::is_sequential;
use super::program::{Observed, Op, Scenario, root_id};
use super::session::root_session;
use super::stage::{Move, Reply, Stage, When};
use super::world::{self, Val, World};
use crate::audit::StepAudit;
use crate::{Object, Protocol, root};

/// What an exploration found.
#[derive(Debug)]
#[cfg_attr(not(test), expect(dead_code, reason = "only the tests look at all of it"))]
pub(crate) struct Report {
    /// States visited.
    pub(crate) states: usize,
    /// Different results judged.
    pub(crate) results: usize,
    /// False: it was stopped at its limit, so this is no proof even within its bounds.
    pub(crate) complete: bool,
    /// What is wrong, and the moves that lead there.
    pub(crate) violation: Option<(String, Vec<String>)>,
}

type Results = BTreeMap<(Vec<Vec<Observed>>, Vec<u32>), bool>;

pub(crate) struct Explorer<'a> {
    scenario: &'a Rc<Scenario>,
    results: Results,
}

/// Sets the stage: all attempts of all roots, none of them started.
pub(crate) fn set(scenario: &Rc<Scenario>) -> Stage {
    let stage = Stage::default();
    for (index, spec) in scenario.roots.iter().enumerate() {
        for attempt in 0..spec.attempts.len() {
            let scenario = Rc::clone(scenario);
            stage.enter(move |mock| root_session(scenario, index, attempt, mock));
        }
    }
    if let Some(index) = scenario.cancel {
        stage.enter(async move |mock| match root::cancel(&mock, root_id(index)).await {
            Ok(()) => {}
            Err(stop) => mock.violated(format!("the cancel request: {stop}")),
        });
    }
    stage
}

/// Explores until done or until `limit` states were seen.
pub(crate) fn explore(scenario: &Rc<Scenario>, limit: usize) -> Report {
    let mut explorer = Explorer::new(scenario);
    let mut seen = HashSet::new();
    let mut path: Vec<(Move, Vec<Move>)> = Vec::new();
    let report = |explorer: Explorer<'_>, states, complete, violation| Report {
        states,
        results: explorer.results.len(),
        complete,
        violation,
    };
    let mut states = 0;
    loop {
        let stage = set(scenario);
        for (chosen, _) in &path {
            stage.make(*chosen);
        }
        // Down, as long as there is something new.
        while seen.insert(stage.fingerprint()) {
            states += 1;
            let mut moves = stage.moves();
            if let Err(what) = explorer.check(&stage, moves.is_empty()) {
                let trace = retrace(scenario, &path);
                return report(explorer, states, false, Some((what, trace)));
            }
            if states >= limit {
                return report(explorer, states, false, None);
            }
            moves.retain(|chosen| seen.insert(stage.fingerprint_after(*chosen)));
            let Some(first) = moves.pop() else { break };
            path.push((first, moves));
            stage.make(first);
        }
        // Back, to the last move that has an alternative.
        loop {
            let Some((_, mut others)) = path.pop() else {
                return report(explorer, states, true, None);
            };
            if let Some(next) = others.pop() {
                path.push((next, others));
                break;
            }
        }
    }
}

/// The moves of a path, in words.
fn retrace(scenario: &Rc<Scenario>, path: &[(Move, Vec<Move>)]) -> Vec<String> {
    let stage = set(scenario);
    let mut words = Vec::new();
    for (chosen, _) in path {
        words.push(stage.describe(*chosen));
        stage.make(*chosen);
    }
    words
}

impl<'a> Explorer<'a> {
    pub(crate) const fn new(scenario: &'a Rc<Scenario>) -> Self {
        Self { scenario, results: Results::new() }
    }

    /// Judges a state as if all that has not ended had died here: every root that is known must
    /// have an ended attempt; states where one has not are judged later.
    pub(crate) fn check(&mut self, stage: &Stage, terminal: bool) -> Result<(), String> {
        let inner = stage.0.borrow();
        if let Some(what) = &inner.violation {
            return Err(what.clone());
        }
        positions_are_unique(&inner.world.log)?;
        if terminal {
            steps_are_sound(&inner.world)?;
        }
        let mut observed = Vec::new();
        for (index, spec) in self.scenario.roots.iter().enumerate() {
            let replies: Vec<&Reply> =
                inner.replies.iter().filter(|reply| reply.root == index).collect();
            if let Some(first) = replies.first() {
                observed.push(agreed(index, first, &replies)?);
                continue;
            }
            let detached = spec.attempts.contains(&When::Detached);
            let known = inner.world.init_of(root_id(index)).is_some()
                || detached && !inner.detached.is_empty();
            let due = known || spec.keyed || spec.attempts.len() == 1 && !detached;
            if terminal && due {
                return Err(format!("root {index} can never end"));
            }
            if known || detached && self.is_detaching() && !terminal {
                return Ok(());
            }
            observed.push(Vec::new());
        }
        let mut last = Vec::new();
        for table in &self.scenario.tables {
            let object = Object { table: table.name.clone(), key: b"k".to_vec() };
            let value = match table.effective() {
                Protocol::HalfmoonRead | Protocol::Auto => inner.world.last_written(&object)?,
                Protocol::HalfmoonWrite | Protocol::Boki | Protocol::Unlogged => {
                    inner.world.cells.get(&object).and_then(|cell| cell.value.clone())
                }
            };
            last.push(number(value.as_ref()));
        }
        let scenario = self.scenario;
        let result = (observed, last);
        if !self.results.contains_key(&result) {
            let holds = is_sequential(scenario, &result.0, &result.1);
            self.results.insert(result.clone(), holds);
        }
        match self.results.get(&result) {
            Some(true) => Ok(()),
            Some(false) | None => Err(format!(
                "no sequential run gives these values: {:?}, at last {:?}",
                result.0, result.1
            )),
        }
    }

    fn is_detaching(&self) -> bool {
        let mut ops = self.scenario.functions.iter().flatten();
        ops.any(|op| matches!(op, Op::Detach(_)))
    }
}

fn number(value: Option<&Val>) -> u32 {
    let bytes = value.and_then(|value| value.bytes.first_chunk()).copied();
    bytes.map_or(0, u32::from_le_bytes)
}

/// All replies of a root must say the same.
fn agreed(root: usize, first: &Reply, replies: &[&Reply]) -> Result<Vec<Observed>, String> {
    let told: Vec<_> = replies.iter().filter_map(|reply| reply.observed.as_ref()).collect();
    let same = replies.iter().all(|reply| reply.status == first.status)
        && told.windows(2).all(|pair| pair[0] == pair[1]);
    match same {
        true => Ok(told.first().map_or_else(Vec::new, |observed| (*observed).clone())),
        false => Err(format!("root {root} has two replies: {replies:?}")),
    }
}

/// No two records stand at one position of a stream of steps, and every Init is its run's only one.
fn positions_are_unique(log: &[world::Record]) -> Result<(), String> {
    let mut taken = BTreeMap::new();
    for record in log {
        for (stream, position) in &record.tags {
            if *stream != tag::intent() && taken.insert((*stream, *position), ()).is_some() {
                return Err(format!("two records at position {position} of {stream:?}"));
            }
        }
    }
    Ok(())
}

/// Whoever audits the log afterwards finds nothing wrong, and every value that it names.
fn steps_are_sound(world: &World) -> Result<(), String> {
    let (mut audit, mut wrong) = (StepAudit::default(), None);
    let mut bytes = Vec::new();
    for (index, record) in world.log.iter().enumerate() {
        bytes.clear();
        world::encode(index, record, &mut bytes);
        let parsed = RecordRef::parse(&bytes).map_err(|error| error.to_string())?;
        let mut missing = None;
        audit.record(
            parsed,
            |flaw| wrong = Some(format!("record {}: {flaw}", index + 1)),
            |value| {
                if !world.versions.contains_key(&(value.object.clone(), value.version)) {
                    missing = Some(format!("record {} names a value that is not there", index + 1));
                }
            },
        );
        wrong = wrong.or(missing);
    }
    wrong.map_or(Ok(()), Err)
}
