//! One worker's filters: everything that is asked of a TCP segment to a service before memory is spent on its sender.
//!
//! In this order: `filters.deny` and `filters.allow`, bans, rules, limits of packets, octets and SYNs by source
//! ([`Engine::check`]; for a segment to no service [`Engine::check_source`], without the rules); for a SYN the ceiling of
//! SYN-ACKs ([`Engine::answer`]); for a segment of no connection the limit of those
//! ([`Engine::flowless`]); and when its cookie was right, limits of connections ([`Engine::open`]).
//!
//! A rule that passes a segment exempts it from all that follows here. What is asked of one segment is asked one
//! after the other, without another segment's in between: the engine remembers what it said last.

mod counters;
mod plan;
#[cfg(test)]
mod tests;
mod trace;

use std::sync::Arc;

use ipnet::IpNet;
use sluice_config::{Config, Measure, Mistake, Rate};

use self::plan::{Deed, Meter, SourceLimit, SourceTable, Standing};
use crate::addr::Addr;
use crate::memory::{Bans, Bucket, Ceiling, Clients, Full, Meters, Quota, prefix};
use crate::rules::{Facts, Moment, WORDS};
use crate::units::{Micros, ServiceId};
use crate::{DropReason, Glimpse, Segment};

pub use self::counters::{FilterCounters, RuleCounters};
pub use self::plan::{Foregone, Plan};
pub use self::trace::{Level, Limited, RuleStep, Step, Trace, Unseen};

/// Clients remembered as verified.
const CLIENTS: usize = 1 << 18;
/// Octets of a look-up table of sources that stay near by themselves.
const NEAR: usize = 512 << 10;
/// Answers to segments of no connection, towards one prefix (IPv4 /24, IPv6 /48) and worker: a restarted appliance tells a host with ten
/// thousand dead connections so within seconds, and nobody makes it send more to somebody else.
const ANSWERS: Rate = Rate { burst: 4_000, ..Rate::per_second(1_000) };
/// Slots of bans looked at in a turn.
const SWEEP: usize = 16;

/// One worker's filters. See the module.
#[derive(Debug)]
pub struct Engine {
    plan: Arc<Plan>,
    /// What anybody can make grow.
    meters: Meters,
    /// What only clients that proved themselves can: apart, so that no flood of made-up sources stands in their place.
    proved: Meters,
    ceiling: Option<Ceiling>,
    /// Of answers to segments of no connection.
    answers: Ceiling,
    buckets: Vec<Bucket>,
    clients: Clients,
    bans: Bans,
    /// How far the clock by which bans end is ahead of the callers', microseconds.
    wall_ahead: u64,
    counters: Arc<FilterCounters>,
    /// Whether there is anything to ask when a segment arrives.
    active: bool,
    /// The rule that let the last segment pass: nothing that follows it is asked.
    exempt: Option<u16>,
    /// The rule that decided about it.
    rule: Option<u16>,
    /// The client that the last segment another worker checked has proved.
    proved_client: Option<Addr>,
}

impl Engine {
    /// Filters without memories yet. `secret` keys their tables.
    #[must_use]
    pub fn new(plan: Arc<Plan>, secret: [u64; 2], counters: Arc<FilterCounters>) -> Engine {
        let fixed = &plan.fixed;
        // Each table's own: the tables spread their secrets' bits.
        let own = |table: u64| [secret[0] ^ table, secret[1]];
        let mut engine = Engine {
            meters: Meters::new(if fixed.metered { fixed.records } else { 0 }, own(0)),
            proved: Meters::new(if fixed.metered_opening { fixed.records } else { 0 }, own(1)),
            ceiling: fixed.ceiling.map(|quota| Ceiling::new(quota, own(2))),
            answers: Ceiling::new(Quota::new(&ANSWERS), own(5)),
            buckets: fixed.buckets.iter().copied().map(Bucket::new).collect(),
            clients: Clients::new(CLIENTS, own(3)),
            bans: Bans::new(fixed.bans, own(4)),
            wall_ahead: 0,
            counters,
            active: false,
            exempt: None,
            rule: None,
            proved_client: None,
            plan,
        };
        engine.look_again();
        engine
    }

