use std::rc::Rc;
use super::explore::explore;
use super::scenarios;
use crate::broken::{self, Broken::*};

#[test]
fn smoke() {
    for scenario in scenarios::all() {
        let start = std::time::Instant::now();
        let report = explore(&Rc::new(scenario.clone()), 60_000);
        println!("{:60} {:8} {:5} {:?} {:?}", scenario.name, report.states, report.results, report.complete, start.elapsed());
        if let Some((what, trace)) = report.violation {
            println!("   !!! {what}\n    {}", trace.join("\n    "));
        }
    }
}

#[test]
fn discover() {
    for rule in [CommitBeforePut, IgnoredCursor, DroppedCounter, CounterNotHandedDown, RetryWithoutRecord, AdoptedNothing, AdoptedSeqnumOnly, ConditionNamesRoot, NoInitCondition, VersionWithoutRun, TransactionVersionWithoutCursor, ReadVersionWithoutTuple, SideEffectVersionWithoutNonce, RunWithoutInput, InputVersionWithoutFingerprint, FinishWithoutCounter, FinishMovesCursor, InitMovesCursor, JoinForgetsCallee, JoinLexicographic, PointNotReturned, WriteBeforeInit, ReplyBeforeInit, SideEffectBeforeInit, CursorBelowInit, NoFenceBeforeRead, NoFenceBeforeWrite, UncheckedReads, UncheckedAbsence, CancelJudgedFirst, NoRestart, NeverAsksForInit, AnyCommitIsMine, CommitCursorIgnored, UncoveredReadOnly, SideEffectNotAdopted, IndicesRunOn, BufferStaysAbove] {
        if std::env::var("ONLY").is_ok_and(|only| only != format!("{rule:?}")) { continue; }
        broken::set(Some(rule));
        let mut hits = vec![];
        for scenario in scenarios::all() {
            let start = std::time::Instant::now();
            if std::env::var("V").is_ok() { println!("{rule:?} {}", scenario.name); }
            let report = explore(&Rc::new(scenario.clone()), 20_000);
            if let Some((what, _)) = report.violation {
                hits.push(format!("{} ({} states, {:?}): {:.150}", scenario.name, report.states, start.elapsed(), what));
            }
        }
        println!("{rule:?}: {}", if hits.is_empty() { "SURVIVED".to_owned() } else { format!("\n      {}", hits.join("\n      ")) });
    }
    broken::set(None);
}
