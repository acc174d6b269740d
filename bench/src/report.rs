//! What a run leaves behind: a table on the terminal, one JSON object, one HTML page with plots,
//! and a CSV with every slice.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::{Value, json};

use crate::chaos::{Faults, Nodes};
use crate::cluster::Carried;
use crate::demo::{Outcome, Protocol};

/// Where the figures came from.
#[derive(Clone, Debug, Serialize)]
pub struct Provenance {
    /// Version of the program.
    pub version: String,
    /// Kernel and processors.
    pub host: String,
    /// How records and values travelled.
    pub transport: String,
    /// What went over which, if it is known.
    pub carried: Option<Carried>,
    /// What an acknowledgement means.
    pub durability: String,
    /// Load of the mix and its length.
    pub load: String,
}

/// Totals over the protocols that log.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize)]
pub struct Verdict {
    /// Lost effects.
    pub lost: u64,
    /// Doubled effects.
    pub doubled: u64,
    /// Contradicted replies.
    pub contradicted: u64,
    /// Damage found under `unlogged`, if it was run.
    pub unlogged_damage: Option<u64>,
}

/// Sums up a run.
#[must_use]
pub fn verdict(outcomes: &[Outcome]) -> Verdict {
    let mut verdict = Verdict::default();
    for outcome in outcomes {
        let found = &outcome.findings;
        if outcome.protocol.is_logged() {
            verdict.lost += found.lost;
            verdict.doubled += found.doubled;
            verdict.contradicted += found.contradicted;
        } else {
            verdict.unlogged_damage = Some(found.lost + found.doubled + found.contradicted);
        }
    }
    verdict
}

impl Verdict {
    /// Whether the run shows what it is there to show: no damage where there is logging, and, where
    /// there is none, damage (else the kills prove nothing).
    #[must_use]
    pub fn passes(&self) -> bool {
        self.lost == 0
            && self.doubled == 0
            && self.contradicted == 0
            && self.unlogged_damage != Some(0)
    }
}

/// The object that `--json` prints.
#[must_use]
pub fn json(outcomes: &[Outcome], provenance: &Provenance) -> Value {
    let protocols: serde_json::Map<String, Value> = outcomes
        .iter()
        .map(|outcome| {
            let latency = outcome.latency().latency_us;
            let value = json!({
                "requests": outcome.requests,
                "acknowledged": outcome.acknowledged,
                "effects": outcome.findings.effects,
                "kills": outcome.faults.killed(),
                "kills_by_role": kills_by_role(outcome),
                "takeovers_ms": outcome.takeovers_ms,
                "stops": outcome.faults.stops.total(),
                "stops_by_role": outcome.faults.stops,
                "cuts": outcome.faults.cuts.total(),
                "cuts_by_role": outcome.faults.cuts,
                "replaced_storage_nodes": outcome.faults.replaced,
                "lost": outcome.findings.lost,
                "doubled": outcome.findings.doubled,
                "contradicted": outcome.findings.contradicted,
                "p50_us": latency.value_at_quantile(0.5),
                "p99_us": latency.value_at_quantile(0.99),
                "appends_per_request": outcome.appends_per_request(),
                "examples": outcome.findings.examples,
            });
            (outcome.protocol.name().to_owned(), value)
        })
        .collect();
    json!({
        "protocols": protocols,
        "verdict": verdict(outcomes),
        "provenance": provenance,
    })
}

fn kills_by_role(outcome: &Outcome) -> Value {
    let faults = &outcome.faults;
    let Nodes { engines, storage, sequencers } = faults.kills;
    json!({
        "workers": faults.workers,
        "aimed": faults.aimed,
        "engines": engines,
        "storage": storage,
        "sequencers": sequencers,
    })
}

/// What else happened than kills, a line per protocol; none if nothing did.
#[must_use]
pub fn other_faults(outcomes: &[Outcome]) -> Vec<String> {
    let has_more = |outcome: &&Outcome| {
        let Faults { stops, cuts, replaced, .. } = outcome.faults;
        stops.total() + cuts.total() + replaced > 0
    };
    let nodes = |Nodes { engines, storage, sequencers }: Nodes| {
        format!("{engines} engines, {storage} storage nodes, {sequencers} sequencers")
    };
    let line = |outcome: &Outcome| {
        format!(
            "{}: stopped for seconds, and resumed, {}; cut off from the others for seconds, {}; disks \
             lost, and their nodes replaced: {}",
            outcome.protocol.name(),
            nodes(outcome.faults.stops),
            nodes(outcome.faults.cuts),
            outcome.faults.replaced
        )
    };
    outcomes.iter().filter(has_more).map(line).collect()
}

