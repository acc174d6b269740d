//! A model of the order of a take-over: one root with an effect, its engine, an heir, the heir's heir.
//!
//! An engine's report holds the safe point at the root's initial cursor. Whatever happens, and
//! whoever stops for ever at any point: a root with an Init and no Finish has somebody who will end
//! it, and the snapshot that it reads from is there.

use std::collections::BTreeSet;

/// A way to get it wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wrong {
    /// The safe point is released by the reply instead of the committed Finish.
    ReleasedAtReply,
    /// The dead engine's report is dropped when it is evicted.
    ReportDroppedAtEvict,
    /// The dead engine's report is dropped before the heir's includes its roots.
    ReportDroppedBeforeHeirReports,
    /// The heir scans before Evict is in the stream.
    ScannedBeforeEvict,
    /// The sequencer goes on ordering the evicted incarnation.
    IncarnationNotRefused,
    /// The scan looks for the engine that appended Init and does not follow Evict records.
    HeirsNotFollowed,
}

impl Wrong {
    pub(crate) const ALL: &'static [Self] = &[
        Self::ReleasedAtReply,
        Self::ReportDroppedAtEvict,
        Self::ReportDroppedBeforeHeirReports,
        Self::ScannedBeforeEvict,
        Self::IncarnationNotRefused,
        Self::HeirsNotFollowed,
    ];
}

/// What the model found.
#[cfg_attr(not(test), expect(dead_code, reason = "only the tests look at all of it"))]
pub(crate) struct Found {
    pub(crate) states: usize,
    pub(crate) violation: Option<String>,
}

/// What is known of one engine. Engine 0 starts the root; all three may be evicted but the last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
struct Engine {
    /// It makes no further move; nobody can tell.
    stopped: bool,
    /// Its Evict is in the stream, and names this heir.
    heir: Option<usize>,
    /// The engines whose intents it has scanned as their heir.
    scanned: [bool; 2],
    /// The engines whose roots its report includes.
    reported: [bool; 2],
    /// It has the root.
    has_root: bool,
    /// Its report says so.
    holds: bool,
    /// Its report counts no more.
    dropped: bool,
    replied: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
struct State {
    init: bool,
    finish: bool,
    /// The safe point is past the root's initial cursor, and the log below it trimmed.
    trimmed: bool,
    engines: [Engine; 3],
}

/// Takes a move.
type Add<'a> = dyn FnMut(&dyn Fn(&mut State)) + 'a;

struct Model {
    wrong: Option<Wrong>,
}

/// Explores the model, broken or not.
pub(crate) fn explore(wrong: Option<Wrong>) -> Found {
    let model = Model { wrong };
    let mut start = State::default();
    start.engines[0] = Engine { has_root: true, holds: true, ..Engine::default() };
    let (mut seen, mut left) = (BTreeSet::from([start]), vec![start]);
    while let Some(state) = left.pop() {
        let next = model.next(&state);
        if let Some(violation) = Model::judge(&state, next.is_empty()) {
            return Found { states: seen.len(), violation: Some(violation) };
        }
        left.extend(next.into_iter().filter(|state| seen.insert(*state)));
    }
    Found { states: seen.len(), violation: None }
}

impl State {
    /// Who owns what an engine started: Evict records are followed.
    fn owner(&self, mut engine: usize) -> usize {
        while let Some(heir) = self.engines[engine].heir {
            engine = heir;
        }
        engine
    }
}

impl Model {
    fn is(&self, wrong: Wrong) -> bool {
        self.wrong == Some(wrong)
    }

    fn next(&self, state: &State) -> Vec<State> {
        let mut next = Vec::new();
        let mut add = |change: &dyn Fn(&mut State)| {
            let mut changed = *state;
            change(&mut changed);
            if changed != *state {
                next.push(changed);
            }
        };
        for at in 0..3 {
            self.runs(state, at, &mut add);
            self.inherits(state, at, &mut add);
        }
        for at in 0..2 {
            self.is_evicted(state, at, &mut add);
        }
        if !state.engines.iter().any(|engine| self.holds(state, engine)) {
            add(&|state| state.trimmed = true);
        }
        next
    }

    /// Its report holds the safe point.
    fn holds(&self, state: &State, engine: &Engine) -> bool {
        let released = state.finish || self.is(Wrong::ReleasedAtReply) && engine.replied;
        engine.holds && !engine.dropped && !released
    }

    /// An engine with the root runs it, or stops for ever.
    fn runs(&self, state: &State, at: usize, add: &mut Add<'_>) {
        let engine = state.engines[at];
        if engine.stopped {
            return;
        }
        // The last one lives: somebody must, if roots are to end.
        if at < 2 {
            add(&|state| state.engines[at].stopped = true);
        }
        let ordered = engine.heir.is_none() || self.is(Wrong::IncarnationNotRefused);
        if engine.has_root && ordered {
            add(&|state| state.init = true);
            if engine.replied {
                add(&|state| state.finish = true);
            }
            if state.init {
                add(&|state| state.engines[at].replied = true);
            }
        }
    }

    /// An engine is evicted, and its report dropped.
    fn is_evicted(&self, state: &State, at: usize, add: &mut Add<'_>) {
        let engine = state.engines[at];
        let evicted = engine.heir.is_some();
        // The sequencer names an heir that is not evicted itself.
        let heirs = at + 1..3;
        for heir in heirs.filter(|heir| !evicted && state.engines[*heir].heir.is_none()) {
            add(&|state| state.engines[at].heir = Some(heir));
        }
        let heir = state.engines[state.owner(at)];
        let may_drop = match self.wrong {
            Some(Wrong::ReportDroppedAtEvict) => evicted,
            Some(Wrong::ReportDroppedBeforeHeirReports) => evicted && heir.scanned[at],
            Some(_) | None => evicted && heir.reported[at],
        };
        if may_drop {
            add(&|state| state.engines[at].dropped = true);
        }
    }

    /// An heir scans the intents of those before it, and reports what it found.
    fn inherits(&self, state: &State, at: usize, add: &mut Add<'_>) {
        let engine = state.engines[at];
        if engine.stopped || engine.heir.is_some() {
            return;
        }
        let unfinished = state.init && !state.finish;
        for other in 0..2.min(at) {
            let early = self.is(Wrong::ScannedBeforeEvict) && other + 1 == at;
            let inherited = state.engines[other].heir.is_some() && state.owner(other) == at;
            if (inherited || early) && !engine.scanned[other] {
                let owned = match self.wrong {
                    Some(Wrong::HeirsNotFollowed) => state.engines[0].heir == Some(at),
                    Some(_) | None => state.owner(0) == at || early,
                };
                add(&|state| {
                    state.engines[at].scanned[other] = true;
                    state.engines[at].has_root |= unfinished && owned;
                });
            }
        }
        add(&|state| {
            let engine = &mut state.engines[at];
            engine.reported = engine.scanned;
            engine.holds = engine.has_root;
        });
    }

    fn judge(state: &State, terminal: bool) -> Option<String> {
        let unfinished = state.init && !state.finish;
        if unfinished && state.trimmed {
            return Some("an unfinished root's snapshot is gone".to_owned());
        }
        (unfinished && terminal).then(|| "an effect that nobody will ever finish".to_owned())
    }
}
