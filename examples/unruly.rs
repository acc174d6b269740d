//! Functions that behave badly, to see that a cluster bears it. `halfmoon deploy
//! target/debug/examples/unruly`, then `halfmoon invoke crash`, `hang`, `scribble`, or
//! `halfmoon invoke grow 20000000`; `halfmoon invoke count visits` answers all the while.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use halfmoon::{App, Ctx, Error, Function, Result, Table};

/// Adds one to the counter that the input names. The well-behaved one.
fn count(ctx: &mut Ctx, input: &[u8]) -> Result<Vec<u8>> {
    ctx.update("counters", input, |old| {
        let old = old.and_then(|bytes| std::str::from_utf8(bytes).ok()?.parse().ok());
        let count: u64 = old.unwrap_or(0);
        (count + 1).to_string().into_bytes()
    })
}

/// Counts, then dies without a word; but only where the file that the input names is not there yet.
fn crash_once(ctx: &mut Ctx, input: &[u8]) -> Result<Vec<u8>> {
    let counted = count(ctx, input)?;
    let marker = String::from_utf8_lossy(input).into_owned();
    match OpenOptions::new().create_new(true).write(true).open(marker) {
        Ok(_) => std::process::abort(),
        Err(_) => Ok(counted),
    }
}

/// Dies without a word, always.
fn crash(_: &mut Ctx, _: &[u8]) -> Result<Vec<u8>> {
    std::process::abort()
}

/// Never returns.
fn hang(_: &mut Ctx, _: &[u8]) -> Result<Vec<u8>> {
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

/// Overwrites the rings that it shares with its engine, and never returns.
fn scribble(ctx: &mut Ctx, _: &[u8]) -> Result<Vec<u8>> {
    let (start, end) = shared_memory()?;
    let memory = OpenOptions::new().write(true).open("/proc/self/mem").map_err(Error::app)?;
    let noise = vec![0xa5; usize::try_from((end - start).min(NOISE_BYTES)).map_err(Error::app)?];
    memory.write_all_at(&noise, start).map_err(Error::app)?;
    hang(ctx, b"")
}

/// The header, both rings, and some of what follows.
const NOISE_BYTES: u64 = 1 << 20;

fn shared_memory() -> Result<(u64, u64)> {
    let maps = std::fs::read_to_string("/proc/self/maps").map_err(Error::app)?;
    let line = maps.lines().find(|line| line.contains("halfmoon-channel"));
    let range = line.and_then(|line| line.split(' ').next()?.split_once('-'));
    let (start, end) = range.ok_or_else(|| Error::app("no shared memory is mapped"))?;
    let parse = |text| u64::from_str_radix(text, 16).map_err(Error::app);
    Ok((parse(start)?, parse(end)?))
}

/// Writes a value of as many bytes as the input says.
fn grow(ctx: &mut Ctx, bytes: usize) -> Result<usize> {
    ctx.write("large", "one", vec![1; bytes])?;
    Ok(bytes)
}

/// How many bytes the input has.
fn measure(_: &mut Ctx, input: &[u8]) -> Result<Vec<u8>> {
    Ok(input.len().to_string().into_bytes())
}

/// Returns as many bytes as the input says.
fn shout(_: &mut Ctx, input: &[u8]) -> Result<Vec<u8>> {
    let bytes = std::str::from_utf8(input).ok().and_then(|text| text.trim().parse().ok());
    Ok(vec![b'a'; bytes.ok_or_else(|| Error::app("the input is not a number"))?])
}

fn main() {
    let brief = |function: Function| function.timeout(Duration::from_secs(1)).max_attempts(2);
    let app = App::new()
        .table(Table::new("counters").transactional())
        .table(Table::new("large"))
        .function("count", count)
        .function("crash_once", crash_once)
        .function("measure", measure)
        .function("shout", shout)
        .function("grow", halfmoon::json(grow))
        .function_with(brief(Function::new("crash", crash)))
        .function_with(brief(Function::new("hang", hang)))
        .function_with(brief(Function::new("scribble", scribble)));
    halfmoon::serve(app)
}
