//! What all workers' filters share: the rules and limits, compiled, and the sets. Immutable; when a set changes, a new plan takes the
//! old one's place.

use std::sync::Arc;

use sluice_config::{Action, Config, Matches, Measure, Mistake, Per, Rate, Rule, Sources};

use super::trace::{Level, Limited};
use crate::DropReason;
use crate::addr::Addr;
use crate::memory::{Quota, prefix};
use crate::rules::{Moment, Rows, Rules};
use crate::sets::{AddressSet, SetMap};

/// The compiled filters.
#[derive(Debug)]
pub struct Plan {
    pub(super) fixed: Arc<Fixed>,
    pub(super) sources: Option<SourceTable>,
}

/// What does not change while the appliance runs.
#[derive(Debug)]
pub(super) struct Fixed {
    pub(super) rules: Rules,
    pub(super) verdicts: Vec<Verdict>,
    /// The exact buckets that the rules use.
    pub(super) buckets: Vec<Quota>,
    /// Asked when a segment arrives.
    pub(super) arrival: Vec<SourceLimit>,
    pub(super) flowless: Vec<SourceLimit>,
    pub(super) opening: Vec<SourceLimit>,
    pub(super) ceiling: Option<Quota>,
    /// Whether anything is kept by source: limits, of rules or others, on arrival and when connections open.
    pub(super) metered: bool,
    pub(super) metered_opening: bool,
    pub(super) records: usize,
    pub(super) bans: usize,
    /// Whether there is any rule without `dry_run`, or with.
    pub(super) any_rule: bool,
    pub(super) any_opening: bool,
}

/// What a rule does when it matches.
#[derive(Clone, Copy, Debug)]
pub(super) struct Verdict {
    pub(super) action: Deed,
    /// The mark of a rule with `dry_run`.
    pub(super) dry: Option<u32>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Deed {
    Drop,
    Pass,
    /// The quota is for a source's record; buckets have theirs.
    Limit {
        of: Measure,
        quota: Quota,
        per: Meter,
    },
}

/// What holds a rule's debt.
#[derive(Clone, Copy, Debug)]
pub(super) enum Meter {
    /// A record of the source's prefix.
    Source { kind: u32, v4: u8, v6: u8 },
    /// An exact bucket; with `by_service` one of as many as there are services.
    Bucket { first: usize, by_service: bool },
}

/// One limit of `[filters]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct SourceLimit {
    pub(super) level: Level,
    pub(super) of: Limited,
    pub(super) kind: u32,
    pub(super) quota: Quota,
}

impl SourceLimit {
    /// The prefix that the limit is for; none where the level has no meaning.
    #[inline]
    pub(super) fn prefix(&self, source: Addr) -> Option<Addr> {
        match self.level {
            Level::Address => Some(source),
            Level::Subnet => Some(prefix(source, 24, 64)),
            Level::Site => (!source.is_v4()).then(|| prefix(source, 32, 48)),
        }
    }

    pub(super) fn reason(&self) -> DropReason {
        match self.of {
            Limited::Syns => DropReason::SourceSyns,
            Limited::FlowlessAcks => DropReason::SourceFlowlessAcks,
            Limited::Connections => DropReason::SourceConnections,
            Limited::Packets => DropReason::SourcePackets,
            Limited::Bytes => DropReason::SourceBytes,
        }
    }
}

/// Where sources stand: one look-up tells what `deny`, `allow` and every rule think of an address.
#[derive(Debug)]
pub(super) struct SourceTable {
    pub(super) map: SetMap,
    /// By class.
    pub(super) standing: Vec<Standing>,
    /// By class: what is certain of all its segments, bans aside.
    pub(super) foregone: Vec<Option<Foregone>>,
    /// By class: the rules whose conditions on the source hold. None when no rule has any.
    pub(super) rows: Option<Rows>,
    pub(super) closed: bool,
}

/// Why every segment of a source to any service is dropped, whatever else it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foregone {
    /// `filters.deny` holds it.
    Denied,
    /// A closed `filters.allow` does not.
    NotAllowed,
    /// It is banned.
    Banned,
    /// The first rule that matches looks at sources only, and drops.
    Rule(u16),
}

impl Foregone {
    /// The reason that the drop is counted under.
    #[inline]
    pub fn reason(self) -> DropReason {
        match self {
            Foregone::Denied => DropReason::DenyList,
            Foregone::NotAllowed => DropReason::NotAllowed,
            Foregone::Banned => DropReason::Banned,
            Foregone::Rule(_) => DropReason::Rule,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) denied: bool,
    pub(super) allowed: bool,
}

impl Plan {
    /// Compiles the filters of `config`, which was read from `file`, for `workers` workers; `sets` are what its sets hold, in order.
    ///
    /// # Errors
    /// A mistake for every expression that cannot be compiled, and one when the sets overlap in too many ways.
    pub fn compile(file: &str, config: &Config, sets: &[AddressSet], workers: usize) -> Result<Plan, Vec<Mistake>> {
        let fixed = Arc::new(Fixed::compile(file, config, workers)?);
        let sources = SourceTable::build(config, sets).map_err(|found| {
            let (file, key) = (file.to_owned(), "set".to_owned());
            let remedy = "use fewer sets, or sets that overlap less".to_owned();
            vec![Mistake { file, place: None, key, found, remedy }]
        })?;
        Ok(Plan { fixed, sources })
    }

