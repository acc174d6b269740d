//! A change of members: the sequencer in charge goes on in a new epoch, with other storage nodes.

use halfmoon_sequencer::{Reign, Request};
use halfmoon_wire::{Epoch, Message, NodeId, Open, RecordKind, RecordRef, SeqNum};

use crate::World;
use crate::peers::*;

const NEW: NodeId = NodeId(4);
const AFTER: [NodeId; 3] = [NodeId(1), NodeId(2), NEW];

/// A world with some records in its log, and a storage node that is to be a member.
fn world() -> World {
    let mut world = World::new();
    world.open();
    world.join(ENGINE, 1);
    for local in 1..=9 {
        world.client(ENGINE).append(1, local, &[], b"kept");
    }
    world.until(|world| world.storage.iter().all(|storage| storage.log.len() == 10));
    world.storage.push(Storage::new(&world.reactor, NEW));
    world
}

fn change(world: &mut World) {
    let member_sets = vec![TRIO.to_vec(), AFTER.to_vec()];
    world.role.reign(Reign { epoch: Epoch(2), member_sets });
}

fn is_marked(world: &World) -> bool {
    world.requests.contains(&Request::MarkCommitted(Epoch(2)))
}

#[test]
fn the_one_in_charge_takes_a_new_member_in_while_a_node_that_is_dead_leaves() {
    let mut world = world();
    world.storage[2].works = false;
    change(&mut world);
    world.until(|world| world.client(ENGINE).is_down);
    world.until(|world| is_marked(world));
    world.until(|world| world.storage[3].log.len() == 11);
    assert_eq!(world.storage[3].log, world.storage[0].log);
    let opening = RecordRef::parse(&world.storage[3].log[10]).unwrap();
    assert_eq!((opening.epoch(), opening.kind()), (Epoch(2), RecordKind::Open));
    assert_eq!(Open::parse(opening.payload()).unwrap().members, AFTER);
    // The one that left is dialled no more; engines hear who the members are.
    let nodes: Vec<_> = world.role.status().storage.iter().map(|(node, _)| *node).collect();
    assert_eq!(nodes, AFTER);
    world.join(ENGINE, 1);
    let members = world.client(ENGINE).messages().find_map(|message| match message {
        Message::Welcome { epoch: Epoch(2), members, .. } => Some(members),
        _ => None,
    });
    assert_eq!(members.unwrap(), AFTER);
    // With the new one a quorum is whole, though another is away.
    world.storage[0].works = false;
    world.client(ENGINE).append(2, 10, &[], b"new");
    world.until(|world| world.role.status().committed == SeqNum(12));
}

#[test]
fn what_only_the_leaving_node_has_besides_one_that_is_away_is_kept() {
    let mut world = world();
    // The last records are on nodes 2 and 3 alone, which makes them committed.
    world.storage[0].log.truncate(4);
    world.storage[1].works = false;
    let kept = world.storage[2].log.clone();
    change(&mut world);
    world.until(|world| is_marked(world));
    world.until(|world| world.storage[3].log.len() == 11);
    assert_eq!(world.storage[3].log[..10], kept);
    assert_eq!(world.storage[0].log, world.storage[3].log);
}

#[test]
fn a_quorum_of_the_new_members_does_not_open_without_one_of_those_before() {
    let mut world = world();
    world.storage[0].log.truncate(4);
    world.storage[1].works = false;
    world.storage[2].works = false;
    change(&mut world);
    world.until(|world| world.storage[0].promised == 2 && world.storage[3].promised == 2);
    (0..100).for_each(|_| world.turn());
    assert!(!world.role.status().is_open, "the last records are on nodes that did not answer");
}

#[test]
fn the_new_members_are_marked_only_once_two_of_them_have_the_opening_record() {
    let mut world = world();
    world.storage[1].takes = false;
    world.storage[3].takes = false;
    change(&mut world);
    world.until(|world| world.storage[0].log.len() == 11 && world.storage[2].log.len() == 11);
    (0..100).for_each(|_| world.turn());
    assert!(!is_marked(&world), "one of the new members and one that leaves");
    world.storage[3].takes = true;
    for lane in world.storage[3].endpoint.lanes().collect::<Vec<_>>() {
        world.storage[3].endpoint.close(lane);
    }
    world.until(|world| {
        world.now.mono_ns += 1_000_000;
        is_marked(world)
    });
}
