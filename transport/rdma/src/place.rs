//! Where an adapter is in the network, as the kernel tells it in files.

use std::cell::Cell;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::choice::Choice;
use crate::verbs::Device;

/// Where the kernel lists adapters.
const DEVICES: &str = "/sys/class/infiniband";

/// The kind of address that is used: RDMA over Ethernet, routed by IP.
const KIND: &str = "RoCE v2";

/// Most addresses of a port that are looked at.
const ADDRESSES_MAX: u8 = 255;

/// After so many empty places in a row, the list is taken to be over: it is long and mostly empty.
const EMPTY_MAX: u8 = 16;

/// An address of an adapter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    pub(crate) port: u8,
    pub(crate) gid_index: u8,
    pub(crate) gid: [u8; 16],
    /// Largest packet, as verbs number them.
    pub(crate) mtu: u8,
}

/// Where programs open an adapter, as the kernel tells it.
pub(crate) struct Door {
    path: PathBuf,
    inode: u64,
    /// The adapter has said itself that it is over.
    pub(crate) is_shut: Cell<bool>,
}

impl Door {
    pub(crate) fn at(path: PathBuf) -> io::Result<Self> {
        let inode = fs::metadata(&path)?.ino();
        Ok(Self { path, inode, is_shut: Cell::new(false) })
    }

    /// Whether it is there, and no other has come in its place.
    pub(crate) fn is_there(&self) -> bool {
        let same = |found: fs::Metadata| found.ino() == self.inode;
        !self.is_shut.get() && fs::metadata(&self.path).is_ok_and(same)
    }
}

/// Port and index of an address, if the adapter has it.
pub(crate) fn find(device: &str, gid: &[u8; 16]) -> Option<(u8, u8)> {
    let found = find_in(&ports_of(device), |octets| octets == gid);
    found.map(|(port, index, _)| (port, index))
}

/// An IPv4 address of one of these adapters whose port works.
pub(crate) fn any_address(devices: &[Rc<Device>]) -> Result<IpAddr, String> {
    let mapped = |octets: &[u8; 16]| Ipv6Addr::from(*octets).to_ipv4_mapped();
    devices
        .iter()
        .find_map(|device| {
            let (port, _, octets) =
                find_in(&ports_of(device.name()), |octets| mapped(octets).is_some())?;
            device.mtu(port).ok()?;
            mapped(&octets).map(IpAddr::V4)
        })
        .ok_or_else(|| "no RDMA device here works and has an IPv4 address (RoCE v2)".to_owned())
}

/// The adapters that may be used. Some write a word of eight bytes in parts: see the decision on what a
/// lane relies on. Who wants one all the same has to say so.
pub(crate) fn usable(mut devices: Vec<Rc<Device>>, choice: Choice) -> Vec<Rc<Device>> {
    if choice == Choice::Auto {
        devices.retain(|device| is_hardware(device.name()));
    }
    devices
}

/// Whether an adapter is a device of the machine. Software that acts as one stands on a network
/// interface and has no device of its own.
fn is_hardware(device: &str) -> bool {
    let folder = Path::new(DEVICES).join(device);
    folder.join("device").exists() && !folder.join("parent").exists()
}

fn ports_of(device: &str) -> PathBuf {
    Path::new(DEVICES).join(device).join("ports")
}

/// The first address that will do: port, index, address.
fn find_in(ports: &Path, will_do: impl Fn(&[u8; 16]) -> bool) -> Option<(u8, u8, [u8; 16])> {
    let mut numbers: Vec<u8> = fs::read_dir(ports)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    numbers.sort_unstable();
    for port in numbers {
        let folder = ports.join(port.to_string());
        let mut empty = 0;
        for index in 0..ADDRESSES_MAX {
            let read = |list: &str| fs::read_to_string(folder.join(list).join(index.to_string()));
            let address = read("gids").ok().and_then(|text| text.trim().parse::<Ipv6Addr>().ok());
            match address.map(|address| address.octets()).filter(|octets| octets != &[0; 16]) {
                Some(octets) if will_do(&octets) => {
                    if read("gid_attrs/types").is_ok_and(|kind| kind.trim() == KIND) {
                        return Some((port, index, octets));
                    }
                    empty = 0;
                }
                Some(_) => empty = 0,
                None => empty += 1,
            }
            if empty > EMPTY_MAX {
                break;
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_that_is_removed_is_noticed_also_when_another_has_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("uverbs0");
        fs::create_dir(&path).unwrap();
        let door = Door::at(path.clone()).unwrap();
        assert!(door.is_there());
        fs::rename(&path, folder.path().join("elsewhere")).unwrap();
        assert!(!door.is_there());
        fs::create_dir(&path).unwrap();
        assert!(!door.is_there());
    }

    #[test]
    fn an_address_is_found_behind_others_and_empty_places_and_only_of_the_right_kind() {
        let ports = tempfile::tempdir().unwrap();
        let add = |port: &str, index: usize, address: &str, kind: &str| {
            for (list, text) in [("gids", address), ("gid_attrs/types", kind)] {
                let folder = ports.path().join(port).join(list);
                fs::create_dir_all(&folder).unwrap();
                fs::write(folder.join(index.to_string()), format!("{text}\n")).unwrap();
            }
        };
        let wanted = "0000:0000:0000:0000:0000:ffff:0a09:0001";
        add("1", 0, "fe80:0000:0000:0000:c874:e5ff:fe96:2b3d", "RoCE v2");
        add("1", 1, "0000:0000:0000:0000:0000:0000:0000:0000", "RoCE v2");
        add("1", 2, wanted, "IB/RoCE v1");
        add("1", 3, wanted, "RoCE v2");
        add("2", 0, wanted, "RoCE v2");
        let octets = wanted.parse::<Ipv6Addr>().unwrap().octets();
        assert_eq!(find_in(ports.path(), |found| *found == octets), Some((1, 3, octets)));
        assert_eq!(find_in(ports.path(), |found| found[0] == 1), None);
        assert_eq!(find_in(&ports.path().join("none"), |_| true), None);
    }
}
