//! Prometheus text, read into a map.

use std::collections::BTreeMap;
use std::fmt;

use sluice_filters::DropReason;

/// One scrape.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics {
    samples: Vec<Sample>,
}

/// One line of a scrape.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The metric's name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

impl Metrics {
    /// Reads the exposition format's text.
    ///
    /// # Errors
    /// The first line that is not understood.
    pub fn parse(text: &str) -> Result<Metrics, String> {
        let samples = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| parse_line(line).ok_or_else(|| format!("not a Prometheus sample: {line:?}")))
            .collect::<Result<_, _>>()?;
        Ok(Metrics { samples })
    }

    /// All samples.
    #[must_use]
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// Sum over the samples of `name` that carry all of `labels`. Zero when there is none.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let total: f64 = self.matching(name, labels).map(|sample| sample.value).sum();
        total as u64
    }

    /// Whether the scrape has any sample of `name` with all of `labels`.
    #[must_use]
    pub fn has(&self, name: &str, labels: &[(&str, &str)]) -> bool {
        self.matching(name, labels).next().is_some()
    }

    /// `name` summed by the values of `label`, zeros left out.
    #[must_use]
    pub fn by(&self, name: &str, label: &str) -> BTreeMap<String, u64> {
        let mut sums = BTreeMap::new();
        for sample in self.matching(name, &[]).filter(|sample| sample.value > 0.0) {
            let key = sample.labels.get(label).cloned().unwrap_or_default();
            *sums.entry(key).or_insert(0) += sample.value as u64;
        }
        sums
    }

    /// Packets dropped for this reason.
    #[must_use]
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.sum("sluice_dropped_packets_total", &[("reason", reason.as_str())])
    }

    /// Packets that a rule matched.
    #[must_use]
    pub fn matched(&self, rule: &str) -> u64 {
        self.sum("sluice_rule_matched_packets_total", &[("rule", rule)])
    }

    /// Packets that a rule dropped, or would have dropped.
    #[must_use]
    pub fn cut(&self, rule: &str) -> u64 {
        self.sum("sluice_rule_cut_packets_total", &[("rule", rule)])
    }

    /// Clients that a rule on trial would have cut.
    #[must_use]
    pub fn cut_clients(&self, rule: &str) -> u64 {
        self.sum("sluice_rule_cut_clients_total", &[("rule", rule)])
    }

    fn matching<'a>(&'a self, name: &'a str, labels: &'a [(&'a str, &'a str)]) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| {
            sample.name == name
                && labels.iter().all(|(key, value)| sample.labels.get(*key).is_some_and(|found| found == value))
        })
    }
}

impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Sample { name, labels, value } in self.samples.iter().filter(|sample| sample.value != 0.0) {
            writeln!(f, "{name} {labels:?} {value}")?;
        }
        Ok(())
    }
}

fn parse_line(line: &str) -> Option<Sample> {
    let name_end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(name_end);
    let (labels, value) = match rest.strip_prefix('{') {
        Some(rest) => parse_labels(rest)?,
        None => (BTreeMap::new(), rest),
    };
    let value = value.split_whitespace().next()?.parse().ok()?;
    Some(Sample { name: name.to_owned(), labels, value })
}

/// Labels up to the closing brace, and what follows it.
fn parse_labels(mut rest: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let (key, after) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut characters = after.char_indices();
        let end = loop {
            match characters.next()? {
                (at, '"') => break at,
                (_, '\\') => value.push(match characters.next()?.1 {
                    'n' => '\n',
                    other => other,
                }),
                (_, other) => value.push(other),
            }
        };
        labels.insert(key.to_owned(), value);
        rest = &after[end + 1..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"# HELP sluice_x_total Something.
# TYPE sluice_x_total counter
sluice_x_total{port="wan",worker="0"} 5
sluice_x_total{port="lan",worker="0"} 7
sluice_odd{path="a\"b\\c,}"} 1.5e3

sluice_plain 3
"#;

    #[test]
    fn samples_are_summed_over_the_labels_not_asked_for() {
        let metrics = Metrics::parse(TEXT).unwrap();
        assert_eq!(metrics.sum("sluice_x_total", &[]), 12);
        assert_eq!(metrics.sum("sluice_x_total", &[("port", "lan")]), 7);
        assert_eq!(metrics.sum("sluice_plain", &[]), 3);
        assert_eq!(metrics.sum("sluice_odd", &[("path", "a\"b\\c,}")]), 1500);
        assert!(!metrics.has("sluice_y", &[]));
        assert_eq!(metrics.by("sluice_x_total", "port"), BTreeMap::from([("lan".into(), 7), ("wan".into(), 5)]));
    }

    #[test]
    fn a_line_that_is_no_sample_is_an_error() {
        assert!(Metrics::parse("what{ever").is_err());
        assert!(Metrics::parse("name value").is_err());
    }
}
