//! The typed parts, on the file store.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::net::SocketAddr;

use halfmoon_meta::cluster::{self, PENDING_SETS_MAX};
use halfmoon_meta::{
    ClusterError, Durability, Expected, FileStore, MetaStore, NodeEntry, disks, nodes,
};
use halfmoon_wire::{Epoch, Incarnation, NodeId, Role};

const A: NodeId = NodeId(11);
const B: NodeId = NodeId(12);
const C: NodeId = NodeId(13);
const D: NodeId = NodeId(14);
const E: NodeId = NodeId(15);
const ID: u128 = 0xfeed << 100;

fn fresh() -> (tempfile::TempDir, FileStore) {
    let directory = tempfile::tempdir().unwrap();
    let store = FileStore::open(directory.path()).unwrap();
    (directory, store)
}

fn founded() -> (tempfile::TempDir, FileStore) {
    let (directory, store) = fresh();
    cluster::create(&store, ID, Durability::Flush, &[C, A, B]).unwrap();
    (directory, store)
}

#[test]
fn a_cluster_is_founded_once() {
    let (_directory, store) = fresh();
    assert!(matches!(cluster::read(&store), Err(ClusterError::NoCluster)));
    assert!(matches!(cluster::next_epoch(&store, A), Err(ClusterError::NoCluster)));
    let info = cluster::create(&store, ID, Durability::default(), &[C, A, B]).unwrap();
    assert_eq!((info.id(), info.durability, info.epoch()), (ID, Durability::Flush, Epoch(0)));
    assert_eq!(info.members.nodes(), [A, B, C]);
    assert_eq!(cluster::read(&store).unwrap(), info);
    assert_eq!(cluster::create(&store, ID, Durability::MemoryQuorum, &[D]).unwrap(), info);
    let other = cluster::create(&store, ID + 1, Durability::Flush, &[A]);
    assert!(matches!(other, Err(ClusterError::Exists { found: ID })));
}

#[test]
fn members_are_different_nodes_and_not_too_many() {
    let (_directory, store) = fresh();
    let many: Vec<NodeId> = (0..8).map(NodeId).collect();
    for members in [&[][..], &[A, A, B], &many] {
        let result = cluster::create(&store, ID, Durability::Flush, members);
        assert!(matches!(result, Err(ClusterError::BadMembers { .. })), "{members:?}");
    }
}

#[test]
fn epochs_grow_and_say_who_took_them() {
    let (_directory, store) = founded();
    assert_eq!(cluster::next_epoch(&store, D).unwrap().epoch(), Epoch(1));
    let info = cluster::next_epoch(&store, A).unwrap();
    assert_eq!(info.epoch(), Epoch(2));
    let holder = cluster::read(&store).unwrap().holder.unwrap();
    assert_eq!((holder.epoch(), holder.node()), (Epoch(2), A));
    assert_eq!(holder.pid, std::process::id());
}

#[test]
fn of_those_who_saw_the_same_epoch_end_one_takes_the_next() {
    let (_directory, store) = founded();
    assert_eq!(cluster::take_epoch(&store, A, Epoch(0)).unwrap().epoch(), Epoch(1));
    assert_eq!(cluster::take_epoch(&store, B, Epoch(1)).unwrap().epoch(), Epoch(2));
    let late = cluster::take_epoch(&store, C, Epoch(1));
    assert!(matches!(late, Err(ClusterError::EpochTaken { epoch: 2, by: 12 })), "{late:?}");
    assert_eq!(cluster::read(&store).unwrap().holder.unwrap().node(), B);
    // Many at once.
    let won = std::thread::scope(|scope| {
        let take = |node| cluster::take_epoch(&store, NodeId(node), Epoch(2)).is_ok();
        let all: Vec<_> = (20..28).map(|node| scope.spawn(move || take(node))).collect();
        all.into_iter().map(|one| u32::from(one.join().unwrap())).sum::<u32>()
    });
    assert_eq!((won, cluster::read(&store).unwrap().epoch()), (1, Epoch(3)));
}

