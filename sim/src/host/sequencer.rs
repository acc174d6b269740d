//! A sequencer: the role of one reign, and what its process does with the metadata store.

use std::collections::VecDeque;

use halfmoon_meta::{MemberSet, NodeEntry, cluster, nodes};
use halfmoon_sequencer::{Now, Options, Reign as Began, Request, Role, SUSPECT_MS_DEFAULT};
use halfmoon_wire::{Epoch, Incarnation, NodeId, Role as WireRole};

use super::{CLUSTER, Env, Machine, Turned, listen_at};
use crate::net::{Host, SimTransport};
use crate::random::{Concern, Random};
use crate::time::{Clock, MICRO, MILLI, SECOND};

/// Longest sleep, in ns, as of a sequencer on a thread.
const SLEEP_NS: u64 = 20 * MILLI;

/// How often it looks for a successor, and tries again what failed.
const PERIOD_NS: u64 = SECOND;

/// Duration of a look-up, in ns: least and most.
const LOOK_UP_NS: (u64, u64) = (100 * MICRO, 3 * MILLI);

/// Bytes of recent stream: the least that holds the longest record, so that followers fall behind.
const WINDOW_BYTES: usize = halfmoon_wire::limits::RECORD_MAX_BYTES + (64 << 10);

pub(crate) struct SequencerHost {
    env: Env,
    machine: usize,
    node: NodeId,
    host: Host,
    clock: Clock,
    lease_ms: u32,
    random: Random,
    /// What it takes for the time since 1970, ahead of the truth.
    wall_ahead_ns: u64,
    /// Until then the metadata store cannot be reached from here.
    alone_until: u64,
    reign: Option<Reign>,
    reigns: u64,
}

struct Reign {
    role: Role<SimTransport>,
    epoch: Epoch,
    entry: NodeEntry,
    members: u64,
    /// Look-ups under way.
    asked: VecDeque<(u64, NodeId)>,
    /// Changes of the metadata store that are to be made, again and again.
    unfinished: Vec<Request>,
    next_check: u64,
}

impl SequencerHost {
    pub(crate) fn new(
        env: Env,
        machine: usize,
        node: NodeId,
        host: Host,
        clock: Clock,
        lease_ms: u32,
    ) -> Self {
        let random = Random::new(env.seed, Concern::Clock, machine as u64);
        let (wall_ahead_ns, alone_until, reign, reigns) = (SECOND, 0, None, 0);
        Self {
            env,
            machine,
            node,
            host,
            clock,
            lease_ms,
            random,
            wall_ahead_ns,
            alone_until,
            reign,
            reigns,
        }
    }

    /// How far it is, for a person.
    pub(crate) fn describe(&self) -> String {
        self.reign
            .as_ref()
            .map_or_else(|| "down".to_owned(), |reign| format!("{:?}", reign.role.status()))
    }

    /// Reigns that were begun here.
    pub(crate) fn reigns(&self) -> u64 {
        self.reigns
    }

    /// Its clock jumps.
    pub(crate) fn jump(&mut self, wall_ahead_ns: u64) {
        self.wall_ahead_ns = wall_ahead_ns;
    }

    /// The metadata store cannot be reached until then.
    pub(crate) fn leave_alone(&mut self, until: u64) {
        self.alone_until = until;
    }

    fn times(&self) -> Now {
        let mono_ns = self.clock.local(self.env.now());
        Now { mono_ns, wall_ns: mono_ns + self.wall_ahead_ns }
    }

    fn begin(&mut self) -> Option<Reign> {
        let env = &self.env;
        let info = cluster::next_epoch(&env.meta, self.node).ok()?;
        let options = Options {
            cluster: CLUSTER,
            node: self.node,
            is_patient: true,
            lease_ms: self.lease_ms,
            window_bytes: WINDOW_BYTES,
            suspect_ms: SUSPECT_MS_DEFAULT,
        };
        let mut role = Role::new(env.transport(self.machine, self.host), options);
        let member_sets = info.recovery_sets().map(MemberSet::nodes).collect();
        role.reign(Began { epoch: info.epoch(), member_sets });
        let address = role.listen(&listen_at(self.host)).ok()?.parse().ok()?;
        let incarnation = Incarnation(info.epoch().0);
        let entry = NodeEntry::new(WireRole::Sequencer, self.node, incarnation, address);
        Some(Reign {
            role,
            epoch: info.epoch(),
            entry,
            members: info.members.version,
            asked: VecDeque::new(),
            unfinished: Vec::new(),
            next_check: env.now() + PERIOD_NS,
        })
    }

