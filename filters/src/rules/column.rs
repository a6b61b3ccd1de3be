//! Conditions on one header field each, as rows of bits.

use std::ops::RangeInclusive;

use sluice_config::{Matches, OptionMatch, Rule};

use super::{Facts, words};
use crate::options::SynOffer;

/// For each value of a field, or each class of values: the rules whose condition on it holds.
#[derive(Debug)]
pub(crate) struct Rows {
    words: usize,
    bits: Vec<u64>,
}

impl Rows {
    /// `rows` rows for `rules` rules; `holds(row, rule)` says which bits are set.
    pub(crate) fn new(rows: usize, rules: usize, holds: impl Fn(usize, usize) -> bool) -> Rows {
        let words = words(rules);
        let mut bits = vec![0; rows.saturating_mul(words)];
        for (row, octet) in bits.chunks_exact_mut(words.max(1)).enumerate() {
            for rule in 0..rules {
                if let Some(word) = octet.get_mut(rule / 64) {
                    *word |= u64::from(holds(row, rule)) << (rule % 64);
                }
            }
        }
        Rows { words, bits }
    }

    /// Adds a rule to a row.
    fn set(&mut self, row: usize, rule: usize) {
        let at = row.saturating_mul(self.words).saturating_add(rule / 64);
        if let Some(word) = self.bits.get_mut(at) {
            *word |= 1 << (rule % 64);
        }
    }

    /// Whether the bit of `rule` is set in row `row`.
    pub(crate) fn is_set(&self, row: usize, rule: usize) -> bool {
        let word = row.saturating_mul(self.words).saturating_add(rule / 64);
        self.bits.get(word).is_some_and(|word| word >> (rule % 64) & 1 == 1)
    }

    /// Keeps the rules of row `row`; returns whether any is left, as the OR of all words. A row that does not exist keeps none.
    #[inline(always)]
    pub(crate) fn narrow(&self, row: usize, rules: &mut [u64]) -> u64 {
        if let [rules] = rules {
            *rules &= self.bits.get(row).copied().unwrap_or(0);
            return *rules;
        }
        let begin = row.wrapping_mul(self.words);
        let row = self.bits.get(begin..begin.wrapping_add(self.words)).unwrap_or_default();
        let mut left = 0;
        for (index, word) in rules.iter_mut().enumerate() {
            *word &= row.get(index).copied().unwrap_or(0);
            left |= *word;
        }
        left
    }
}

/// A field, and its rows.
#[derive(Debug)]
pub(crate) struct Column<F> {
    field: F,
    rows: Rows,
}

/// Where a value of 16 bits falls among the edges of the rules' ranges.
#[derive(Debug)]
pub(crate) struct Edges {
    edges: Vec<u16>,
    /// By the high octet: the row of its least value.
    first: Box<[u16; 256]>,
}

/// Edges of one high octet that are looked through one by one.
const NEAR: usize = 8;

impl Edges {
    /// The values at which something changes.
    fn new<'r>(ranges: impl Iterator<Item = &'r RangeInclusive<u16>>) -> Edges {
        let mut edges: Vec<u16> =
            ranges.flat_map(|range| [Some(*range.start()), range.end().checked_add(1)]).flatten().collect();
        edges.push(0);
        edges.sort_unstable();
        edges.dedup();
        let first = std::array::from_fn(|high| {
            let below = edges.partition_point(|edge| usize::from(*edge) <= high << 8);
            u16::try_from(below.saturating_sub(1)).unwrap_or(u16::MAX)
        });
        Edges { edges, first: Box::new(first) }
    }

    /// How many rows there are.
    fn rows(&self) -> usize {
        self.edges.len()
    }

    /// The row of `value`: how many edges lie at or below it, less one.
    #[inline]
    fn row(&self, value: u16) -> usize {
        let row = usize::from(self.first.get(usize::from(value >> 8)).copied().unwrap_or(0));
        let above = self.edges.get(row.wrapping_add(1)..).unwrap_or_default();
        let near = above.iter().take(NEAR).take_while(|edge| **edge <= value).count();
        if near < NEAR {
            row.wrapping_add(near)
        } else {
            self.edges.partition_point(|edge| *edge <= value).wrapping_sub(1)
        }
    }

    /// A value of row `row`.
    fn value(&self, row: usize) -> u16 {
        self.edges.get(row).copied().unwrap_or(0)
    }
}

