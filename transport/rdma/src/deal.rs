//! What the two ends say over TCP before a lane carries writes: whether it is to be one over RDMA.
//!
//! Each side says where its end is. Each makes the connection, writes a word into the other's memory
//! and sends a note. The side that was dialled tells when it has both; the one that dialled, once it
//! has both as well, decides, and its decision is final: so both ends always agree.

use std::net::IpAddr;

/// Where an end of a lane is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct End {
    /// The address of its adapter, as the adapter names it.
    pub(crate) gid: [u8; 16],
    pub(crate) queue_pair: u32,
    /// Number of the first packet that it sends.
    pub(crate) first_packet: u32,
    /// Largest packet, as verbs number them.
    pub(crate) mtu: u8,
    /// Where the other side writes its first word, and the key to it.
    pub(crate) address: u64,
    pub(crate) rkey: u32,
}

/// What is said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Deal {
    /// This is our end.
    End(End),
    /// We cannot.
    Refused,
    /// Your first write and your first note are here.
    Arrived,
    /// The lane is one over RDMA, or is not.
    Decided(bool),
}

impl Deal {
    pub(crate) fn encode(self) -> Vec<u8> {
        match self {
            Self::End(end) => {
                let mut bytes = vec![b'E', end.mtu];
                bytes.extend_from_slice(&end.gid);
                bytes.extend_from_slice(&end.queue_pair.to_le_bytes());
                bytes.extend_from_slice(&end.first_packet.to_le_bytes());
                bytes.extend_from_slice(&end.address.to_le_bytes());
                bytes.extend_from_slice(&end.rkey.to_le_bytes());
                bytes
            }
            Self::Refused => vec![b'R'],
            Self::Arrived => vec![b'A'],
            Self::Decided(rdma) => vec![b'D', u8::from(rdma)],
        }
    }

    /// `None`: these bytes say nothing.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [b'E', mtu, rest @ ..] => {
                let (gid, rest) = rest.split_first_chunk()?;
                let (queue_pair, rest) = rest.split_first_chunk()?;
                let (first_packet, rest) = rest.split_first_chunk()?;
                let (address, rest) = rest.split_first_chunk()?;
                let rkey = rest.try_into().ok()?;
                (1..=5).contains(mtu).then_some(Self::End(End {
                    gid: *gid,
                    queue_pair: u32::from_le_bytes(*queue_pair),
                    first_packet: u32::from_le_bytes(*first_packet),
                    mtu: *mtu,
                    address: u64::from_le_bytes(*address),
                    rkey: u32::from_le_bytes(rkey),
                }))
            }
            [b'R'] => Some(Self::Refused),
            [b'A'] => Some(Self::Arrived),
            [b'D', rdma @ (0 | 1)] => Some(Self::Decided(*rdma == 1)),
            _ => None,
        }
    }
}

/// An address as adapters on Ethernet name it (RoCE v2).
pub(crate) fn gid_of(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_comes_back_as_it_was_and_noise_is_refused() {
        let end = End {
            gid: gid_of([10, 9, 0, 1].into()),
            queue_pair: 17,
            first_packet: 99,
            mtu: 3,
            address: 1 << 40,
            rkey: 5,
        };
        for deal in [
            Deal::End(end),
            Deal::Refused,
            Deal::Arrived,
            Deal::Decided(true),
            Deal::Decided(false),
        ] {
            let bytes = deal.encode();
            assert_eq!(Deal::parse(&bytes), Some(deal));
            assert_eq!(Deal::parse(&bytes[..bytes.len() - 1]), None);
        }
        let mut wrong = Deal::End(end).encode();
        wrong[1] = 6;
        assert_eq!(Deal::parse(&wrong), None);
        assert_eq!(Deal::parse(b"D2"), None);
    }
}
