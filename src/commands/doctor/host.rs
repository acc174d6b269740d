//! Kernel, limits, io_uring, memory and processors.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use halfmoon_reactor::{Backend, Op, Options, Reactor};

use super::Finding;
use super::files::Files;

/// Kernels from this on give the ring that the reactor asks for first.
const KERNEL_BEST: (u32, u32) = (6, 1);

/// Memory that a node with RDMA may have to lock, in bytes: a lane's ring of 4 MiB and 1 MiB for what
/// leaves, for thirty lanes, and a few workers' memory for large values.
const LOCKED_BYTES: u64 = 512 << 20;

/// Descriptors that a node may need: a lane each, segments, workers, and clients over HTTP.
const OPEN_FILES: u64 = 4096;

/// How long the ring may take for an operation.
const RING_TIME: Duration = Duration::from_secs(1);

/// All but the ring itself.
pub(super) fn findings(files: &Files, rdma_matters: bool) -> Vec<Finding> {
    let text = |path: &str| files.read(path).unwrap_or_default();
    let limits = text("proc/self/limits");
    let mut found = vec![
        kernel(&text("proc/sys/kernel/osrelease")),
        locked(limit(&limits, "Max locked memory"), rdma_matters),
        open_files(limit(&limits, "Max open files")),
        huge_pages(&text("sys/kernel/mm/transparent_hugepage/enabled"), &text("proc/meminfo")),
        clock(&text("sys/devices/system/clocksource/clocksource0/current_clocksource")),
        governor(files.read("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").as_deref()),
        isolated(&text("sys/devices/system/cpu/isolated"), &text("sys/devices/system/cpu/online")),
    ];
    let contained = files.exists(".dockerenv") || files.exists("run/.containerenv");
    found.push(confinement(&text("proc/self/status"), contained));
    if let Some(value) = files.read("proc/sys/kernel/io_uring_disabled") {
        found.push(io_uring_setting(&value));
    }
    found
}

fn kernel(release: &str) -> Finding {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    let mut number = || parts.next().and_then(|part| part.parse::<u32>().ok());
    let Some(version) = number().zip(number()) else {
        return Finding::note("kernel", format!("version {release:?} is not understood"), "");
    };
    if version >= KERNEL_BEST {
        return Finding::ok("kernel", release);
    }
    let (major, minor) = KERNEL_BEST;
    let found = format!("{release}: rings of io_uring cost more before {major}.{minor}");
    Finding::note("kernel", found, format!("a kernel from {major}.{minor} on"))
}

