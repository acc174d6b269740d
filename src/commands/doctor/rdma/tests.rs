use super::super::Grade;
use super::super::files::tests::machine;
use super::*;

const MAPPED: &str = "0000:0000:0000:0000:0000:ffff:0a09:0001\n";
const LINK_LOCAL: &str = "fe80:0000:0000:0000:0e42:a1ff:fe5c:7a10\n";

/// As a ConnectX-6 Dx shows itself; the counters are of one that has lost packets.
const MLX5: [(&str, &str); 13] = [
    ("sys/class/infiniband/mlx5_0/device/vendor", "0x15b3\n"),
    ("sys/class/infiniband/mlx5_0/ports/1/state", "4: ACTIVE\n"),
    ("sys/class/infiniband/mlx5_0/ports/1/rate", "100 Gb/sec (4X EDR)\n"),
    ("sys/class/infiniband/mlx5_0/ports/1/link_layer", "Ethernet\n"),
    ("sys/class/infiniband/mlx5_0/ports/1/gids/0", LINK_LOCAL),
    ("sys/class/infiniband/mlx5_0/ports/1/gids/1", MAPPED),
    ("sys/class/infiniband/mlx5_0/ports/1/gids/2", MAPPED),
    ("sys/class/infiniband/mlx5_0/ports/1/gid_attrs/types/0", "RoCE v2\n"),
    ("sys/class/infiniband/mlx5_0/ports/1/gid_attrs/types/1", "IB/RoCE v1\n"),
    ("sys/class/infiniband/mlx5_0/ports/1/gid_attrs/types/2", "RoCE v2\n"),
    ("sys/class/infiniband/mlx5_0/ports/1/gid_attrs/ndevs/2", "ens1f0np0\n"),
    ("sys/class/infiniband/mlx5_0/ports/1/hw_counters/out_of_sequence", "17\n"),
    ("sys/class/net/ens1f0np0/mtu", "1500\n"),
];

/// As Soft-RoCE shows itself.
const RXE: [(&str, &str); 8] = [
    ("sys/class/infiniband/rxe0/parent", "eth0\n"),
    ("sys/class/infiniband/rxe0/ports/1/state", "4: ACTIVE\n"),
    ("sys/class/infiniband/rxe0/ports/1/rate", "10 Gb/sec (4X)\n"),
    ("sys/class/infiniband/rxe0/ports/1/link_layer", "Ethernet\n"),
    ("sys/class/infiniband/rxe0/ports/1/gids/0", MAPPED),
    ("sys/class/infiniband/rxe0/ports/1/gid_attrs/types/0", "RoCE v2\n"),
    ("sys/class/infiniband/rxe0/ports/1/gid_attrs/ndevs/0", "eth0\n"),
    ("sys/class/net/eth0/mtu", "9000\n"),
];

fn opened(names: &[&str]) -> Opened {
    Ok(names.iter().map(|name| (*name).to_owned()).collect())
}

fn graded(findings: &[Finding], check: &str) -> Vec<Grade> {
    findings.iter().filter(|found| found.check == check).map(|found| found.grade).collect()
}

#[test]
fn an_adapter_of_hardware_is_described_with_its_usable_address_and_packets() {
    let (_root, files) = machine(&MLX5);
    let ports = devices(&files);
    let found = findings(&ports, &opened(&["mlx5_0"]), Some([10, 9, 0, 1].into()));
    assert_eq!(graded(&found, "rdma device"), [Grade::Ok]);
    assert!(found[0].found.ends_with("on ens1f0np0: RoCE v2 at 10.9.0.1"), "{}", found[0].found);
    assert_eq!(graded(&found, "rdma library"), [Grade::Ok]);
    assert_eq!(graded(&found, "mtu"), [Grade::Note]);
    assert!(found[2].found.contains("packets of 1024 bytes"), "{}", found[2].found);
    assert_eq!(graded(&found, "listen"), [Grade::Ok]);
    let congestion = congestion(&files, &ports);
    assert!(congestion[0].found.contains("out_of_sequence 17"), "{congestion:?}");
}

#[test]
fn an_address_of_no_adapter_and_a_library_that_opens_none_are_problems() {
    let (_root, files) = machine(&MLX5);
    let ports = devices(&files);
    let found = findings(&ports, &opened(&[]), Some([127, 0, 0, 1].into()));
    assert_eq!(graded(&found, "rdma library"), [Grade::Problem]);
    assert_eq!(graded(&found, "listen"), [Grade::Problem]);
    let found = findings(&ports, &Err("this build has no RDMA".to_owned()), None);
    assert_eq!(graded(&found, "rdma library"), [Grade::Problem]);
}

#[test]
fn an_adapter_of_software_is_no_reason_to_change_anything() {
    let (_root, files) = machine(&RXE);
    let ports = devices(&files);
    assert!(!matters(&ports));
    let found = findings(&ports, &Err("this build has no RDMA".to_owned()), None);
    assert_eq!(graded(&found, "rdma device"), [Grade::Note]);
    assert_eq!(graded(&found, "rdma library"), [Grade::Note]);
    assert_eq!(graded(&found, "mtu"), [Grade::Ok]);
    assert!(found[2].found.contains("packets of 4096 bytes"), "{}", found[2].found);
}

#[test]
fn a_port_that_is_down_or_of_infiniband_or_without_address_is_told_apart() {
    let cases = [
        ("state", "1: DOWN", Grade::Problem, "is DOWN"),
        ("link_layer", "InfiniBand", Grade::Note, "not supported"),
        ("gid_attrs/types/2", "IB/RoCE v1", Grade::Problem, "no RoCE v2 address"),
    ];
    for (file, text, grade, said) in cases {
        let (root, files) = machine(&MLX5);
        let ports = root.path().join("sys/class/infiniband/mlx5_0/ports/1");
        std::fs::write(ports.join(file), text).unwrap();
        let found = findings(&devices(&files), &opened(&["mlx5_0"]), None);
        assert_eq!(graded(&found, "rdma device"), [grade], "{file}");
        assert!(found[0].found.contains(said), "{}", found[0].found);
    }
}

#[test]
fn no_device_and_broken_files_are_described_and_nothing_else() {
    let (_root, files) = machine(&[]);
    let found = findings(&devices(&files), &opened(&[]), None);
    assert_eq!(graded(&found, "rdma device"), [Grade::Note]);
    let broken: Vec<(&str, &str)> =
        MLX5.iter().map(|(path, _)| (*path, "\u{fffd}:-1\n\n")).collect();
    let (_root, files) = machine(&broken);
    let ports = devices(&files);
    assert_eq!(ports.len(), 1);
    assert!(!findings(&ports, &opened(&[]), None).is_empty());
    assert_eq!(congestion(&files, &ports).len(), 1);
}

#[test]
fn packets_fit_with_all_that_they_carry_beside_their_load() {
    let cases = [
        (351, None),
        (1119, Some(512)),
        (1120, Some(1024)),
        (4191, Some(2048)),
        (4192, Some(4096)),
    ];
    for (mtu, bytes) in cases {
        assert_eq!(packet_bytes(mtu), bytes, "{mtu}");
    }
}
