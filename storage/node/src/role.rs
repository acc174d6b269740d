//! The storage role: one machine over an endpoint and a disk, driven turn by turn.

mod copying;
mod messages;

use std::fs::File;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use halfmoon_log::limits::{SEGMENT_MAX_BYTES, SEGMENT_MIN_BYTES};
use halfmoon_log::{Effect, Replica, ReplicaConfig};
use halfmoon_meta::{MetaStore, disks};
use halfmoon_transport::{Access, Endpoint, HeapMemory, LaneId, Transport, Wake};
use halfmoon_wire::{Message, NodeId};

use crate::disk::{Disk, DiskDone};
use crate::fetch::{Fetch, Step};
use crate::ground::{Ground, Keeper, Kept, PutReader, Which};
use crate::home::{Home, Identity, SegmentDir};
use crate::journal::{Journal, TOKEN_SHIFT};
use crate::keeper::KeeperThread;
use crate::lanes::Lanes;
use crate::limits::{MARK_AFTER, MESSAGE_HEAD_BYTES, STAGINGS_MAX};
use crate::metrics::{Metrics, add, set};
use crate::reads::{READ, Reads};
use crate::state::{State, Store};
use crate::{Durability, NodeError, RoleConfig};
use copying::Copying;

/// A storage node without a thread of its own: whoever hosts it calls [`Role::turn`].
pub struct Role<T, D: Disk> {
    endpoint: Endpoint<T>,
    core: Core<D>,
}

struct Core<D: Disk> {
    config: RoleConfig,
    disk: D,
    keeper: Box<dyn Keeper<D::File>>,
    replica: Replica,
    log: Journal<D::File>,
    reads: Reads,
    state: State<D::File>,
    lanes: Lanes,
    /// The lane of the sequencer whose epoch this node is in.
    sequencer: Option<LaneId>,
    members: Vec<NodeId>,
    fetch: Option<Fetch>,
    copying: Copying,
    /// Lanes that came up and have no staging region yet.
    unstaged: Vec<LaneId>,
    /// Lanes whose hello is refused, or that are of no more use.
    closing: Vec<LaneId>,
    metrics: Arc<Metrics>,
    now: Instant,
    written: Instant,
    /// That both logs have begun is noted.
    begun: bool,
}

impl<T: Transport, D: Disk<File = Arc<File>>> Role<T, D> {
    /// Reads the node's directory back, or makes it. Blocks: nothing is served before that.
    pub fn open(
        config: RoleConfig,
        endpoint: Endpoint<T>,
        disk: D,
        meta: Arc<dyn MetaStore>,
        wake: Arc<dyn Wake>,
    ) -> Result<Self, NodeError> {
        check_settings(&config)?;
        let home = Home::open(&config.data_dir)?;
        let known = home.identity(config.node, config.cluster)?;
        if known.is_none() && disks::find(&*meta, config.node)?.is_some() {
            return Err(NodeError::DiskLost { path: config.data_dir, node: config.node });
        }
        let identity = match known {
            Some(identity) => identity,
            None => Identity::draw(config.node, config.cluster)?,
        };
        let (log_config, state_config) =
            (config.log(identity.log), config.state_log(identity.state));
        let log_dir = SegmentDir::open(home.path("log"), config.segment_bytes)?;
        let log = log_dir.recover(log_config, known.is_some(), |_| {})?;
        let state_dir = SegmentDir::open(home.path("state"), config.state_segment_bytes)?;
        let mut puts = PutReader::default();
        let state = state_dir.recover(state_config, known.is_some(), |batch| puts.take(batch))?;
        let puts = puts.finish()?;
        let engine = Box::new(Store::open(&home.path("store"), wake.clone())?);
        let is_written = known.is_some();
        let dirs = (log_dir, state_dir);
        let keeper = KeeperThread::start(home, (identity, is_written), dirs, meta, wake)?;
        let (keeper, whole) = (Box::new(keeper), identity.whole);
        let ground = Ground { disk, keeper, engine, log, state, puts, whole };
        Self::on(config, endpoint, ground, Instant::now())
    }
}

