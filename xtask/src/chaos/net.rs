//! One network namespace a node, joined by a bridge; and packets that do not arrive.
//!
//! Every node knows where the others are by permanent neighbour entries. One of `a` for `b` that
//! names an address that nobody has loses all that `a` sends to `b`, silently and in that direction
//! alone, for connections that exist as for new ones. No packet filter is needed for that, only
//! iproute2.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::Context as _;

use super::plan::Node;
use crate::volume::call;

/// Where namespaces have names: a file system of this process's own.
const NAMES: &str = "/run/netns";
/// Where an engine's gateway and etcd listen: each has a network to itself.
pub(super) const PORT: u16 = 8080;
/// A hardware address that nobody has.
const NOBODY: &str = "02:00:00:00:ff:ff";

/// The network of a cluster, which goes with the namespaces of this process.
pub(super) struct Net {
    nodes: Vec<Node>,
    cut: BTreeSet<(Node, Node)>,
}

impl Net {
    /// Makes a bridge and a namespace for each node. This process must be in a network namespace and
    /// a mount namespace of its own.
    pub(super) fn make(nodes: &[Node]) -> anyhow::Result<Self> {
        std::fs::create_dir_all(NAMES).with_context(|| format!("cannot make {NAMES}"))?;
        call(Command::new("mount").args(["-t", "tmpfs", "none", NAMES]))?;
        let mut script = String::from(
            "link set lo up\nlink add bridge type bridge\nlink set bridge up\n\
             address add 10.77.0.1/24 dev bridge\n",
        );
        for node in nodes {
            let (name, port) = (node.to_string(), node.0);
            call(Command::new("ip").args(["netns", "add", &name]))?;
            let hardware = hardware(*node);
            writeln!(
                script,
                "link add v{port} type veth peer name eth0 netns {name} address {hardware}\n\
                 link set v{port} master bridge up"
            )?;
        }
        batch(None, &script)?;
        for node in nodes {
            let own = address(*node);
            let mut script =
                format!("link set lo up\nlink set eth0 up\naddress add {own}/24 dev eth0\n");
            for other in nodes.iter().filter(|other| *other != node) {
                script += &neighbour(*other, &hardware(*other));
            }
            batch(Some(*node), &script)?;
        }
        Ok(Self { nodes: nodes.to_vec(), cut: BTreeSet::new() })
    }

    /// Lets packets pass between all nodes but these pairs, from the first to the second.
    pub(super) fn cut(&mut self, cut: BTreeSet<(Node, Node)>) -> anyhow::Result<()> {
        for node in &self.nodes {
            let mut script = String::new();
            for (from, to) in self.cut.symmetric_difference(&cut) {
                if from == node {
                    let hardware = hardware(*to);
                    let is_cut = cut.contains(&(*from, *to));
                    script += &neighbour(*to, if is_cut { NOBODY } else { &hardware });
                }
            }
            if !script.is_empty() {
                batch(Some(*node), &script)?;
            }
        }
        self.cut = cut;
        Ok(())
    }
}

/// A command that runs a program in a node's network.
pub(super) fn inside(node: Node) -> Command {
    let mut command = Command::new("nsenter");
    let name = PathBuf::from(NAMES).join(node.to_string());
    command.arg(format!("--net={}", name.display()));
    command
}

/// Where a node listens.
pub(super) fn gateway(node: Node) -> SocketAddr {
    SocketAddr::from((address(node), PORT))
}

pub(super) fn address(node: Node) -> Ipv4Addr {
    let last = u8::try_from(node.id()).unwrap_or(u8::MAX);
    Ipv4Addr::new(10, 77, 0, last.saturating_add(100))
}

fn hardware(node: Node) -> String {
    format!("02:00:00:00:00:{:02x}", node.0)
}

fn neighbour(to: Node, hardware: &str) -> String {
    format!("neighbour replace {} lladdr {hardware} dev eth0 nud permanent\n", address(to))
}

/// Has `ip` do what each line says, in a node's namespace or in this process's.
fn batch(node: Option<Node>, script: &str) -> anyhow::Result<()> {
    let mut command = Command::new("ip");
    if let Some(node) = node {
        command.args(["-n", &node.to_string()]);
    }
    let mut child = command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run ip")?;
    child.stdin.take().context("ip takes no input")?.write_all(script.as_bytes())?;
    let output = child.wait_with_output()?;
    let why = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "ip: {} in:\n{script}", why.trim());
    Ok(())
}
