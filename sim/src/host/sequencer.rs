//! A sequencer: the role, and what its process does with the metadata store.

use std::collections::VecDeque;
use std::net::SocketAddr;

use halfmoon_meta::{ClusterError, ClusterInfo, MemberSet, NodeEntry, cluster, nodes};
use halfmoon_sequencer::{Now, Options, Reign, Request, Role, RoleError, Scene};
use halfmoon_wire::{Epoch, Incarnation, NodeId, Role as WireRole};

use super::{CLUSTER, Env, Machine, Turned, listen_at};
use crate::meta::SimMeta;
use crate::net::{Host, SimTransport};
use crate::random::{Concern, Random};
use crate::time::{Clock, MICRO, MILLI, SECOND};

/// Longest sleep, in ns, as of a sequencer on a thread.
const SLEEP_NS: u64 = 20 * MILLI;

/// Duration of a call of the metadata store, in ns: least and most.
const CALL_NS: (u64, u64) = (100 * MICRO, 3 * MILLI);

/// Bytes of recent stream: the least that holds the longest record, so that followers fall behind.
const WINDOW_BYTES: usize = halfmoon_wire::limits::RECORD_MAX_BYTES + (64 << 10);

pub(crate) struct SequencerHost {
    env: Env,
    machine: usize,
    node: NodeId,
    host: Host,
    clock: Clock,
    lease_ms: u32,
    suspect_ms: u32,
    /// How often it looks for a successor and for other members, and tries again what failed.
    period_ns: u64,
    random: Random,
    /// What it takes for the time since 1970, ahead of the truth.
    wall_ahead_ns: u64,
    /// Until then the metadata store cannot be reached from here.
    alone_until: u64,
    process: Option<Process>,
    reigns: u64,
}

struct Process {
    role: Role<SimTransport>,
    desk: Desk,
    /// Calls of the metadata store under way, in order.
    asked: VecDeque<(u64, Request)>,
    next_round: u64,
}

/// What the process knows of the metadata store: as its helper thread does on a machine.
struct Desk {
    meta: SimMeta,
    node: NodeId,
    address: SocketAddr,
    published: Option<NodeEntry>,
    /// The epoch that was taken last and the version of its member set, while it may last.
    reign: Option<(Epoch, u64)>,
    unfinished: Vec<Request>,
}

/// What is new in the metadata store for whoever is in charge.
enum Around {
    /// A higher epoch than its own.
    Successor(Epoch),
    /// Other members: it has taken an epoch for them.
    Members(Reign),
}

impl SequencerHost {
    pub(crate) fn new(
        env: Env,
        machine: usize,
        node: NodeId,
        host: Host,
        clock: Clock,
        (lease_ms, suspect_ms): (u32, u32),
        period_ns: u64,
    ) -> Self {
        let random = Random::new(env.seed, Concern::Clock, machine as u64);
        let (wall_ahead_ns, alone_until, process, reigns) = (SECOND, 0, None, 0);
        Self {
            env,
            machine,
            node,
            host,
            clock,
            lease_ms,
            suspect_ms,
            period_ns,
            random,
            wall_ahead_ns,
            alone_until,
            process,
            reigns,
        }
    }

    /// How far it is, for a person.
    pub(crate) fn describe(&self) -> String {
        let process = self.process.as_ref();
        process.map_or_else(|| "down".to_owned(), |found| format!("{:?}", found.role.status()))
    }

