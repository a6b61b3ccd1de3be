//! One packet's whole way through the filters, in words: what `sluice explain` prints.
//!
//! The verdict is the appliance's own, by way of a [`Replay`]; why a rule does not match is asked of the rules one condition at a time.

mod why;

use std::borrow::Cow;
use std::fmt::Write;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use sluice_config::{Action, Config, Measure, Mode, Rate, SourceLimits};
use sluice_filters::engine::{Level, Limited, Plan, RuleStep, Step};
use sluice_filters::rules::{Facts, naive};
use sluice_filters::sets::AddressSet;
use sluice_filters::units::{Seq, ServiceId};
use sluice_filters::{DropReason, Flags, Parsed, Segment, ServiceMap};

use crate::filters::Loaded;
use crate::filters::bans::Ban;
use crate::packet;
use crate::replay::{Captured, Outcome, Replay};

/// What is known besides the packet.
#[derive(Debug)]
pub struct Circumstances<'a> {
    /// The configuration.
    pub config: &'a Arc<Config>,
    /// What its sets hold.
    pub sets: &'a [AddressSet],
    /// Its bans.
    pub bans: &'a [Ban],
    /// The cookies' seed; none when it is drawn at each start.
    pub seed: Option<[u8; 32]>,
    /// When the packet was received, since 1970.
    pub time: std::time::Duration,
    /// The port that it came in by, an index into the configuration's; none when nobody knows.
    pub port: Option<usize>,
}

/// Explains what becomes of `frame`, which had `wire_len` octets when it was sent. What is missing is not made up. One fact a line, the
/// verdict last.
#[must_use]
pub fn explain(circumstances: &Circumstances<'_>, plan: Plan, frame: &[u8], wire_len: u32) -> String {
    let Circumstances { config, bans, .. } = circumstances;
    let mut out = Lines(String::new());
    let captured = Captured::new(frame, wire_len);
    if matches!(captured.frame, Cow::Owned(_)) {
        out.say("fragment", "the whole packet: its fragment header is taken out");
    }
    if captured.missing() > 0 {
        let Captured { frame, len } = &captured;
        out.say("capture", &format!("kept {} of {len} octets; the rest is not known", frame.len()));
    }
    let parsed = captured.parse(&mut Vec::new());
    let (frame, wire_len) = (&*captured.frame, captured.len as u32);
    let segment = match parsed {
        Ok(Parsed::Tcp(segment)) => segment,
        Ok(Parsed::Arp(_) | Parsed::Icmp(_) | Parsed::Icmp6(_)) => {
            out.say("parser", "ARP or ICMP");
            out.say(
                "verdict",
                "served by the appliance itself, if it is for one of its addresses, within rates; no filter is asked, \
                 but ICMP errors are for their source",
            );
            return out.0;
        }
        Err(reason) => {
            out.say("parser", "not acceptable");
            out.say("verdict", &format!("dropped: {}", reason.as_str()));
            return out.0;
        }
    };
    out.say("packet", &packet::describe(&segment, frame));
    let filters = Loaded { sets: circumstances.sets.to_vec(), notes: Vec::new(), plan };
    let mut replay = Replay::new(Arc::clone(config), filters, circumstances.seed.unwrap_or_default(), bans.to_vec());
    replay.come_by(circumstances.port);
    let mut steps: Vec<Step> = Vec::new();
    let outcome = replay.packet_traced(circumstances.time, frame, wire_len, &mut steps);
    if let Some(fault) = why::bad_source(config, &segment, circumstances.port, outcome) {
        out.say("source", &fault);
        let received = if outcome == Outcome::FromService { ", where the appliance receives it" } else { "" };
        let reason = outcome.reason().unwrap_or(DropReason::OwnSource);
        out.say("verdict", &format!("dropped: {}{received}", reason.as_str()));
        return out.0;
    }
    let Some(service) = ServiceMap::new(&config.services).get(segment.key.dst, segment.key.dst_port) else {
        out.say("service", &format!("none listens on {}", segment.key.local()));
        if outcome == Outcome::FromUpstream {
            out.say("upstream", &format!("{} is one, and filters are for clients", segment.key.remote()));
            out.say(
                "verdict",
                "goes to the connection that dialled it; without one it is dropped: no_flow, and a RST answers it, within a \
                 ceiling and unless it is one",
            );
            return out.0;
        }
        out.lists(circumstances, &segment);
        out.bans(circumstances, &segment);
        out.limits(config, &steps);
        out.say("verdict", &outcome.describe(config));
        return out.0;
    };
    out.service(config, service);
    let facts = Facts { segment: &segment, frame, service };
    out.sets(circumstances, &segment);
    out.lists(circumstances, &segment);
    out.bans(circumstances, &segment);
    let ended_before_rules = steps.iter().any(|s| matches!(s, Step::Denied | Step::NotAllowed | Step::Banned(_)));
    if !ended_before_rules {
        out.rules(circumstances, replay.plan(), &facts, &steps);
        out.limits(config, &steps);
    }
    out.cookie(circumstances, &segment, outcome);
    out.verdict(config, service, &segment, outcome, circumstances.seed.is_some());
    out.0
}

