//! What `perftest` measures on the same adapter, where it is installed.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;

/// How long one of its programs may take.
const TIME_MAX: Duration = Duration::from_secs(60);

/// How long its server may take to listen.
const LISTEN_TIME: Duration = Duration::from_secs(10);

/// What it measured.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Perftest {
    /// Typical one-way delay of a write of 64 bytes, in µs.
    pub delay_us: f64,
    /// Average bandwidth of writes of 1 MiB, in MiB/s.
    pub bandwidth_mib_per_s: f64,
}

/// Runs it on a device, between two processes of this machine.
///
/// # Errors
/// Why it was not run, in words.
pub fn run(device: &str, address: IpAddr) -> Result<Perftest, String> {
    let run = |program: &str, what: [&str; 2]| pair(program, what, device, address);
    let delay = last_row(&run("ib_write_lat", ["64", "1000"])?, 9).map(|row| row[4]);
    let bandwidth = last_row(&run("ib_write_bw", ["1048576", "500"])?, 5).map(|row| row[3]);
    match (delay, bandwidth) {
        (Some(delay_us), Some(bandwidth_mib_per_s)) => {
            Ok(Perftest { delay_us, bandwidth_mib_per_s })
        }
        (None, _) | (_, None) => Err("its output is not understood".to_owned()),
    }
}

/// The numbers of the last row that has at least so many of them and nothing else.
fn last_row(output: &str, columns: usize) -> Option<Vec<f64>> {
    let numbers = |line: &str| {
        line.split_whitespace().map(|word| word.parse().ok()).collect::<Option<Vec<f64>>>()
    };
    output.lines().rev().filter_map(numbers).find(|row| row.len() >= columns)
}

/// Runs server and client, with writes of so many bytes, so often; what the client prints.
fn pair(
    program: &str,
    [bytes, writes]: [&str; 2],
    device: &str,
    address: IpAddr,
) -> Result<String, String> {
    let port = std::net::TcpListener::bind((address, 0)).and_then(|free| free.local_addr());
    let port = port.map_err(|error| error.to_string())?.port().to_string();
    let command = || {
        let mut command = Command::new(program);
        let what = ["-d", device, "-s", bytes, "-n", writes, "-F", "-p", &port];
        command.args(what).stdin(Stdio::null());
        command
    };
    let named = |error: std::io::Error| match error.kind() == ErrorKind::NotFound {
        true => format!("{program} is not installed (package perftest)"),
        false => format!("{program}: {error}"),
    };
    let mut server =
        command().stdout(Stdio::null()).stderr(Stdio::null()).spawn().map_err(named)?;
    let end = Instant::now() + LISTEN_TIME;
    let result = loop {
        let mut client = command();
        client.arg(address.to_string()).stdout(Stdio::piped()).stderr(Stdio::null());
        match client.spawn().map_err(named).and_then(|client| output(program, client)) {
            Err(_) if Instant::now() < end && matches!(server.try_wait(), Ok(None)) => {
                std::thread::sleep(Duration::from_millis(50));
            }
            result => break result,
        }
    };
    server.kill().ok();
    server.wait().ok();
    result
}

fn output(program: &str, mut client: Child) -> Result<String, String> {
    let end = Instant::now() + TIME_MAX;
    loop {
        match client.try_wait() {
            Ok(None) if Instant::now() < end => std::thread::sleep(Duration::from_millis(10)),
            Ok(None) => {
                client.kill().ok();
                client.wait().ok();
                return Err(format!("{program} did not end in time"));
            }
            Ok(Some(status)) if status.success() => {
                let output = client.wait_with_output().map_err(|error| error.to_string())?;
                return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
            }
            Ok(Some(status)) => return Err(format!("{program} ended with {status}")),
            Err(error) => return Err(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAT: &str = concat!(
        "-----------------------------------------------------------\n",
        " #bytes #iterations    t_min[usec]    t_max[usec]  t_typical[usec]    t_avg[usec]",
        "    t_stdev[usec]   99% percentile[usec]   99.9% percentile[usec]\n",
        " 64      1000          0.98           3.47         1.02                1.03",
        "             0.05            1.17                    3.47\n",
        "-----------------------------------------------------------\n",
    );
    const BW: &str = concat!(
        " #bytes     #iterations    BW peak[MB/sec]    BW average[MB/sec]   MsgRate[Mpps]\n",
        " 1048576    5000             11531.20            11530.95            0.011531\n",
    );

    #[test]
    fn the_last_row_of_numbers_is_what_was_measured() {
        assert_eq!(last_row(LAT, 9).unwrap()[4], 1.02);
        assert_eq!(last_row(BW, 5).unwrap()[3], 11530.95);
        assert_eq!(last_row("Couldn't connect\n1 2 3\n", 5), None);
    }

    #[test]
    fn what_is_not_installed_is_named() {
        let why =
            pair("ib_no_such_program", ["64", "1"], "mlx5_0", [127, 0, 0, 1].into()).unwrap_err();
        assert!(why.contains("ib_no_such_program is not installed"), "{why}");
    }
}
