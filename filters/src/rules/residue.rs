//! Conditions that no single header field decides.

use sluice_config::{PayloadMatch, Rule};

use super::Facts;
use crate::expression::Expression;
use crate::options::option_kinds;

/// What is left to ask when a rule's columns match: cheap questions first.
#[derive(Debug)]
pub(crate) struct Residue {
    order: Option<Vec<u8>>,
    payload: Vec<PayloadMatch>,
    pub(crate) expression: Option<Expression>,
}

impl Residue {
    pub(crate) fn new(rule: &Rule, expression: Option<Expression>) -> Residue {
        let (order, payload) = (rule.matches.option_order.clone(), rule.matches.payload.clone());
        Residue { order, payload, expression }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.order.is_none() && self.payload.is_empty() && self.expression.is_none()
    }

    #[inline]
    pub(crate) fn holds(&self, facts: &Facts<'_>) -> bool {
        self.order.as_ref().is_none_or(|order| order_holds(order, facts))
            && self.payload.iter().all(|octets| payload_holds(octets, facts))
            && self.expression.as_ref().is_none_or(|pcap| pcap.matches_segment(facts.frame, facts.segment))
    }
}

/// Whether the segment has exactly these option kinds, in this order.
pub(crate) fn order_holds(order: &[u8], facts: &Facts<'_>) -> bool {
    option_kinds(facts.segment.option_octets(facts.frame)).eq(order.iter().copied())
}

/// Whether the payload has these octets.
pub(crate) fn payload_holds(wanted: &PayloadMatch, facts: &Facts<'_>) -> bool {
    let begin = usize::from(wanted.offset);
    let octets = facts.segment.payload(facts.frame).get(begin..begin.saturating_add(wanted.value.len()));
    octets.is_some_and(|octets| {
        octets.iter().zip(&wanted.mask).zip(&wanted.value).all(|((octet, mask), value)| octet & mask == *value)
    })
}
