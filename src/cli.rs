//! The command line, as a person reads it with `--help`.

pub(crate) mod bench;
mod doctor;
mod node;
mod run;

use std::ffi::OsString;
use std::path::PathBuf;

pub(crate) use bench::{Bench, BenchFailover, BenchLog, DeathName, VictimName};
use clap::{Args, Parser, Subcommand, ValueEnum};
pub(crate) use doctor::Doctor;
use halfmoon_sequencer::REPLACE_AFTER_S_DEFAULT;
pub(crate) use node::{Node, NodeList, NodeReplace, Whose};
pub(crate) use run::{PollingName, RoleName, Run};
use serde::Deserialize;

/// Exactly-once stateful functions at the speed of the network and the disk.
///
/// Start with `halfmoon demo`, which shows a cluster losing nothing while its parts are killed; or
/// with `halfmoon dev`, then `halfmoon deploy ./your-binary` and `halfmoon invoke NAME '{…}'`.
#[derive(Debug, Parser)]
#[command(name = "halfmoon", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,

    /// More log lines; twice for even more.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub(crate) verbose: u8,

    /// Which log lines to show, in place of --verbose: a level, or levels by module, such as
    /// `warn,halfmoon_storage=debug`.
    #[arg(long, env = "HALFMOON_LOG", global = true, value_name = "FILTER",
        value_parser = crate::logging::parse_filter)]
    pub(crate) log: Option<String>,

    /// A TOML file with settings, under the names that `halfmoon config` shows; flags and the
    /// environment win over it [default: $XDG_CONFIG_HOME/halfmoon/config.toml, if it is there].
    #[arg(long, env = "HALFMOON_CONFIG", global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

impl Cli {
    /// What the processes that this command starts are told as well.
    pub(crate) fn passed_on(&self) -> PassedOn {
        let (verbose, log, config) = (self.verbose, self.log.clone(), self.config.clone());
        let (mut transport, mut polling) = (None, None);
        if let Command::Dev(Dev { machine: Machine { transport: chosen, .. }, .. })
        | Command::Demo(Demo { transport: chosen, .. }) = &self.command
        {
            transport = Some(*chosen);
        }
        if let Command::Dev(dev) = &self.command {
            polling = Some(dev.machine.polling);
        }
        PassedOn { verbose, log, config, transport, polling }
    }
}

/// What every process of a cluster is told alike.
#[derive(Debug, Clone)]
pub(crate) struct PassedOn {
    verbose: u8,
    log: Option<String>,
    config: Option<PathBuf>,
    pub(crate) transport: Option<Transport>,
    polling: Option<PollingName>,
}

impl PassedOn {
    /// As arguments.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let verbose = (0..self.verbose).map(|_| OsString::from("--verbose"));
        let log = self.log.iter().flat_map(|log| ["--log".into(), log.into()]);
        let config = self.config.iter().flat_map(|config| ["--config".into(), config.into()]);
        let transport = self.transport.map(|transport| ["--transport", transport.name()]);
        let polling = self.polling.map(|polling| ["--polling", polling.name()]);
        let chosen = transport.into_iter().chain(polling).flatten().map(OsString::from);
        verbose.chain(log).chain(config).chain(chosen).collect()
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the travel application under four protocols while parts of the cluster are killed, and
    /// audit every effect.
    Demo(Demo),
    /// Run a whole cluster on this machine until Ctrl-C: a sequencer and one that stands by, three
    /// storage nodes, two engines.
    Dev(Dev),
    /// Make the functions of a native binary available.
    Deploy(Deploy),
    /// Call a function and print its result.
    Invoke(Invoke),
    /// List the functions that can be called.
    Functions(Target),
    /// Show what the cluster's nodes are doing.
    Status(Target),
    /// List the cluster's nodes, or put a new storage node in the place of another.
    #[command(subcommand)]
    Node(Node),
    /// Show the settings, and where each comes from: flag, environment, file or default.
    Config(Config),
    /// Check what a cluster has on its disks: logs, replicas, steps, state.
    ///
    /// Exit code 0: sound. 1: something is wrong that no crash explains, or cannot be looked at.
    /// Nodes may run; then their logs are checked and their state is not.
    Verify(Verify),
    /// Check whether this host is set up for RDMA, io_uring and durable writes, and say what to change.
    ///
    /// Looks at devices, limits and settings, makes a ring, and tries the disk. Exit code 0: no problem.
    /// 1: at least one. Notes are no problems. Run it as the user that runs nodes, in their service or
    /// container: limits differ.
    Doctor(Doctor),
    /// Measure.
    #[command(subcommand)]
    Bench(Bench),
    /// Run one role of a cluster in the foreground (what `dev` starts as child processes).
    Run(Run),
}

