//! Starting workers for the fake engine: as threads of this process, or as processes.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::thread::JoinHandle;

use crate::engine::EngineSide;

/// Starts workers.
pub trait Launch {
    /// Starts one that takes up this channel.
    fn launch(&mut self, side: &EngineSide) -> io::Result<Box<dyn Running>>;
}

/// A worker that was started. Dropping it ends a process; a thread is left to end by itself.
pub trait Running {
    /// False once it has ended.
    fn is_alive(&mut self) -> bool;
}

/// Runs a function with the channel's two descriptors on a thread.
pub struct ThreadLaunch<F>(pub F);

impl<F> Launch for ThreadLaunch<F>
where
    F: Fn(OwnedFd, OwnedFd) + Clone + Send + 'static,
{
    fn launch(&mut self, side: &EngineSide) -> io::Result<Box<dyn Running>> {
        let [memory, doorbell] = side.spawn_fds();
        let (memory, doorbell) = (memory.try_clone_to_owned()?, doorbell.try_clone_to_owned()?);
        let work = self.0.clone();
        Ok(Box::new(std::thread::Builder::new().spawn(move || work(memory, doorbell))?))
    }
}

impl Running for JoinHandle<()> {
    fn is_alive(&mut self) -> bool {
        !self.is_finished()
    }
}

/// Starts processes of the command that the function makes.
pub struct ProcessLaunch<F>(pub F);

impl<F: FnMut() -> Command> Launch for ProcessLaunch<F> {
    fn launch(&mut self, side: &EngineSide) -> io::Result<Box<dyn Running>> {
        let mut command = self.0();
        side.inherit(&mut command);
        Ok(Box::new(Process(command.spawn()?)))
    }
}

struct Process(Child);

impl Running for Process {
    fn is_alive(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}
