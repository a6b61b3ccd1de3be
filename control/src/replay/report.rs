//! What a replay comes to: packets and octets by what became of them, and by rule.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

use super::{Outcome, Replay};

/// Packets counted by what became of them.
#[derive(Debug, Default)]
pub struct Report {
    lines: BTreeMap<Outcome, (u64, u64)>,
    packets: u64,
    bytes: u64,
    /// Of the packets, those of which the capture kept only a part, and those whose fate hangs on the rest.
    cut: u64,
    untold: u64,
    first: Option<Duration>,
    last: Duration,
}

/// One outcome.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    /// What became of the packets.
    pub outcome: String,
    /// The drop reason's label, if they were dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// The rule that dropped them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// How many.
    pub packets: u64,
    /// Octets of their frames.
    pub bytes: u64,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RuleLine {
    /// Its name.
    pub rule: String,
    /// What it does, in words.
    pub action: String,
    /// Whether it is on trial.
    pub dry_run: bool,
    /// TCP packets it matched.
    pub matched_packets: u64,
    /// Octets of their IP packets.
    pub matched_bytes: u64,
    /// TCP packets it dropped, or would have dropped.
    pub cut_packets: u64,
    /// Octets of their IP packets.
    pub cut_bytes: u64,
    /// Clients proved by a cookie that it would have cut; only with `dry_run`.
    pub cut_clients: u64,
}

#[derive(Serialize)]
struct Json {
    packets: u64,
    bytes: u64,
    seconds: f64,
    dropped_packets: u64,
    outcomes: Vec<Line>,
    rules: Vec<RuleLine>,
}

impl Report {
    /// Counts a packet of which `captured` octets were kept.
    pub fn add(&mut self, outcome: Outcome, time: Duration, (captured, wire_len): (usize, u32)) {
        self.cut += u64::from(captured < wire_len as usize);
        self.untold += u64::from(matches!(outcome, Outcome::CannotTell(_)));
        let line = self.lines.entry(outcome).or_default();
        let octets = u64::from(wire_len);
        *line = (line.0 + 1, line.1 + octets);
        self.packets += 1;
        self.bytes += octets;
        self.first.get_or_insert(time);
        self.last = self.last.max(time);
    }

    /// Packets in all.
    #[must_use]
    pub fn packets(&self) -> u64 {
        self.packets
    }

    /// Packets that were dropped.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.lines.iter().filter(|(outcome, _)| outcome.is_drop()).map(|(_, (packets, _))| packets).sum()
    }

    /// Packets of which it cannot be told what became of them.
    #[must_use]
    pub fn untold(&self) -> u64 {
        self.untold
    }

    /// What to say of packets that the capture cut, if any were.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        let Report { packets, cut, untold, .. } = self;
        (*cut > 0).then(|| {
            format!(
                "{cut} of {packets} packets were cut by the capture, and of {untold} of them it cannot be told what a rule says; \
                 capture whole packets (tcpdump -s 0)"
            )
        })
    }

    /// Packets that were neither dropped nor sent by a service.
    #[must_use]
    pub fn passed(&self) -> u64 {
        let untold = |outcome: &Outcome| matches!(outcome, Outcome::CannotTell(_));
        let passed = |outcome: &Outcome| !outcome.is_drop() && *outcome != Outcome::FromService && !untold(outcome);
        self.lines.iter().filter(|(outcome, _)| passed(outcome)).map(|(_, (packets, _))| packets).sum()
    }

    /// From the first packet to the last.
    #[must_use]
    pub fn span(&self) -> Duration {
        self.last.saturating_sub(self.first.unwrap_or_default())
    }

    /// One line an outcome: what passed first, then the drops, each with the most packets first.
    #[must_use]
    pub fn lines(&self, replay: &Replay) -> Vec<Line> {
        let config = replay.config();
        let mut lines: Vec<(bool, Line)> = self
            .lines
            .iter()
            .map(|(outcome, (packets, bytes))| {
                let rule = match outcome {
                    Outcome::Dropped(_, rule) => rule.and_then(|rule| config.rules.get(usize::from(rule))),
                    _ => None,
                };
                let line = Line {
                    outcome: outcome.describe(config),
                    reason: outcome.reason().map(|reason| reason.as_str()),
                    rule: rule.map(|rule| rule.name.clone()),
                    packets: *packets,
                    bytes: *bytes,
                };
                (outcome.is_drop(), line)
            })
            .collect();
        lines.sort_by_key(|(drop, line)| (*drop, std::cmp::Reverse(line.packets)));
        lines.into_iter().map(|(_, line)| line).collect()
    }

    /// One line a rule, in the configuration's order.
    #[must_use]
    pub fn rules(replay: &Replay) -> Vec<RuleLine> {
        let config = replay.config();
        let counters = &replay.counters().rules;
        let line = |(rule, counters): (&sluice_config::Rule, &sluice_filters::engine::RuleCounters)| RuleLine {
            rule: rule.name.clone(),
            action: rule.action.to_string(),
            dry_run: rule.dry_run,
            matched_packets: counters.matched_packets.get(),
            matched_bytes: counters.matched_bytes.get(),
            cut_packets: counters.cut_packets.get(),
            cut_bytes: counters.cut_bytes.get(),
            cut_clients: counters.clients.get(),
        };
        config.rules.iter().zip(counters).map(line).collect()
    }

    /// The report as a table.
    #[must_use]
    pub fn table(&self, replay: &Replay) -> String {
        let mut out = String::new();
        let seconds = self.span().as_secs_f64();
        let _ = writeln!(out, "{} packets, {} octets, {seconds:.3} s", self.packets, self.bytes);
        let lines = self.lines(replay);
        let width = lines.iter().map(|line| line.outcome.len()).max().unwrap_or(0).max(8);
        let _ = writeln!(out, "\n{:<width$}  {:>12}  {:>6}  {:>14}", "outcome", "packets", "share", "octets");
        for line in &lines {
            let share = line.packets as f64 * 100.0 / self.packets.max(1) as f64;
            let _ = writeln!(out, "{:<width$}  {:>12}  {share:>5.1}%  {:>14}", line.outcome, line.packets, line.bytes);
        }
        let rules = Report::rules(replay);
        if rules.is_empty() {
            return out;
        }
        let width = rules.iter().map(|rule| rule.rule.len()).max().unwrap_or(0).max(4);
        let _ = writeln!(
            out,
            "\n{:<width$}  {:>12}  {:>14}  {:>12}  {:>14}  {:>8}  action",
            "rule", "matched", "octets", "cut", "octets", "clients"
        );
        for rule in &rules {
            let clients = if rule.dry_run { rule.cut_clients.to_string() } else { "-".into() };
            let dry = if rule.dry_run { " (dry run)" } else { "" };
            let _ = writeln!(
                out,
                "{:<width$}  {:>12}  {:>14}  {:>12}  {:>14}  {clients:>8}  {}{dry}",
                rule.rule, rule.matched_packets, rule.matched_bytes, rule.cut_packets, rule.cut_bytes, rule.action
            );
        }
        out
    }

    /// The report as JSON.
    #[must_use]
    pub fn json(&self, replay: &Replay) -> serde_json::Value {
        let json = Json {
            packets: self.packets,
            bytes: self.bytes,
            seconds: self.span().as_secs_f64(),
            dropped_packets: self.dropped(),
            outcomes: self.lines(replay),
            rules: Report::rules(replay),
        };
        serde_json::to_value(json).unwrap_or_default()
    }
}
