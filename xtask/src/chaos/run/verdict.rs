//! After the faults: whether everything ends, whether nothing is lost or doubled, whether what is on
//! the disks is sound.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::{Happened, LOOK_EVERY, Run, epoch, last_words, statuses};
use crate::chaos::audit::{Findings, Snapshot, Told, audit};
use crate::chaos::cluster::Cluster;
use crate::chaos::judge::out_of_order;
use crate::chaos::load::{Event, Gateways, History, ask_again, id};
use crate::chaos::plan::{ETCD, Kind, What};

/// How long everything may take to end once the faults are over. It is long, as machines are slow
/// and pauses between attempts grow; what hangs, hangs for ever.
const LIVENESS: Duration = Duration::from_secs(120);
/// Of the reservations without an answer, every so manieth is asked for again.
const ASKED_AGAIN: usize = 2;
/// Findings of one kind that are told.
const TOLD_MAX: usize = 5;

/// Judges a run; what was wrong.
pub(super) fn judge(
    run: &Run,
    mut cluster: Cluster,
    gateways: &Gateways,
    mut happened: Happened,
) -> anyhow::Result<Vec<String>> {
    let folder = cluster.place().folder.clone();
    say_counts(run, &happened, &cluster);
    let mut wrong: Vec<String> =
        happened.history.events.iter().filter_map(|event| event.refused.clone()).collect();
    let began = Instant::now();
    let end = began + LIVENESS;
    let answered = ask_all_again(&mut cluster, gateways, &mut happened.history, end);
    write(&folder, &happened.history)?;
    let ended = answered.and_then(|()| until_all_ended(&mut cluster, gateways, end));
    match ended {
        Ok(()) => {
            let after = began.elapsed().as_secs_f64();
            run.clock.say(&format!("all ended, {after:.1} s after the faults"));
        }
        Err(error) => wrong.push(format!("{error:#}")),
    }
    if run.outage {
        wrong.extend(outage(&happened, epoch(&statuses(gateways))));
    }
    let order = out_of_order(&happened.history.events);
    match audited(gateways, &happened.history) {
        Ok(findings) => {
            let Findings { effects, lost, doubled, contradicted, .. } = findings;
            println!(
                "audit: {effects} effects, lost {lost}, doubled {doubled}, contradicted \
                 {contradicted}, out of order {}",
                order.len()
            );
            if !findings.clean() {
                wrong.extend(findings.examples);
            }
        }
        Err(error) => wrong.push(format!("{error:#}")),
    }
    wrong.extend(order.into_iter().take(TOLD_MAX));
    let late = cluster.stop()?;
    wrong.extend(late.iter().map(|node| format!("{node} does not end when it is asked to")));
    match cluster.verify()? {
        Ok(said) => {
            let lines = said.lines().filter(|line| line.contains(": ") && !line.contains("note"));
            println!("verify: sound; {}", lines.collect::<Vec<_>>().join("; "));
        }
        Err(said) => {
            let last = said.lines().last().unwrap_or_default();
            let flaws: Vec<&str> = said.lines().filter(|line| line.contains("FLAW")).collect();
            let told = flaws.iter().take(TOLD_MAX).copied().collect::<Vec<_>>().join("\n  ");
            wrong.push(format!(
                "halfmoon verify is not content ({}):\n  {told}\n  …\n  {last}",
                folder.join("verify.out").display()
            ));
        }
    }
    wrong.extend(panics(&folder)?);
    Ok(wrong)
}

fn say_counts(run: &Run, happened: &Happened, cluster: &Cluster) {
    let mut kinds: BTreeMap<Kind, usize> = BTreeMap::new();
    for fault in &run.faults {
        *kinds.entry(fault.what.kind()).or_default() += 1;
    }
    let kinds: Vec<String> = kinds.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
    println!("faults: {}", kinds.join(", "));
    println!("nodes that ended by themselves: {}", cluster.ended.len());
    let events = &happened.history.events;
    let count = |wanted: fn(&Told) -> bool| events.iter().filter(|e| wanted(&e.told)).count();
    println!(
        "requests: {} acknowledged ({} sold out), {} unknown; longest time without an \
         acknowledgement {:.1} s",
        count(|told| *told != Told::Unknown),
        count(|told| *told == Told::Full),
        count(|told| *told == Told::Unknown),
        longest_gap(events, run.lasting).as_secs_f64()
    );
}