    /// The filters of a configuration without sets, under no secret: for tests and tools.
    ///
    /// # Errors
    /// As [`Plan::compile`].
    pub fn of(config: &Config) -> Result<Engine, Vec<Mistake>> {
        let plan = Plan::compile("configuration", config, &[], 1)?;
        Ok(Engine::new(Arc::new(plan), [0; 2], Arc::new(FilterCounters::new(config))))
    }

    /// Puts another plan in force, of the same configuration with other contents of its sets. Returns the old one, for somebody else
    /// to free.
    pub fn replace(&mut self, plan: Arc<Plan>) -> Arc<Plan> {
        let old = std::mem::replace(&mut self.plan, plan);
        self.look_again();
        old
    }

    fn look_again(&mut self) {
        let fixed = &self.plan.fixed;
        self.active =
            self.plan.sources.is_some() || fixed.any_rule || !fixed.arrival.is_empty() || !self.bans.is_empty();
    }

    /// The plan in force.
    #[must_use]
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// Whether a verdict needs memory that [`Engine::foresee`] brings near.
    #[inline]
    #[must_use]
    pub fn looks_far(&self) -> bool {
        let Plan { fixed, sources } = &*self.plan;
        !(fixed.arrival.is_empty() && fixed.flowless.is_empty() && self.bans.is_empty())
            || sources.as_ref().is_some_and(|sources| sources.map.memory() > NEAR)
    }

    /// What a glimpse of a frame decides already, if it is for a service: the frame's source alone. Where the parser accepts the frame,
    /// [`Engine::check`] drops it for the same reason; where it does not, the frame is dropped for another one. Otherwise brings
    /// near what the verdict will look at. Called over a burst before the first verdict, in a loop of its own, it lets the misses
    /// overlap.
    #[inline]
    #[must_use]
    pub fn foresee(&self, glimpse: &Glimpse, now: Micros) -> Option<Foregone> {
        let sources = &self.plan.sources;
        let (source, mut allowed, mut foregone) = (glimpse.src, false, None);
        if let Some(sources) = sources {
            let class = usize::from(sources.map.class(source));
            foregone = sources.foregone.get(class).copied().flatten();
            allowed = sources.standing.get(class).is_some_and(|standing| standing.allowed);
            if matches!(foregone, Some(Foregone::Denied | Foregone::NotAllowed)) {
                return foregone;
            }
        }
        if !self.bans.is_empty() && !allowed && self.bans.lookup(source, self.wall(now)).is_some() {
            return Some(Foregone::Banned);
        }
        if foregone.is_none() {
            self.touch(source, glimpse.opens);
        }
        foregone
    }

    /// Accounts for a frame that [`Engine::foresee`] found to be lost, `ip_length` octets of IP packet.
    #[inline]
    pub fn forego(&mut self, foregone: Foregone, ip_length: u16) -> DropReason {
        (self.exempt, self.rule) = (None, None);
        if let Foregone::Rule(rule) = foregone {
            self.rule = Some(rule);
            if let Some(counters) = self.counters.rules.get(usize::from(rule)) {
                let octets = u64::from(ip_length);
                counters.matched_packets.bump();
                counters.matched_bytes.add(octets);
                counters.cut_packets.bump();
                counters.cut_bytes.add(octets);
            }
        }
        foregone.reason()
    }

    #[inline]
    fn touch(&self, source: Addr, syn: bool) {
        let fixed = &self.plan.fixed;
        for limit in &fixed.arrival {
            if let Some(prefix) = limit.prefix(source)
                && (limit.of != Limited::Syns || syn)
            {
                self.meters.touch(self.meters.key(limit.kind, prefix));
            }
        }
        if syn {
            return;
        }
        for limit in &fixed.flowless {
            if let Some(prefix) = limit.prefix(source) {
                self.meters.touch(self.meters.key(limit.kind, prefix));
            }
        }
    }