#[test]
fn an_address_is_taken_back_only_by_the_life_that_published_it() {
    let (_directory, store) = fresh();
    let (first, second) = (engine(A, 1, 1000), engine(A, 1, 2000));
    nodes::publish(&store, &first).unwrap();
    nodes::publish(&store, &second).unwrap();
    nodes::withdraw(&store, &first).unwrap();
    assert_eq!(nodes::find(&store, Role::Engine, A).unwrap(), Some(second));
}

#[test]
fn a_recovery_asks_every_set_since_the_last_one_marked() {
    let (_directory, store) = founded();
    let second = cluster::propose_members(&store, &[A, B, D]).unwrap();
    assert_eq!((second.version, second.committed_in()), (2, None));
    let info = cluster::next_epoch(&store, D).unwrap();
    assert_eq!(info.members, second);
    assert_eq!(info.recovery_sets().map(|set| set.version).collect::<Vec<_>>(), [1, 2]);
    // A and D are a quorum of the new set only: B and C may hold a record that neither of them has.
    assert!(!info.may_recover_from(&[A, D]));
    assert!(info.may_recover_from(&[A, B]));
    assert!(info.may_recover_from(&[A, C, D]));

    let marked = cluster::mark_committed(&store, 2, info.epoch()).unwrap();
    assert_eq!(marked.recovery_sets().map(|set| set.version).collect::<Vec<_>>(), [2]);
    assert_eq!(marked.members.committed_in(), Some(Epoch(1)));
    assert!(marked.may_recover_from(&[A, D]));
    assert_eq!(cluster::mark_committed(&store, 2, Epoch(1)).unwrap(), marked);
}

#[test]
fn a_late_mark_of_a_dropped_set_brings_nothing_back() {
    let (_directory, store) = founded();
    cluster::propose_members(&store, &[A, B, D]).unwrap();
    cluster::mark_committed(&store, 2, Epoch(1)).unwrap();
    let late = cluster::mark_committed(&store, 1, Epoch(1));
    assert!(matches!(late, Err(ClusterError::MembersSuperseded { version: 1, current: 2 })));
    assert!(cluster::mark_committed(&store, 3, Epoch(1)).is_err());
}

