//! Asking a binary what it is, by running it.

use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};

use crate::gateway::{Describe, DescribeError};
use crate::manifest::DEPLOY_MAX_BYTES;

/// Environment variable that makes a function binary print its manifest and exit.
const DESCRIBE_ENV: &str = "HALFMOON_DESCRIBE";
/// How long it may take.
const WITHIN: Duration = Duration::from_secs(10);
/// Bytes of its complaints that are passed on.
const COMPLAINT_MAX_BYTES: u64 = 1024;
/// How often a binary that somebody still has open for writing is tried.
const BUSY_TRIES_MAX: u32 = 20;

/// Runs binaries in a process of their own.
#[derive(Clone, Copy, Debug)]
pub struct RunToDescribe;

impl Describe for RunToDescribe {
    fn describe(&self, path: &Path) -> Result<Vec<u8>, DescribeError> {
        let mut child = start(path).map_err(DescribeError::Start)?;
        let output = take(child.stdout.take(), DEPLOY_MAX_BYTES as u64 + 1);
        let complaint = take(child.stderr.take(), COMPLAINT_MAX_BYTES);
        let ended = wait(&child);
        if !matches!(ended, Ok(true)) {
            child.kill().ok();
        }
        let status = child.wait().map_err(DescribeError::Start)?;
        if !ended.map_err(DescribeError::Start)? {
            return Err(DescribeError::Timeout(WITHIN));
        }
        let read = |thread: std::thread::JoinHandle<Vec<u8>>| thread.join().unwrap_or_default();
        let (output, complaint) = (read(output), read(complaint));
        if !status.success() {
            let stderr = String::from_utf8_lossy(&complaint).trim().to_owned();
            return Err(DescribeError::Failed { status, stderr });
        }
        Ok(output)
    }
}

fn start(path: &Path) -> io::Result<Child> {
    let mut tries = 0;
    loop {
        let mut command = Command::new(path);
        command.env_clear().env(DESCRIBE_ENV, "1");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        match command.spawn() {
            // Another thread forked while the file was being written and has yet to exec.
            Err(error)
                if error.kind() == io::ErrorKind::ExecutableFileBusy && tries < BUSY_TRIES_MAX =>
            {
                tries += 1;
                std::thread::sleep(Duration::from_millis(1 << tries.min(6)));
            }
            started => return started,
        }
    }
}

/// Whether it ends in time.
fn wait(child: &Child) -> io::Result<bool> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or(io::ErrorKind::InvalidData)?;
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    let limit =
        Timespec { tv_sec: i64::try_from(WITHIN.as_secs()).unwrap_or(i64::MAX), tv_nsec: 0 };
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    Ok(rustix::event::poll(&mut fds, Some(&limit))? > 0)
}

fn take<R: Read + Send + 'static>(pipe: Option<R>, limit: u64) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read before an error is what there is.
            pipe.by_ref().take(limit).read_to_end(&mut bytes).ok();
            io::copy(&mut pipe, &mut io::sink()).ok();
        }
        bytes
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(body: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("binary");
        let script = format!("#!/bin/sh\n{body}\n");
        crate::binaries::write_executable(&path, script.as_bytes()).unwrap();
        (directory, path)
    }

    #[test]
    fn what_a_binary_prints_is_taken() {
        let (_directory, path) = script("echo manifest $HALFMOON_DESCRIBE");
        assert_eq!(RunToDescribe.describe(&path).unwrap(), b"manifest 1\n");
    }

    #[test]
    fn a_binary_that_fails_says_why() {
        let (_directory, path) = script("echo no such thing >&2; exit 3");
        let error = RunToDescribe.describe(&path).unwrap_err().to_string();
        assert!(error.contains("no such thing") && error.contains('3'), "{error}");
    }

    #[test]
    fn what_cannot_be_run_is_told() {
        let missing = Path::new("/nonexistent");
        assert!(matches!(RunToDescribe.describe(missing), Err(DescribeError::Start(_))));
    }
}