    /// What is asked of every segment to a service.
    ///
    /// # Errors
    /// Why it is dropped.
    // Inlined, and the rest asked about a copy: a segment whose address nobody takes stays in the caller's registers.
    #[inline(always)]
    pub fn check(&mut self, facts: &Facts<'_>, now: Micros) -> Result<(), DropReason> {
        self.check_traced(facts, now, &mut Unseen)
    }

    /// [`Engine::check`] with its steps told.
    ///
    /// # Errors
    /// Why it is dropped.
    #[inline(always)]
    pub fn check_traced(&mut self, facts: &Facts<'_>, now: Micros, trace: &mut impl Trace) -> Result<(), DropReason> {
        self.exempt = None;
        self.rule = None;
        if !self.active {
            return Ok(());
        }
        let segment = facts.segment.aside();
        self.ask(&Facts { segment: &segment, ..*facts }, now, trace)
    }

    /// What is asked of a segment that is for no service: its source alone, not the rules, which are about services.
    ///
    /// # Errors
    /// Why it is dropped.
    #[inline(always)]
    pub fn check_source(&mut self, segment: &Segment, now: Micros, trace: &mut impl Trace) -> Result<(), DropReason> {
        self.exempt = None;
        self.rule = None;
        if !self.active {
            return Ok(());
        }
        self.ask_source(&segment.aside(), now, trace)
    }

    #[inline(never)]
    fn ask_source<T: Trace>(&mut self, segment: &Segment, now: Micros, trace: &mut T) -> Result<(), DropReason> {
        self.standing(segment.key.src, now, trace)?;
        let facts = Facts { segment, frame: &[], service: ServiceId(0) };
        self.metered(segment, facts.ip_length(), now, trace)
    }

    /// What lists and bans say of a source; its class.
    #[inline(always)]
    fn standing<T: Trace>(&self, source: Addr, now: Micros, trace: &mut T) -> Result<u16, DropReason> {
        let (mut class, mut allowed) = (0, false);
        if let Some(sources) = &self.plan.sources {
            class = sources.map.class(source);
            let standing = sources.standing.get(usize::from(class)).copied().unwrap_or_default();
            if standing != Standing::default() || sources.closed {
                allowed = may_speak(sources, standing, trace)?;
            }
        }
        if !self.bans.is_empty()
            && !allowed
            && let Some(ban) = self.bans.lookup(source, self.wall(now))
        {
            trace.step(Step::Banned(ban.prefix_len));
            return Err(DropReason::Banned);
        }
        Ok(class)
    }

    #[inline(never)]
    fn ask<T: Trace>(&mut self, facts: &Facts<'_>, now: Micros, trace: &mut T) -> Result<(), DropReason> {
        let class = self.standing(facts.segment.key.src, now, trace)?;
        if self.plan.fixed.any_rule {
            if self.plan.fixed.rules.is_small() {
                self.walk::<T, 1>(Moment::Arrival, class, facts, now, trace)?;
            } else {
                self.walk::<T, WORDS>(Moment::Arrival, class, facts, now, trace)?;
            }
        }
        if self.exempt.is_some() || self.plan.fixed.arrival.is_empty() {
            return Ok(());
        }
        self.metered(facts.segment, facts.ip_length(), now, trace)
    }

    /// The limits of `[filters]` that are asked when a segment arrives.
    #[inline(always)]
    fn metered<T: Trace>(
        &mut self,
        segment: &Segment,
        ip_length: u16,
        now: Micros,
        trace: &mut T,
    ) -> Result<(), DropReason> {
        let (source, syn) = (segment.key.src, segment.flags.is_initial_syn());
        for limit in &self.plan.fixed.arrival {
            let amount = match limit.of {
                Limited::Syns if !syn => continue,
                Limited::Bytes => ip_length.into(),
                _ => 1,
            };
            within(&mut self.meters, limit, source, amount, now, trace)?;
        }
        Ok(())
    }