struct Lines(String);

impl Lines {
    fn say(&mut self, what: &str, text: &str) {
        let _ = writeln!(self.0, "{what:<11}{text}");
    }

    fn service(&mut self, config: &Config, service: ServiceId) {
        let Some(service) = config.services.get(usize::from(service.0)) else { return };
        self.say(
            "service",
            &format!("{:?}, {}, proxy_protocol {}", service.name, service.mode, service.proxy_protocol),
        );
    }

    fn sets(&mut self, circumstances: &Circumstances<'_>, segment: &Segment) {
        let Circumstances { config, sets, .. } = circumstances;
        let holding: Vec<String> = config
            .sets
            .iter()
            .zip(*sets)
            .filter(|(_, set)| set.contains(segment.key.src))
            .map(|(set, _)| format!("@{}", set.name))
            .collect();
        let holding = if holding.is_empty() { "in none".to_owned() } else { format!("in {}", holding.join(", ")) };
        if !config.sets.is_empty() {
            self.say("sets", &format!("{} is {holding}", segment.key.src.to_ip()));
        }
    }

    fn lists(&mut self, circumstances: &Circumstances<'_>, segment: &Segment) {
        let config = circumstances.config;
        let ip = segment.key.src.to_ip();
        let filters = &config.filters;
        let within = |nets: &[ipnet::IpNet]| nets.iter().find(|net| net.contains(&ip)).copied();
        let text = match (within(&filters.allow), within(&filters.deny)) {
            (Some(net), _) => format!("filters.allow holds it ({net}); no ban concerns it"),
            (None, Some(net)) => format!("filters.deny holds it ({net}): dropped"),
            (None, None) if filters.deny.is_empty() && !filters.allow.is_empty() => {
                "filters.allow is a closed list without it: dropped".into()
            }
            (None, None) => return,
        };
        self.say("lists", &text);
    }

    fn bans(&mut self, circumstances: &Circumstances<'_>, segment: &Segment) {
        let ip = segment.key.src.to_ip();
        let now = UNIX_EPOCH + circumstances.time;
        let mut bans: Vec<&Ban> = circumstances.bans.iter().filter(|ban| ban.prefix.contains(&ip)).collect();
        bans.sort_by_key(|ban| std::cmp::Reverse(ban.prefix.prefix_len()));
        for ban in bans {
            let until = match ban.until {
                None => "for good".into(),
                Some(until) => {
                    let over = if until <= now { ", over by then" } else { "" };
                    format!("until {}{over}", humantime::format_rfc3339_seconds(until))
                }
            };
            let reason = if ban.reason.is_empty() { String::new() } else { format!(": {}", ban.reason) };
            self.say("ban", &format!("{} {until}{reason}", ban.prefix));
        }
    }

    fn rules(&mut self, circumstances: &Circumstances<'_>, plan: &Plan, facts: &Facts<'_>, steps: &[Step]) {
        let Circumstances { config, sets, .. } = circumstances;
        for (index, rule) in config.rules.iter().enumerate() {
            let taken = steps.iter().rev().find_map(|step| match step {
                Step::Rule(at, did) if *at == index => Some(*did),
                _ => None,
            });
            let at_opening = rule.action.is_on_connections();
            if taken.is_none() && naive::hangs_on_missing(plan.rules(), index, rule, sets, facts) {
                let text = "cannot tell: it looks at payload that was not captured";
                self.say("rule", &format!("{} {:?} {text}", index + 1, rule.name));
                continue;
            }
            let text = match (taken, naive::mismatch(plan.rules(), index, rule, sets, facts)) {
                (Some(did), _) => {
                    let holder = why::holder(&rule.matches.source, config, sets, facts.segment.key.src);
                    let by = holder.map_or(String::new(), |holder| format!(" (source in {holder})"));
                    format!("matches{by}: {}", describe_step(did, &rule.action))
                }
                (None, Some(condition)) => {
                    format!("does not match: {}", why::mismatch(condition, rule, config, sets, facts))
                }
                (None, None) if at_opening => "matches when the connection opens".to_owned(),
                (None, None) => "not asked: an earlier one decided".to_owned(),
            };
            self.say("rule", &format!("{} {:?} {text}", index + 1, rule.name));
            if matches!(taken, Some(RuleStep::Dropped | RuleStep::Passed | RuleStep::Over(_))) {
                let rest = config.rules.len() - index - 1;
                if rest > 0 {
                    self.say("", &format!("{rest} more not asked"));
                }
                break;
            }
        }
    }