fn longest_gap(events: &[Event], lasting: Duration) -> Duration {
    let mut answers: Vec<Duration> = events.iter().filter_map(|event| event.ended).collect();
    answers.extend([Duration::ZERO, lasting]);
    answers.sort_unstable();
    answers.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

/// Asks again for some of the reservations that have no answer; the others stay without one.
fn ask_all_again(
    cluster: &mut Cluster,
    gateways: &Gateways,
    history: &mut History,
    end: Instant,
) -> anyhow::Result<()> {
    let unknown = history.events.iter_mut().filter(|event| event.told == Told::Unknown);
    for event in unknown.filter(|event| event.number % ASKED_AGAIN == 0) {
        loop {
            start_again(cluster)?;
            // A piece at a time: nodes that have ended meanwhile are to be started again.
            match ask_again(gateways, event.number, LOOK_EVERY) {
                Ok(told) => break event.told = told,
                Err(error) if Instant::now() > end => return Err(error),
                Err(_) => {}
            }
        }
    }
    Ok(())
}

fn start_again(cluster: &mut Cluster) -> anyhow::Result<()> {
    if let Some((node, status)) = cluster.look()? {
        println!("{}", last_words(cluster, node, status));
    }
    Ok(())
}

/// Until both engines answer and know of no root that is unfinished.
fn until_all_ended(cluster: &mut Cluster, gateways: &Gateways, end: Instant) -> anyhow::Result<()> {
    loop {
        start_again(cluster)?;
        let statuses = statuses(gateways);
        let is_quiet = |status: &Option<serde_json::Value>| {
            let status = status.as_ref();
            status.is_some_and(|status| {
                status["unfinished_roots"] == 0 && status["unfinished_roots_of_cluster"] == 0
            })
        };
        if statuses.iter().all(is_quiet) {
            return Ok(());
        }
        if Instant::now() > end {
            let shown: Vec<String> = statuses
                .iter()
                .map(|status| status.as_ref().map_or("no answer".to_owned(), ToString::to_string))
                .collect();
            let within = LIVENESS.as_secs();
            anyhow::bail!("not all has ended within {within} s: {}", shown.join("; "));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn audited(gateways: &Gateways, history: &History) -> anyhow::Result<Findings> {
    let told: BTreeMap<String, Told> =
        history.events.iter().map(|event| (id(event.number), event.told.clone())).collect();
    let ids: Vec<String> = told.keys().cloned().collect();
    let state: Snapshot = gateways.inspect(&ids, LIVENESS).context("no audit")?;
    Ok(audit(&told, &state))
}

/// Whether requests went on without etcd, and a sequencer was succeeded once it was back.
fn outage(happened: &Happened, epoch_now: Option<u64>) -> Vec<String> {
    let mut wrong = Vec::new();
    let away = happened.faults.iter().find(|(what, ..)| *what == What::Kill(ETCD));
    let Some((_, from, to)) = away else { return vec!["etcd was not killed".to_owned()] };
    let answers = |from: Duration| {
        let answers = happened.history.events.iter().filter_map(|event| event.ended);
        answers.filter(|at| (from..*to).contains(at)).count()
    };
    let (all, late) = (answers(*from), answers(*from + (*to - *from) * 3 / 4));
    println!(
        "etcd was away for {:.1} s: {all} requests were acknowledged meanwhile, {late} of them in the \
         last quarter",
        (*to - *from).as_secs_f64()
    );
    if late == 0 {
        wrong.push("without etcd requests do not go on".to_owned());
    }
    let (before, now) = (happened.epoch_of_kill.unwrap_or(0), epoch_now.unwrap_or(0));
    println!("with etcd again, the sequencer in charge was killed: from epoch {before} to {now}");
    if now <= before {
        wrong.push("with etcd again, the dead sequencer has no successor".to_owned());
    }
    wrong
}

/// What each client was told and when, one line a reservation.
fn write(folder: &Path, history: &History) -> anyhow::Result<()> {
    let mut file = fs::File::create(folder.join("history"))?;
    for event in &history.events {
        let ended = event.ended.map_or("-".to_owned(), |at| at.as_millis().to_string());
        let (id, began) = (id(event.number), event.began.as_millis());
        writeln!(file, "{id} {began} ms to {ended} ms: {:?}", event.told)?;
    }
    Ok(())
}

/// Nodes that found their own invariants broken.
fn panics(folder: &Path) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            let log = fs::read(&path)?;
            let log = String::from_utf8_lossy(&log).into_owned();
            let lines = log.lines().filter(|line| line.contains("panicked at"));
            found.extend(lines.map(|line| format!("{}: {line}", path.display())));
        }
    }
    Ok(found)
}