impl<T: Transport, D: Disk> Role<T, D> {
    /// A node on what it was found to have. Of the configuration, the data directory means nothing.
    pub fn on(
        config: RoleConfig,
        endpoint: Endpoint<T>,
        ground: Ground<D>,
        now: Instant,
    ) -> Result<Self, NodeError> {
        let (flush, durability) = match config.durability {
            Durability::Flush => (config.flushes(), ReplicaConfig::Flush),
            Durability::MemoryQuorum => (false, ReplicaConfig::MemoryQuorum),
        };
        let Ground { disk, keeper, engine, log, state, puts, whole } = ground;
        let metrics = Arc::new(Metrics::default());
        let core = Core {
            replica: Replica::new(durability, log.log),
            log: Journal::new(Which::Log, log.segments, flush),
            reads: Reads::default(),
            state: State::open(state, puts, engine, (flush, whole), metrics.clone())?,
            copying: Copying::new(whole),
            lanes: Lanes::default(),
            sequencer: None,
            members: Vec::new(),
            fetch: None,
            unstaged: Vec::new(),
            closing: Vec::new(),
            metrics,
            now,
            written: now,
            begun: false,
            config,
            disk,
            keeper,
        };
        let mut role = Self { endpoint, core };
        role.begin()?;
        Ok(role)
    }

    /// Has it said on disk that a new life has begun.
    fn begin(&mut self) -> Result<(), NodeError> {
        let core = &mut self.core;
        let direct = core.log.is_direct();
        set(&core.metrics.direct_io, u64::from(direct));
        set(&core.metrics.flush_before_ack, u64::from(core.config.durability == Durability::Flush));
        let end = core.replica.log().accepted().end;
        tracing::info!(node = %core.config.node, %end, direct, durability = ?core.config.durability,
            "storage node has read its log back");
        if !direct {
            tracing::warn!(
                dir = %core.config.data_dir.display(),
                "the file system refuses O_DIRECT: segments go through the page cache, and each \
                 flush writes it out; slower, and just as durable"
            );
        }
        core.pump()
    }

    /// The endpoint, to listen and to dial.
    pub fn endpoint_mut(&mut self) -> &mut Endpoint<T> {
        &mut self.endpoint
    }

    /// Counters.
    #[must_use]
    pub fn metrics(&self) -> Arc<Metrics> {
        self.core.metrics.clone()
    }

    /// Does what can be done now. Returns whether there is more to do without waiting. After an
    /// error nothing is acknowledged any more, and the role is of no use.
    pub fn turn(&mut self, now: Instant) -> Result<bool, NodeError> {
        let Self { endpoint, core } = self;
        core.now = now;
        let turn = endpoint.poll(&mut |event| core.handle(event));
        core.keep(endpoint)?;
        core.complete()?;
        core.note_begin()?;
        core.note_promise();
        core.state.collect(&mut core.lanes)?;
        core.copy_state()?;
        core.carry_out();
        core.pump()?;
        core.tick()?;
        for lane in core.closing.drain(..) {
            endpoint.close(lane);
        }
        for lane in std::mem::take(&mut core.unstaged) {
            core.stage(lane, endpoint);
        }
        core.lanes.flush(endpoint, core.replica.watermark());
        Ok(turn.more || core.has_more_to_copy())
    }

    /// What the metadata store says once this node's directory is claimed there: whether all of the
    /// state is on this node. If it is neither there nor on disk, the node copies it from its peers.
    /// Before this call it answers no reads.
    pub fn set_has_state(&mut self, has_state: bool) {
        self.core.copying.learn(has_state);
    }

    /// The name of its log, which was drawn at random when the directory was made.
    #[must_use]
    pub fn log_name(&self) -> u64 {
        self.core.replica.log().config().id.0
    }