/// The table for a person.
#[must_use]
pub fn table(outcomes: &[Outcome]) -> String {
    let mut text = String::from(
        "protocol        p50 µs   p99 µs  appends/req  reserved  effects  kills w/e/s/q   lost  doubled\n",
    );
    for outcome in outcomes {
        let latency = outcome.latency().latency_us;
        let workers = outcome.faults.workers;
        let Nodes { engines, storage, sequencers } = outcome.faults.kills;
        let by_role = format!("{workers}/{engines}/{storage}/{sequencers}");
        // Writing to a String cannot fail.
        writeln!(
            text,
            "{:<14} {:>7} {:>8} {:>12.2} {:>9} {:>8} {:>14} {:>6} {:>8}",
            outcome.protocol.name(),
            latency.value_at_quantile(0.5),
            latency.value_at_quantile(0.99),
            outcome.appends_per_request(),
            outcome.acknowledged,
            outcome.findings.effects,
            by_role,
            outcome.findings.lost,
            outcome.findings.doubled,
        )
        .ok();
    }
    text
}

/// Writes `report.html`, `slices.csv` and `report.json` into `directory`, and returns the page.
pub fn write(
    directory: &Path,
    outcomes: &[Outcome],
    provenance: &Provenance,
) -> std::io::Result<PathBuf> {
    std::fs::create_dir_all(directory)?;
    let page = directory.join("report.html");
    std::fs::write(&page, html(outcomes, provenance))?;
    std::fs::write(directory.join("slices.csv"), csv(outcomes))?;
    let json = json(outcomes, provenance).to_string();
    std::fs::write(directory.join("report.json"), json)?;
    Ok(page)
}