    /// The same plan with other contents of its sets.
    ///
    /// # Errors
    /// What is wrong: the sets overlap in too many ways.
    pub fn with_sets(&self, config: &Config, sets: &[AddressSet]) -> Result<Plan, String> {
        Ok(Plan { fixed: Arc::clone(&self.fixed), sources: SourceTable::build(config, sets)? })
    }

    /// The compiled rules.
    #[must_use]
    pub fn rules(&self) -> &Rules {
        &self.fixed.rules
    }

    /// The row of the rules' conditions on sources that `source` falls in.
    #[cfg(test)]
    pub(crate) fn row_of(&self, source: Addr) -> Option<(&Rows, u16)> {
        let sources = self.sources.as_ref()?;
        Some((sources.rows.as_ref()?, sources.map.class(source)))
    }

    /// Octets of the look-up table of sources.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.sources.as_ref().map_or(0, |sources| sources.map.memory())
    }
}

impl Fixed {
    fn compile(file: &str, config: &Config, workers: usize) -> Result<Fixed, Vec<Mistake>> {
        let rules = Rules::compile(file, config)?;
        let (mut verdicts, mut buckets, mut marks) = (Vec::new(), Vec::new(), 0..);
        let (mut metered, mut metered_opening) = (false, false);
        for (rule, kind) in config.rules.iter().zip(RULE_KINDS..) {
            let action = match &rule.action {
                Action::Drop => Deed::Drop,
                Action::Pass => Deed::Pass,
                Action::Limit(limit) => {
                    // Whatever is not one source's comes to all workers alike.
                    let shared = Quota::new(&divided(limit.rate, workers));
                    let mut take = |count| {
                        let first = buckets.len();
                        buckets.extend(std::iter::repeat_n(shared, count));
                        first
                    };
                    let per = match limit.per {
                        Per::Source => Meter::Source { kind, v4: 32, v6: 128 },
                        Per::Prefix { v4, v6 } => Meter::Source { kind, v4, v6 },
                        Per::Service => Meter::Bucket { first: take(config.services.len()), by_service: true },
                        Per::Global => Meter::Bucket { first: take(1), by_service: false },
                    };
                    let by_source = matches!(per, Meter::Source { .. });
                    metered |= by_source && limit.of != Measure::Connections;
                    metered_opening |= by_source && limit.of == Measure::Connections;
                    Deed::Limit { of: limit.of, quota: Quota::new(&limit.rate), per }
                }
            };
            let dry = rule.dry_run.then(|| marks.next()).flatten();
            verdicts.push(Verdict { action, dry });
        }
        let limits = |of: &[Limited]| source_limits(config, of);
        let (arrival, flowless, opening) = (
            limits(&[Limited::Syns, Limited::Packets, Limited::Bytes]),
            limits(&[Limited::FlowlessAcks]),
            limits(&[Limited::Connections]),
        );
        metered |= !(arrival.is_empty() && flowless.is_empty());
        metered_opening |= !opening.is_empty();
        Ok(Fixed {
            any_rule: rules.any(Moment::Arrival),
            any_opening: rules.any(Moment::Opening),
            rules,
            verdicts,
            buckets,
            arrival,
            flowless,
            opening,
            ceiling: config.filters.syn_ack_ceiling.as_ref().map(Quota::new),
            metered,
            metered_opening,
            records: usize::try_from(config.filters.records).unwrap_or(usize::MAX),
            bans: config.bans.as_ref().map_or(0, |bans| usize::try_from(bans.capacity).unwrap_or(usize::MAX)),
        })
    }
}

/// Kinds of records below are the limits' of `[filters]`.
const RULE_KINDS: u32 = 64;

/// One worker's part of a rate.
fn divided(rate: Rate, workers: usize) -> Rate {
    let workers = u32::try_from(workers).unwrap_or(u32::MAX).max(1);
    Rate {
        every: rate.every.saturating_mul(workers),
        burst: rate.burst.checked_div(u64::from(workers)).unwrap_or(1).max(1),
        ..rate
    }
}