    fn limits(&mut self, config: &Config, steps: &[Step]) {
        for step in steps {
            match step {
                Step::Limit(level, of, within) => {
                    let measure = if *of == Limited::Bytes { Measure::Bytes } else { Measure::Packets };
                    let rate = rate_of(config, *level, *of).map_or(String::new(), |rate| rate.show(measure));
                    let result = if *within { "one more is within" } else { "over: dropped" };
                    self.say("limit", &format!("{} {rate}: {result}", name_of(*level, *of)));
                }
                Step::Ceiling(within) => {
                    let rate = config.filters.syn_ack_ceiling.map_or(String::new(), |rate| rate.show(Measure::Packets));
                    let result = if *within { "one more answer is within" } else { "over" };
                    self.say("limit", &format!("filters.syn_ack_ceiling {rate}: {result}"));
                }
                Step::Verified => self.say("", "the source has proved itself before, and is answered"),
                _ => {}
            }
        }
    }

    fn cookie(&mut self, circumstances: &Circumstances<'_>, segment: &Segment, outcome: Outcome) {
        let text = match outcome {
            Outcome::Answered => {
                "answered with a SYN-ACK; nothing is remembered until its cookie comes back".to_owned()
            }
            Outcome::Opened => "right".to_owned(),
            Outcome::Dropped(..) if outcome.reason() == Some(DropReason::BadCookie) => {
                let cookie = Seq(segment.ack.0.wrapping_sub(1)).0;
                match circumstances.seed {
                    Some(_) => format!("{cookie:#010x} is not ours, or was minted too long ago"),
                    None => format!(
                        "{cookie:#010x} cannot be checked: without cookies.seed_file the seed is drawn at each start"
                    ),
                }
            }
            _ => return,
        };
        self.say("cookie", &text);
    }

    fn verdict(&mut self, config: &Config, service: ServiceId, segment: &Segment, outcome: Outcome, seeded: bool) {
        let targets = config.services.get(usize::from(service.0)).map(|service| {
            let upstreams: Vec<String> = service.upstreams.iter().map(|up| up.address.to_string()).collect();
            let how = if service.mode == Mode::Splice { "spliced to" } else { "relayed to" };
            format!("{how} {}", upstreams.join(" or "))
        });
        let targets = targets.unwrap_or_default();
        let text = match outcome {
            Outcome::Answered => format!("SYN-ACK; the client's ACK opens a connection, {targets}"),
            Outcome::Opened => format!("a connection opens, {targets}"),
            Outcome::Dropped(..)
                if outcome.reason() == Some(DropReason::BadCookie) && !seeded && segment.flags.contains(Flags::ACK) =>
            {
                format!(
                    "dropped: bad_cookie, unless it belongs to an open connection or brings a cookie of the running appliance; \
                     then {targets}"
                )
            }
            other => other.describe(config),
        };
        self.say("verdict", &text);
    }
}

fn describe_step(did: RuleStep, action: &Action) -> String {
    let limit = match action {
        Action::Limit(limit) => format!("{} {} {}", limit.rate.show(limit.of), limit.of, limit.per),
        _ => String::new(),
    };
    match did {
        RuleStep::Dropped => "dropped".into(),
        RuleStep::Passed => "passes, and no limit of [filters] is asked".into(),
        RuleStep::Within(_) => format!("one more is within {limit}; on to the next"),
        RuleStep::Over(_) => format!("over {limit}: dropped"),
        RuleStep::WouldCut => "would be dropped; dry run, on to the next".into(),
        RuleStep::WouldPass => "would pass; dry run, on to the next".into(),
    }
}

fn rate_of(config: &Config, level: Level, of: Limited) -> Option<Rate> {
    let limits: &SourceLimits = match level {
        Level::Address => &config.filters.per_address,
        Level::Subnet => &config.filters.per_subnet,
        Level::Site => &config.filters.per_site,
    };
    match of {
        Limited::Syns => limits.syns,
        Limited::FlowlessAcks => limits.flowless_acks,
        Limited::Connections => limits.connections,
        Limited::Packets => limits.packets,
        Limited::Bytes => limits.bytes,
    }
}

fn name_of(level: Level, of: Limited) -> String {
    let level = match level {
        Level::Address => "per_address",
        Level::Subnet => "per_subnet",
        Level::Site => "per_site",
    };
    let of = match of {
        Limited::Syns => "syns",
        Limited::FlowlessAcks => "flowless_acks",
        Limited::Connections => "connections",
        Limited::Packets => "packets",
        Limited::Bytes => "bytes",
    };
    format!("filters.{level}.{of}")
}
