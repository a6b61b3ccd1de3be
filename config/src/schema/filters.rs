//! `[filters]` with its limits per source, `[bans]`, `[sample]` and `[peace]`.

use std::path::PathBuf;

use ipnet::IpNet;

use super::rules::ON_ERROR;
use super::{absolute_path, optional};
use crate::Shortest;
use crate::error::{Diagnostics, Located, quoted};
use crate::model::{Filters, Measure, OnError, Peace, Rate, SourceLimits};
use crate::read::Section;

pub(super) const FILTERS: &[&str] = &[
    "deny",
    "allow",
    "source_prefix_v6",
    "shortest_prefix_v4",
    "shortest_prefix_v6",
    "icmp_rate",
    "syn_ack_ceiling",
    "records",
    "per_address",
    "per_subnet",
    "per_site",
];
pub(super) const SOURCE_LIMITS: &[&str] = &["syns", "flowless_acks", "connections", "packets", "bytes"];
pub(super) const BANS: &[&str] = &["file", "on_error", "capacity"];
pub(super) const SAMPLE: &[&str] = &["file", "rate", "snap", "max_size"];
pub(super) const PEACE: &[&str] = &["syns", "flowless", "repeats", "resets"];

/// Most records and bans: 256 MiB of records per worker.
const MAX_RECORDS: u32 = 16_777_216;

/// Smallest and largest sample file, octets.
const SAMPLE_SIZES: std::ops::RangeInclusive<u64> = 65_536..=64 << 30;

/// `[filters]`.
pub(crate) struct FiltersDraft {
    pub(crate) deny: Vec<Located<IpNet>>,
    pub(crate) allow: Vec<Located<IpNet>>,
    /// Everything but the two lists, which are empty here.
    pub(crate) rest: Filters,
}

/// `[bans]`.
pub(crate) struct BansDraft {
    pub(crate) file: Option<Located<PathBuf>>,
    pub(crate) on_error: OnError,
    pub(crate) capacity: u32,
}

/// `[sample]`.
pub(crate) struct SampleDraft {
    pub(crate) file: Located<PathBuf>,
    pub(crate) rate: Rate,
    pub(crate) snap: u16,
    pub(crate) max_size: u64,
}

pub(super) fn filters(root: &Section<'_>, diag: &mut Diagnostics<'_>) -> FiltersDraft {
    let default = Filters::default();
    let Some(section) = optional(root, "filters", FILTERS, diag) else {
        return FiltersDraft { deny: Vec::new(), allow: Vec::new(), rest: default };
    };
    let prefixes = |key: &str, diag: &mut Diagnostics<'_>| -> Vec<Located<IpNet>> {
        section.list(key, diag).iter().filter_map(|item| item.prefix(diag)).collect()
    };
    let remedy = "write \"off\" for no ceiling, or a rate as in \"20000/s burst 40000\"";
    let ceiling = rate_or_off(&section, "syn_ack_ceiling", default.syn_ack_ceiling, remedy, diag);
    FiltersDraft {
        deny: prefixes("deny", diag),
        allow: prefixes("allow", diag),
        rest: Filters {
            deny: Vec::new(),
            allow: Vec::new(),
            icmp_rate: section.integer("icmp_rate", 0..=1_000_000_u32, diag).map_or(default.icmp_rate, |n| n.value),
            source_prefix_v6: section
                .integer("source_prefix_v6", 32..=128_u8, diag)
                .map_or(default.source_prefix_v6, |n| n.value),
            shortest_prefix: Shortest {
                v4: section
                    .integer("shortest_prefix_v4", 0..=32_u8, diag)
                    .map_or(default.shortest_prefix.v4, |n| n.value),
                v6: section
                    .integer("shortest_prefix_v6", 0..=128_u8, diag)
                    .map_or(default.shortest_prefix.v6, |n| n.value),
            },
            syn_ack_ceiling: ceiling,
            records: section.integer("records", 1_024..=MAX_RECORDS, diag).map_or(default.records, |n| n.value),
            per_address: source_limits(&section, "per_address", diag),
            per_subnet: source_limits(&section, "per_subnet", diag),
            per_site: source_limits(&section, "per_site", diag),
        },
    }
}

/// A rate that can be switched off; `default` when it is not there.
fn rate_or_off(
    section: &Section<'_>,
    key: &str,
    default: Option<Rate>,
    remedy: &str,
    diag: &mut Diagnostics<'_>,
) -> Option<Rate> {
    let Some(entry) = section.get(key) else { return default };
    match entry.as_text() {
        Some("off") => None,
        Some(text @ ("none" | "no" | "")) => {
            diag.wrong(&entry.located(()), format!("{} is not a rate", quoted(text)), remedy);
            None
        }
        // Whatever does not begin like a rate was meant to switch it.
        Some(text) if text.starts_with(|first: char| first.is_ascii_digit()) => entry.rate(Measure::Packets, diag),
        text => {
            let found = text.map_or("is no text".to_owned(), |text| format!("{} is not a rate", quoted(text)));
            diag.wrong(&entry.located(()), found, r#"write a rate as in "100/s", or "off" for none"#);
            None
        }
    }
}

pub(super) fn peace(root: &Section<'_>, diag: &mut Diagnostics<'_>) -> Peace {
    let default = Peace::default();
    let Some(section) = optional(root, "peace", PEACE, diag) else { return default };
    let remedy = "write \"off\" for none, or a rate as in \"100/s\"";
    Peace {
        syns: section.rate("syns", Measure::Packets, diag).unwrap_or(default.syns),
        flowless: section.rate("flowless", Measure::Packets, diag).unwrap_or(default.flowless),
        repeats: rate_or_off(&section, "repeats", default.repeats, remedy, diag),
        resets: rate_or_off(&section, "resets", default.resets, remedy, diag),
    }
}

fn source_limits(filters: &Section<'_>, key: &str, diag: &mut Diagnostics<'_>) -> SourceLimits {
    let Some(section) = optional(filters, key, SOURCE_LIMITS, diag) else { return SourceLimits::default() };
    SourceLimits {
        syns: section.rate("syns", Measure::Packets, diag),
        flowless_acks: section.rate("flowless_acks", Measure::Packets, diag),
        connections: section.rate("connections", Measure::Connections, diag),
        packets: section.rate("packets", Measure::Packets, diag),
        bytes: section.rate("bytes", Measure::Bytes, diag),
    }
}

pub(super) fn bans(root: &Section<'_>, diag: &mut Diagnostics<'_>) -> Option<BansDraft> {
    let section = optional(root, "bans", BANS, diag)?;
    Some(BansDraft {
        file: section.parsed("file", diag, absolute_path),
        on_error: section.choice("on_error", ON_ERROR, diag).unwrap_or_default(),
        capacity: section.integer("capacity", 1..=MAX_RECORDS, diag).map_or(1_000_000, |n| n.value),
    })
}

pub(super) fn sample(root: &Section<'_>, diag: &mut Diagnostics<'_>) -> Option<SampleDraft> {
    let section = optional(root, "sample", SAMPLE, diag)?;
    let file = section.require("file", "\"/var/log/sluice/dropped.pcapng\"", diag);
    let file = file.and_then(|entry| entry.parsed(diag, absolute_path));
    let rate = section.rate("rate", Measure::Packets, diag).unwrap_or(const { Rate::per_second(100) });
    let snap = section.integer("snap", 128..=1_600_u16, diag).map_or(256, |n| n.value);
    let max_size = section.size("max_size", SAMPLE_SIZES, diag).unwrap_or(64 << 20);
    Some(SampleDraft { file: file?, rate, snap, max_size })
}
