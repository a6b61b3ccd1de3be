//! Two configurations, one capture: what would change.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;
use sluice_config::Config;

use super::Outcome;

/// Packets with different outcomes, by the pair of outcomes.
#[derive(Debug, Default)]
pub struct Diff {
    changes: BTreeMap<(Outcome, Outcome), Change>,
}

/// One kind of change.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// What becomes of the packets now.
    pub now: String,
    /// What would become of them.
    pub then: String,
    /// How many.
    pub packets: u64,
    /// The first one's number in the capture, from 1.
    pub first: u64,
    /// The first one, in words.
    pub example: String,
}

impl Diff {
    /// Notes packet `number`'s two outcomes; `describe` puts the packet into words.
    pub fn add(
        &mut self,
        configs: [&Config; 2],
        outcomes: [Outcome; 2],
        number: u64,
        describe: impl FnOnce() -> String,
    ) {
        let words = [0, 1].map(|at| outcomes[at].describe(configs[at]));
        // Rules are compared by name, not by place: a rule that moved is the same rule.
        if words[0] == words[1] {
            return;
        }
        let [now, then] = words;
        let change = self.changes.entry(outcomes.into()).or_insert_with(|| Change {
            now,
            then,
            packets: 0,
            first: number,
            example: describe(),
        });
        change.packets += 1;
    }

    /// Whether everything stays as it is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// The changes, with the most packets first.
    #[must_use]
    pub fn changes(&self) -> Vec<Change> {
        let mut changes: Vec<Change> = self.changes.values().cloned().collect();
        changes.sort_by_key(|change| (std::cmp::Reverse(change.packets), change.first));
        changes
    }

    /// The changes as a table.
    #[must_use]
    pub fn table(&self) -> String {
        let changes = self.changes();
        if changes.is_empty() {
            return "nothing changes\n".into();
        }
        let width =
            |of: fn(&Change) -> &String| changes.iter().map(|change| of(change).len()).max().unwrap_or(0).max(4);
        let (now, then) = (width(|change| &change.now), width(|change| &change.then));
        let mut out = format!("{:>12}  {:<now$}     {:<then$}  first packet\n", "packets", "now", "then");
        for change in &changes {
            let Change { packets, first, example, .. } = change;
            let _ = writeln!(out, "{packets:>12}  {:<now$}  -> {:<then$}  #{first} {example}", change.now, change.then);
        }
        out
    }
}
