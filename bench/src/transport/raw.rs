//! The floor: a message there and back on a plain TCP connection, whose ends sleep or spin.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Instant;

use anyhow::ensure;

use super::MESSAGE_MAX_BYTES;

/// Answers on so many connections, one after the other; each says first how long its messages are.
///
/// # Errors
/// When it cannot listen, or a connection fails.
pub fn serve(spins: bool, connections: usize, tell: impl FnOnce(&str)) -> anyhow::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    tell(&listener.local_addr()?.to_string());
    for _ in 0..connections {
        let (mut stream, _) = listener.accept()?;
        let mut bytes = [0; 8];
        stream.read_exact(&mut bytes)?;
        let bytes = usize::try_from(u64::from_le_bytes(bytes))?;
        ensure!(bytes <= MESSAGE_MAX_BYTES, "a message of {bytes} bytes is too long");
        set_up(&stream, spins)?;
        let mut message = vec![0; bytes];
        while take(&mut stream, &mut message)? {
            put(&mut stream, &message)?;
        }
    }
    Ok(())
}

/// Half the time that a message takes there and back, so many times, in ns.
///
/// # Errors
/// When the peer cannot be reached or goes away.
pub fn delays(address: &str, spins: bool, bytes: usize, pings: usize) -> anyhow::Result<Vec<u64>> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(&(bytes as u64).to_le_bytes())?;
    set_up(&stream, spins)?;
    let mut message = vec![7; bytes];
    let mut times = Vec::with_capacity(pings);
    for _ in 0..pings {
        let begin = Instant::now();
        put(&mut stream, &message)?;
        ensure!(take(&mut stream, &mut message)?, "the other end went away");
        times.push(u64::try_from(begin.elapsed().as_nanos() / 2).unwrap_or(u64::MAX));
    }
    Ok(times)
}

fn set_up(stream: &TcpStream, spins: bool) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_nonblocking(spins)
}

/// Receives a whole message; `false` if the peer ends before it begins one.
fn take(stream: &mut TcpStream, message: &mut [u8]) -> anyhow::Result<bool> {
    let mut done = 0;
    while done < message.len() {
        match stream.read(&mut message[done..]) {
            Ok(0) if done == 0 => return Ok(false),
            Ok(0) => anyhow::bail!("the other end went away"),
            Ok(count) => done += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

fn put(stream: &mut TcpStream, message: &[u8]) -> anyhow::Result<()> {
    let mut done = 0;
    while done < message.len() {
        match stream.write(&message[done..]) {
            Ok(count) => done += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