/// A field that every segment has.
#[derive(Debug)]
pub(crate) enum Field {
    /// IPv4 first.
    Version,
    Service,
    Flags,
    HopLimit,
    SourcePort(Edges),
    DestinationPort(Edges),
    IpLength(Edges),
    PayloadLength(Edges),
    Window(Edges),
}

/// What options say. The first row of MSS and window scale is "absent".
#[derive(Debug)]
pub(crate) enum SynField {
    Mss(Edges),
    WindowScale,
    Sack,
    Timestamps,
}

impl Column<Field> {
    #[inline(always)]
    pub(crate) fn narrow(&self, facts: &Facts<'_>, rules: &mut [u64]) -> u64 {
        let segment = facts.segment;
        let row = match &self.field {
            Field::Version => usize::from(!segment.is_v4()),
            Field::Service => usize::from(facts.service.0),
            Field::Flags => usize::from(segment.flags.0),
            Field::HopLimit => usize::from(segment.hop_limit),
            Field::SourcePort(edges) => edges.row(segment.key.src_port),
            Field::DestinationPort(edges) => edges.row(segment.key.dst_port),
            Field::IpLength(edges) => edges.row(facts.ip_length()),
            Field::PayloadLength(edges) => edges.row(segment.payload_len),
            Field::Window(edges) => edges.row(segment.window),
        };
        self.rows.narrow(row, rules)
    }
}

impl Column<SynField> {
    #[inline]
    pub(crate) fn narrow(&self, offer: &SynOffer, rules: &mut [u64]) -> u64 {
        let row = match &self.field {
            SynField::Mss(edges) => offer.mss.map_or(0, |mss| edges.row(mss).wrapping_add(1)),
            SynField::WindowScale => offer.wscale.map_or(0, |shift| usize::from(shift).wrapping_add(1)),
            SynField::Sack => usize::from(offer.sack_permitted),
            SynField::Timestamps => usize::from(offer.tsval.is_some()),
        };
        self.rows.narrow(row, rules)
    }
}

/// The columns that at least one rule has a condition on: cheap and sharp ones first.
pub(crate) fn columns(rules: &[Rule], services: usize) -> Vec<Column<Field>> {
    let mut columns = Vec::new();
    let mut column = |field, rows, used: fn(&Matches) -> bool, holds: &dyn Fn(&Matches, usize) -> bool| {
        if rules.iter().any(|rule| used(&rule.matches)) {
            let holds = |row, rule: usize| rules.get(rule).is_some_and(|rule| holds(&rule.matches, row));
            columns.push(Column { field, rows: Rows::new(rows, rules.len(), holds) });
        }
    };
    column(Field::Flags, 256, |m| m.flags.is_some(), &|m, row| {
        m.flags.is_none_or(|flags| row as u8 & flags.set == flags.set && row as u8 & flags.clear == 0)
    });
    column(Field::HopLimit, 256, |m| m.hop_limit.is_some(), &|m, row| {
        m.hop_limit.as_ref().is_none_or(|range| range.contains(&(row as u8)))
    });
    column(Field::Version, 2, |m| m.ip_version.is_some(), &|m, row| {
        m.ip_version.is_none_or(|version| (version == 6) == (row == 1))
    });
    column(Field::Service, services, |m| !m.services.is_empty(), &|m, row| {
        m.services.is_empty() || m.services.contains(&row)
    });
    ranged(rules, Field::Window, |m| m.window.as_slice(), &mut columns);
    ranged(rules, Field::PayloadLength, |m| m.payload_length.as_slice(), &mut columns);
    ranged(rules, Field::IpLength, |m| m.ip_length.as_slice(), &mut columns);
    ranged(rules, Field::DestinationPort, |m| &m.destination_ports, &mut columns);
    ranged(rules, Field::SourcePort, |m| &m.source_ports, &mut columns);
    columns
}

