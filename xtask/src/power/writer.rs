//! A writer that says of each block when the operating system has told it that it is written.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::PathBuf;

use anyhow::Context as _;

/// The file's name on a volume.
pub(super) const FILE: &str = "blocks";

/// One block, the unit of direct writes.
const BLOCK_BYTES: usize = 4096;
/// Blocks in the file: more than are written before the power goes.
const BLOCKS: usize = 20_000;

#[cfg(any(target_arch = "x86_64", target_arch = "riscv64"))]
const O_DIRECT: i32 = 0x4000;
#[cfg(any(target_arch = "aarch64", target_arch = "arm"))]
const O_DIRECT: i32 = 0x1_0000;
const O_DSYNC: i32 = 0x1000;

/// How a block is written.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Mode {
    /// Past the page cache, onto stable storage.
    DirectSync,
    /// Past the page cache, into the device's cache.
    Direct,
    /// Through the page cache, then flushed.
    BufferedSync,
    /// Through the page cache.
    Buffered,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DirectSync => "direct-sync",
            Self::Direct => "direct",
            Self::BufferedSync => "buffered-sync",
            Self::Buffered => "buffered",
        })
    }
}

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[arg(long)]
    file: PathBuf,
    #[arg(long)]
    mode: Mode,
}

/// Fills the file with zeros, flushes that, and then writes block after block, each acknowledged by
/// a line; at the end it waits to be killed.
pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let path = &arguments.file;
    let mut file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    file.write_all(&vec![0; BLOCK_BYTES * BLOCKS])?;
    file.sync_all()?;
    let folder = path.parent().context("a file in a folder")?;
    File::open(folder)?.sync_all()?;
    let flags = match arguments.mode {
        Mode::DirectSync => O_DIRECT | O_DSYNC,
        Mode::Direct => O_DIRECT,
        Mode::BufferedSync | Mode::Buffered => 0,
    };
    let file = OpenOptions::new().write(true).custom_flags(flags).open(path)?;
    let mut memory = vec![0; 2 * BLOCK_BYTES];
    let aligned = memory.as_ptr().align_offset(BLOCK_BYTES);
    let buffer = memory.get_mut(aligned..aligned + BLOCK_BYTES).context("no aligned memory")?;
    let mut out = std::io::stdout();
    for number in 0..BLOCKS {
        buffer.copy_from_slice(&block(number));
        file.write_all_at(buffer, (number * BLOCK_BYTES) as u64)?;
        if arguments.mode == Mode::BufferedSync {
            file.sync_data()?;
        }
        out.write_all(b"acknowledged\n")?;
        out.flush()?;
    }
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Whether the file's bytes hold block `number` whole.
pub(super) fn has_block(file: &[u8], number: usize) -> bool {
    let start = number * BLOCK_BYTES;
    file.get(start..start + BLOCK_BYTES) == Some(&block(number))
}

/// The block's number, all over it.
fn block(number: usize) -> Vec<u8> {
    (number as u64 + 1).to_le_bytes().repeat(BLOCK_BYTES / 8)
}
