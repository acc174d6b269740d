//! File systems that can lose power, or become slow.

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::cluster::Victim;
use crate::run::{has, target};

/// Size of a volume in bytes.
const VOLUME_BYTES: u64 = 1 << 30;
/// The file, beside a rated disk's image, that says how fast it may be.
const RATE_FILE: &str = "rate";
/// The rate of a disk that is not held back, in bits per second: more than any has.
const RATE_UNLIMITED: u64 = 1 << 40;
/// Bytes that a rated disk moves at a time: it does not learn of a new rate in between.
const RATED_BYTES: u32 = 64 * 1024;
/// How long a device may take to appear or to go.
const WAIT_MAX: Duration = Duration::from_secs(20);

/// How a volume loses power.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// The file system is shut down: what it had not written yet is gone. It cannot show a missing
    /// flush of direct writes to blocks that exist already.
    FileSystem,
    /// The disk has a cache and is killed: what it was not told to flush is gone.
    Device,
    /// The disk has no cache, and can be told to be slow.
    Rated,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FileSystem => "file system shutdown",
            Self::Device => "device with a write-back cache",
            Self::Rated => "device with a limited rate",
        })
    }
}

impl Way {
    /// Why it cannot be had on this machine.
    pub(crate) fn missing(self) -> Option<String> {
        let (programs, packages): (&[&str], &str) = match self {
            Self::FileSystem => {
                (&["mkfs.ext4", "mount", "python3"], "e2fsprogs, mount and python3-minimal")
            }
            Self::Device | Self::Rated => (
                &["mkfs.ext4", "mount", "nbdkit", "nbdfuse"],
                "e2fsprogs, mount, nbdkit, libnbd-bin and fuse3",
            ),
        };
        if let Some(program) = programs.iter().find(|program| !has(program)) {
            return Some(format!("no {program} here; install {packages}"));
        }
        if !is_root() {
            return Some("mounting needs root".to_owned());
        }
        let devices: &[&str] = match self {
            Self::FileSystem => &["/dev/loop-control"],
            Self::Device | Self::Rated => &["/dev/loop-control", "/dev/fuse"],
        };
        let device = devices.iter().find(|device| !Path::new(device).exists())?;
        Some(format!("no {device} here; the kernel or the container lacks it"))
    }
}

/// Whether this process may do what only root may.
pub(crate) fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output();
    output.is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

/// A mounted file system on a file.
pub(crate) struct Volume {
    way: Way,
    /// Where its image and its disk's files are.
    folder: PathBuf,
    /// Where it is mounted.
    mount: PathBuf,
    /// The folder goes with it.
    is_temporary: bool,
    mounted: bool,
    disk: Option<Disk>,
}

/// The processes of a disk with a cache.
struct Disk {
    server: Child,
    fuse: Child,
    mount: PathBuf,
}

impl Volume {
    /// Makes an empty file system and mounts it, in a folder that goes with it.
    pub(crate) fn create(way: Way) -> anyhow::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = target().join(format!("power-{}-{number}", std::process::id()));
        let mount = folder.join("data");
        let is_temporary = true;
        Self { way, folder, mount, is_temporary, mounted: false, disk: None }.make()
    }

    /// Makes an empty file system in `folder`, which stays, and mounts it at `mount`.
    pub(crate) fn create_at(way: Way, folder: PathBuf, mount: PathBuf) -> anyhow::Result<Self> {
        Self { way, folder, mount, is_temporary: false, mounted: false, disk: None }.make()
    }

    fn make(self) -> anyhow::Result<Self> {
        let mut volume = self;
        fs::create_dir_all(&volume.folder)?;
        fs::create_dir_all(&volume.mount)?;
        File::create(volume.image())?.set_len(VOLUME_BYTES)?;
        // Without blocks that only root may use: else a full disk would not be full.
        call(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(volume.image()))?;
        volume.restore()?;
        Ok(volume)
    }

    /// Where it is mounted.
    pub(crate) fn data(&self) -> PathBuf {
        self.mount.clone()
    }

    /// What is mounted for it, in the order in which it can be unmounted.
    pub(crate) fn mounts(&self) -> Vec<PathBuf> {
        let disk = self.disk.iter().map(|disk| disk.mount.clone());
        std::iter::once(self.mount.clone()).chain(disk).collect()
    }

    fn image(&self) -> PathBuf {
        self.folder.join("image")
    }

    /// Takes the power away from the volume, and then from who writes to it. What the victim was
    /// told in between it was told rightly.
    pub(crate) fn lose_power(&mut self, victim: Victim) -> anyhow::Result<()> {
        match self.way {
            Way::FileSystem => shut_down(&self.data())?,
            Way::Device | Way::Rated => {
                if let Some(disk) = &mut self.disk {
                    disk.server.kill()?;
                    disk.server.wait()?;
                }
            }
        }
        drop(victim);
        self.unmount()
    }

    /// Brings the power back: mounts the file system, which recovers its journal.
    pub(crate) fn restore(&mut self) -> anyhow::Result<()> {
        let device = match self.way {
            Way::FileSystem => self.image(),
            Way::Device | Way::Rated => {
                let disk = Disk::start(self.way, &self.folder, &self.image())?;
                let device = disk.mount.join("disk");
                self.disk = Some(disk);
                device
            }
        };
        call(Command::new("mount").args(["-o", "loop"]).arg(device).arg(self.data()))?;
        self.mounted = true;
        Ok(())
    }

    /// Lets the disk move so many bits per second, or as many as it can. Only for [`Way::Rated`].
    pub(crate) fn set_rate(&self, bits_per_s: Option<u64>) -> anyhow::Result<()> {
        anyhow::ensure!(self.way == Way::Rated, "a {} has no rate", self.way);
        let fresh = self.folder.join("rate-fresh");
        fs::write(&fresh, bits_per_s.unwrap_or(RATE_UNLIMITED).to_string())?;
        Ok(fs::rename(fresh, self.folder.join(RATE_FILE))?)
    }

    fn unmount(&mut self) -> anyhow::Result<()> {
        if self.mounted {
            // The children of a killed process may still be dying, with files open.
            wait_until("nobody uses the volume", || {
                call(Command::new("umount").arg(self.data())).is_ok()
            })?;
            self.mounted = false;
        }
        self.disk.take().map_or(Ok(()), Disk::stop)
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        match self.unmount() {
            // What stays mounted must not be deleted through the mount.
            Err(error) => println!("{}: {error:#}; left as it is", self.folder.display()),
            Ok(()) if !self.is_temporary => {}
            Ok(()) => {
                let _leftover = fs::remove_dir_all(&self.folder);
            }
        }
    }
}