    /// Whether it believes that it is the sequencer.
    pub(crate) fn is_in_charge(&self) -> bool {
        self.process.as_ref().is_some_and(|found| found.role.status().is_open)
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

    /// Takes an epoch though nobody is suspected, if it stands by. Whether it did.
    pub(crate) fn take_over(&mut self) -> bool {
        let Some(process) = &mut self.process else { return false };
        if process.role.status().standby.is_none() {
            return false;
        }
        let Ok(info) = cluster::next_epoch(&self.env.meta, self.node) else { return false };
        process.desk.unfinished.clear();
        process.desk.reign = Some((info.epoch(), info.members.version));
        process.role.reign(reign(&info));
        self.reigns += 1;
        true
    }

    fn times(&self) -> Now {
        let mono_ns = self.clock.local(self.env.now());
        Now { mono_ns, wall_ns: mono_ns + self.wall_ahead_ns }
    }

    fn begin(&self) -> Option<Process> {
        let env = &self.env;
        let is_other =
            |entry: &NodeEntry| entry.role() == WireRole::Sequencer && entry.node() != self.node;
        let options = Options {
            cluster: CLUSTER,
            node: self.node,
            is_patient: nodes::list(&env.meta).ok()?.iter().any(is_other),
            lease_ms: self.lease_ms,
            window_bytes: WINDOW_BYTES,
            places_max: halfmoon_sequencer::PLACES_MAX_DEFAULT,
            suspect_ms: self.suspect_ms,
        };
        let mut role = Role::new(env.transport(self.machine, self.host), options);
        let address = role.listen(&listen_at(self.host)).ok()?.parse().ok()?;
        let mut desk = Desk {
            meta: env.meta.clone(),
            node: self.node,
            address,
            published: None,
            reign: None,
            unfinished: Vec::new(),
        };
        desk.be_present();
        Some(Process { role, desk, asked: VecDeque::new(), next_round: env.now() + self.period_ns })
    }

    /// Carries out what is due with the metadata store.
    fn register(&mut self) {
        let (now, times) = (self.env.now(), self.times());
        let is_alone = now < self.alone_until;
        let Some(process) = &mut self.process else { return };
        while process.asked.front().is_some_and(|(at, _)| *at <= now) {
            let Some((_, request)) = process.asked.pop_front() else { break };
            self.reigns += u64::from(process.answer(times, request, is_alone));
        }
        if now >= process.next_round && !is_alone {
            process.next_round = now + self.period_ns;
            process.desk.go_on();
            process.desk.be_present();
            match process.desk.look_around() {
                Some(Around::Successor(epoch)) => {
                    process.role.superseded(epoch);
                }
                Some(Around::Members(reign)) => {
                    process.role.reign(reign);
                    self.reigns += 1;
                }
                None => {}
            }
        }
    }
}

impl Process {
    /// Answers a request of the role; whether a reign begins with that.
    fn answer(&mut self, times: Now, request: Request, is_alone: bool) -> bool {
        let Self { role, desk, .. } = self;
        match request {
            Request::Locate(node) => {
                let found = nodes::find(&desk.meta, WireRole::Storage, node).ok().flatten();
                let address = found.filter(|_| !is_alone).map(|entry| entry.address.to_string());
                role.located(times, node, address.as_deref());
            }
            Request::Look => match desk.scene().filter(|_| !is_alone) {
                Some(scene) => role.looked(times, scene),
                None => role.not_taken(times),
            },
            Request::Take { .. } if is_alone => role.not_taken(times),
            Request::Take { after } => {
                desk.unfinished.clear();
                desk.be_present();
                match cluster::take_epoch(&desk.meta, desk.node, after) {
                    Ok(info) => {
                        desk.reign = Some((info.epoch(), info.members.version));
                        role.reign(reign(&info));
                        return true;
                    }
                    Err(ClusterError::EpochTaken { .. }) => match desk.scene() {
                        Some(scene) => role.looked(times, scene),
                        None => role.not_taken(times),
                    },
                    Err(_) => role.not_taken(times),
                }
            }
            Request::Publish | Request::MarkCommitted(_) => {
                desk.unfinished.push(request);
                if !is_alone {
                    desk.go_on();
                }
            }
        }
        false
    }
}

impl Desk {
    /// Publishes where this node listens, unless that was done.
    fn be_present(&mut self) {
        if self.published.is_none()
            && let Ok(info) = cluster::read(&self.meta)
        {
            self.publish(info.epoch()).ok();
        }
    }

