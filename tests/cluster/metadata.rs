//! A cluster whose metadata lies in etcd, and etcd that goes away.

#[path = "../../storage/meta/tests/support/etcd.rs"]
mod etcd;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use rustix::process::{Signal, kill_process};

use crate::failover::{check, in_charge_of, load, process_of, until};
use crate::support::{Dev, HALFMOON, Scratch, Shared, block_on};
use etcd::Etcd;

#[test]
fn without_etcd_requests_go_on_and_with_it_again_a_dead_sequencer_is_succeeded() {
    let name = "without_etcd_requests_go_on_and_with_it_again_a_dead_sequencer_is_succeeded";
    let Some(mut etcd) = Etcd::start(name) else { return };
    let scratch = Scratch::new();
    let data = scratch.path("data");
    let address = format!("etcd://{}/cluster", etcd.address());
    let dev = Dev::start_with(&data, &["--meta", &address]);
    dev.deploy(HALFMOON);
    let store = etcd.open("cluster");
    let acknowledged: Shared<BTreeSet<String>> = Arc::new(Mutex::new(BTreeSet::new()));
    block_on(async {
        load(&dev, "with", &acknowledged).await;
        let (first, epoch) = in_charge_of(&*store);
        let sequencer = process_of(&*store, first);
        etcd.kill();
        load(&dev, "without", &acknowledged).await;
        etcd.start_again();
        assert_eq!(in_charge_of(&*store), (first, epoch), "nobody took over for want of etcd");
        kill_process(sequencer, Signal::KILL).unwrap();
        load(&dev, "again", &acknowledged).await;
        until("another in charge", || in_charge_of(&*store).1 > epoch).await;
        check(&dev, &acknowledged).await;
    });
    assert!(dev.stop());
    // Started again, it finds its metadata by itself.
    let dev = Dev::start(&data);
    block_on(check(&dev, &acknowledged));
    assert!(dev.stop());
}
