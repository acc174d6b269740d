//! One cluster on two emulated machines, each with a Soft-RoCE device on a wire between them.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::cluster::{clean, figures, program};
use super::image::{self, Image};
use super::machine::{Ended, Machine};
use super::missing;
use crate::run::{Tally, has, target};

/// How long the machines may take.
const TIME: Duration = Duration::from_secs(1200);

/// The machines: what their lines begin with, their script, and the last byte of their addresses.
const MACHINES: [(&str, &str, u8); 2] =
    [("a: ", include_str!("wire-a.sh"), 1), ("b: ", include_str!("wire-b.sh"), 2)];

/// What both scripts begin with.
const COMMON: &str = include_str!("wire.sh");

/// Where the scripts tell each other how far they are, in the folder that both see.
const CUES: &str = "cues";

/// Runs the cluster.
pub(super) fn run() -> anyhow::Result<Tally> {
    let name = "a cluster on two machines";
    if let Some(why) = missing() {
        return Ok(Tally::skip(name, why));
    }
    if !has("etcd") {
        return Ok(Tally::skip(name, "etcd is missing (package etcd-server)"));
    }
    let folder = target().join("rdma");
    match image::prepare(&folder)? {
        Ok(image) => both(&image, &folder),
        Err(why) => Ok(Tally::skip(name, why)),
    }
}

fn both(image: &Image, folder: &Path) -> anyhow::Result<Tally> {
    let program = program()?;
    let mut machines = Vec::new();
    for (name, script, last) in MACHINES {
        let machine = Machine::named(name, image.clone(), folder)?;
        let file = machine.share().join(format!("wire-{last}.sh"));
        fs::write(&file, format!("{COMMON}\n{script}"))?;
        machines.push((machine, file, last));
    }
    let share = folder.join("share");
    fs::copy(&program, share.join("halfmoon"))?;
    let cues = share.join(CUES);
    if cues.exists() {
        fs::remove_dir_all(&cues)?;
    }
    fs::create_dir(&cues)?;
    let sockets = [1, 2].map(|last| folder.join(format!("wire-{last}")));
    for socket in &sockets {
        fs::remove_file(socket).ok();
    }
    let ended = std::thread::scope(|scope| {
        let running = machines.iter().map(|(machine, file, last)| {
            let (near, far) = if *last == 1 { (0, 1) } else { (1, 0) };
            let wire = format!(
                "dgram,id=wire,local.type=unix,local.path={},remote.type=unix,remote.path={}",
                sockets[near].display(),
                sockets[far].display()
            );
            let card = format!("virtio-net-pci,netdev=wire,mac=52:54:00:09:00:0{last}");
            scope.spawn(move || machine.run(file, &["-netdev", &wire, "-device", &card], TIME))
        });
        // All are started before the first is waited for.
        let running: Vec<_> = running.collect();
        running.into_iter().map(|thread| thread.join().ok()).collect::<Vec<_>>()
    });
    let ended = ended.into_iter().flatten().collect::<anyhow::Result<Vec<Ended>>>()?;
    let verdict = judge(&ended);
    if let Err(why) = &verdict {
        println!("rdma, two machines: {why}");
    }
    Ok(Tally::of(verdict.is_ok()))
}

fn judge(ended: &[Ended]) -> Result<(), String> {
    let [first, second] = ended else { return Err("a machine did not run".to_owned()) };
    for (ended, name) in [(first, "a"), (second, "b")] {
        if ended.status != Some(0) {
            return Err(format!("the script of {name} ended with {:?}", ended.status));
        }
        match figures(&ended.lines, &format!("machine {name}"))? {
            (0, _) => return Err(format!("nothing went over RDMA on {name}")),
            (_, 0) => {}
            (_, tcp) => return Err(format!("{tcp} bytes went over TCP on {name}")),
        }
    }
    clean(&first.lines)?;
    let is_sound = first.lines.iter().any(|line| line == "flaws 0");
    is_sound.then_some(()).ok_or_else(|| "the disks are not sound".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(text: &str) -> Ended {
        Ended { status: Some(0), lines: text.lines().map(str::to_owned).collect() }
    }

    #[test]
    fn both_machines_have_to_use_rdma_only_and_the_audit_and_the_disks_to_be_clean() {
        let judged = |tcp: u64, flaws: u64, lost: u64| {
            let a = format!(
                "lost {lost}, doubled 0\nmachine a: 7 bytes over RDMA, 0 bytes over TCP\nflaws {flaws}"
            );
            let b = format!("machine b: 7 bytes over RDMA, {tcp} bytes over TCP");
            judge(&[ended(&a), ended(&b)])
        };
        assert_eq!(judged(0, 0, 0), Ok(()));
        assert!(judged(1, 0, 0).is_err());
        assert!(judged(0, 1, 0).is_err());
        assert!(judged(0, 0, 1).is_err());
    }
}