    /// Asks the rules, in order, until one decides.
    fn walk<T: Trace, const W: usize>(
        &mut self,
        moment: Moment,
        class: u16,
        facts: &Facts<'_>,
        now: Micros,
        trace: &mut T,
    ) -> Result<(), DropReason> {
        let Engine { plan, meters, proved, buckets, clients, counters, .. } = self;
        let meters = if moment == Moment::Opening { proved } else { meters };
        let fixed = &plan.fixed;
        let rows = plan.sources.as_ref().and_then(|sources| sources.rows.as_ref());
        let mut candidates = fixed.rules.first::<W>(moment, rows.map(|rows| (rows, class)), facts);
        // What let the segment pass on arrival stands in front of the rest.
        let end = self.exempt.map_or(usize::MAX, usize::from);
        while let Some(rule) = fixed.rules.next(&mut candidates, facts) {
            if rule > end {
                break;
            }
            let (Some(verdict), Some(counters)) = (fixed.verdicts.get(rule), counters.rules.get(rule)) else {
                continue;
            };
            let octets = u64::from(facts.ip_length());
            counters.matched_packets.bump();
            counters.matched_bytes.add(octets);
            let (cuts, step) = match verdict.action {
                Deed::Drop => (true, RuleStep::Dropped),
                Deed::Pass => (false, RuleStep::Passed),
                Deed::Limit { of, quota, per } => {
                    let amount = if of == Measure::Bytes { octets } else { 1 };
                    if charge(meters, buckets, per, &quota, facts, amount, now) {
                        trace.step(Step::Rule(rule, RuleStep::Within(of)));
                        continue;
                    }
                    (true, RuleStep::Over(of))
                }
            };
            if cuts {
                counters.cut_packets.bump();
                counters.cut_bytes.add(octets);
            }
            if let Some(mark) = verdict.dry {
                trace.step(Step::Rule(rule, if cuts { RuleStep::WouldCut } else { RuleStep::WouldPass }));
                if cuts && clients.would_cut(facts.segment.key.src, mark, now) {
                    counters.clients.bump();
                }
                continue;
            }
            trace.step(Step::Rule(rule, step));
            self.rule = u16::try_from(rule).ok();
            self.exempt = self.rule.filter(|_| !cuts);
            return match step {
                RuleStep::Passed => Ok(()),
                RuleStep::Over(_) => Err(DropReason::RuleLimit),
                _ => Err(DropReason::Rule),
            };
        }
        Ok(())
    }

    /// Whether a SYN that passed [`Engine::check`] may be answered.
    ///
    /// # Errors
    /// [`DropReason::SynAckCeiling`]: its prefix gets as many answers as it may.
    #[inline]
    pub fn answer(&mut self, source: Addr, now: Micros) -> Result<(), DropReason> {
        self.answer_traced(source, now, &mut Unseen)
    }

    /// [`Engine::answer`] with its steps told.
    ///
    /// # Errors
    /// As [`Engine::answer`].
    #[inline]
    pub fn answer_traced(&mut self, source: Addr, now: Micros, trace: &mut impl Trace) -> Result<(), DropReason> {
        let Some(ceiling) = &mut self.ceiling else { return Ok(()) };
        let within = ceiling.charge(prefix(source, 24, 48), now);
        trace.step(Step::Ceiling(within));
        if within { Ok(()) } else { self.above_the_ceiling(source, now, trace) }
    }

    #[cold]
    #[inline(never)]
    fn above_the_ceiling(&mut self, source: Addr, now: Micros, trace: &mut impl Trace) -> Result<(), DropReason> {
        if self.exempt.is_some() {
            return Ok(());
        }
        // An attacker who writes addresses of its neighbours into his SYNs is not to shut out a client; nor is he to find in its own
        // address a victim without a ceiling.
        if self.clients.is_verified(source, now)
            && self.ceiling.as_mut().is_none_or(|ceiling| ceiling.charge_address(source, now))
        {
            trace.step(Step::Verified);
            return Ok(());
        }
        Err(DropReason::SynAckCeiling)
    }