    /// Carries out what is due with the metadata store; `false` when there is a successor.
    fn register(&mut self) -> bool {
        let (now, times) = (self.env.now(), self.times());
        let is_alone = now < self.alone_until;
        let meta = &self.env.meta;
        let Some(reign) = &mut self.reign else { return true };
        while reign.asked.front().is_some_and(|(at, _)| *at <= now) {
            let Some((_, node)) = reign.asked.pop_front() else { break };
            let found = nodes::find(meta, WireRole::Storage, node).ok().flatten();
            let address = found.filter(|_| !is_alone).map(|entry| entry.address.to_string());
            reign.role.located(times, node, address.as_deref());
        }
        if now >= reign.next_check && !is_alone {
            reign.next_check = now + PERIOD_NS;
            reign.unfinished = std::mem::take(&mut reign.unfinished)
                .into_iter()
                .filter(|request| !reign.carry_out(*request, meta))
                .collect();
            return !cluster::read(meta).is_ok_and(|info| info.epoch() > reign.epoch);
        }
        true
    }
}

impl Reign {
    /// Whether that is the end of it.
    fn carry_out(&self, request: Request, meta: &crate::meta::SimMeta) -> bool {
        use halfmoon_meta::ClusterError::{MembersSuperseded, NodeSuperseded};
        let done = match request {
            Request::Publish => nodes::publish(meta, &self.entry),
            Request::MarkCommitted => {
                cluster::mark_committed(meta, self.members, self.epoch).map(drop)
            }
            Request::Locate(_) | Request::Look | Request::Take { .. } => Ok(()),
        };
        match done {
            Ok(()) | Err(NodeSuperseded { .. } | MembersSuperseded { .. }) => true,
            Err(_) => false,
        }
    }
}

impl Machine for SequencerHost {
    fn host(&self) -> Host {
        self.host
    }

    fn is_up(&self) -> bool {
        self.reign.is_some()
    }

    fn start(&mut self) -> bool {
        self.reign = None;
        self.reign = self.begin();
        self.reigns += u64::from(self.reign.is_some());
        self.reign.is_some()
    }

    fn turn(&mut self) -> Turned {
        if !self.register() {
            self.reign = None;
            return Turned::Died;
        }
        let (now, times) = (self.env.now(), self.times());
        let is_alone = now < self.alone_until;
        let Some(reign) = &mut self.reign else { return Turned::Died };
        let Ok(turn) = reign.role.turn(times) else {
            // Deposed, or the log cannot be recovered by this reign.
            self.reign = None;
            return Turned::Died;
        };
        let mut until = turn
            .deadline_ns
            .map_or(now + SLEEP_NS, |at| self.clock.global(at).clamp(now + 1, now + SLEEP_NS));
        while let Some(request) = reign.role.next_request() {
            match request {
                Request::Locate(node) => {
                    let (low, high) = LOOK_UP_NS;
                    let at = now + self.random.within(low, high);
                    let at = at.max(reign.asked.back().map_or(0, |(at, _)| *at));
                    reign.asked.push_back((at, node));
                }
                // Only one that stands by asks for these.
                Request::Look | Request::Take { .. } => {}
                Request::Publish | Request::MarkCommitted => {
                    if is_alone || !reign.carry_out(request, &self.env.meta) {
                        reign.unfinished.push(request);
                    }
                }
            }
        }
        if let Some((at, _)) = reign.asked.front() {
            until = until.min(*at);
        }
        Turned::Until(if turn.more { now } else { until })
    }

    fn crash(&mut self, _power: bool) {
        self.reign = None;
    }
}
