//! RDMA devices, and what lanes need of them.

use std::net::{IpAddr, Ipv6Addr};

use super::Finding;
use super::files::Files;

/// Where the kernel lists adapters.
const DEVICES: &str = "sys/class/infiniband";

/// The kind of address that lanes use.
const KIND: &str = "RoCE v2";

/// Addresses of a port that are looked at.
const GIDS_MAX: usize = 256;

/// What a packet carries beside its load, as the kernel counts it.
const PACKET_HEADERS: u32 = 96;

/// Sizes of packets that adapters know.
const PACKETS: [u32; 5] = [4096, 2048, 1024, 512, 256];

/// Counters of trouble on the way, by port.
const TROUBLE: [&str; 5] = [
    "local_ack_timeout_err",
    "out_of_sequence",
    "packet_seq_err",
    "rnr_nak_retry_err",
    "implied_nak_seq_err",
];

/// A port of an adapter, as the kernel describes it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Port {
    pub(super) device: String,
    number: String,
    driver: Option<String>,
    pub(super) is_hardware: bool,
    state: String,
    rate: String,
    link_layer: String,
    /// Network interface and its MTU.
    interface: Option<(String, Option<u32>)>,
    /// Addresses that lanes can use.
    addresses: Vec<IpAddr>,
}

/// Whether this build has RDMA, and which devices its library opens.
pub(super) type Opened = Result<Vec<String>, String>;

/// Loads the library, which takes as long as opening all devices.
pub(super) fn library() -> Opened {
    halfmoon_rdma::devices()
}

/// Whether there is an adapter that `auto` would use.
pub(super) fn matters(ports: &[Port]) -> bool {
    ports.iter().any(|port| port.is_hardware)
}

/// All ports of all adapters.
pub(super) fn devices(files: &Files) -> Vec<Port> {
    let of_device = |device: String| {
        let numbers = files.list(&format!("{DEVICES}/{device}/ports"));
        numbers.into_iter().map(move |number| (device.clone(), number))
    };
    let all = files.list(DEVICES).into_iter().flat_map(of_device);
    all.map(|(device, number)| port(files, device, number)).collect()
}

fn port(files: &Files, device: String, number: String) -> Port {
    let folder = format!("{DEVICES}/{device}");
    let at = format!("{folder}/ports/{number}");
    let text = |name: &str| files.read(&format!("{at}/{name}")).unwrap_or_default();
    let mut addresses = Vec::new();
    let mut interface = None;
    for index in 0..GIDS_MAX {
        let Some(gid) = files.read(&format!("{at}/gids/{index}")) else { break };
        if let Some(address) = address(&gid, &text(&format!("gid_attrs/types/{index}"))) {
            addresses.push(address);
            interface = interface.or(files.read(&format!("{at}/gid_attrs/ndevs/{index}")));
        }
    }
    let interface = interface.or_else(|| files.read(&format!("{folder}/parent"))).or_else(|| {
        // Several where an adapter has several ports; the addresses above tell better.
        files.list(&format!("{folder}/device/net")).into_iter().next()
    });
    let mtu = |name: &String| files.read(&format!("sys/class/net/{name}/mtu"))?.parse().ok();
    Port {
        driver: files.link(&format!("{folder}/device/driver")),
        is_hardware: files.exists(&format!("{folder}/device"))
            && !files.exists(&format!("{folder}/parent")),
        state: text("state"),
        rate: text("rate"),
        link_layer: text("link_layer"),
        interface: interface.map(|name| (name.clone(), mtu(&name))),
        addresses,
        device,
        number,
    }
}

/// The IP address that a GID stands for, if lanes can use it. Link-local ones are no address that a
/// node listens on.
fn address(gid: &str, kind: &str) -> Option<IpAddr> {
    let gid: Ipv6Addr = gid.trim().parse().ok()?;
    let usable = kind.trim() == KIND && !gid.is_unspecified() && !gid.is_unicast_link_local();
    let address = gid.to_ipv4_mapped().map_or(IpAddr::V6(gid), IpAddr::V4);
    usable.then_some(address)
}

/// Bytes of a packet, at an interface of this MTU.
fn packet_bytes(mtu: u32) -> Option<u32> {
    PACKETS.into_iter().find(|bytes| bytes + PACKET_HEADERS <= mtu)
}

impl Port {
    fn name(&self) -> String {
        format!("{} port {}", self.device, self.number)
    }

    fn interface(&self) -> &str {
        self.interface.as_ref().map_or("INTERFACE", |(name, _)| name)
    }

    fn finding(&self) -> Finding {
        let kind = if self.is_hardware { "hardware" } else { "software" };
        let driver = self.driver.as_deref().unwrap_or("driver unknown");
        let state = self.state.split_once(": ").map_or(self.state.as_str(), |(_, name)| name);
        let what = format!("{} ({driver}, {kind}, {})", self.name(), self.rate);
        let on = self.interface();
        if self.link_layer != "Ethernet" {
            let found = format!("{what}: {} is not supported, RoCE v2 only", self.link_layer);
            return Finding::note("rdma device", found, "use an adapter in Ethernet mode");
        }
        if state != "ACTIVE" {
            let (found, change) = (format!("{what} is {state}"), format!("ip link set {on} up"));
            return self.trouble(found, format!("{change}; then look at cable and switch"));
        }
        if self.addresses.is_empty() {
            let found = format!("{what} has no RoCE v2 address that is an IP address");
            return self.trouble(found, format!("ip addr add ADDRESS/PREFIX dev {on}"));
        }
        let addresses: Vec<String> = self.addresses.iter().map(IpAddr::to_string).collect();
        let found = format!("{what} on {on}: RoCE v2 at {}", addresses.join(", "));
        if self.is_hardware {
            return Finding::ok("rdma device", found);
        }
        let change = "nothing; `--transport rdma` uses it, `auto` passes over software";
        Finding::note("rdma device", found, change)
    }