/// The soft limit of a line of `/proc/self/limits`; `u64::MAX` if there is none.
fn limit(limits: &str, name: &str) -> Option<u64> {
    let rest = limits.lines().find_map(|line| line.strip_prefix(name))?;
    match rest.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

fn locked(limit: Option<u64>, rdma_matters: bool) -> Finding {
    let Some(limit) = limit else {
        return Finding::note("memlock", "the limit of locked memory cannot be read", "");
    };
    if limit == u64::MAX {
        return Finding::ok("memlock", "memory may be locked without limit");
    }
    let (mib, need) = (limit >> 20, LOCKED_BYTES >> 20);
    let found = format!("{mib} MiB of memory may be locked; RDMA may need {need}");
    let change = "LimitMEMLOCK=infinity in the service; `ulimit -l unlimited` in a shell; both from the \
                  next start on";
    match (limit >= LOCKED_BYTES, rdma_matters) {
        (true, _) => Finding::ok("memlock", found),
        (false, true) => Finding::problem("memlock", found, change),
        (false, false) => Finding::note("memlock", format!("{found}, TCP none"), ""),
    }
}

fn open_files(limit: Option<u64>) -> Finding {
    match limit {
        None => Finding::note("open files", "the limit of open files cannot be read", ""),
        Some(u64::MAX) => Finding::ok("open files", "without limit"),
        Some(limit) if limit >= OPEN_FILES => Finding::ok("open files", format!("{limit}")),
        Some(limit) => {
            let found = format!("{limit} at once; a node with many clients needs {OPEN_FILES}");
            let change = "LimitNOFILE=65536 in the service; `ulimit -n 65536` in a shell";
            Finding::note("open files", found, change)
        }
    }
}

fn huge_pages(transparent: &str, meminfo: &str) -> Finding {
    let mode = transparent.split_once('[').and_then(|(_, rest)| Some(rest.split_once(']')?.0));
    let pool = meminfo.lines().find_map(|line| line.strip_prefix("HugePages_Total:"));
    let pool = pool.map_or("unknown", str::trim);
    let found = |mode: &str| format!("transparent: {mode}; reserved pool: {pool} pages (not used)");
    match mode {
        Some(mode @ ("always" | "madvise")) => Finding::ok("huge pages", found(mode)),
        Some(mode) => {
            let change = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled";
            Finding::note("huge pages", found(mode), change)
        }
        None => Finding::note("huge pages", found("the kernel has none"), ""),
    }
}

fn clock(source: &str) -> Finding {
    match source {
        "tsc" | "kvm-clock" | "arch_sys_counter" | "hyperv_clocksource_tsc_page" => {
            Finding::ok("clock", source)
        }
        "" => Finding::note("clock", "the clock source cannot be read", ""),
        other => {
            let found = format!("{other}: each look at the clock is a system call");
            let change = "echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource, \
                          if the kernel offers it";
            Finding::note("clock", found, change)
        }
    }
}

fn governor(name: Option<&str>) -> Finding {
    match name {
        None => Finding::ok("cpu governor", "none: speed is the machine's or the hypervisor's"),
        Some("performance") => Finding::ok("cpu governor", "performance"),
        Some(other) => {
            let found = format!("{other}: processors slow down between messages");
            Finding::note("cpu governor", found, "cpupower frequency-set -g performance")
        }
    }
}

fn isolated(isolated: &str, online: &str) -> Finding {
    if isolated.is_empty() {
        let found = format!("processors {online}, none set aside for nodes");
        return Finding::note(
            "isolated cpus",
            found,
            "CPUAffinity= in the services of nodes that spin",
        );
    }
    Finding::ok("isolated cpus", format!("{isolated} of {online}"))
}

fn confinement(status: &str, contained: bool) -> Finding {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let filtered = field("Seccomp:").is_some_and(|mode| mode != "0");
    match (filtered, contained) {
        (false, false) => Finding::ok("confinement", "no container, no filter of system calls"),
        (false, true) => Finding::ok("confinement", "a container without filter of system calls"),
        (true, _) => {
            let found = "system calls are filtered (seccomp): io_uring may be refused";
            let change =
                "allow io_uring_setup, io_uring_enter and io_uring_register in the profile";
            Finding::note("confinement", found, change)
        }
    }
}

fn io_uring_setting(value: &str) -> Finding {
    let change = "sysctl -w kernel.io_uring_disabled=0, and the same in /etc/sysctl.d/";
    match value {
        "0" => Finding::ok("io_uring setting", "kernel.io_uring_disabled = 0"),
        "1" => {
            let found = "kernel.io_uring_disabled = 1: only for the group kernel.io_uring_group";
            Finding::note("io_uring setting", found, change)
        }
        other => {
            let found = format!("kernel.io_uring_disabled = {other}: nodes go on with poll");
            Finding::problem("io_uring setting", found, change)
        }
    }
}

/// Makes a ring and has it do what nodes need of it on sockets.
pub(super) fn ring() -> Finding {
    match try_ring() {
        Ok(()) => Finding::ok("io_uring", "a ring is made, and sends, receives and polls"),
        Err(error) => {
            let found = format!("no ring works ({error}): nodes go on with poll, and slower");
            let change = "see the lines on kernel, io_uring setting and confinement";
            Finding::problem("io_uring", found, change)
        }
    }
}

fn try_ring() -> io::Result<()> {
    let options = Options { backend: Some(Backend::Uring), ..Options::default() };
    let mut reactor = Reactor::new(options).map_err(io::Error::other)?;
    let user = reactor.register();
    let (from, to) = UnixStream::pair()?;
    let (from, to) = (Arc::new(OwnedFd::from(from)), Arc::new(OwnedFd::from(to)));
    let mut act = |op: Op| {
        reactor.start(user, 0, op);
        reactor.wait(RING_TIME).map_err(io::Error::other)?;
        let done = reactor.take(user).ok_or(io::ErrorKind::TimedOut)?;
        done.result
    };
    act(Op::Send { socket: from, buffer: vec![7; 64], from: 0 })?;
    act(Op::Readable(Arc::clone(&to)))?;
    let received = act(Op::Recv { socket: to, buffer: vec![0; 64], from: 0 })?;
    if received == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::super::Grade::{Note, Ok as Fine, Problem};
    use super::super::files::tests::machine;
    use super::*;

    #[test]
    fn kernels_are_told_by_their_numbers() {
        for (release, grade) in [
            ("6.18.44-fc", Fine),
            ("6.1.0-18-amd64", Fine),
            ("5.15.0", Note),
            ("odd", Note),
            ("", Note),
        ] {
            assert_eq!(kernel(release).grade, grade, "{release}");
        }
    }

    #[test]
    fn limits_are_read_and_matter_where_there_is_an_adapter() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max open files            1024                 524288               files     \n\
                      Max locked memory         8388608              unlimited            bytes     \n";
        assert_eq!(limit(limits, "Max open files"), Some(1024));
        assert_eq!(limit("Max open files unlimited unlimited", "Max open files"), Some(u64::MAX));
        assert_eq!(limit("Max open files", "Max open files"), None);
        assert_eq!(locked(limit(limits, "Max locked memory"), true).grade, Problem);
        assert_eq!(locked(limit(limits, "Max locked memory"), false).grade, Note);
        assert_eq!(locked(Some(u64::MAX), true).grade, Fine);
        assert_eq!(open_files(Some(1024)).grade, Note);
    }

    #[test]
    fn settings_of_memory_clock_and_processors_are_judged() {
        let huge =
            huge_pages("always [madvise] never", "MemTotal: 1 kB\nHugePages_Total:      16\n");
        assert_eq!(huge.grade, Fine);
        assert!(
            huge.found.contains("madvise") && huge.found.contains("16 pages"),
            "{}",
            huge.found
        );
        assert_eq!(huge_pages("always madvise [never]", "").grade, Note);
        assert_eq!(huge_pages("[", "").grade, Note);
        assert_eq!((clock("tsc").grade, clock("hpet").grade), (Fine, Note));
        assert_eq!((governor(None).grade, governor(Some("powersave")).grade), (Fine, Note));
        assert_eq!((isolated("", "0-3").grade, isolated("2-3", "0-3").grade), (Note, Fine));
        assert_eq!(confinement("Seccomp:\t2\n", true).grade, Note);
        assert_eq!(confinement("Seccomp:\t0\n", false).grade, Fine);
    }

    #[test]
    fn a_ring_that_is_switched_off_is_a_problem() {
        let grades: Vec<_> = ["0", "1", "2"].map(|value| io_uring_setting(value).grade).into();
        assert_eq!(grades, [Fine, Note, Problem]);
    }

    #[test]
    fn a_machine_that_tells_nothing_has_no_problem_on_that_account() {
        let (_root, files) = machine(&[]);
        assert!(findings(&files, true).iter().all(|found| found.grade != Problem));
    }
}
