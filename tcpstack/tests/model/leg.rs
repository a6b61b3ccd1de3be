//! A leg of the way: it loses, repeats, delays and reorders what goes over it.

use sluice_filters::Flags;

use super::Time;
use super::random::Random;
use super::wire::Seg;

/// What kind of segment a leg may have it in for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// SYN or SYN-ACK.
    Syn,
    /// Without payload, SYN, FIN or RST.
    Bare,
    /// With payload, without FIN.
    Data,
    /// With FIN.
    Fin,
    /// With RST.
    Rst,
}

impl Kind {
    pub fn of(seg: &Seg) -> Kind {
        if seg.flags.rst() {
            Kind::Rst
        } else if seg.flags.syn() {
            Kind::Syn
        } else if seg.flags.contains(Flags::FIN) {
            Kind::Fin
        } else if seg.len > 0 {
            Kind::Data
        } else {
            Kind::Bare
        }
    }
}

/// How a leg is.
#[derive(Clone, Debug)]
pub struct Nature {
    pub delay: Time,
    /// Up to so much more, for each segment anew; order is kept.
    pub jitter: Time,
    /// In a million.
    pub loss: u32,
    pub duplicated: u32,
    pub reordered: u32,
    /// What is reordered is late by up to this.
    pub late: Time,
    /// Loses in bursts of so many.
    pub burst: u32,
    /// The first so many of a kind are lost, after the first so many were let through.
    pub doom: Option<(Kind, u32, u32)>,
}

/// A leg, in one direction.
#[derive(Clone, Debug)]
pub struct Leg {
    nature: Nature,
    random: Random,
    /// When what was last kept in order arrives.
    newest: Time,
    losing: u32,
    passed: u32,
    doomed: u32,
}

impl Leg {
    pub fn new(nature: Nature, random: Random) -> Leg {
        Leg { nature, random, newest: 0, losing: 0, passed: 0, doomed: 0 }
    }

    /// When the segment arrives: once, twice, or never. A `spared` one is delayed at most.
    pub fn carry(&mut self, seg: &Seg, now: Time, spared: bool) -> [Option<Time>; 2] {
        let Leg { nature, random, .. } = self;
        let mut lost = random.ppm(nature.loss);
        if self.losing > 0 {
            self.losing -= 1;
            lost = true;
        } else if lost && nature.burst > 1 {
            self.losing = random.below(u64::from(nature.burst)) as u32;
        }
        if let Some((kind, after, count)) = nature.doom
            && Kind::of(seg) == kind
            && self.doomed < count
        {
            if self.passed < after {
                self.passed += 1;
            } else {
                self.doomed += 1;
                lost = true;
            }
        }
        let twice = random.ppm(nature.duplicated);
        let first = self.arrival(now);
        let second = twice.then(|| self.arrival(now));
        if lost && !spared {
            [None, second.filter(|_| self.losing == 0 && self.nature.doom.is_none())]
        } else {
            [Some(first), second]
        }
    }

    fn arrival(&mut self, now: Time) -> Time {
        let Leg { nature, random, newest, .. } = self;
        let at = now + nature.delay + random.below(nature.jitter + 1);
        if random.ppm(nature.reordered) {
            return at + random.below(nature.late + 1);
        }
        *newest = at.max(*newest);
        *newest
    }
}
