//! The disk under the data directory.

use std::os::linux::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use super::Finding;
use super::files::Files;

/// Durable writes that are measured.
const FLUSHES: usize = 15;

/// A flush that takes longer is what appends wait for most.
const FLUSH_SLOW: Duration = Duration::from_millis(2);

/// One that takes less than a disk can take has not reached it.
const FLUSH_UNLIKELY: Duration = Duration::from_micros(5);

pub(super) fn findings(files: &Files, place: &Path) -> Vec<Finding> {
    let device = std::fs::metadata(place).map(|data| data.st_dev()).ok();
    let device = device.map(|number| (rustix::fs::major(number), rustix::fs::minor(number)));
    let mut found = Vec::new();
    let mounts = files.read("proc/self/mountinfo").unwrap_or_default();
    found.push(file_system(device.and_then(|device| mounted(&mounts, device)), place));
    if let Some((major, minor)) = device {
        let block = format!("sys/dev/block/{major}:{minor}");
        // A partition has its disk's queue.
        let mode = files.read(&format!("{block}/queue/write_cache"));
        found.push(write_cache(
            mode.or_else(|| files.read(&format!("{block}/../queue/write_cache"))),
        ));
    }
    found.push(direct(place));
    found.push(flush(place));
    found
}

/// The kind of file system that is mounted from a device.
fn mounted(mounts: &str, (major, minor): (u32, u32)) -> Option<&str> {
    let number = format!("{major}:{minor}");
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let is_it = before.split_whitespace().nth(2) == Some(number.as_str());
        after.split_whitespace().next().filter(|_| is_it)
    })
}

fn file_system(kind: Option<&str>, place: &Path) -> Finding {
    let place = place.display();
    match kind {
        Some("tmpfs" | "ramfs") => Finding::problem(
            "file system",
            format!("{place} is memory: nothing there survives a loss of power"),
            "--data-dir on a disk",
        ),
        Some(kind @ ("nfs" | "nfs4" | "cifs" | "9p" | "fuse.sshfs")) => Finding::problem(
            "file system",
            format!("{place} is on {kind}: flushes are the server's promise"),
            "--data-dir on a local disk, with ext4 or xfs",
        ),
        Some(kind @ ("ext4" | "xfs")) => {
            Finding::ok("file system", format!("{place} is on {kind}"))
        }
        Some(kind) => {
            let found = format!("{place} is on {kind}; ext4 and xfs are what is tested");
            Finding::note("file system", found, "")
        }
        None => Finding::note("file system", format!("that of {place} is not known"), ""),
    }
}

fn write_cache(mode: Option<String>) -> Finding {
    match mode.as_deref() {
        Some("write through") => {
            Finding::ok("write cache", "write through: a write that is done is durable")
        }
        Some("write back") => {
            Finding::ok("write cache", "write back: each durable write makes the device flush")
        }
        other => {
            let found =
                format!("{} (no mode of a disk's)", other.unwrap_or("not told by the kernel"));
            Finding::note("write cache", found, "")
        }
    }
}

/// Opens a file for direct writes.
fn direct(place: &Path) -> Finding {
    let path = place.join(format!(".halfmoon-doctor-{}", std::process::id()));
    let opened = halfmoon_reactor::open_direct(&path, true);
    std::fs::remove_file(&path).ok();
    match opened {
        Ok((_, true)) => Finding::ok("direct writes", "O_DIRECT works"),
        Ok((_, false)) => {
            let found = "the file system refuses O_DIRECT: writes go through the page cache";
            Finding::note("direct writes", found, "ext4 or xfs under --data-dir")
        }
        Err(error) => {
            let found = format!("cannot write in {}: {error}", place.display());
            Finding::problem("direct writes", found, "the owner or the mode of the directory")
        }
    }
}

fn flush(place: &Path) -> Finding {
    let folder = place.join(format!(".halfmoon-doctor-{}", std::process::id()));
    let measured = std::fs::create_dir(&folder).and_then(|()| {
        halfmoon_reactor::floor::durable_writes(&folder, 1, FLUSHES, Duration::ZERO)
    });
    std::fs::remove_dir_all(&folder).ok();
    match measured {
        Ok(rounds) => flush_takes(rounds.into_iter().flatten().collect()),
        Err(error) => {
            let found = format!("a durable write of 4 KiB fails: {error}");
            Finding::problem("flush", found, "the disk, its mount, or its space")
        }
    }
}

fn flush_takes(mut times: Vec<Duration>) -> Finding {
    times.sort_unstable();
    let Some(median) = times.get(times.len() / 2).copied() else {
        return Finding::note("flush", "nothing was measured", "");
    };
    let found =
        format!("{} µs, median of {} durable writes of 4 KiB", median.as_micros(), times.len());
    if median > FLUSH_SLOW {
        let found = format!("{found}: every append waits for one");
        return Finding::note("flush", found, "a disk with power-loss protection");
    }
    if median < FLUSH_UNLIKELY {
        let found = format!("{found}: no disk is so fast");
        return Finding::problem("flush", found, "a disk that flushes, under --data-dir");
    }
    Finding::ok("flush", found)
}

#[cfg(test)]
mod tests {
    use super::super::Grade;
    use super::*;

    const MOUNTS: &str = "25 24 0:23 / /dev/shm rw,relatime - tmpfs tmpfs rw\n\
                          26 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
                          broken\n27 1 8:1 / /x rw - \n";

    #[test]
    fn the_file_system_is_that_of_the_device_and_memory_is_a_problem() {
        assert_eq!(mounted(MOUNTS, (254, 0)), Some("ext4"));
        assert_eq!(mounted(MOUNTS, (0, 23)), Some("tmpfs"));
        assert_eq!((mounted(MOUNTS, (8, 1)), mounted(MOUNTS, (9, 9))), (None, None));
        let grade = |kind| file_system(kind, Path::new("/d")).grade;
        assert_eq!(grade(Some("tmpfs")), Grade::Problem);
        assert_eq!(
            (grade(Some("ext4")), grade(Some("zfs")), grade(None)),
            (Grade::Ok, Grade::Note, Grade::Note)
        );
    }

    #[test]
    fn a_flush_is_judged_by_its_median() {
        let takes = |us: [u64; 3]| flush_takes(us.map(Duration::from_micros).into()).grade;
        assert_eq!(takes([90, 100, 9000]), Grade::Ok);
        assert_eq!(takes([9000, 100, 9000]), Grade::Note);
        assert_eq!(takes([1, 1, 100]), Grade::Problem);
        assert_eq!(flush_takes(Vec::new()).grade, Grade::Note);
    }

    #[test]
    fn a_disk_is_really_tried_and_nothing_is_left_on_it() {
        let place = tempfile::tempdir().unwrap();
        assert_ne!(direct(place.path()).grade, Grade::Problem);
        assert!(flush(place.path()).found.contains("median of 15"));
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
        assert_eq!(flush(&place.path().join("none")).grade, Grade::Problem);
    }
}