#[test]
fn marking_a_set_keeps_the_ones_proposed_after_it() {
    let (_directory, store) = founded();
    cluster::propose_members(&store, &[A, B, D]).unwrap();
    cluster::propose_members(&store, &[A, B, E]).unwrap();
    let info = cluster::mark_committed(&store, 2, Epoch(5)).unwrap();
    assert_eq!(info.recovery_sets().map(|set| set.version).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(info.members.nodes(), [A, B, E]);
}

#[test]
fn proposals_are_idempotent_and_bounded() {
    let (_directory, store) = founded();
    let sets = [[A, B, D], [A, B, E], [A, B, NodeId(16)], [A, B, NodeId(17)]];
    assert_eq!(sets.len(), PENDING_SETS_MAX);
    for set in sets {
        let proposed = cluster::propose_members(&store, &set).unwrap();
        assert_eq!(cluster::propose_members(&store, &set).unwrap(), proposed);
    }
    let more = cluster::propose_members(&store, &[A, B, D]);
    assert!(matches!(more, Err(ClusterError::TooManyPending { .. })));
}

#[test]
fn so_many_stay_that_nothing_acknowledged_is_lost_with_those_who_go() {
    let (_directory, store) = founded();
    let lost = |members: &[NodeId]| {
        let refused = cluster::propose_members(&store, members);
        matches!(refused, Err(ClusterError::StateLost { needed: 2, .. }))
    };
    assert!(lost(&[A, D, E]));
    cluster::propose_members(&store, &[A, B, D]).unwrap();
    // What A and D, or B and D, have acknowledged is not on D as long as D copies.
    assert!(lost(&[A, D, E]) && lost(&[B, D, E]));
    assert!(!cluster::read(&store).unwrap().has_state(D));
    // The one that copies may be given up. It has copied nothing by that.
    cluster::propose_members(&store, &[A, B, E]).unwrap();
    let info = cluster::read(&store).unwrap();
    assert!(info.has_part(D) && !info.has_state(D));
    assert!(lost(&[A, E, NodeId(16)]));
    cluster::mark_copied(&store, D).unwrap();
    assert!(lost(&[A, E, NodeId(16)]), "it is no member any more");
    cluster::mark_copied(&store, E).unwrap();
    cluster::propose_members(&store, &[A, E, NodeId(16)]).unwrap();
    let info = cluster::read(&store).unwrap();
    assert!(info.has_state(E) && !info.has_state(NodeId(16)));
    assert!(info.has_part(C) && !info.has_part(NodeId(17)));
}

#[test]
fn the_number_of_members_stays_what_it_was() {
    let (_directory, store) = founded();
    for members in [&[A, B][..], &[A, B, C, D]] {
        let refused = cluster::propose_members(&store, members);
        assert!(matches!(refused, Err(ClusterError::SizeChanged { from: 3, .. })), "{refused:?}");
    }
}

#[test]
fn a_node_serves_from_one_directory_and_comes_back_under_a_new_number() {
    let (_directory, store) = founded();
    assert_eq!(disks::find(&store, D).unwrap(), None);
    disks::claim(&store, D, 0xd15c).unwrap();
    disks::claim(&store, D, 0xd15c).unwrap();
    let other = disks::claim(&store, D, 0xd15d);
    assert!(matches!(other, Err(ClusterError::DiskReplaced { node: 14 })));
    assert_eq!(disks::find(&store, D).unwrap(), Some(0xd15c));
    let known = cluster::propose_members(&store, &[A, B, D]);
    assert!(matches!(known, Err(ClusterError::DiskKnown { node: 14 })));
}

#[test]
fn a_damaged_cluster_value_is_named_by_its_key() {
    let (_directory, store) = fresh();
    let set = |version| format!(r#"{{"version":{version},"nodes":[1],"committed_in":null}}"#);
    let cluster = |members: &str, older: &str| {
        format!(
            r#"{{"cluster":"01","durability":"flush","holder":null,
               "members":{members},"older":[{older}]}}"#
        )
    };
    let empty = r#"{"version":1,"nodes":[],"committed_in":null}"#;
    let twice = r#"{"version":1,"nodes":[2,2],"committed_in":null}"#;
    let bad = [
        "{}".to_owned(),
        cluster(empty, ""),
        cluster(twice, ""),
        cluster(&set(1), &set(1)),
        cluster(&set(1), "").replace("flush", "hope"),
    ];
    for value in bad {
        let current = store.get("cluster").unwrap();
        let expected = Expected::of(current.as_ref());
        store.compare_and_set("cluster", expected, value.as_bytes()).unwrap();
        let error = cluster::next_epoch(&store, A).unwrap_err().to_string();
        assert!(error.contains("key cluster"), "{value}: {error}");
    }
}

#[test]
fn incarnations_grow_for_each_node_apart() {
    let (_directory, store) = fresh();
    assert_eq!(nodes::next_incarnation(&store, A).unwrap(), Incarnation(1));
    assert_eq!(nodes::next_incarnation(&store, A).unwrap(), Incarnation(2));
    assert_eq!(nodes::next_incarnation(&store, B).unwrap(), Incarnation(1));
}

fn engine(node: NodeId, incarnation: u64, port: u16) -> NodeEntry {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    NodeEntry::new(Role::Engine, node, Incarnation(incarnation), address)
}