impl Disk {
    /// In process groups of their own: who is told to end while its file system is mounted leaves that
    /// hanging.
    fn start(way: Way, folder: &Path, image: &Path) -> anyhow::Result<Self> {
        use std::os::unix::process::CommandExt as _;
        let socket = folder.join("socket");
        let mount = folder.join("disk");
        fs::create_dir_all(&mount)?;
        let _stale = fs::remove_file(&socket);
        let server = Command::new("nbdkit")
            .args(["--foreground", "--exit-with-parent", "--unix"])
            .arg(&socket)
            .args(match way {
                Way::Rated => &["--filter=blocksize", "--filter=rate", "file"][..],
                Way::FileSystem | Way::Device => &["--filter=cache", "file"],
            })
            .arg(image)
            .args(match way {
                Way::Rated => [
                    format!("maxdata={RATED_BYTES}"),
                    format!("rate-file={}", folder.join(RATE_FILE).display()),
                ]
                .to_vec(),
                Way::FileSystem | Way::Device => vec!["cache=writeback".to_owned()],
            })
            .process_group(0)
            .stdin(Stdio::null())
            .spawn()?;
        wait_until("nbdkit listens", || socket.exists())?;
        let fuse = Command::new("nbdfuse")
            .arg(mount.join("disk"))
            .arg("--unix")
            .arg(&socket)
            .process_group(0)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let disk = Self { server, fuse, mount };
        let file = disk.mount.join("disk");
        wait_until("nbdfuse shows the disk", || {
            fs::metadata(&file).is_ok_and(|file| file.len() == VOLUME_BYTES)
        })?;
        Ok(disk)
    }

    fn stop(mut self) -> anyhow::Result<()> {
        call(Command::new("umount").arg("--lazy").arg(&self.mount))?;
        // Whoever has ended by itself cannot be killed, and need not be.
        for child in [&mut self.fuse, &mut self.server] {
            let _ended = child.kill();
            child.wait()?;
        }
        Ok(())
    }
}

/// Shuts the file system down without writing its journal. The standard library has no `ioctl`, and
/// this package no unsafe code.
fn shut_down(mount: &Path) -> anyhow::Result<()> {
    let script = "import fcntl, os, struct, sys\n\
                  FS_IOC_SHUTDOWN, NOLOGFLUSH = 0x8004587d, 2\n\
                  at = os.open(sys.argv[1], os.O_RDONLY)\n\
                  fcntl.ioctl(at, FS_IOC_SHUTDOWN, struct.pack('I', NOLOGFLUSH))\n";
    call(Command::new("python3").arg("-c").arg(script).arg(mount))
}

/// Runs a program that must succeed.
pub(crate) fn call(command: &mut Command) -> anyhow::Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot run {program}"))?;
    let why = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{program}: {}", why.trim());
    Ok(())
}

/// Waits for something that has to come soon.
pub(crate) fn wait_until(what: &str, done: impl Fn() -> bool) -> anyhow::Result<()> {
    let began = Instant::now();
    while !done() {
        anyhow::ensure!(began.elapsed() < WAIT_MAX, "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
