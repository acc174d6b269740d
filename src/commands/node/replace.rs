//! `halfmoon node replace`.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use halfmoon_bench::cluster::Joining;
use halfmoon_meta::{ClusterInfo, MetaStore, cluster};
use halfmoon_wire::NodeId;
use serde_json::json;

use super::{bytes, joined, numbers, open};
use crate::census;
use crate::cli::NodeReplace;
use crate::commands::show::print;
use crate::stop;

/// How often it is looked how far the change is.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often the new member is asked how much it has copied.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// After so long without an epoch of the new members, it is said what that may be.
const SLOW_AFTER: Duration = Duration::from_secs(15);
/// Exit code when the command was interrupted: the change goes on.
const GOES_ON: u8 = 75;

pub(super) fn run(options: &NodeReplace) -> anyhow::Result<ExitCode> {
    let meta = open(&options.whose)?;
    let (old, new) = (NodeId(options.old), NodeId(options.new));
    propose(&meta, old, new)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let watch = Watch { meta, old, new, json: options.json, began: Instant::now() };
    let reached = if options.no_wait {
        let info = cluster::read(&*watch.meta)?;
        watch.say(&watch.told(&info));
        Some(Joining::of(&info, new))
    } else {
        runtime.block_on(async {
            tokio::select! {
                reached = watch.follow() => reached.map(Some),
                () = stop::wait_for_signal() => Ok(None),
            }
        })?
    };
    watch.conclude(reached, options.no_wait)
}

/// Writes the new members down, if the new one is there.
fn propose(meta: &Arc<dyn MetaStore>, old: NodeId, new: NodeId) -> anyhow::Result<()> {
    let members = cluster::read(&**meta)?.members.nodes();
    // All else is judged where it is written.
    if members.contains(&old) && !members.contains(&new) {
        let used = halfmoon_meta::disks::find(&**meta, new)?.is_some();
        anyhow::ensure!(
            used || census::storage_status(&**meta, new)?.is_some(),
            "storage node {new} does not run, and nothing was changed: start it first, with an empty \
             data directory (`halfmoon run --role storage --node {new} --data-dir DIR --meta META`, \
             or `halfmoon dev --spares 1`); `halfmoon node list` shows who is there"
        );
    }
    cluster::replace_member(&**meta, old, new)?;
    Ok(())
}

/// Stages are told in order, and each once.
const fn rank(stage: Joining) -> u8 {
    match stage {
        Joining::Proposed => 0,
        Joining::Copying => 1,
        Joining::Whole => 2,
        Joining::No => 3,
    }
}

struct Watch {
    meta: Arc<dyn MetaStore>,
    old: NodeId,
    new: NodeId,
    json: bool,
    began: Instant,
}

impl Watch {
    fn say(&self, line: &str) {
        if !self.json {
            print(line);
        }
    }

    fn told(&self, info: &ClusterInfo) -> String {
        let (old, new) = (self.old, self.new);
        match (Joining::of(info, new), info.members.committed_in()) {
            (Joining::Proposed, _) | (Joining::Copying, None) => format!(
                "proposed: members {}; the sequencer in charge opens an epoch with them",
                joined(&info.members.nodes())
            ),
            (Joining::Copying, Some(epoch)) => format!(
                "epoch {epoch} is open and committed with {new} in the place of {old}; {new} copies \
                 the state"
            ),
            (Joining::Whole, _) => format!("{new} is whole, in the place of {old}"),
            (Joining::No, _) => {
                format!("{new} is no member: the members are {}", joined(&info.members.nodes()))
            }
        }
    }