    /// What is wrong with an adapter that nobody would use matters little.
    fn trouble(&self, found: String, change: String) -> Finding {
        match self.is_hardware {
            true => Finding::problem("rdma device", found, change),
            false => Finding::note("rdma device", found, change),
        }
    }

    fn mtu_finding(&self) -> Option<Finding> {
        let (name, mtu) = self.interface.as_ref()?;
        let mtu = (*mtu)?;
        let change =
            format!("ip link set {name} mtu 4200, there, at all peers and at all switches");
        let Some(bytes) = packet_bytes(mtu) else {
            let found = format!("{name}: MTU {mtu} is too small for RDMA");
            return Some(Finding::problem("mtu", found, change));
        };
        let found = format!("{name}: MTU {mtu}, so {} sends packets of {bytes} bytes", self.device);
        Some(if bytes < PACKETS[0] && self.is_hardware {
            Finding::note("mtu", found, change)
        } else {
            Finding::ok("mtu", found)
        })
    }
}

/// What there is to say of adapters, of the library, and of the address to listen on.
pub(super) fn findings(ports: &[Port], opened: &Opened, listen: Option<IpAddr>) -> Vec<Finding> {
    let mut found: Vec<Finding> = ports.iter().map(Port::finding).collect();
    if ports.is_empty() {
        let change = "nothing, or load the adapter's driver; `rdma link` shows what there is";
        found.push(Finding::note("rdma device", "none: lanes go over TCP", change));
    }
    found.push(build(ports, opened));
    found.extend(ports.iter().filter_map(Port::mtu_finding));
    if let Some(listen) = listen {
        let owner = ports.iter().find(|port| port.addresses.contains(&listen));
        found.push(match owner {
            Some(port) => {
                Finding::ok("listen", format!("{listen} is an address of {}", port.name()))
            }
            None if ports.is_empty() => {
                Finding::note("listen", format!("{listen} is no address of an RDMA device"), "")
            }
            None => Finding::problem(
                "listen",
                format!("{listen} is no address of an RDMA device: lanes go over TCP"),
                "listen on one of the addresses above",
            ),
        });
    }
    found
}

fn build(ports: &[Port], opened: &Opened) -> Finding {
    match opened {
        Ok(names) => {
            let missing: Vec<&str> = ports
                .iter()
                .map(|port| port.device.as_str())
                .filter(|device| !names.iter().any(|name| name == device))
                .collect();
            if missing.is_empty() {
                let found = format!("libibverbs loads and opens {} devices", names.len());
                return Finding::ok("rdma library", found);
            }
            let found = format!("libibverbs does not open {}", missing.join(", "));
            let change = "apt install ibverbs-providers; /dev/infiniband/uverbs* must be readable and \
                          writable for the user that runs nodes";
            Finding::problem("rdma library", found, change)
        }
        Err(why) if matters(ports) => {
            let change =
                "cargo build --release --features rdma; apt install libibverbs1 ibverbs-providers";
            Finding::problem("rdma library", why.as_str(), change)
        }
        Err(why) => Finding::note("rdma library", format!("{why}: lanes go over TCP"), ""),
    }
}

/// What can be seen of flow and congestion control: whether packets get lost. The settings themselves
/// are the switches' and the drivers', which the kernel does not show in files.
pub(super) fn congestion(files: &Files, ports: &[Port]) -> Vec<Finding> {
    let of_port = |port: &Port| {
        let at = format!("{DEVICES}/{}/ports/{}/hw_counters", port.device, port.number);
        let count = |name: &str| files.read(&format!("{at}/{name}"))?.parse::<u64>().ok();
        let seen: Vec<String> = TROUBLE
            .iter()
            .filter_map(|name| Some(format!("{name} {}", count(name).filter(|n| *n > 0)?)))
            .collect();
        let on = port.interface();
        let look = format!(
            "look at `dcb pfc show dev {on}`, `ethtool -S {on} | grep -E 'prio|pause|discard'`, and \
             whether the switches mark (ECN) and pause (PFC) the same priority"
        );
        let name = port.name();
        if !seen.is_empty() {
            let found = format!("{name} has lost packets or sent some again: {}", seen.join(", "));
            return Finding::note("pfc/ecn", found, look);
        }
        let marks = count("np_ecn_marked_roce_packets");
        let found = match marks {
            Some(marks) => {
                format!("{name}: no packet was lost; {marks} were marked for congestion")
            }
            None => format!("{name}: the kernel shows neither settings nor marks"),
        };
        Finding::note("pfc/ecn", found, look)
    };
    ports.iter().filter(|port| port.is_hardware).map(of_port).collect()
}

#[cfg(test)]
mod tests;