    /// Whether it is on disk that this life has begun: from here on the node is of use.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.core.begun
    }

    /// Whether everything accepted is on disk.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.core.replica.log().is_idle() && self.core.state.is_idle()
    }

    /// Notes on disk that all before it is durable: for an orderly end.
    pub fn mark(&mut self) {
        self.core.mark();
    }
}

impl<D: Disk> Core<D> {
    /// Carries out what the replica wants done.
    fn carry_out(&mut self) {
        while let Some(effect) = self.replica.poll_effect() {
            match effect {
                Effect::Sealed { asker, promised, history, end } => {
                    let lane = LaneId::from_raw(asker);
                    self.lanes.send(lane, &Message::Sealed { promised, history, end });
                }
                Effect::Watermark { epoch, seq } => {
                    set(&self.metrics.durable_seq, seq.0);
                    if let Some(lane) = self.sequencer {
                        self.lanes.send(lane, &Message::Durable { epoch, seq });
                    }
                }
                Effect::Follow { from, .. } => {
                    self.fetch = None;
                    if let Some(lane) = self.sequencer {
                        self.lanes.send(lane, &Message::Follow { from });
                    }
                }
                Effect::Fetch { epoch, from } => {
                    let now = self.now;
                    let step = if let Some(fetch) = &mut self.fetch {
                        fetch.go_on(epoch, from, now)
                    } else {
                        let me = self.config.node;
                        let peers = self.members.iter().copied().filter(|id| *id != me).collect();
                        self.fetch = Some(Fetch::new(epoch, from, peers, now));
                        Step::Wait
                    };
                    self.ask_peer(step);
                }
            }
        }
        set(&self.metrics.promised, self.replica.log().accepted().promised.0);
    }

    fn ask_peer(&mut self, step: Step) {
        let (Step::Ask(lane), Some(fetch)) = (step, &self.fetch) else { return };
        let max_bytes =
            u32::try_from(halfmoon_wire::limits::MESSAGE_MAX_BYTES - MESSAGE_HEAD_BYTES)
                .unwrap_or(u32::MAX);
        let (token, epoch, from) = (fetch.token, fetch.epoch, fetch.from);
        self.lanes.send(lane, &Message::ReadLog { token, epoch, raw: false, from, max_bytes });
    }

    fn keep<T: Transport>(&mut self, endpoint: &mut Endpoint<T>) -> Result<(), NodeError> {
        while let Some(kept) = self.keeper.next() {
            match kept {
                Kept::Prepared(Which::Log, segment) => self.log.prepared(segment),
                Kept::Prepared(Which::State, segment) => self.state.prepared(segment),
                Kept::Failed(error) => return Err(error),
                Kept::Whole { is_known } => self.is_written_down(is_known),
                Kept::Found(node, address) => self.found(node, address, endpoint),
            }
        }
        Ok(())
    }

    /// A peer was looked up: it is dialled for who asked.
    fn found<T: Transport>(
        &mut self,
        node: NodeId,
        address: Option<SocketAddr>,
        endpoint: &mut Endpoint<T>,
    ) {
        let fetch = self.fetch.as_mut().filter(|fetch| fetch.wants(node));
        let copy = self.copying.under_way().filter(|copy| copy.wants(node));
        if fetch.is_none() && copy.is_none() {
            return;
        }
        let lane = address.and_then(|address| {
            endpoint
                .dial(&address.to_string())
                .inspect_err(|error| tracing::warn!(%node, %error, "a peer cannot be dialled"))
                .ok()
        });
        match (fetch, copy, lane) {
            (Some(fetch), _, Some(lane)) => fetch.dialled(lane),
            (Some(fetch), _, None) => fetch.fail(self.now),
            (None, Some(copy), lane) => copy.dialled(node, lane, self.now),
            (None, None, _) => {}
        }
    }

    fn note_promise(&mut self) {
        let (promised, is_durable) = self.replica.promised();
        self.state.promised(promised, is_durable);
    }

