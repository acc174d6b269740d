//! The emulated machine.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::image::Image;
use super::tried;

/// Memory of the machine, in MiB.
const MEMORY_MIB: u32 = 3072;

/// Size of its disk, which takes room only for what is written.
const DISK: &str = "4G";

/// The processor that is emulated. Without `erms` the kernel copies memory by words and not by
/// bytes, so that a word of eight bytes, which every adapter writes whole, is written whole here too.
const PROCESSOR: &str = "max,-erms,-fsrm";

/// What the kernel is told.
const KERNEL: &str =
    "console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable halfmoon.script=/mnt/";

/// What the machine's first program says at the end.
const STATUS: &str = "halfmoon-status=";

/// A machine that can be run, any number of times.
pub(super) struct Machine {
    /// What lines that it says begin with.
    name: &'static str,
    image: Image,
    share: PathBuf,
    disk: PathBuf,
}

/// How a run ended.
pub(super) struct Ended {
    /// The script's; `None` if the machine ended before it.
    pub(super) status: Option<i32>,
    pub(super) lines: Vec<String>,
}

/// Ends its process when it is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Machine {
    pub(super) fn new(image: Image, folder: &Path) -> anyhow::Result<Self> {
        Self::named("", image, folder)
    }

    /// One of several, which all see the same folder as `/mnt`.
    pub(super) fn named(name: &'static str, image: Image, folder: &Path) -> anyhow::Result<Self> {
        let share = folder.join("share");
        fs::create_dir_all(&share)?;
        let disk = folder.join(format!("disk{}.ext4", name.trim()));
        fs::remove_file(&disk).ok();
        let mut make = Command::new("mkfs.ext4");
        make.args(["-q", "-F"]).arg(&disk).arg(DISK);
        tried(&mut make)?.map_err(anyhow::Error::msg)?;
        Ok(Self { name, image, share, disk })
    }

    /// The folder that is `/mnt` in the machine.
    pub(super) fn share(&self) -> &Path {
        &self.share
    }

    /// Runs a script in the machine, and passes on what it says.
    pub(super) fn run(
        &self,
        script: &Path,
        more: &[&str],
        time: Duration,
    ) -> anyhow::Result<Ended> {
        let name = script.file_name().context("the script has no name")?;
        let inside = self.share.join(name);
        if inside != script {
            fs::copy(script, &inside)?;
        }
        let mut command = self.command(&name.to_string_lossy());
        command.args(more).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = Killed(command.spawn().context("cannot run qemu")?);
        let output = child.0.stdout.take().context("qemu has no output")?;
        let (say, said) = channel();
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                if say.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                    return;
                }
            }
        });
        let mut ended = Ended { status: None, lines: Vec::new() };
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match said.recv_timeout(left) {
                Ok(line) => {
                    if let Some((_, status)) = line.split_once(STATUS) {
                        ended.status = status.parse().ok();
                    } else {
                        println!("{}{line}", self.name);
                        ended.lines.push(line);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    println!("{}the machine had its {} s", self.name, time.as_secs());
                    break;
                }
            }
        }
        drop((child, said));
        anyhow::ensure!(reader.join().is_ok(), "the reader of the machine's output panicked");
        Ok(ended)
    }

    fn command(&self, script: &str) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-M", "q35", "-accel", "tcg,thread=multi", "-smp", "2", "-cpu", PROCESSOR]);
        command.args(["-m", &MEMORY_MIB.to_string()]);
        command.args(["-display", "none", "-no-reboot", "-nodefaults", "-monitor", "none"]);
        command.args(["-serial", "stdio", "-device", "virtio-rng-pci"]);
        command.arg("-kernel").arg(&self.image.kernel);
        command.arg("-initrd").arg(&self.image.initramfs);
        command.args(["-append", &format!("{KERNEL}{script}")]);
        let files = |id: &str, path: &Path, more: &str| {
            format!(
                "local,id={id},path={},security_model=none,multidevs=remap{more}",
                path.display()
            )
        };
        command.args(["-fsdev", &files("host", Path::new("/"), ",readonly=on")]);
        command.args(["-device", "virtio-9p-pci,fsdev=host,mount_tag=host"]);
        command.args(["-fsdev", &files("share", &self.share, "")]);
        command.args(["-device", "virtio-9p-pci,fsdev=share,mount_tag=share"]);
        let disk = self.disk.display();
        command.args(["-drive", &format!("file={disk},if=virtio,format=raw,cache=unsafe")]);
        command
    }
}