    fn publish(&mut self, epoch: Epoch) -> Result<(), ClusterError> {
        let life = Incarnation(epoch.0);
        let entry = NodeEntry::new(WireRole::Sequencer, self.node, life, self.address);
        nodes::publish(&self.meta, &entry)?;
        self.published = Some(entry);
        Ok(())
    }

    /// Tries what is unfinished.
    fn go_on(&mut self) {
        for request in std::mem::take(&mut self.unfinished) {
            if !self.carry_out(request) {
                self.unfinished.push(request);
            }
        }
    }

    /// Whether that is the end of it.
    fn carry_out(&mut self, request: Request) -> bool {
        use ClusterError::{MembersSuperseded, NodeSuperseded};
        let Some((epoch, members)) = self.reign else { return true };
        let done = match request {
            Request::Publish => self.publish(epoch),
            Request::MarkCommitted(of) if of != epoch => Ok(()),
            Request::MarkCommitted(_) => {
                cluster::mark_committed(&self.meta, members, epoch).map(drop)
            }
            Request::Locate(_) | Request::Look | Request::Take { .. } => Ok(()),
        };
        matches!(done, Ok(()) | Err(NodeSuperseded { .. } | MembersSuperseded { .. }))
    }

    /// Whether there is a successor, or other members were proposed: they come into effect with a new
    /// epoch, which whoever is in charge takes.
    fn look_around(&mut self) -> Option<Around> {
        let (own, members) = self.reign?;
        let info = cluster::read(&self.meta).ok()?;
        if info.epoch() > own {
            self.reign = None;
            return Some(Around::Successor(info.epoch()));
        }
        if info.members.version <= members {
            return None;
        }
        let info = cluster::take_epoch(&self.meta, self.node, own).ok()?;
        self.reign = Some((info.epoch(), info.members.version));
        Some(Around::Members(reign(&info)))
    }

    fn scene(&self) -> Option<Scene> {
        let info = cluster::read(&self.meta).ok()?;
        let holder = match &info.holder {
            None => None,
            Some(holder) => {
                let found = nodes::find(&self.meta, WireRole::Sequencer, holder.node()).ok()?;
                Some((holder.node(), found.map(|entry| entry.address.to_string())))
            }
        };
        Some(Scene { epoch: info.epoch(), holder, members: info.members.nodes() })
    }
}

fn reign(info: &ClusterInfo) -> Reign {
    let member_sets = info.recovery_sets().map(MemberSet::nodes).collect();
    Reign { epoch: info.epoch(), member_sets }
}

impl Machine for SequencerHost {
    fn host(&self) -> Host {
        self.host
    }

    fn is_up(&self) -> bool {
        self.process.is_some()
    }

    fn start(&mut self) -> bool {
        self.process = self.begin();
        self.process.is_some()
    }

    fn turn(&mut self) -> Turned {
        self.register();
        let (now, times) = (self.env.now(), self.times());
        let Some(process) = &mut self.process else { return Turned::Died };
        let turn = match process.role.turn(times) {
            Ok(turn) => turn,
            Err(RoleError::Deposed { .. }) => {
                process.role.stand_by();
                return Turned::Until(now);
            }
            Err(RoleError::Recovery(_)) => {
                self.process = None;
                return Turned::Died;
            }
        };
        let mut until = turn
            .deadline_ns
            .map_or(now + SLEEP_NS, |at| self.clock.global(at).clamp(now + 1, now + SLEEP_NS));
        while let Some(request) = process.role.next_request() {
            let (low, high) = CALL_NS;
            let before = process.asked.back().map_or(0, |(at, _)| *at);
            let at = (now + self.random.within(low, high)).max(before);
            process.asked.push_back((at, request));
        }
        if let Some((at, _)) = process.asked.front() {
            until = until.min(*at);
        }
        Turned::Until(if turn.more { now } else { until })
    }

    fn crash(&mut self, _power: bool) {
        self.process = None;
    }
}