    fn complete(&mut self) -> Result<(), NodeError> {
        while let Some(DiskDone { token, result, buffer }) = self.disk.next_done() {
            let number = token & ((1 << TOKEN_SHIFT) - 1);
            match token >> TOKEN_SHIFT {
                READ => self.reads.completed(
                    number,
                    &result,
                    buffer,
                    &self.replica,
                    &mut self.lanes,
                    &self.metrics,
                )?,
                log if log == Which::Log as u64 => {
                    let number = self.log.completed(number, result, buffer)?;
                    self.replica.completed(number);
                }
                _ => self.state.completed(number, result, buffer, &mut self.lanes)?,
            }
        }
        Ok(())
    }

    fn has_begun(&self) -> bool {
        self.replica.log().durable().ticket.0 > 0 && self.state.has_begun()
    }

    fn note_begin(&mut self) -> Result<(), NodeError> {
        if !self.begun && self.has_begun() {
            self.keeper.begun()?;
            self.begun = true;
        }
        self.begin_state()
    }

    /// Starts all writes that can be, of both logs: they leave with one system call.
    fn pump(&mut self) -> Result<(), NodeError> {
        let Self { replica, log, disk, keeper, metrics, .. } = self;
        let (mut writes, mut bytes) = (0, 0);
        log.pump(disk, |ready, out| {
            let write = replica.next_write(ready, out)?;
            writes += 1;
            bytes += write.len as u64;
            Some(write)
        });
        if writes > 0 {
            add(&metrics.log_writes, writes);
            add(&metrics.log_write_bytes, bytes);
            self.written = self.now;
        }
        set(&metrics.log_batches, replica.log().durable().number);
        if let Some(due) = replica.log().segment_due() {
            log.prepare(due, &mut **keeper)?;
        }
        while let Some(gone) = replica.log_mut().drop_segment() {
            log.dropped(gone, &mut **keeper)?;
        }
        self.state.pump(disk, &mut **keeper)?;
        self.reads.pump(&self.replica, &self.log, &mut self.disk, &mut self.lanes);
        // A replica that had paused for lack of room asks again as soon as it lays out a write.
        self.carry_out();
        Ok(())
    }

    fn tick(&mut self) -> Result<(), NodeError> {
        if self.now.saturating_duration_since(self.written) >= MARK_AFTER {
            self.written = self.now;
            self.mark();
            self.pump()?;
        }
        let now = self.now;
        let step = self.fetch.as_mut().map_or(Step::Wait, |fetch| fetch.tick(now));
        match step {
            Step::Find(node) => self.keeper.find(node)?,
            Step::Ask(_) => self.ask_peer(step),
            Step::Wait => {}
        }
        Ok(())
    }

    fn mark(&mut self) {
        if self.replica.log().needs_mark() {
            self.replica.log_mut().mark();
        }
        self.state.mark();
    }

    /// Gives an engine room for large values.
    fn stage<T: Transport>(&mut self, lane: LaneId, endpoint: &mut Endpoint<T>) {
        if self.lanes.stagings() >= STAGINGS_MAX {
            tracing::warn!(%lane, limit = STAGINGS_MAX, lanes = self.lanes.len(),
                "no staging region for a lane: its large values are refused");
            return;
        }
        let memory = Arc::new(HeapMemory::new(self.config.staging_bytes));
        let Ok(region) = endpoint.expose(memory.clone(), Access::Lane(lane)) else { return };
        let len = self.config.staging_bytes as u64;
        if let Some(found) = self.lanes.get_mut(lane) {
            found.staging = Some(memory);
        }
        self.lanes.send(lane, &Message::Staging { region: region.0, len });
    }
}

fn check_settings(config: &RoleConfig) -> Result<(), NodeError> {
    for (name, value) in [
        ("segment_bytes", config.segment_bytes),
        ("state_segment_bytes", config.state_segment_bytes),
    ] {
        let allowed = "a multiple of 4096 from 512 KiB to 1 GiB";
        if !(SEGMENT_MIN_BYTES..=SEGMENT_MAX_BYTES).contains(&value) || value % 4096 != 0 {
            return Err(NodeError::Setting { name, value, allowed });
        }
    }
    Ok(())
}