    /// Whether a segment of no connection, or of one that has ended, may be answered.
    #[must_use = "what is over the ceiling is not to be sent"]
    pub fn may_answer(&mut self, source: Addr, now: Micros) -> bool {
        self.answers.charge(prefix(source, 24, 48), now)
    }

    /// Whether the cookie of a segment without a connection may be checked.
    ///
    /// # Errors
    /// [`DropReason::SourceFlowlessAcks`].
    #[inline]
    pub fn flowless(&mut self, source: Addr, now: Micros) -> Result<(), DropReason> {
        self.flowless_traced(source, now, &mut Unseen)
    }

    /// [`Engine::flowless`] with its steps told.
    ///
    /// # Errors
    /// As [`Engine::flowless`].
    #[inline]
    pub fn flowless_traced(&mut self, source: Addr, now: Micros, trace: &mut impl Trace) -> Result<(), DropReason> {
        if self.exempt.is_some() {
            return Ok(());
        }
        for limit in &self.plan.fixed.flowless {
            within(&mut self.meters, limit, source, 1, now, trace)?;
        }
        Ok(())
    }

    /// Whether a client that proved itself may open a connection.
    ///
    /// # Errors
    /// [`DropReason::SourceConnections`], or a rule's [`DropReason::RuleLimit`].
    pub fn open(&mut self, facts: &Facts<'_>, now: Micros) -> Result<(), DropReason> {
        self.open_traced(facts, now, &mut Unseen)
    }

    /// [`Engine::open`] with its steps told.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn open_traced(&mut self, facts: &Facts<'_>, now: Micros, trace: &mut impl Trace) -> Result<(), DropReason> {
        let source = facts.segment.key.src;
        if self.plan.fixed.any_opening {
            let class = self.plan.sources.as_ref().map_or(0, |sources| sources.map.class(source));
            self.walk::<_, WORDS>(Moment::Opening, class, facts, now, trace)?;
        }
        if self.exempt.is_some() {
            return Ok(());
        }
        for limit in &self.plan.fixed.opening {
            within(&mut self.proved, limit, source, 1, now, trace)?;
        }
        Ok(())
    }

    /// Whether somebody at `source` proved a cookie within the last hour.
    #[must_use]
    pub fn is_verified(&self, source: Addr, now: Micros) -> bool {
        self.clients.is_verified(source, now)
    }

    /// The client's cookie was right, whether it got its connection or not: it is somebody, whom a rule on trial may have cut before.
    pub fn verified(&mut self, source: Addr, now: Micros) {
        self.proved_client = Some(source);
        let marks = self.clients.verified(source, now);
        if marks == 0 {
            return;
        }
        for (verdict, counters) in self.plan.fixed.verdicts.iter().zip(&self.counters.rules) {
            if verdict.dry.is_some_and(|mark| marks >> mark & 1 == 1) {
                counters.clients.bump();
            }
        }
    }

    /// The rule that decided about the last segment.
    #[inline]
    #[must_use]
    pub fn rule(&self) -> Option<u16> {
        self.rule
    }

    /// The rule that let the last segment pass, so that nothing which follows it is asked; for [`Engine::resume`].
    #[inline]
    #[must_use]
    pub fn exempt(&self) -> Option<u16> {
        self.exempt
    }

    /// Goes on with a segment that another worker checked and found to be exempt, or not.
    #[inline]
    pub fn resume(&mut self, exempt: Option<u16>) {
        self.exempt = exempt;
        self.rule = None;
        self.proved_client = None;
    }

    /// The client that proved itself since [`Engine::resume`]. The worker that checked its segment is to be told, as of a client that is
    /// [`Engine::verified`]: it knows which rules on trial matched.
    #[inline]
    #[must_use]
    pub fn proved_client(&self) -> Option<Addr> {
        self.proved_client
    }

    /// Sets the wall clock by which bans end: so many microseconds ahead of the `now` of every call. It may be set either
    /// way, and bans end earlier or later then. At first the two are one.
    pub fn set_wall_ahead(&mut self, ahead: u64) {
        self.wall_ahead = ahead;
    }

    #[inline]
    fn wall(&self, now: Micros) -> Micros {
        Micros(now.0.wrapping_add(self.wall_ahead))
    }

    /// Bans `prefix` until then, on the clock of [`Engine::set_wall_ahead`].
    ///
    /// # Errors
    /// [`Full`] when there is no room for another ban.
    pub fn ban(&mut self, prefix: IpNet, until: Micros, reason: u32) -> Result<(), Full> {
        let room = self.plan.fixed.bans > 0;
        let result = if room { self.bans.ban(prefix, until, reason) } else { Err(Full) };
        if result.is_err() {
            self.counters.bans_refused.bump();
        }
        self.look_again();
        result
    }

    /// Lifts the ban of exactly this prefix; whether there was one.
    pub fn unban(&mut self, prefix: IpNet) -> bool {
        let lifted = self.bans.unban(prefix);
        self.look_again();
        lifted
    }

    /// Octets of the tables of an engine with this plan, the plan's own aside; small ones are left out.
    #[must_use]
    pub fn memory_of(plan: &Plan) -> usize {
        let fixed = &plan.fixed;
        // Made to be measured: zeros that nobody touches, or too few to mind.
        let records = |metered: bool| Meters::new(if metered { fixed.records } else { 0 }, [0; 2]).memory();
        let limits = records(fixed.metered).saturating_add(records(fixed.metered_opening));
        limits.saturating_add(Clients::new(CLIENTS, [0; 2]).memory()).saturating_add(Bans::memory_of(fixed.bans))
    }

    /// Clears away a few bans that have run out.
    pub fn sweep(&mut self, now: Micros) {
        if !self.bans.is_empty() {
            self.bans.sweep(self.wall(now), SWEEP);
        }
    }

    /// Brings the gauges up to date; a few times a second is enough.
    pub fn publish(&mut self, now: Micros) {
        self.look_again();
        self.counters.records.set((self.meters.occupied(now).saturating_add(self.proved.occupied(now))) as u64);
        self.counters.records_displaced.set(self.meters.displaced().wrapping_add(self.proved.displaced()));
        self.counters.records_refused.set(self.meters.unrecorded().wrapping_add(self.proved.unrecorded()));
        self.counters.bans.set(self.bans.len() as u64);
    }
}

