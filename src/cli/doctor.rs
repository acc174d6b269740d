//! `halfmoon doctor` on the command line.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,

    /// Whose disk to try: the directory, or the first above it that is there. A file of 4 MiB is written
    /// in it and removed [default: $XDG_DATA_HOME/halfmoon/dev].
    #[arg(long, env = "HALFMOON_DATA_DIR")]
    pub(crate) data_dir: Option<PathBuf>,

    /// The IP address that nodes here are to listen on: whether an RDMA device has it.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Option<IpAddr>,
}
