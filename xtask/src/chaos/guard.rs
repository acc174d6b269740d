//! Somebody who takes the disks apart in order when the run is killed.
//!
//! A file system on a loop device on a file of a FUSE process cannot be left to the end of the mount
//! namespace: if that process is the last that is in it, the kernel unmounts the file system while its
//! device is going, and waits for ever.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// Waits for the end of its input, that is of this process, and then unmounts one folder after the
/// other: as long as nodes still end, they use theirs.
const SCRIPT: &str = "cat > /dev/null\n\
    for folder in \"$@\"; do\n\
    \x20   for turn in $(seq 100); do\n\
    \x20       mountpoint -q \"$folder\" || break\n\
    \x20       umount \"$folder\" 2> /dev/null && break\n\
    \x20       sleep 0.2\n\
    \x20   done\n\
    done\n";

/// It holds the namespaces until all is unmounted.
pub(super) struct Guard {
    child: Child,
}

impl Guard {
    /// Watches over mounts, in the order in which they can be taken away.
    pub(super) fn start(mounts: &[PathBuf]) -> anyhow::Result<Self> {
        let mut command = Command::new("sh");
        command.args(["-c", SCRIPT, "sh"]).args(mounts);
        // Ctrl-C is not for it.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self { child: command.spawn()? })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // It has nothing left to do but to say so.
        let _status = self.child.wait();
    }
}