impl Command {
    /// Whether log lines are what a person wants to see of this command.
    pub(crate) const fn logs_to_stderr(&self) -> bool {
        matches!(self, Self::Run(_) | Self::Dev(_))
    }

    /// The name of the node that the command runs, if it runs one.
    pub(crate) fn node(&self) -> Option<String> {
        let Self::Run(run) = self else { return None };
        let role = run.role.to_possible_value()?;
        Some(format!("{}-{}", role.get_name(), run.node))
    }
}

/// How the cluster on this machine is laid out.
#[derive(Debug, Clone, Args)]
pub(crate) struct Machine {
    /// Where all state is kept [default: $XDG_DATA_HOME/halfmoon/dev].
    #[arg(long, env = "HALFMOON_DATA_DIR")]
    pub(crate) data_dir: Option<PathBuf>,

    /// Where the cluster's metadata lies: a directory, or `etcd://HOST:PORT[,HOST:PORT…][/PREFIX]`
    /// [default: DATA_DIR/meta]. A cluster keeps what it was founded with.
    #[arg(long, env = "HALFMOON_META")]
    pub(crate) meta: Option<String>,

    /// Engines; each serves HTTP and runs functions.
    #[arg(long, default_value_t = 2, env = "HALFMOON_ENGINES",
        value_parser = clap::value_parser!(u32).range(ENGINES))]
    pub(crate) engines: u32,

    /// Sequencers that stand by, to take over when the one in charge dies or hangs.
    #[arg(long, default_value_t = 1, env = "HALFMOON_STANDBYS",
        value_parser = clap::value_parser!(u32).range(STANDBYS))]
    pub(crate) standbys: u32,

    /// Storage nodes that are no members yet, to take the place of one that is lost.
    #[arg(long, default_value_t = 0, env = "HALFMOON_SPARES",
        value_parser = clap::value_parser!(u32).range(SPARES))]
    pub(crate) spares: u32,

    /// Seconds after which a storage node that does not answer is replaced by a spare, if there is one.
    /// It cannot come back then. 0: never.
    #[arg(long, visible_alias = "replace-after", default_value_t = REPLACE_AFTER_S_DEFAULT,
        env = "HALFMOON_REPLACE_AFTER_S", value_name = "SECONDS",
        value_parser = clap::value_parser!(u32).range(REPLACE_AFTER_S))]
    pub(crate) replace_after_s: u32,

    /// What an acknowledgement means: flushed on two of three disks, or merely in the memory of two
    /// of three nodes (faster, and lost with the power). A cluster keeps what it was founded with.
    #[arg(long, value_enum, default_value_t = Durability::Flush, env = "HALFMOON_DURABILITY")]
    pub(crate) durability: Durability,

    /// MiB of a segment of a storage node's logs, written ahead of time. Each node needs disk space
    /// for about four; smaller ones save space and make a new node start sooner.
    #[arg(long, default_value_t = SEGMENT_MIB, env = "HALFMOON_SEGMENT_MIB",
        value_parser = clap::value_parser!(u32).range(SEGMENT_MIBS))]
    pub(crate) segment_mib: u32,

    /// MiB of memory that the tables of the log may take, in the sequencer and in every engine. When
    /// they are full, new invocations are refused (429) and those that have begun go on.
    #[arg(long, default_value_t = log_table_mib_usual(), env = "HALFMOON_LOG_TABLE_MIB",
        value_parser = clap::value_parser!(u32).range(LOG_TABLE_MIBS))]
    pub(crate) log_table_mib: u32,

    /// What nodes talk over: RDMA where both have an adapter, and TCP elsewhere; TCP only; or RDMA
    /// also on adapters made of software, and then they listen on the address of this machine's adapter.
    #[arg(long, value_enum, default_value_t = Transport::Auto, env = "HALFMOON_TRANSPORT")]
    pub(crate) transport: Transport,

    /// How nodes wait for work. Those that look for it without a pause, or for a while, answer sooner,
    /// and need a processor each; on fewer they make everything slower.
    #[arg(long, value_enum, default_value_t = PollingName::Sleeping, env = "HALFMOON_POLLING")]
    pub(crate) polling: PollingName,
}

