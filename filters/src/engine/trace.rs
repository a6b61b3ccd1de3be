//! The steps of a verdict, for those who want to see them: `sluice explain` and `sluice replay`. Workers do not, and pay nothing.

use sluice_config::Measure;

/// Who hears of the steps.
pub trait Trace {
    /// Takes the next step.
    fn step(&mut self, step: Step);
}

/// Nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unseen;

impl Trace for Unseen {
    #[inline(always)]
    fn step(&mut self, _: Step) {}
}

impl Trace for Vec<Step> {
    fn step(&mut self, step: Step) {
        self.push(step);
    }
}

/// One step of a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// `filters.allow` holds the source.
    Allowed,
    /// `filters.deny` holds it.
    Denied,
    /// A closed `filters.allow` does not.
    NotAllowed,
    /// A prefix of this length around the source is banned.
    Banned(u8),
    /// This rule matched.
    Rule(usize, RuleStep),
    /// A limit of `[filters]` was asked.
    Limit(Level, Limited, bool),
    /// The ceiling of SYN-ACKs was asked; whether the answer is within.
    Ceiling(bool),
    /// Over the ceiling, but the source has proved itself before.
    Verified,
}

/// What a rule that matched did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleStep {
    /// It dropped the segment.
    Dropped,
    /// It let it pass.
    Passed,
    /// It limits this, and the segment was within.
    Within(Measure),
    /// It limits this, and the segment was over.
    Over(Measure),
    /// It would have dropped the segment, or found it over its limit.
    WouldCut,
    /// It would have let it pass.
    WouldPass,
}

/// Whose limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// The address's.
    Address,
    /// The IPv4 /24's or IPv6 /64's.
    Subnet,
    /// The IPv6 /48's.
    Site,
}

/// Of what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limited {
    /// Opening SYNs.
    Syns,
    /// Segments that belong to no connection.
    FlowlessAcks,
    /// Connections.
    Connections,
    /// TCP packets.
    Packets,
    /// Octets.
    Bytes,
}
