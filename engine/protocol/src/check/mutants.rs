//! The broken variants, each with the program that must catch it.

use std::rc::Rc;

use super::explore::explore;
use super::scenarios;
use super::takeover::{self, Wrong};
use crate::broken::{self, Broken};

/// States after which a program has failed to catch a broken variant.
const STATES_MAX: usize = 200_000;

/// What became of one broken variant.
#[derive(Debug)]
pub struct Verdict {
    /// The rule that was broken.
    pub rule: String,
    /// What caught it, in how many states, and what it saw; or who should have.
    pub caught: Result<String, String>,
}

/// Rules of the protocols, and the program that must notice that one is broken.
const MUTANTS: &[(Broken, &str)] = &[
    (Broken::CommitBeforePut, "read: large values"),
    (Broken::IgnoredCursor, "read: peers and a stranger"),
    (Broken::DroppedCounter, "write: peers and a stranger, one object twice"),
    (Broken::CounterNotHandedDown, "relaxed: through callees"),
    (Broken::RetryWithoutRecord, "transaction: take a seat"),
    (Broken::AdoptedNothing, "read: peers and a stranger"),
    (Broken::AdoptedSeqnumOnly, "write: peers and a stranger, one object twice"),
    (Broken::ConditionNamesRoot, "read: a call"),
    (Broken::NoInitCondition, "read: a call"),
    (Broken::VersionWithoutRun, "read: large values"),
    (Broken::TransactionVersionWithoutCursor, "transaction: large values"),
    (Broken::ReadVersionWithoutTuple, "write: large values"),
    (Broken::SideEffectVersionWithoutNonce, "side effect: large result"),
    (Broken::RunWithoutInput, "root: a key used with two inputs"),
    (Broken::FinishWithoutCounter, "write: through a callee"),
    (Broken::FinishMovesCursor, "read: a callee that has finished"),
    (Broken::InitMovesCursor, "read: a call before any step"),
    (Broken::JoinForgetsCallee, "read: parallel callees"),
    (Broken::JoinLexicographic, "mixed: parallel callees"),
    (Broken::PointNotReturned, "read: a call"),
    (Broken::WriteBeforeInit, "write: a log-free read decides what is written"),
    (Broken::ReplyBeforeInit, "mixed: a log-free root under a key"),
    (Broken::SideEffectBeforeInit, "side effect: large result"),
    (Broken::CursorBelowInit, "write: a later root"),
    (Broken::NoFenceBeforeRead, "mixed: write, then log-free read"),
    (Broken::NoFenceBeforeWrite, "write: two objects"),
    (Broken::UncheckedReads, "transaction: increment"),
    (Broken::UncheckedAbsence, "transaction: increment"),
    (Broken::CancelJudgedFirst, "cancel: peers"),
    (Broken::NoRestart, "read: peers and a stranger"),
    (Broken::NeverAsksForInit, "mixed: a read_only callee asks for Init"),
    (Broken::NeverWatchesInit, "cancel: before the Init that a callee needs"),
    (Broken::AnyCommitIsMine, "transaction: one without a record, then one with"),
    (Broken::CommitCursorIgnored, "transaction: increment"),
    (Broken::UncoveredReadOnly, "transaction: read-only after a log-free write"),
    (Broken::SideEffectNotAdopted, "side effect: peers"),
    (Broken::IndicesRunOn, "transaction: draws are made again"),
    (Broken::BufferStaysAbove, "transaction: through a callee"),
];

/// Variants of rules that do not exist yet: they come with garbage collection and switching.
pub const NOT_YET_BUILT: &[&str] = &[
    "garbage collection: trimming past the safe point",
    "garbage collection: a base read from a replica that has not folded",
    "garbage collection: the floor of an append not checked",
    "garbage collection: a peer's Finish ignored when the snapshot is too old",
    "switching: an import without the condition on its object",
    "switching: an import without the condition on its transition",
    "switching: a transitional write replayed without its put",
    "switching: a transitional read that is not written back",
    "switching: no drain before the conversion",
    "switching: a conversion that ignores the base",
];

/// Breaks each rule in turn and says who noticed.
pub fn run(mut tell: impl FnMut(&Verdict)) -> Vec<Verdict> {
    let scenarios = scenarios::all();
    let mut verdicts = Vec::new();
    for (rule, by) in MUTANTS {
        let scenario = scenarios.iter().find(|scenario| scenario.name == *by);
        let scenario = Rc::new(scenario.expect("the list names a program").clone());
        broken::set(Some(*rule));
        let report = explore(&scenario, STATES_MAX);
        broken::set(None);
        let caught = match report.violation {
            Some((what, _)) => {
                let what: String = what.chars().take(100).collect();
                Ok(format!("“{by}” after {} states: {what}", report.states))
            }
            None => Err((*by).to_owned()),
        };
        let verdict = Verdict { rule: format!("{rule:?}"), caught };
        tell(&verdict);
        verdicts.push(verdict);
    }
    for wrong in Wrong::ALL {
        let caught = match takeover::explore(Some(*wrong)).violation {
            Some(what) => Ok(format!("the model of a take-over: {what}")),
            None => Err("the model of a take-over".to_owned()),
        };
        let verdict = Verdict { rule: format!("take-over: {wrong:?}"), caught };
        tell(&verdict);
        verdicts.push(verdict);
    }
    verdicts
}