/// How many MiB the tables of the log may take.
pub(crate) const LOG_TABLE_MIBS: std::ops::RangeInclusive<i64> = 1..=1_048_576;
/// The share of a machine's memory that they take unless said otherwise.
const LOG_TABLE_SHARE: u64 = 16;
/// What is assumed of a machine that does not tell how much memory it has, in KiB.
const MEMORY_KIB_ASSUMED: u64 = 4 << 20;

/// That share of this machine's memory.
pub(crate) fn log_table_mib_usual() -> u32 {
    let told = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory_kib = told
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok())
        .unwrap_or(MEMORY_KIB_ASSUMED);
    u32::try_from(memory_kib / 1024 / LOG_TABLE_SHARE).unwrap_or(u32::MAX).clamp(1, 1_048_576)
}

/// How many engines a cluster on one machine may have.
pub(crate) const ENGINES: std::ops::RangeInclusive<i64> = 1..=16;
/// How many sequencers may stand by.
pub(crate) const STANDBYS: std::ops::RangeInclusive<i64> = 0..=4;
/// How many spares there may be.
pub(crate) const SPARES: std::ops::RangeInclusive<i64> = 0..=4;
/// How long a storage node may be gone before it is replaced, in seconds.
pub(crate) const REPLACE_AFTER_S: std::ops::RangeInclusive<i64> = 0..=604_800;
/// How many MiB a segment may have.
pub(crate) const SEGMENT_MIBS: std::ops::RangeInclusive<i64> = 1..=1024;

/// Port of the first engine's gateway unless said otherwise.
pub(crate) const PORT: u16 = 8080;

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// Directories of storage nodes [default: those of the cluster in --data-dir].
    pub(crate) nodes: Vec<PathBuf>,

    /// Where a cluster on this machine keeps its state [default: $XDG_DATA_HOME/halfmoon/dev].
    #[arg(long, env = "HALFMOON_DATA_DIR")]
    pub(crate) data_dir: Option<PathBuf>,

    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// MiB of a segment unless said otherwise.
pub(crate) const SEGMENT_MIB: u32 = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Durability {
    /// On two of three disks.
    Flush,
    /// In the memory of two of three nodes.
    MemoryQuorum,
}

impl Durability {
    /// As flags, files and reports name it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Flush => "flush",
            Self::MemoryQuorum => "memory-quorum",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Transport {
    /// RDMA for each pair of nodes that can, TCP for all others.
    Auto,
    /// TCP only.
    Tcp,
    /// The same, also on adapters made of software; where there is none, a warning says so.
    Rdma,
}

impl Transport {
    /// As flags, files and reports name it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Tcp => "tcp",
            Self::Rdma => "rdma",
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Dev {
    #[command(flatten)]
    pub(crate) machine: Machine,

    /// Port of the first engine's HTTP gateway; the others take the ports after it. 0: any free one.
    #[arg(long, default_value_t = PORT, env = "HALFMOON_PORT")]
    pub(crate) port: u16,

    /// All roles as threads of this process: for debuggers and small machines.
    #[arg(long)]
    pub(crate) in_process: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Where the report goes; the cluster's state lies beside it and is deleted at the end.
    #[arg(long, default_value = "halfmoon-demo")]
    pub(crate) output: PathBuf,

    /// Print one JSON object instead of a table.
    #[arg(long)]
    pub(crate) json: bool,

    /// Requests of the mix per second.
    #[arg(long, default_value_t = 50.0)]
    pub(crate) rate: f64,

    /// Seconds per slice of the mix.
    #[arg(long, default_value_t = 5)]
    pub(crate) seconds: u64,

    /// Slices of the mix per protocol.
    #[arg(long, default_value_t = 3)]
    pub(crate) slices: u32,

    /// Audited reservations per protocol.
    #[arg(long, default_value_t = 1000)]
    pub(crate) reservations: u32,

    /// A tenth of everything: to see that it works.
    #[arg(long)]
    pub(crate) quick: bool,

    /// More faults, under each protocol: more sequencers are killed; an engine, a storage node and
    /// sequencers are stopped until the others have given them up, and then go on as if nothing had
    /// happened; others are cut off from the rest, in one direction or both, for as long; and a storage
    /// node loses its disk and is replaced by a spare. In the end the disks of all storage nodes are
    /// checked as `halfmoon verify` does. Nodes dial each other through relays then, which takes some
    /// time; with `--transport rdma` there are none, and nobody is cut off.
    #[arg(long)]
    pub(crate) chaos: bool,

    /// Run it on a cluster that is there already, whose metadata lies here: a directory, or
    /// `etcd://HOST:PORT[,HOST:PORT…][/PREFIX]`. Its nodes are not this command's, and may be on other
    /// machines: it kills none of them, whoever wants to may.
    #[arg(long, value_name = "META", conflicts_with_all = ["chaos", "segment_mib", "transport"])]
    pub(crate) cluster: Option<String>,

    /// Only these protocols [default: all four].
    #[arg(long, value_delimiter = ',')]
    pub(crate) protocols: Vec<String>,

    /// MiB of a segment of a storage node's logs; a slow disk is ready sooner with small ones.
    #[arg(long, default_value_t = SEGMENT_MIB, env = "HALFMOON_SEGMENT_MIB",
        value_parser = clap::value_parser!(u32).range(SEGMENT_MIBS))]
    pub(crate) segment_mib: u32,