/// `filters.deny` and `filters.allow`; whether the latter holds the source, which then no ban concerns.
#[cold]
fn may_speak<T: Trace>(sources: &SourceTable, standing: Standing, trace: &mut T) -> Result<bool, DropReason> {
    let (step, verdict) = match standing {
        Standing { allowed: true, .. } => (Step::Allowed, Ok(true)),
        _ if sources.closed => (Step::NotAllowed, Err(DropReason::NotAllowed)),
        _ => (Step::Denied, Err(DropReason::DenyList)),
    };
    trace.step(step);
    verdict
}

#[inline]
fn within<T: Trace>(
    meters: &mut Meters,
    limit: &SourceLimit,
    source: Addr,
    amount: u64,
    now: Micros,
    trace: &mut T,
) -> Result<(), DropReason> {
    let Some(prefix) = limit.prefix(source) else { return Ok(()) };
    let within = meters.charge(meters.key(limit.kind, prefix), &limit.quota, amount, now);
    trace.step(Step::Limit(limit.level, limit.of, within));
    if within { Ok(()) } else { Err(limit.reason()) }
}

/// Charges a rule's meter.
fn charge(
    meters: &mut Meters,
    buckets: &mut [Bucket],
    per: Meter,
    quota: &Quota,
    facts: &Facts<'_>,
    amount: u64,
    now: Micros,
) -> bool {
    match per {
        Meter::Source { kind, v4, v6 } => {
            let key = meters.key(kind, prefix(facts.segment.key.src, v4, v6));
            meters.charge(key, quota, amount, now)
        }
        Meter::Bucket { first, by_service } => {
            let offset = if by_service { usize::from(facts.service.0) } else { 0 };
            buckets.get_mut(first.wrapping_add(offset)).is_none_or(|bucket| bucket.charge(amount, now))
        }
    }
}
