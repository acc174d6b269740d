//! `halfmoon run`: one node.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use halfmoon_reactor::Polling;
use halfmoon_sequencer::{REPLACE_AFTER_S_DEFAULT, SUSPECT_MS_DEFAULT};
use serde::Deserialize;

use super::{
    LOG_TABLE_MIBS, REPLACE_AFTER_S, SEGMENT_MIB, SEGMENT_MIBS, Transport, log_table_mib_usual,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum PollingName {
    /// Looks for work without a pause.
    Busy,
    /// Looks for a while, then sleeps.
    Adaptive,
    /// Sleeps as soon as there is none.
    Sleeping,
}

impl PollingName {
    /// As flags, files and reports name it.
    pub(crate) const fn name(self) -> &'static str {
        self.polling().name()
    }

    pub(crate) const fn polling(self) -> Polling {
        match self {
            Self::Busy => Polling::Busy,
            Self::Adaptive => Polling::Adaptive,
            Self::Sleeping => Polling::Sleeping,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RoleName {
    /// Orders appends.
    Sequencer,
    /// Persists the log and holds state.
    Storage,
    /// Runs functions and serves HTTP.
    Engine,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// What to run.
    #[arg(long, value_enum)]
    pub(crate) role: RoleName,

    /// This node's id, unique in the cluster.
    #[arg(long)]
    pub(crate) node: u32,

    /// Where the node keeps its own state.
    #[arg(long)]
    pub(crate) data_dir: PathBuf,

    /// The metadata store that all nodes share: a directory, or
    /// `etcd://HOST:PORT[,HOST:PORT…][/PREFIX]`.
    #[arg(long, env = "HALFMOON_META")]
    pub(crate) meta: String,

    /// Where lanes are accepted [default: 127.0.0.1:0; with `rdma`, the address of an adapter].
    #[arg(long)]
    pub(crate) listen: Option<std::net::SocketAddr>,

    /// The address that others are told, where it is not the one listened on: behind a translation of
    /// addresses, or when all addresses of this machine are listened on. Of an engine, where it takes
    /// requests; of other roles, where they accept lanes.
    #[arg(long)]
    pub(crate) advertise: Option<std::net::SocketAddr>,

    /// What lanes go over: RDMA where both nodes have an adapter, and TCP elsewhere; TCP only; or RDMA
    /// also on adapters made of software.
    #[arg(long, value_enum, default_value_t = Transport::Auto, env = "HALFMOON_TRANSPORT")]
    pub(crate) transport: Transport,

    /// How the node waits for work. One that looks for it without a pause, or for a while, answers
    /// sooner, and needs a processor of its own.
    #[arg(long, value_enum, default_value_t = PollingName::Sleeping, env = "HALFMOON_POLLING")]
    pub(crate) polling: PollingName,

    /// Where an engine's gateway listens.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub(crate) http: std::net::SocketAddr,

    /// MiB of a segment of a storage node's logs.
    #[arg(long, default_value_t = SEGMENT_MIB, env = "HALFMOON_SEGMENT_MIB",
        value_parser = clap::value_parser!(u32).range(SEGMENT_MIBS))]
    pub(crate) segment_mib: u32,

    /// MiB of memory that the tables of the log may take, in the sequencer and in every engine.
    #[arg(long, default_value_t = log_table_mib_usual(), env = "HALFMOON_LOG_TABLE_MIB",
        value_parser = clap::value_parser!(u32).range(LOG_TABLE_MIBS))]
    pub(crate) log_table_mib: u32,

    /// A sequencer that leaves others the time to be in charge before it takes over. One that finds
    /// another in charge stands by in any case.
    #[arg(long)]
    pub(crate) standby: bool,

    /// How long the sequencer in charge may be silent before this one takes over, in ms.
    #[arg(long, default_value_t = SUSPECT_MS_DEFAULT,
        value_parser = clap::value_parser!(u32).range(50..=60_000))]
    pub(crate) suspect_ms: u32,

    /// Seconds after which the sequencer in charge replaces a storage node that does not answer by a
    /// spare, if there is one. 0: never.
    #[arg(long, visible_alias = "replace-after", default_value_t = REPLACE_AFTER_S_DEFAULT,
        env = "HALFMOON_REPLACE_AFTER_S", value_name = "SECONDS",
        value_parser = clap::value_parser!(u32).range(REPLACE_AFTER_S))]
    pub(crate) replace_after_s: u32,

    /// End when standard input does: a child process does not outlive its supervisor.
    #[arg(long, hide = true)]
    pub(crate) until_stdin_ends: bool,
}