    /// What nodes talk over; `rdma` has them listen on the address of this machine's adapter.
    #[arg(long, value_enum, default_value_t = Transport::Auto, env = "HALFMOON_TRANSPORT")]
    pub(crate) transport: Transport,
}

#[derive(Debug, Args)]
pub(crate) struct Config {
    #[command(flatten)]
    pub(crate) machine: Machine,

    /// Port of the first engine's HTTP gateway.
    #[arg(long, default_value_t = PORT, env = "HALFMOON_PORT")]
    pub(crate) port: u16,

    /// Address of an engine's gateway, as host:port [default: found in the data directory].
    #[arg(long, env = "HALFMOON_SERVER")]
    pub(crate) server: Option<String>,

    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which cluster to talk to.
#[derive(Debug, Clone, Args)]
pub(crate) struct Target {
    /// Address of an engine's gateway, as host:port [default: found in the data directory].
    #[arg(long, env = "HALFMOON_SERVER")]
    pub(crate) server: Option<String>,

    /// Data directory of a cluster on this machine [default: $XDG_DATA_HOME/halfmoon/dev].
    #[arg(long, env = "HALFMOON_DATA_DIR")]
    pub(crate) data_dir: Option<PathBuf>,

    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Deploy {
    /// The native executable, linked with the SDK.
    pub(crate) binary: PathBuf,

    #[command(flatten)]
    pub(crate) target: Target,

    /// Functions are called as NAMESPACE.function, and tables belong to the namespace.
    #[arg(long)]
    pub(crate) namespace: Option<String>,

    /// Protocol of every table that does not choose its own: auto, halfmoon-read, halfmoon-write,
    /// boki or unlogged.
    #[arg(long)]
    pub(crate) protocol: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Invoke {
    /// Name of the function.
    pub(crate) function: String,

    /// Its input; `-` reads standard input.
    #[arg(default_value = "{}")]
    pub(crate) input: String,

    #[command(flatten)]
    pub(crate) target: Target,

    /// Calls with the same key are one call, however often they are sent.
    #[arg(long)]
    pub(crate) key: Option<String>,

    /// Return at once with an id; `GET /v1/invocations/ID` tells how it ended.
    #[arg(long = "async")]
    pub(crate) asynchronous: bool,

    /// Seconds to wait for the result.
    #[arg(long, default_value_t = 30)]
    pub(crate) timeout: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_of_dev_are_told_what_it_was_told() {
        let said = "halfmoon -v dev --transport tcp --polling adaptive --log warn";
        let cli = Cli::try_parse_from(said.split(' ')).unwrap();
        let passed_on = cli.passed_on().arguments();
        let of_node = ["halfmoon", "run", "--role", "storage", "--node", "1", "--data-dir", "d"];
        let arguments = of_node.into_iter().chain(["--meta", "m"]).map(OsString::from);
        let node = Cli::try_parse_from(arguments.chain(passed_on)).unwrap();
        assert_eq!((node.verbose, node.log.as_deref()), (1, Some("warn")));
        let Command::Run(run) = node.command else { panic!("{:?}", node.command) };
        assert_eq!((run.transport, run.polling), (Transport::Tcp, PollingName::Adaptive));
    }
}