fn source_limits(config: &Config, of: &[Limited]) -> Vec<SourceLimit> {
    let filters = &config.filters;
    let levels = [
        (Level::Address, &filters.per_address),
        (Level::Subnet, &filters.per_subnet),
        (Level::Site, &filters.per_site),
    ];
    let mut limits = Vec::new();
    for (level, set) in levels {
        for &of in of {
            let rate = match of {
                Limited::Syns => &set.syns,
                Limited::FlowlessAcks => &set.flowless_acks,
                Limited::Connections => &set.connections,
                Limited::Packets => &set.packets,
                Limited::Bytes => &set.bytes,
            };
            let kind = (level as u32).wrapping_mul(8).wrapping_add(of as u32);
            limits.extend(rate.as_ref().map(|rate| SourceLimit { level, of, kind, quota: Quota::new(rate) }));
        }
    }
    limits
}

impl SourceTable {
    /// None when nobody asks where a segment comes from.
    fn build(config: &Config, sets: &[AddressSet]) -> Result<Option<SourceTable>, String> {
        let filters = &config.filters;
        let used = |sources: &Sources| !sources.is_empty();
        let by_rules = config.rules.iter().any(|rule| used(&rule.matches.source) || used(&rule.matches.not_source));
        if filters.deny.is_empty() && filters.allow.is_empty() && !by_rules {
            return Ok(None);
        }
        let mut members = Members { all: Vec::new(), taken: vec![None; sets.len()] };
        let deny = members.prefixes(&filters.deny);
        let allow = members.prefixes(&filters.allow);
        let mut wanted = Vec::new();
        for rule in &config.rules {
            wanted.push((members.sources(&rule.matches.source, sets), members.sources(&rule.matches.not_source, sets)));
        }
        let map = SetMap::build(&members.all).map_err(|error| error.to_string())?;
        let holds = |class: usize, member: usize| {
            let class = u16::try_from(class).unwrap_or(u16::MAX);
            map.members(class).get(member / 64).is_some_and(|word| word >> (member % 64) & 1 == 1)
        };
        let any = |class, members: &Option<Vec<usize>>| {
            members.as_ref().map(|members| members.iter().any(|member| holds(class, *member)))
        };
        let standing = |class| Standing {
            denied: any(class, &deny).unwrap_or(false),
            allowed: any(class, &allow).unwrap_or(false),
        };
        let rows = by_rules.then(|| {
            Rows::new(map.classes(), config.rules.len(), |class, rule| {
                wanted.get(rule).is_some_and(|(source, not_source)| {
                    any(class, source).unwrap_or(true) && !any(class, not_source).unwrap_or(false)
                })
            })
        });
        let closed = !filters.allow.is_empty() && filters.deny.is_empty();
        let foregone = |class| match standing(class) {
            Standing { allowed: false, .. } if closed => Some(Foregone::NotAllowed),
            Standing { allowed: false, denied: true } => Some(Foregone::Denied),
            _ => {
                let rows: &Rows = rows.as_ref()?;
                let on_arrival = |rule: &Rule| !rule.action.is_on_connections();
                let asked = |rule: &usize| rows.is_set(class, *rule) && config.rules.get(*rule).is_some_and(on_arrival);
                let first = (0..config.rules.len()).find(asked)?;
                let drops = config.rules.get(first).is_some_and(drops_sources);
                u16::try_from(first).ok().filter(|_| drops).map(Foregone::Rule)
            }
        };
        Ok(Some(SourceTable {
            standing: (0..map.classes()).map(standing).collect(),
            foregone: (0..map.classes()).map(foregone).collect(),
            rows,
            closed,
            map,
        }))
    }
}

/// Whether a rule drops whatever its sources send.
fn drops_sources(rule: &Rule) -> bool {
    let Matches { source, not_source, .. } = rule.matches.clone();
    let by_source = rule.matches == Matches { source, not_source, ..Matches::default() };
    by_source && rule.action == Action::Drop && !rule.dry_run
}

/// The sets that are asked for, each once.
struct Members {
    all: Vec<AddressSet>,
    /// By configured set: its place in `all`.
    taken: Vec<Option<usize>>,
}

impl Members {
    fn push(&mut self, set: AddressSet) -> usize {
        self.all.push(set);
        self.all.len().saturating_sub(1)
    }

    fn prefixes(&mut self, prefixes: &[ipnet::IpNet]) -> Option<Vec<usize>> {
        (!prefixes.is_empty()).then(|| vec![self.push(AddressSet::new(prefixes))])
    }

    /// None when nothing is named.
    fn sources(&mut self, sources: &Sources, sets: &[AddressSet]) -> Option<Vec<usize>> {
        let mut places = self.prefixes(&sources.prefixes).unwrap_or_default();
        for &set in &sources.sets {
            let Some(known) = self.taken.get(set).copied() else { continue };
            let place = known.unwrap_or_else(|| self.push(sets.get(set).cloned().unwrap_or_default()));
            if let Some(taken) = self.taken.get_mut(set) {
                *taken = Some(place);
            }
            places.push(place);
        }
        (!sources.is_empty()).then_some(places)
    }
}
