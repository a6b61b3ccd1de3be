//! The operator's rules, compiled: which of them match a segment, in a few table look-ups.
//!
//! Every condition that depends on one header field becomes a column: for each value of the field, a row of bits, one a rule,
//! set where the rule's condition holds or it has none. The rules that match are the AND of one row of each column, in the
//! configuration's order ("bit vectors", Lakshman and Stiliadis, 1998), so 64 rules cost as much as one. What depends on more
//! than one field (order of options, payload, expressions) is asked of the rules that are left.
//!
//! Invariant: `Rules::first` and `Rules::next` name exactly the rules that [`naive::mismatch`] finds nothing wrong with; a
//! property test compares the two.

mod column;
pub mod naive;
mod residue;
#[cfg(test)]
mod tests;

use sluice_config::{Action, Config, Mistake, Rule};

use self::column::{Column, Field, SynField, columns, syn_columns};
use self::residue::Residue;
use crate::Segment;
use crate::expression::Expression;
use crate::options::SynOffer;
use crate::units::ServiceId;

pub(crate) use self::column::Rows;

/// Words of 64 rules, at most: 1,024 rules.
pub(crate) const WORDS: usize = 16;

/// What rules look at.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The segment.
    pub segment: &'a Segment,
    /// The frame it was parsed from.
    pub frame: &'a [u8],
    /// The service it is for.
    pub service: ServiceId,
}

impl Facts<'_> {
    /// Length of the IP packet with its header, octets; 65,535 for the few longer ones that IPv6 can have.
    #[inline]
    #[must_use]
    pub fn ip_length(&self) -> u16 {
        let headers = u16::from(self.segment.l3_len).saturating_add(u16::from(self.segment.tcp_len));
        self.segment.payload_len.saturating_add(headers)
    }

    #[inline]
    fn offer(&self) -> SynOffer {
        SynOffer::read(self.segment.option_octets(self.frame))
    }
}

/// When a rule is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// For every segment.
    Arrival,
    /// When a client has proved itself with its cookie: limits of connections.
    Opening,
}

/// The compiled rules, without what their sources are: sets change while the appliance runs.
#[derive(Debug)]
pub struct Rules {
    /// Words in use.
    words: usize,
    arrival: [u64; WORDS],
    opening: [u64; WORDS],
    columns: Vec<Column<Field>>,
    syn_columns: Vec<Column<SynField>>,
    /// The rules that have a condition in one of `syn_columns`.
    on_options: [u64; WORDS],
    /// The rules whose entry in `residues` has something to ask.
    on_residue: [u64; WORDS],
    residues: Vec<Residue>,
}

/// The rules that may still match one segment: of so many words, one in a register.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidates<const W: usize> {
    bits: [u64; W],
    word: usize,
}

