//! `halfmoon bench transport`: lanes beside plain sockets and perftest.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::Context as _;
use halfmoon_bench::transport::{
    Delays, Measured, Over, Plan, RATE_BYTES, median, perftest, raw, serve,
};
use halfmoon_reactor::Polling;
use serde_json::{Value, json};

use crate::cli::bench::{BenchTransport, OverName, PeerName};
use crate::commands::show::print;

/// Bytes of a MiB, for rates.
const MIB: f64 = 1_048_576.0;

/// What is measured in each round.
struct Row {
    /// `None`: plain sockets, whose ends spin if it is busy and sleep otherwise.
    over: Option<Over>,
    polling: Polling,
    measured: Measured,
}

/// All that there is to tell.
struct Report {
    rows: Vec<Row>,
    /// What was asked for and is not there, and why.
    skipped: Vec<(&'static str, String)>,
    perftest: Result<perftest::Perftest, String>,
    /// Each end had a processor of its own.
    pinned: bool,
}

pub(crate) fn run(options: &BenchTransport) -> anyhow::Result<ExitCode> {
    if let Some(peer) = options.peer {
        if let Some(processor) = options.processor {
            pin(processor);
        }
        be_peer(peer, options.polling.polling(), options.size.len())?;
        return Ok(ExitCode::SUCCESS);
    }
    let report = measure(options)?;
    if options.json {
        print(&report.json(options).to_string());
    } else {
        report.lines().iter().for_each(|line| print(line));
    }
    Ok(ExitCode::SUCCESS)
}

/// Serves one measurement. Ends at the latest when the process that started it does.
fn be_peer(peer: PeerName, polling: Polling, sizes: usize) -> anyhow::Result<()> {
    std::thread::spawn(|| {
        let mut rest = Vec::new();
        std::io::stdin().read_to_end(&mut rest).ok();
        std::process::exit(1);
    });
    let host = IpAddr::V4(Ipv4Addr::LOCALHOST);
    match peer {
        PeerName::Raw => raw::serve(polling == Polling::Busy, sizes, print),
        PeerName::Tcp => serve((Over::Tcp, polling), host, print),
        PeerName::Rdma => {
            let host = halfmoon_rdma::address().map_err(anyhow::Error::msg)?;
            serve((Over::Rdma, polling), host, print)
        }
    }
}

/// Two processors that this process may use, one for each end: two ends that spin on one of them would
/// measure how long the kernel lets one spin.
fn two_processors() -> Option<(usize, usize)> {
    let allowed = rustix::thread::sched_getaffinity(None).ok()?;
    let mut found = (0..rustix::thread::CpuSet::MAX_CPU).filter(|index| allowed.is_set(*index));
    Some((found.next()?, found.next()?))
}

/// Keeps the thread on a processor; where that is refused it stays where it was.
fn pin(processor: usize) {
    let mut only = rustix::thread::CpuSet::new();
    if processor < rustix::thread::CpuSet::MAX_CPU {
        only.set(processor);
        rustix::thread::sched_setaffinity(None, &only).ok();
    }
}

/// The other end, as a process. It is gone when this is.
struct Peer {
    child: Child,
    address: String,
}

impl Peer {
    fn start(
        over: Option<Over>,
        polling: Polling,
        sizes: usize,
        processor: Option<usize>,
    ) -> anyhow::Result<Self> {
        let name = over.map_or("raw", Over::name);
        // How many sizes there are is all that matters to it.
        let count = vec!["1"; sizes].join(",");
        let mut child = Command::new(std::env::current_exe()?)
            .args(["bench", "transport", "--peer", name, "--polling", polling.name()])
            .args(["--size", &count])
            .args(processor.iter().flat_map(|of| ["--processor".to_owned(), of.to_string()]))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the other end")?;
        let mut address = String::new();
        let told = child.stdout.take().context("the other end has no output")?;
        BufReader::new(told).read_line(&mut address)?;
        let peer = Self { child, address: address.trim().to_owned() };
        anyhow::ensure!(!peer.address.is_empty(), "the other end ({name}) did not start");
        Ok(peer)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn measure(options: &BenchTransport) -> anyhow::Result<Report> {
    let plan = Plan {
        sizes: options.size.iter().map(|size| *size as usize).collect(),
        pings: options.pings as usize,
    };
    let wants =
        |name: OverName| options.transport.iter().any(|of| *of == name || *of == OverName::All);
    let adapter = halfmoon_rdma::address();
    let mut overs = vec![None];
    overs.extend(wants(OverName::Local).then_some(Some(Over::Local)));
    overs.extend(wants(OverName::Tcp).then_some(Some(Over::Tcp)));
    let mut skipped = Vec::new();
    if wants(OverName::Rdma) {
        match &adapter {
            Ok(_) => overs.push(Some(Over::Rdma)),
            Err(why) => skipped.push((Over::Rdma.name(), why.clone())),
        }
    }
    let row = |over, polling| Row { over, polling, measured: Measured::default() };
    let mut rows: Vec<Row> = Vec::new();
    for over in overs {
        // Plain sockets either sleep or spin.
        let ways = Polling::ALL.into_iter();
        rows.extend(
            ways.filter(|way| over.is_some() || *way != Polling::Adaptive)
                .map(|way| row(over, way)),
        );
    }
    let processors = two_processors();
    if let Some((this, _)) = processors {
        pin(this);
    }
    for round in 1..=options.rounds {
        for row in &mut rows {
            if !options.json {
                print(&format!("round {round}: {} …", row.name()));
            }
            row.round(&plan, processors.map(|(_, other)| other))
                .with_context(|| format!("measuring {}", row.name()))?;
        }
    }
    let pinned = processors.is_some();
    let perftest = adapter.and_then(|address| {
        let device = halfmoon_rdma::device_of(address).ok_or("no device has the address")?;
        perftest::run(&device, address)
    });
    Ok(Report { rows, skipped, perftest, pinned })
}

impl Row {
    /// Measures once; the other end is on this processor.
    fn round(&mut self, plan: &Plan, processor: Option<usize>) -> anyhow::Result<()> {
        let Self { over, polling, measured } = self;
        if *over == Some(Over::Local) {
            let other = move || processor.into_iter().for_each(pin);
            return measured.add_local(*polling, plan, other);
        }
        let peer = Peer::start(*over, *polling, plan.sizes.len(), processor)?;
        match over {
            Some(over) => measured.add((*over, *polling), &peer.address, plan),
            None => measured.add_raw(&peer.address, *polling == Polling::Busy, plan),
        }
    }

    fn name(&self) -> String {
        format!("{}, {}", self.over.map_or("plain sockets", Over::name), self.polling.name())
    }
}

impl Report {
    /// Median delay of plain sockets, in ns: of ends that spin, or that sleep.
    fn floor(&self, spins: bool, bytes: usize) -> Option<f64> {
        let row = self
            .rows
            .iter()
            .find(|row| row.over.is_none() && (row.polling == Polling::Busy) == spins)?;
        let found = row.measured.delays.iter().find(|delays| delays.bytes == bytes)?;
        Some(found.median_ns()).filter(|ns| *ns > 0.0)
    }

    fn ratio(&self, delays: &Delays, spins: bool) -> Option<f64> {
        Some(delays.median_ns() / self.floor(spins, delays.bytes)?)
    }

    fn json(&self, options: &BenchTransport) -> Value {
        let delay = |delays: &Delays| {
            let (least, most) = spread(delays);
            json!({
                "bytes": delays.bytes,
                "median_ns": delays.median_ns(),
                "median_least_ns": least,
                "median_most_ns": most,
                "p99_ns": delays.all_ns.value_at_quantile(0.99),
                "p999_ns": delays.all_ns.value_at_quantile(0.999),
                "to_sleeping_sockets": self.ratio(delays, false),
                "to_spinning_sockets": self.ratio(delays, true),
            })
        };
        let row = |row: &Row| {
            json!({
                "transport": row.over.map_or("sockets", Over::name),
                "polling": row.polling.name(),
                "delays": row.measured.delays.iter().map(delay).collect::<Vec<_>>(),
                "small_messages_per_s": row.over.map(|_| median(&row.measured.rates_per_s)),
                "small_messages_per_s_rounds": row.measured.rates_per_s,
                "bytes_per_s": row.over.map(|_| median(&row.measured.bandwidths_per_s)),
                "bytes_per_s_rounds": row.measured.bandwidths_per_s,
            })
        };
        json!({
            "rounds": options.rounds,
            "pings": options.pings,
            "small_message_bytes": RATE_BYTES,
            "ends_on_processors_of_their_own": self.pinned,
            "rows": self.rows.iter().map(row).collect::<Vec<_>>(),
            "skipped": self.skipped.iter().map(|(what, why)| json!({ "what": what, "why": why }))
                .collect::<Vec<_>>(),
            "perftest": match &self.perftest {
                Ok(found) => json!(found),
                Err(why) => json!({ "skipped": why }),
            },
        })
    }

    fn lines(&self) -> Vec<String> {
        let head = "one-way delay             bytes  p50 µs (least–most of rounds)   p99 µs  p99.9 µs  \
                    to sockets that sleep, spin";
        let mut lines = vec![head.to_owned()];
        for row in &self.rows {
            for delays in &row.measured.delays {
                let (least, most) = spread(delays);
                let tail = |q: f64| us(delays.all_ns.value_at_quantile(q));
                let ratio = |spins| {
                    self.ratio(delays, spins)
                        .map_or("–".to_owned(), |ratio| format!("{ratio:.2}"))
                };
                lines.push(format!(
                    "{:<22} {:>8} {:>8.2} ({:.2}–{:.2}) {:>12.2} {:>9.2}  {:>8} {:>8}",
                    row.name(),
                    delays.bytes,
                    delays.median_ns() / 1000.0,
                    us(least),
                    us(most),
                    tail(0.99),
                    tail(0.999),
                    ratio(false),
                    ratio(true)
                ));
            }
        }
        lines.push(format!(
            "throughput               {RATE_BYTES} B messages/s   1 MiB writes, MiB/s"
        ));
        for row in self.rows.iter().filter(|row| row.over.is_some()) {
            let (rate, bandwidth) =
                (median(&row.measured.rates_per_s), median(&row.measured.bandwidths_per_s));
            lines.push(format!("{:<22} {rate:>19.0} {:>21.0}", row.name(), bandwidth / MIB));
        }
        if !self.pinned {
            lines.push(
                "both ends share one processor: what spins is slower than what sleeps".to_owned(),
            );
        }
        for (what, why) in &self.skipped {
            lines.push(format!("{what}: skipped: {why}"));
        }
        lines.push(match &self.perftest {
            Ok(found) => format!(
                "perftest: 64 B in {:.2} µs, {:.0} MiB/s",
                found.delay_us, found.bandwidth_mib_per_s
            ),
            Err(why) => format!("perftest: skipped: {why}"),
        });
        lines
    }
}

/// Least and greatest median of a round, in ns.
fn spread(delays: &Delays) -> (u64, u64) {
    let medians = || delays.medians_ns.iter().copied();
    (medians().min().unwrap_or(0), medians().max().unwrap_or(0))
}

#[expect(clippy::cast_precision_loss, reason = "a time, to be printed")]
fn us(ns: u64) -> f64 {
    ns as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;
    use crate::cli::PollingName;

    #[test]
    fn what_the_peer_is_told_is_what_the_command_line_takes() {
        for over in [Over::Tcp, Over::Rdma] {
            assert!(PeerName::from_str(over.name(), false).is_ok());
        }
        assert!(PeerName::from_str("raw", false).is_ok());
        for polling in Polling::ALL {
            let name = PollingName::from_str(polling.name(), false).unwrap();
            assert_eq!(name.polling(), polling);
        }
    }

    #[test]
    fn a_report_compares_with_sockets_and_names_what_was_skipped() {
        let row = |over, polling| Row { over, polling, measured: Measured::default() };
        let mut rows =
            vec![row(None, Polling::Sleeping), row(Some(Over::Local), Polling::Sleeping)];
        let plan = Plan { sizes: vec![64], pings: 3 };
        let (tell, told) = std::sync::mpsc::channel();
        let tell = move |address: &str| tell.send(address.to_owned()).unwrap();
        let peer = std::thread::spawn(move || raw::serve(false, 1, tell));
        rows[0].measured.add_raw(&told.recv().unwrap(), false, &plan).unwrap();
        peer.join().unwrap().unwrap();
        rows[1].round(&plan, None).unwrap();
        let skipped = vec![("rdma", "there is none".to_owned())];
        let report = Report { rows, skipped, perftest: Err("no device".to_owned()), pinned: false };
        let delays = &report.rows[0].measured.delays[0];
        assert_eq!((report.ratio(delays, false), report.ratio(delays, true)), (Some(1.0), None));
        let lines = report.lines();
        assert!(lines.contains(&"rdma: skipped: there is none".to_owned()), "{lines:?}");
        assert!(lines.contains(&"perftest: skipped: no device".to_owned()), "{lines:?}");
    }
}