#[test]
fn the_address_of_the_latest_incarnation_stands() {
    let (_directory, store) = fresh();
    assert_eq!(nodes::find(&store, Role::Engine, A).unwrap(), None);
    let (first, second) = (engine(A, 1, 1000), engine(A, 2, 2000));
    nodes::publish(&store, &first).unwrap();
    nodes::publish(&store, &second).unwrap();
    let late = nodes::publish(&store, &first);
    assert!(matches!(late, Err(ClusterError::NodeSuperseded { current: 2, own: 1, .. })));
    nodes::withdraw(&store, &first).unwrap();
    assert_eq!(nodes::find(&store, Role::Engine, A).unwrap(), Some(second.clone()));
    nodes::withdraw(&store, &second).unwrap();
    nodes::withdraw(&store, &second).unwrap();
    assert_eq!(nodes::find(&store, Role::Engine, A).unwrap(), None);
}

#[test]
fn all_nodes_are_listed_by_role_and_id() {
    let (_directory, store) = founded();
    let address = SocketAddr::from(([127, 0, 0, 1], 5));
    let mut with_gateway = engine(A, 1, 1000);
    with_gateway.gateway = Some(address);
    // As text, "engine-101" comes before "engine-11".
    let entries = [
        NodeEntry::new(Role::Sequencer, D, Incarnation(1), address),
        NodeEntry::new(Role::Storage, C, Incarnation(1), address),
        with_gateway,
        engine(NodeId(101), 1, 1001),
    ];
    for entry in entries.iter().rev() {
        nodes::publish(&store, entry).unwrap();
    }
    assert_eq!(nodes::list(&store).unwrap(), entries);
}

#[test]
fn a_member_is_replaced_in_whatever_the_members_are_and_twice_is_once() {
    let (_directory, store) = founded();
    let error = cluster::replace_member(&store, D, E).unwrap_err();
    assert!(error.to_string().contains("14 is no member: the members are 11, 12, 13"), "{error}");
    let error = cluster::replace_member(&store, A, B).unwrap_err();
    assert!(matches!(error, ClusterError::IsMember { node: 12 }), "{error}");
    disks::claim(&store, A, 7).unwrap();
    let set = cluster::replace_member(&store, A, D).unwrap();
    assert_eq!(set.nodes(), [B, C, D]);
    assert_eq!(cluster::replace_member(&store, A, D).unwrap(), set, "it is on its way");
    cluster::mark_committed(&store, 2, Epoch(1)).unwrap();
    let marked = cluster::replace_member(&store, A, D).unwrap();
    assert_eq!((marked.nodes(), marked.version), (set.nodes(), 2), "it is done");
    // Another one, told by somebody who knew the members before: nothing comes back.
    let error = cluster::replace_member(&store, B, E).unwrap_err();
    assert!(matches!(error, ClusterError::StateLost { .. }), "{error}");
    cluster::mark_copied(&store, D).unwrap();
    assert_eq!(cluster::replace_member(&store, B, E).unwrap().nodes(), [C, D, E]);
    let error = cluster::replace_member(&store, C, A).unwrap_err();
    assert!(matches!(error, ClusterError::StateLost { .. }), "{error}");
    cluster::mark_copied(&store, E).unwrap();
    let error = cluster::replace_member(&store, C, A).unwrap_err();
    assert!(matches!(error, ClusterError::DiskKnown { node: 11 }), "{error}");
    // Who was never a member was not replaced by one who is.
    let error = cluster::replace_member(&store, NodeId(77), C).unwrap_err();
    assert!(matches!(error, ClusterError::NotMember { node: 77, .. }), "{error}");
}

#[test]
fn the_nodes_that_have_stored_something_are_known() {
    let (_directory, store) = founded();
    assert_eq!(disks::list(&store).unwrap(), []);
    for node in [B, NodeId(2), A] {
        disks::claim(&store, node, 1).unwrap();
    }
    assert_eq!(disks::list(&store).unwrap(), [NodeId(2), A, B]);
}