impl Rules {
    /// Compiles the rules of `config`, which was read from `file`.
    ///
    /// # Errors
    /// A mistake for every expression that cannot be compiled.
    pub fn compile(file: &str, config: &Config) -> Result<Rules, Vec<Mistake>> {
        let (mut residues, mut mistakes) = (Vec::new(), Vec::new());
        for (index, rule) in config.rules.iter().enumerate() {
            let is_last = config.rules.get(index..).is_some_and(|rest| rest.len() == 1);
            match expression(rule).and_then(|expression| meant(config, rule, is_last, expression)) {
                Ok(expression) => residues.push(Residue::new(rule, expression)),
                Err(wrong) => mistakes.push(Mistake { file: file.to_owned(), ..wrong }),
            }
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let rules = &config.rules;
        Ok(Rules {
            words: words(rules.len()),
            arrival: mask(rules, |rule| !rule.action.is_on_connections()),
            opening: mask(rules, |rule| rule.action.is_on_connections()),
            columns: columns(rules, config.services.len()),
            syn_columns: syn_columns(rules),
            on_options: mask(rules, column::on_options),
            on_residue: bits(residues.iter().map(|residue| !residue.is_empty())),
            residues,
        })
    }

    /// Whether there is a rule for this moment.
    #[inline]
    #[must_use]
    pub fn any(&self, moment: Moment) -> bool {
        self.mask(moment).iter().any(|word| *word != 0)
    }

    #[inline]
    fn mask(&self, moment: Moment) -> &[u64; WORDS] {
        match moment {
            Moment::Arrival => &self.arrival,
            Moment::Opening => &self.opening,
        }
    }

    /// Whether one word holds them all.
    #[inline]
    #[must_use]
    pub(crate) fn is_small(&self) -> bool {
        self.words <= 1
    }

    /// The rules that may match, `sources` having their bits in row `class`. `W` is [`WORDS`], or 1 where that is enough.
    #[inline(always)]
    #[must_use]
    pub(crate) fn first<const W: usize>(
        &self,
        moment: Moment,
        sources: Option<(&Rows, u16)>,
        facts: &Facts<'_>,
    ) -> Candidates<W> {
        let mut candidates = Candidates { bits: [0; W], word: 0 };
        let used = if W == 1 { 1 } else { self.words };
        let words = candidates.bits.get_mut(..used).unwrap_or_default();
        for (word, mask) in words.iter_mut().zip(self.mask(moment)) {
            *word = *mask;
        }
        let mut left = 0;
        for word in words.iter() {
            left |= word;
        }
        if let Some((rows, class)) = sources
            && left != 0
        {
            left = rows.narrow(usize::from(class), words);
        }
        for column in &self.columns {
            if left == 0 {
                return candidates;
            }
            left = column.narrow(facts, words);
        }
        if left != 0 && !self.syn_columns.is_empty() {
            self.ask_options(words, facts);
        }
        candidates
    }

    /// Narrows by what the TCP options say, when a rule that is left asks.
    #[inline(always)]
    fn ask_options(&self, words: &mut [u64], facts: &Facts<'_>) {
        let asked = words.iter().zip(&self.on_options).fold(0, |any, (word, asking)| any | (word & asking));
        if asked == 0 {
            return;
        }
        let offer = facts.offer();
        for column in &self.syn_columns {
            column.narrow(&offer, words);
        }
    }

    /// The next rule that matches, in the configuration's order.
    #[inline(always)]
    pub(crate) fn next<const W: usize>(&self, candidates: &mut Candidates<W>, facts: &Facts<'_>) -> Option<usize> {
        let used = if W == 1 { 1 } else { self.words };
        while candidates.word < used {
            let word = candidates.word;
            let bits = candidates.bits.get_mut(word)?;
            if *bits == 0 {
                candidates.word = word.wrapping_add(1);
                continue;
            }
            let bit = bits.trailing_zeros();
            *bits &= bits.wrapping_sub(1);
            let rule = word.wrapping_mul(64).wrapping_add(bit as usize);
            let more = self.on_residue.get(word).is_some_and(|asking| asking >> bit & 1 == 1);
            if !more || self.residues.get(rule).is_some_and(|residue| residue.holds(facts)) {
                return Some(rule);
            }
        }
        None
    }

    /// The compiled expression of a rule that has one.
    #[must_use]
    pub fn expression(&self, rule: usize) -> Option<&Expression> {
        self.residues.get(rule)?.expression.as_ref()
    }
}

/// The rule's expression, compiled.
fn expression(rule: &Rule) -> Result<Option<Expression>, Mistake> {
    let Some(expression) = &rule.matches.pcap else { return Ok(None) };
    Expression::compile(&expression.text).map(Some).map_err(|error| {
        let error = error.to_string();
        let (found, remedy) = error.rsplit_once("; ").unwrap_or((&error, "see pcap-filter(7)"));
        mistake(rule, expression, found, remedy)
    })
}

fn mistake(rule: &Rule, expression: &sluice_config::Expression, found: &str, remedy: &str) -> Mistake {
    Mistake {
        file: String::new(),
        place: Some(expression.place),
        key: format!("rule {:?}: pcap", rule.name),
        found: found.to_owned(),
        remedy: remedy.to_owned(),
    }
}

/// The expression back, if it can match something, and leaves something for the rules after this one.
fn meant(
    config: &Config,
    rule: &Rule,
    is_last: bool,
    compiled: Option<Expression>,
) -> Result<Option<Expression>, Mistake> {
    let Some(expression) = &rule.matches.pcap else { return Ok(compiled) };
    let verdict =
        |version| if version == 4 { compiled.as_ref()?.constant_v4() } else { compiled.as_ref()?.constant_v6() };
    let mut verdicts: Vec<Option<bool>> = config.versions_of(rule).map(verdict).collect();
    verdicts.dedup();
    let decides = matches!(rule.action, Action::Drop | Action::Pass) && !rule.dry_run;
    match verdicts.as_slice() {
        [Some(false)] => {
            let found =
                format!("{:?} can match no packet: rules are asked of TCP to the services only", expression.text);
            Err(mistake(
                rule,
                expression,
                &found,
                "write what TCP segments to them meet (tcp[N] is of IPv4 alone), or remove the rule",
            ))
        }
        [Some(true)] if decides && !is_last && config.is_catch_all(rule) => {
            let found = format!("{:?} matches everything: the rules after it are pointless", expression.text);
            Err(mistake(rule, expression, &found, "add a condition that leaves something, or put the rule last"))
        }
        _ => Ok(compiled),
    }
}

/// Words for so many rules.
pub(crate) fn words(rules: usize) -> usize {
    rules.div_ceil(64).min(WORDS)
}

/// One bit a rule.
fn mask(rules: &[Rule], holds: impl Fn(&Rule) -> bool) -> [u64; WORDS] {
    bits(rules.iter().map(holds))
}

fn bits(holds: impl Iterator<Item = bool>) -> [u64; WORDS] {
    let mut bits = [0; WORDS];
    for (rule, holds) in holds.enumerate() {
        if let Some(word) = bits.get_mut(rule / 64) {
            *word |= u64::from(holds) << (rule % 64);
        }
    }
    bits
}
