//! `[filters]` with its limits per source, `[bans]` and `[sample]`.

use std::path::PathBuf;

use ipnet::IpNet;

use super::{absolute_path, optional};
use crate::address;
use crate::error::{Diagnostics, Located, quoted};
use crate::model::{Filters, Measure, Rate, SourceLimits};
use crate::read::Section;

pub(super) const FILTERS: &[&str] =
    &["deny", "allow", "icmp_rate", "syn_ack_ceiling", "records", "per_address", "per_subnet", "per_site"];
pub(super) const SOURCE_LIMITS: &[&str] = &["syns", "flowless_acks", "connections", "packets", "bytes"];
pub(super) const BANS: &[&str] = &["file", "capacity"];
pub(super) const SAMPLE: &[&str] = &["file", "rate", "snap", "max_size"];

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
        section.list(key, diag).iter().filter_map(|item| item.parsed(diag, address::prefix)).collect()
    };
    let ceiling = match section.get("syn_ack_ceiling") {
        None => default.syn_ack_ceiling,
        Some(entry) if entry.as_text() == Some("off") => None,
        Some(entry) if matches!(entry.as_text(), Some("none" | "no" | "")) => {
            let found = format!("{} is not a rate", quoted(entry.as_text().unwrap_or_default()));
            diag.wrong(
                &entry.located(()),
                found,
                "write \"off\" for no ceiling, or a rate as in \"20000/s burst 40000\"",
            );
            None
        }
        Some(entry) => entry.rate(Measure::Packets, diag),
    };
    FiltersDraft {
        deny: prefixes("deny", diag),
        allow: prefixes("allow", diag),
        rest: Filters {
            deny: Vec::new(),
            allow: Vec::new(),
            icmp_rate: section.integer("icmp_rate", 0..=1_000_000_u32, diag).map_or(default.icmp_rate, |n| n.value),
            syn_ack_ceiling: ceiling,
            records: section.integer("records", 1_024..=MAX_RECORDS, diag).map_or(default.records, |n| n.value),
            per_address: source_limits(&section, "per_address", diag),
            per_subnet: source_limits(&section, "per_subnet", diag),
            per_site: source_limits(&section, "per_site", diag),
        },
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
        capacity: section.integer("capacity", 1..=MAX_RECORDS, diag).map_or(1_000_000, |n| n.value),
    })
}

pub(super) fn sample(root: &Section<'_>, diag: &mut Diagnostics<'_>) -> Option<SampleDraft> {
    let section = optional(root, "sample", SAMPLE, diag)?;
    let file = section.require("file", "\"/var/log/sluice/dropped.pcapng\"", diag);
    let file = file.and_then(|entry| entry.parsed(diag, absolute_path));
    let rate = section.rate("rate", Measure::Packets, diag).unwrap_or(const { Rate::per_second(100) });
    let snap = section.integer("snap", 64..=1_600_u16, diag).map_or(256, |n| n.value);
    let max_size = section.size("max_size", SAMPLE_SIZES, diag).unwrap_or(64 << 20);
    Some(SampleDraft { file: file?, rate, snap, max_size })
}
