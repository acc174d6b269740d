use std::rc::Rc;

use halfmoon_reactor::AlignedBuffer;
use halfmoon_storage::{Disk, Which};

use super::*;

const BLOCK: usize = 4096;

fn filled(byte: u8, blocks: usize) -> AlignedBuffer {
    let mut buffer = AlignedBuffer::zeroed(blocks * BLOCK);
    buffer.bytes_mut().fill(byte);
    buffer
}

fn contents(drive: &Drive, file: usize, blocks: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    drive.0.borrow().platter.files[file].read_whole(blocks * BLOCK, &mut bytes);
    bytes
}

fn drive(seed: u64, profile: DiskProfile) -> (Drive, SimDisk, Rc<Shared>, usize) {
    let shared = Rc::new(Shared::default());
    let drive = Drive::new(shared.clone(), 0, seed, profile);
    let file = drive.0.borrow_mut().prepare(Which::Log, SegmentId(1));
    (drive.clone(), SimDisk(drive), shared, file)
}

#[test]
fn what_completed_as_durable_survives_a_loss_of_power_and_nothing_else_is_sure_to() {
    let (mut lost, mut damaged) = (0, 0);
    for seed in 0..200 {
        let (drive, mut disk, shared, file) = drive(seed, DiskProfile::default());
        disk.write(&file, 0, filled(1, 4), 4 * BLOCK, true, 7);
        assert!(disk.next_done().is_none(), "it takes a while");
        shared.set_now(1_000_000_000);
        let done = disk.next_done().unwrap();
        assert_eq!((done.token, done.result.unwrap()), (7, 4 * BLOCK));
        disk.write(&file, 4 * BLOCK as u64, filled(2, 4), 4 * BLOCK, true, 8);
        disk.write(&file, 8 * BLOCK as u64, filled(3, 4), 4 * BLOCK, false, 9);
        drive.crash(true);
        let bytes = contents(&drive, file, 12);
        assert!(bytes[..4 * BLOCK].iter().all(|byte| *byte == 1), "seed {seed}");
        lost += drive.counts().lost;
        damaged += drive.counts().damaged;
        assert!(disk.next_done().is_none(), "what was under way ended with its process");
    }
    assert!(lost > 100 && damaged > 20, "{lost} {damaged}");
}

#[test]
fn what_completed_without_being_durable_survives_the_process_and_not_the_machine() {
    let (mut kept, mut gone) = (0, 0);
    for seed in 0..100 {
        let (drive, mut disk, shared, file) = drive(seed, DiskProfile::default());
        disk.write(&file, 0, filled(1, 4), 4 * BLOCK, false, 7);
        shared.set_now(1_000_000_000);
        disk.next_done().unwrap();
        drive.crash(false);
        assert!(contents(&drive, file, 4).iter().all(|byte| *byte == 1));
        drive.crash(true);
        for block in contents(&drive, file, 4).chunks(BLOCK) {
            *if block[0] == 1 { &mut kept } else { &mut gone } += 1;
        }
    }
    assert!(kept > 100 && gone > 100, "{kept} {gone}");
}

#[test]
fn a_disk_in_trouble_says_so_and_is_no_better_than_it_says() {
    let (mut failed, mut short) = (0, 0);
    for seed in 0..50 {
        let profile = DiskProfile { fails: 1_000_000, ..DiskProfile::default() };
        let (_, mut disk, shared, file) = drive(seed, profile);
        disk.write(&file, 0, filled(1, 4), 4 * BLOCK, true, 7);
        shared.set_now(1_000_000_000);
        match disk.next_done().unwrap().result {
            Ok(len) => {
                assert_eq!(len, 2 * BLOCK);
                short += 1;
            }
            Err(_) => failed += 1,
        }
    }
    assert!(failed > 10 && short > 3, "{failed} {short}");
}

#[test]
fn a_segment_that_is_used_again_still_holds_what_was_in_it() {
    let (drive, mut disk, shared, file) = drive(1, DiskProfile::default());
    disk.write(&file, 0, filled(1, 1), BLOCK, true, 7);
    shared.set_now(1_000_000_000);
    disk.next_done().unwrap();
    let mut inner = drive.0.borrow_mut();
    inner.recycle(Which::Log, SegmentId(1));
    assert_eq!(inner.prepare(Which::Log, SegmentId(2)), file);
    drop(inner);
    assert_eq!(contents(&drive, file, 1)[0], 1);
}