/// Adds the column of a field whose condition is a choice of ranges, none of which means any value.
fn ranged(
    rules: &[Rule],
    field: fn(Edges) -> Field,
    ranges: fn(&Matches) -> &[RangeInclusive<u16>],
    columns: &mut Vec<Column<Field>>,
) {
    let of = |rule: usize| rules.get(rule).map(|rule| ranges(&rule.matches)).unwrap_or_default();
    if rules.iter().all(|rule| ranges(&rule.matches).is_empty()) {
        return;
    }
    let edges = Edges::new(rules.iter().flat_map(|rule| ranges(&rule.matches)));
    let mut rows = Rows::new(edges.rows(), rules.len(), |_, rule| of(rule).is_empty());
    for rule in 0..rules.len() {
        let mut spans: Vec<_> =
            of(rule).iter().map(|range| (edges.row(*range.start()), edges.row(*range.end()))).collect();
        spans.sort_unstable();
        // Each row once, however often ranges overlap: lists may be long.
        let mut next = 0;
        for (first, last) in spans {
            for row in first.max(next)..=last {
                rows.set(row, rule);
            }
            next = next.max(last.saturating_add(1));
        }
    }
    columns.push(Column { field: field(edges), rows });
}

/// Whether a rule has a condition in one of [`syn_columns`].
pub(crate) fn on_options(rule: &Rule) -> bool {
    let Matches { mss, window_scale, sack, timestamps, .. } = &rule.matches;
    mss.is_some() || window_scale.is_some() || sack.is_some() || timestamps.is_some()
}

/// The columns of options that at least one rule has a condition on.
pub(crate) fn syn_columns(rules: &[Rule]) -> Vec<Column<SynField>> {
    let mut columns = Vec::new();
    let mut column = |field, rows, used: fn(&Matches) -> bool, holds: &dyn Fn(&Matches, usize) -> bool| {
        if rules.iter().any(|rule| used(&rule.matches)) {
            let holds = |row, rule: usize| rules.get(rule).is_some_and(|rule| holds(&rule.matches, row));
            columns.push(Column { field, rows: Rows::new(rows, rules.len(), holds) });
        }
    };
    let edges = || {
        Edges::new(rules.iter().filter_map(|rule| match &rule.matches.mss {
            Some(OptionMatch::Within(range)) => Some(range),
            _ => None,
        }))
    };
    let mss = edges();
    column(SynField::Mss(edges()), mss.rows().saturating_add(1), |m| m.mss.is_some(), &|m, row| {
        option_holds(m.mss.as_ref(), row.checked_sub(1).map(|row| mss.value(row)))
    });
    column(SynField::WindowScale, 17, |m| m.window_scale.is_some(), &|m, row| {
        option_holds(m.window_scale.as_ref(), row.checked_sub(1).map(|shift| shift as u8))
    });
    column(SynField::Sack, 2, |m| m.sack.is_some(), &|m, row| m.sack.is_none_or(|sack| sack == (row == 1)));
    column(SynField::Timestamps, 2, |m| m.timestamps.is_some(), &|m, row| {
        m.timestamps.is_none_or(|timestamps| timestamps == (row == 1))
    });
    columns
}

/// Whether an option's value, or its absence, is what a rule asks for.
pub(crate) fn option_holds<T: PartialOrd>(wanted: Option<&OptionMatch<T>>, value: Option<T>) -> bool {
    match (wanted, value) {
        (None, _) | (Some(OptionMatch::Absent), None) => true,
        (Some(OptionMatch::Within(range)), Some(value)) => range.contains(&value),
        (Some(_), _) => false,
    }
}
