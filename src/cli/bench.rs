//! `halfmoon bench` on the command line.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{Durability, PollingName, STANDBYS};

#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Latency and rate of durable appends beside the floors of the same run.
    Log(BenchLog),
    /// For how long appends stand still when a sequencer, or a storage node, dies or hangs under
    /// load, and whether all of them are in the log afterwards, once; or how long it takes until all
    /// that ran on a dead engine has ended elsewhere, and whether all of it has happened, once.
    Failover(BenchFailover),
    /// One-way delay, small messages per second and bandwidth of lanes, over each transport and each way
    /// to wait, beside plain TCP sockets in the same run, and beside perftest where it is installed.
    Transport(BenchTransport),
}

#[derive(Debug, Args)]
pub(crate) struct BenchTransport {
    /// Over what; may be given several times.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [OverName::All])]
    pub(crate) transport: Vec<OverName>,

    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,

    /// Rounds; in each, everything is measured once, one after the other.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,

    /// Messages there and back per size and round.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) pings: u32,

    /// Bytes of a message, up to 1 MiB; may be given several times.
    #[arg(long, value_delimiter = ',', default_values_t = [64, 1024, 16_384, 262_144, 1_048_576],
        value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    pub(crate) size: Vec<u32>,

    /// Be the other end of one measurement (what the command starts as a child process).
    #[arg(long, hide = true, value_enum)]
    pub(crate) peer: Option<PeerName>,

    /// How that end waits.
    #[arg(long, hide = true, value_enum, default_value_t = PollingName::Sleeping)]
    pub(crate) polling: PollingName,

    /// On which processor that end is.
    #[arg(long, hide = true)]
    pub(crate) processor: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OverName {
    /// All that there are here.
    All,
    /// The memory of one process.
    Local,
    /// TCP.
    Tcp,
    /// RDMA.
    Rdma,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PeerName {
    /// Plain sockets.
    Raw,
    /// Lanes over TCP.
    Tcp,
    /// Lanes over RDMA.
    Rdma,
}

#[derive(Debug, Args)]
pub(crate) struct BenchLog {
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,

    /// Seconds per measurement.
    #[arg(long, default_value_t = 3)]
    pub(crate) seconds: u64,

    /// Bytes of a record's payload; may be given several times.
    #[arg(long, value_delimiter = ',', default_values_t = [256])]
    pub(crate) size: Vec<usize>,

    /// Appends in flight; may be given several times.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 128])]
    pub(crate) depth: Vec<usize>,

    /// What an acknowledgement means.
    #[arg(long, value_enum, default_value_t = Durability::Flush)]
    pub(crate) durability: Durability,

    /// Sequencers that stand by, and are sent the stream too.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(STANDBYS))]
    pub(crate) standbys: u32,

    /// Where the cluster's state lies while it runs [default: a temporary directory here].
    #[arg(long)]
    pub(crate) data_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct BenchFailover {
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,

    /// How often a node dies.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) runs: u32,

    /// Appends started per second, on a schedule [default: 10000]; with `--role engine` reservations
    /// per second, at most [default: 150].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) rate: Option<u32>,

    /// Bytes of a record's payload; not with `--role engine`.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(16..=65_536))]
    pub(crate) size: u32,

    /// What dies.
    #[arg(long, value_enum, default_value_t = VictimName::Sequencer)]
    pub(crate) role: VictimName,

    /// How it dies.
    #[arg(long, visible_alias = "death", value_enum, default_value_t = DeathName::Kill)]
    pub(crate) how: DeathName,

    /// With `--role storage`: one node loses its disk and a spare takes its place, once, in place of all
    /// else. Latency of appends before, while it is gone, while the members change, during the copy of
    /// the state, and after.
    #[arg(long, requires = "role")]
    pub(crate) replace: bool,

    /// With `--replace`: MiB of state that the new member has to copy.
    #[arg(long, default_value_t = 64, requires = "replace",
        value_parser = clap::value_parser!(u32).range(0..=65_536))]
    pub(crate) state_mib: u32,

    /// Sequencers that stand by.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(STANDBYS))]
    pub(crate) standbys: u32,

    /// Where the cluster's state lies while it runs [default: a temporary directory here].
    #[arg(long)]
    pub(crate) data_dir: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum VictimName {
    /// The sequencer in charge.
    Sequencer,
    /// One storage node after the other; each is down for 1.5 s.
    Storage,
    /// One engine after the other, while functions run on it.
    Engine,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeathName {
    /// By SIGKILL.
    Kill,
    /// By SIGSTOP; it goes on when another has taken over.
    Stop,
}
