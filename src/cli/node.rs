//! `halfmoon node` on the command line.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(crate) enum Node {
    /// List every node: storage nodes, sequencers, engines.
    ///
    /// STATE is `up`; `down` (it does not answer within 2 s); `copying` (a new member that has not
    /// copied all of the state yet, and how much it has); `spare` (no member, and ready to be one);
    /// `leaving` (replaced, and still asked by recoveries); `left` (replaced; what it holds is of no
    /// use). LOG END and WATERMARK are positions of the log: what the node has, and what it has
    /// flushed of the epoch's log.
    List(NodeList),
    /// Put a new storage node in the place of another.
    ///
    /// NEW has to run already, with an empty data directory, under a number that no storage node of
    /// this cluster has had:
    ///
    ///     halfmoon run --role storage --node 4 --data-dir /var/lib/halfmoon --meta META
    ///     halfmoon node replace 2 4
    ///
    /// (`halfmoon dev --spares 1` runs one, too.) It waits as a spare until it is a member. OLD may be
    /// dead, and never comes back; stop it afterwards, if it runs. The log goes on all the while; for a
    /// moment, when the epoch changes, appends wait. NEW then copies the state from the others. The
    /// next node can be replaced when that is done.
    ///
    /// The command waits until NEW has everything. Ctrl-C ends the command and not the change; the same
    /// command again goes on waiting. Exit code 0: done (with --no-wait: proposed). 1: refused, nothing
    /// was changed, or another change came in between. 75: interrupted, the change goes on.
    #[command(verbatim_doc_comment)]
    Replace(NodeReplace),
}

impl Node {
    /// The cluster that it is about.
    pub(crate) fn whose_mut(&mut self) -> &mut Whose {
        match self {
            Self::List(list) => &mut list.whose,
            Self::Replace(replace) => &mut replace.whose,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct NodeList {
    #[command(flatten)]
    pub(crate) whose: Whose,

    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct NodeReplace {
    /// The storage node that goes.
    pub(crate) old: u32,

    /// The one that comes.
    pub(crate) new: u32,

    #[command(flatten)]
    pub(crate) whose: Whose,

    /// Only propose it: whoever is in charge carries it out.
    #[arg(long)]
    pub(crate) no_wait: bool,

    /// Print one JSON object at the end, in place of progress.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Whose metadata to look at.
#[derive(Debug, Clone, Args)]
pub(crate) struct Whose {
    /// Data directory of a cluster on this machine [default: $XDG_DATA_HOME/halfmoon/dev].
    #[arg(long, env = "HALFMOON_DATA_DIR")]
    pub(crate) data_dir: Option<PathBuf>,

    /// Where the cluster's metadata lies: a directory, or `etcd://HOST:PORT[,HOST:PORT…][/PREFIX]`
    /// [default: found in the data directory].
    #[arg(long, env = "HALFMOON_META")]
    pub(crate) meta: Option<String>,
}