fn csv(outcomes: &[Outcome]) -> String {
    let mut text = String::from("protocol,slice,succeeded,failed,p50_us,p90_us,p99_us,max_us\n");
    for outcome in outcomes {
        for (index, slice) in outcome.slices.iter().enumerate() {
            let at = |quantile| slice.latency_us.value_at_quantile(quantile);
            writeln!(
                text,
                "{},{},{},{},{},{},{},{}",
                outcome.protocol.name(),
                index + 1,
                slice.succeeded,
                slice.failed,
                at(0.5),
                at(0.9),
                at(0.99),
                slice.latency_us.max(),
            )
            .ok();
        }
    }
    text
}

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;\
padding:0 1rem;color:#1c2733}table{border-collapse:collapse;width:100%}th,td{padding:.35rem .6rem;\
border-bottom:1px solid #d8dee6;text-align:right}th:first-child,td:first-child{text-align:left;\
white-space:nowrap}\
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}.good{color:#0a7d45}.bad{color:#b3261e}\
svg{width:100%;height:auto}text{font:12px system-ui,sans-serif;fill:#4a5866}small{color:#5d6b7a}";

const COLOURS: [(Protocol, &str); 4] = [
    (Protocol::HalfmoonRead, "#2563eb"),
    (Protocol::HalfmoonWrite, "#0a9396"),
    (Protocol::Boki, "#d97706"),
    (Protocol::Unlogged, "#8492a6"),
];

fn colour(protocol: Protocol) -> &'static str {
    COLOURS.iter().find(|(of, _)| *of == protocol).map_or("#000", |(_, colour)| colour)
}

fn html(outcomes: &[Outcome], provenance: &Provenance) -> String {
    let verdict = verdict(outcomes);
    let carried =
        provenance.carried.map_or_else(String::new, |all| format!(" · {}", all.described()));
    let class = if verdict.passes() { "good" } else { "bad" };
    let mut rows = String::new();
    for outcome in outcomes {
        let latency = outcome.latency().latency_us;
        let kills = &outcome.faults.kills;
        writeln!(
            rows,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{:.2}</td><td>{}</td><td>{}</td>\
             <td>{} / {} / {} / {}</td><td>{}</td><td>{}</td></tr>",
            outcome.protocol.name(),
            latency.value_at_quantile(0.5),
            latency.value_at_quantile(0.99),
            outcome.appends_per_request(),
            outcome.acknowledged,
            outcome.findings.effects,
            outcome.faults.workers,
            kills.engines,
            kills.storage,
            kills.sequencers,
            outcome.findings.lost,
            outcome.findings.doubled,
        )
        .ok();
    }
    let latencies: Vec<_> =
        outcomes.iter().map(|outcome| (outcome.protocol, outcome.latency().latency_us)).collect();
    let damage = verdict.unlogged_damage.map_or(String::new(), |damage| {
        format!("<p>Without logging, the same kills left <b>{damage}</b> damaged effects.</p>")
    });
    let others: String =
        other_faults(outcomes).iter().map(|line| format!("<p>{line}</p>")).collect();
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>Halfmoon demo</title>\
         <style>{STYLE}</style><h1>Travel reservations under four protocols</h1>\
         <p class={class}><b>lost {}, doubled {}</b>, contradicted {} under the protocols that \
         log.</p>{damage}<table><tr><th>protocol<th>p50 µs<th>p99 µs<th>appends / request\
         <th>reserved<th>effects<th>kills: workers / engines / storage / sequencers<th>lost<th>doubled</tr>\
         {rows}</table>{others}<h2>Latency of the mix, from the scheduled start</h2>{}\
         <p><small>{} · {} · transport {}{} · durability {} · {}</small></p></html>\n",
        verdict.lost,
        verdict.doubled,
        verdict.contradicted,
        plot(&latencies),
        escape(&provenance.version),
        escape(&provenance.host),
        escape(&provenance.transport),
        escape(&carried),
        escape(&provenance.durability),
        escape(&provenance.load),
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// A power of ten of microseconds.
fn in_words(us: f64) -> String {
    if us >= 1e6 {
        format!("{} s", us / 1e6)
    } else if us >= 1e3 {
        format!("{} ms", us / 1e3)
    } else {
        format!("{us} µs")
    }
}

/// Quantiles on the x axis, further apart towards the tail; latency on a logarithmic y axis.
const QUANTILES: [f64; 9] = [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999];
const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 70.0;

#[expect(clippy::cast_precision_loss, reason = "latencies in µs, for drawing")]
fn plot(histograms: &[(Protocol, Histogram<u64>)]) -> String {
    let values = || histograms.iter().flat_map(|(_, h)| QUANTILES.map(|q| h.value_at_quantile(q)));
    let low = (values().min().unwrap_or(1).max(1) as f64).log10().floor();
    let high = (values().max().unwrap_or(10).max(10) as f64).log10().ceil().max(low + 1.0);
    let x = |index: usize| LEFT + index as f64 * (WIDTH - LEFT - 20.0) / 8.0;
    let y = |us: f64| 20.0 + (high - us.max(1.0).log10()) / (high - low) * (HEIGHT - 60.0);
    let mut svg = format!("<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img'>");
    let mut decade = low;
    while decade <= high {
        let (us, at) = (10f64.powf(decade), y(10f64.powf(decade)));
        write!(
            svg,
            "<line x1='{LEFT}' x2='{WIDTH}' y1='{at:.1}' y2='{at:.1}' stroke='#d8dee6'/>\
             <text x='{:.1}' y='{:.1}' text-anchor='end'>{}</text>",
            LEFT - 8.0,
            at + 4.0,
            in_words(us),
        )
        .ok();
        decade += 1.0;
    }
    for (index, quantile) in QUANTILES.iter().enumerate() {
        let label = match quantile {
            0.0 => "least".to_owned(),
            quantile => format!("p{}", quantile * 100.0),
        };
        let at = x(index);
        let below = HEIGHT - 18.0;
        write!(svg, "<text x='{at:.1}' y='{below:.1}' text-anchor='middle'>{label}</text>").ok();
    }
    for (line, (protocol, histogram)) in histograms.iter().enumerate() {
        let points: Vec<String> = QUANTILES
            .iter()
            .enumerate()
            .map(|(index, q)| {
                format!("{:.1},{:.1}", x(index), y(histogram.value_at_quantile(*q) as f64))
            })
            .collect();
        let colour = colour(*protocol);
        write!(
            svg,
            "<polyline points='{}' fill='none' stroke='{colour}' stroke-width='2.5'/>\
             <text x='{:.1}' y='{:.1}' style='fill:{colour};font-weight:600'>{}</text>",
            points.join(" "),
            LEFT + 14.0,
            34.0 + line as f64 * 17.0,
            protocol.name(),
        )
        .ok();
    }
    svg + "</svg>"
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page is looked at by browsers that guess: every element of the plot is well-formed instead.
    #[test]
    fn the_plot_is_well_formed_and_has_a_line_for_every_protocol() {
        let histograms = COLOURS.map(|(protocol, _)| {
            let mut histogram = crate::load::histogram();
            histogram.saturating_record(1500);
            (protocol, histogram)
        });
        let svg = plot(&histograms);
        assert_eq!(svg.matches("<polyline ").count(), COLOURS.len());
        let mut open = Vec::new();
        for tag in svg.split('<').skip(1).map(|rest| rest.split_once('>').unwrap().0) {
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name));
            } else if !tag.ends_with("'/") {
                open.push(tag.split(' ').next().unwrap());
            }
            for attribute in tag.split("='").skip(1) {
                assert!(attribute.contains('\''), "{tag}");
            }
            assert!(!tag.replace("='", "").contains('='), "{tag} has an attribute without quotes");
        }
        assert!(open.is_empty(), "{open:?}");
    }
}
