//! The floor under durable appends: how long one durable write takes on this disk.

use std::io;
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use crate::{AlignedBuffer, BLOCK_BYTES, Op, Options, Reactor, open_direct};

/// Bytes of each writer's file.
const FILE_BYTES: u64 = 4 << 20;

/// Per round, the times of all writers of one durable 4 KiB write, at once, into files that were
/// written before; ascending. With three writers the second is what a quorum of two waits for.
/// Rounds begin `every` so often, or at once after the one before if that is zero: a device that has
/// gone to sleep between two writes takes longer.
pub fn durable_writes(
    dir: &Path,
    writers: usize,
    rounds: usize,
    every: Duration,
) -> io::Result<Vec<Vec<Duration>>> {
    let barrier = Arc::new(Barrier::new(writers));
    let threads: Vec<_> = (0..writers)
        .map(|index| {
            let (path, barrier) = (dir.join(format!("floor-{index}")), Arc::clone(&barrier));
            std::thread::spawn(move || writer(&path, (rounds, every), &barrier))
        })
        .collect();
    let mut samples = vec![Vec::with_capacity(writers); rounds];
    for thread in threads {
        let times = thread.join().map_err(|_| io::Error::other("a writer panicked"))??;
        for (round, time) in samples.iter_mut().zip(times) {
            round.push(time);
        }
    }
    for round in &mut samples {
        round.sort_unstable();
    }
    Ok(samples)
}

fn writer(
    path: &Path,
    (rounds, every): (usize, Duration),
    barrier: &Barrier,
) -> io::Result<Vec<Duration>> {
    let prepared = prepare(path);
    let mut times = Vec::with_capacity(rounds);
    let mut reactor = Reactor::new(Options::default()).map_err(io::Error::other)?;
    let user = reactor.register();
    let mut buffer = AlignedBuffer::zeroed(BLOCK_BYTES);
    let mut due = Instant::now();
    for round in 0..rounds {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        due += every;
        // Everyone comes to every barrier, also one whose file could not be prepared.
        barrier.wait();
        let Ok(file) = &prepared else { continue };
        let offset = (round as u64 * BLOCK_BYTES as u64) % FILE_BYTES;
        let begin = Instant::now();
        let file = Arc::clone(file);
        reactor.start(user, 0, Op::Write { file, buffer, len: BLOCK_BYTES, offset, durable: true });
        let done = loop {
            reactor.wait(Duration::from_secs(1)).map_err(io::Error::other)?;
            if let Some(done) = reactor.take(user) {
                break done;
            }
        };
        times.push(begin.elapsed());
        done.result?;
        buffer = match done.op {
            Op::Write { buffer, .. } => buffer,
            Op::Readable(_)
            | Op::Writable(_)
            | Op::Recv { .. }
            | Op::RecvMemory { .. }
            | Op::Send { .. }
            | Op::SendMemory { .. }
            | Op::Read { .. } => AlignedBuffer::zeroed(BLOCK_BYTES),
        };
    }
    prepared?;
    std::fs::remove_file(path)?;
    Ok(times)
}

fn prepare(path: &Path) -> io::Result<Arc<std::fs::File>> {
    std::fs::write(path, vec![0; usize::try_from(FILE_BYTES).unwrap_or(0)])?;
    let (file, _) = open_direct(path, false)?;
    file.sync_all()?;
    Ok(Arc::new(file))
}
