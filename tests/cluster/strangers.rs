//! Peers that do not belong: other releases, other programs.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use halfmoon_meta::{FileStore, nodes};
use halfmoon_wire::Role;

use crate::support::{Dev, PATIENCE, Scratch, block_on, text};

/// Bytes before the body of a frame, and where its length stands.
const FRAME_HEADER_BYTES: usize = 24;
const LENGTH_AT: usize = 16;
/// Where a greeting has the version of lanes.
const VERSION_AT: usize = FRAME_HEADER_BYTES + 4;

/// What a node sends first.
fn greeting_of(stream: &mut TcpStream) -> Vec<u8> {
    let mut greeting = vec![0; FRAME_HEADER_BYTES];
    stream.read_exact(&mut greeting).unwrap();
    let len = greeting[LENGTH_AT..LENGTH_AT + 4].try_into().unwrap();
    greeting.resize(FRAME_HEADER_BYTES + u32::from_le_bytes(len) as usize, 0);
    stream.read_exact(&mut greeting[FRAME_HEADER_BYTES..]).unwrap();
    greeting
}

/// Says something else than a greeting of this release, and hears the end of the connection.
fn greet_with(address: SocketAddr, change: impl FnOnce(&mut Vec<u8>)) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut greeting = greeting_of(&mut stream);
    change(&mut greeting);
    stream.write_all(&greeting).unwrap();
    let mut rest = Vec::new();
    // It may be reset as well.
    stream.read_to_end(&mut rest).ok();
}

#[test]
fn a_node_of_another_release_is_turned_away_with_what_to_do_and_others_are_served() {
    let scratch = Scratch::new();
    let dev = Dev::start(&scratch.path("data"));
    dev.deploy(crate::support::HALFMOON);
    let meta = FileStore::open(scratch.path("data").join("meta")).unwrap();
    let listening = nodes::list(&meta).unwrap().into_iter();
    let listening: Vec<_> = listening.filter(|node| node.role() != Role::Engine).collect();
    assert!(listening.len() >= 4, "a sequencer and three storage nodes at least: {listening:?}");
    for (node, version) in listening.iter().zip(1000u16..) {
        greet_with(node.address, |greeting| {
            greeting[VERSION_AT..VERSION_AT + 2].copy_from_slice(&version.to_le_bytes());
        });
        let said = dev.until_said(&format!("the peer speaks lane version {version}"));
        assert!(said.contains("run the same release"), "{said}");
    }
    for node in &listening {
        greet_with(node.address, |greeting| greeting[FRAME_HEADER_BYTES] ^= 1);
        greet_with(node.address, |greeting| *greeting = b"GET / HTTP/1.1\r\n\r\n".to_vec());
    }
    block_on(async {
        let reply = dev.invoke("order", &serde_json::json!({"id": "a"}), None).await.unwrap();
        assert_eq!(reply.status, 200, "{}", text(&reply.body));
    });
    let ended = dev.log().lines().filter(|line| line.contains("starting it again")).count();
    assert_eq!(ended, 0, "no node went down over this");
}