    /// Until the new member is whole, or is none.
    async fn follow(&self) -> anyhow::Result<Joining> {
        let (mut before, mut asked) = (None, Instant::now());
        let (mut copied, mut is_slow) = (0, false);
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let info = match cluster::read(&*self.meta) {
                Ok(info) => info,
                Err(error) => {
                    self.say(&format!("{error}; the change goes on, and it is looked again"));
                    tokio::time::sleep(ASK_EVERY).await;
                    continue;
                }
            };
            let stage = Joining::of(&info, self.new);
            // A later change of other members goes through the same stages; that is not told again.
            if before.is_none_or(|before| rank(stage) > before) {
                self.say(&self.told(&info));
                before = Some(rank(stage));
            }
            match stage {
                Joining::Whole | Joining::No => return Ok(stage),
                Joining::Proposed if !is_slow && self.began.elapsed() > SLOW_AFTER => {
                    is_slow = true;
                    self.say(
                        "no epoch has begun with them yet: `halfmoon node list` shows whether a \
                         sequencer is in charge, and whether a quorum of the members before and of \
                         the new ones is up",
                    );
                }
                Joining::Copying if asked.elapsed() > ASK_EVERY => {
                    copied = self.copied(copied)?;
                    asked = Instant::now();
                }
                Joining::Proposed | Joining::Copying => {}
            }
        }
    }

    /// How much the new member has copied, told if it is more than before.
    fn copied(&self, before: u64) -> anyhow::Result<u64> {
        let status = census::storage_status(&*self.meta, self.new)?;
        let Some(now) = status.map(|status| status.copied_bytes) else {
            self.say(&format!("{} does not answer", self.new));
            return Ok(before);
        };
        if now != before {
            self.say(&format!("{} has copied {}", self.new, bytes(now)));
        }
        Ok(now)
    }

    /// The last word, and the exit code.
    fn conclude(&self, reached: Option<Joining>, no_wait: bool) -> anyhow::Result<ExitCode> {
        let info = cluster::read(&*self.meta)?;
        let stage = reached.unwrap_or_else(|| Joining::of(&info, self.new));
        if reached.is_none() {
            self.say(&format!(
                "interrupted: the change goes on. `halfmoon node replace {} {}` again waits for its \
                 end, `halfmoon node list` shows how far it is",
                self.old, self.new
            ));
        }
        if self.json {
            let name = match stage {
                Joining::Proposed => "proposed",
                Joining::Copying => "copying",
                Joining::Whole => "whole",
                Joining::No => "overtaken",
            };
            print(&self.as_json(&info, name, reached.is_none()).to_string());
        }
        Ok(match (reached, stage) {
            (_, Joining::No) => ExitCode::FAILURE,
            (Some(_), Joining::Whole) => ExitCode::SUCCESS,
            (Some(_), _) if no_wait => ExitCode::SUCCESS,
            (Some(_) | None, Joining::Proposed | Joining::Copying | Joining::Whole) => {
                GOES_ON.into()
            }
        })
    }

    fn as_json(&self, info: &ClusterInfo, stage: &str, interrupted: bool) -> serde_json::Value {
        let copied = census::storage_status(&*self.meta, self.new).ok().flatten();
        json!({
            "old": self.old.0,
            "new": self.new.0,
            "stage": stage,
            "interrupted": interrupted,
            "members": numbers(&info.members.nodes()),
            "members_version": info.members.version,
            "committed_in_epoch": info.members.committed_in().map(|epoch| epoch.0),
            "copied_bytes": copied.map(|status| status.copied_bytes),
            "seconds": self.began.elapsed().as_secs_f64(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use halfmoon_meta::{Durability, FileStore};
    use halfmoon_wire::Epoch;

    #[test]
    fn a_replacement_goes_through_its_stages_and_a_later_one_may_overtake_it() {
        let directory = tempfile::tempdir().unwrap();
        let store = FileStore::open(directory.path()).unwrap();
        cluster::create(&store, 7, Durability::Flush, &[1, 2, 3].map(NodeId)).unwrap();
        let now = || Joining::of(&cluster::read(&store).unwrap(), NodeId(4));
        assert_eq!(now(), Joining::No, "it was never one");
        cluster::replace_member(&store, NodeId(2), NodeId(4)).unwrap();
        assert_eq!(now(), Joining::Proposed);
        cluster::mark_committed(&store, 2, Epoch(3)).unwrap();
        assert_eq!(now(), Joining::Copying);
        cluster::mark_copied(&store, NodeId(4)).unwrap();
        assert_eq!(now(), Joining::Whole);
        cluster::replace_member(&store, NodeId(4), NodeId(5)).unwrap();
        assert_eq!(now(), Joining::No);
    }
}
