//! Where an adapter is in the network, as the kernel tells it in files.

use std::fs;
use std::net::Ipv6Addr;
use std::path::Path;

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

/// Port and index of an address, if the adapter has it.
pub(crate) fn find(device: &str, gid: &[u8; 16]) -> Option<(u8, u8)> {
    find_in(&Path::new(DEVICES).join(device).join("ports"), gid)
}

fn find_in(ports: &Path, gid: &[u8; 16]) -> Option<(u8, u8)> {
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
                Some(octets) if &octets == gid => {
                    if read("gid_attrs/types").is_ok_and(|kind| kind.trim() == KIND) {
                        return Some((port, index));
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
