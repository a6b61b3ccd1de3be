//! The most memory that a configuration can take, and what the machine has.

use std::fmt;
use std::fs;
use std::path::Path;

use sluice_config::{Config, Hugepages, Service, show_size};
use sluice_filters::engine::Engine;
use sluice_tcpstack::memory::{Most, most, of_service};
use thiserror::Error;

use crate::filters::Loaded;

/// Octets of a packet buffer in the pool, headers included.
const MBUF: u64 = 2_432;
/// The program, DPDK and the control plane.
const BASE: u64 = 64 << 20;

/// What a configuration can take, octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    stacks: Most,
    /// Limits, bans and proved clients of all workers, and the sets twice: they are exchanged.
    filters: u64,
    /// Packet buffers that are not in hugepages.
    packets: u64,
}

impl Need {
    /// Of a configuration with its filters.
    #[must_use]
    pub fn of(config: &Config, filters: &Loaded) -> Need {
        let workers = config.runtime.cores.len() as u64;
        let plan = filters.plan.memory() as u64;
        let engine = Engine::memory_of(&filters.plan) as u64;
        let off = config.runtime.hugepages == Hugepages::Off;
        Need {
            stacks: most(config),
            filters: workers * engine + 2 * plan,
            packets: if off { u64::from(config.runtime.mbufs) * MBUF } else { 0 },
        }
    }

    /// All of it.
    #[must_use]
    pub fn total(&self) -> u64 {
        let Most { terminated, spliced, tables } = self.stacks;
        terminated + spliced + tables + self.filters + self.packets + BASE
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Most { terminated, spliced, tables } = self.stacks;
        write!(
            f,
            "{} at most: {} for terminated connections, {} for spliced ones, {} for tables, {} for filters",
            about(self.total()),
            about(terminated),
            about(spliced),
            about(tables),
            about(self.filters),
        )?;
        if self.packets > 0 { write!(f, ", {} for packets", about(self.packets)) } else { Ok(()) }
    }
}

/// A size to be read: in the largest unit of which it has ten or more.
fn about(octets: u64) -> String {
    let unit = [1_u64 << 30, 1 << 20, 1 << 10].into_iter().find(|unit| octets >= 10 * unit).unwrap_or(1);
    show_size(octets / unit * unit)
}

/// What there is for it: the machine's memory, or as much of it as this process may have, less what hugepages take.
#[must_use]
pub fn available() -> Option<u64> {
    available_in(Path::new("/"))
}

fn available_in(root: &Path) -> Option<u64> {
    let read = |path: &str| fs::read_to_string(root.join(path)).ok();
    let text = read("proc/meminfo")?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let total = field("MemTotal")? << 10;
    let hugepages = field("Hugetlb").map_or(0, |kib| kib << 10);
    // A container's own bound (cgroup v2); "max" is none.
    let bound = read("sys/fs/cgroup/memory.max").and_then(|text| text.trim().parse::<u64>().ok());
    Some(total.saturating_sub(hugepages).min(bound.unwrap_or(u64::MAX)))
}

/// A configuration can take more memory than there is.
#[derive(Debug, Error)]
#[error(
    "{file}: the configuration can take {need}; this machine has {} besides hugepages; lower limits.connections or buffer{}",
    about(*available),
    hint.as_deref().unwrap_or_default()
)]
pub struct TooMuch {
    file: String,
    need: Need,
    available: u64,
    hint: Option<String>,
}

/// Checks that what `config`, read from `file`, can take is there. Where the machine does not say what it has, all is.
///
/// # Errors
/// [`TooMuch`].
pub fn check(file: &str, config: &Config, need: &Need, available: Option<u64>) -> Result<(), TooMuch> {
    let Some(available) = available.filter(|available| need.total() > *available) else { return Ok(()) };
    let takes = |service: &&Service| {
        let (terminated, spliced) = of_service(service);
        terminated + spliced
    };
    let hint = config.services.iter().max_by_key(takes).map(|service| {
        format!(
            " (service {}: {} connections with buffers of {} take {})",
            service.name,
            service.limits.connections,
            show_size(service.buffer as u64),
            about(takes(&service)),
        )
    });
    Err(TooMuch { file: file.to_owned(), need: *need, available, hint })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn need(connections: u32, mode: &str) -> (Config, Need) {
        let text = format!(
            "[runtime]\ncores = [1, 2]\n[[port]]\nname = \"p\"\ndevice = \"net_null0\"\naddresses = [\"198.51.100.2/24\"]\n\
             [[service]]\nname = \"web\"\nmode = \"{mode}\"\nlisten = [\"198.51.100.10:443\"]\n\
             limits = {{ connections = {connections} }}\n[[service.upstream]]\naddress = \"198.51.100.5:80\"\n"
        );
        let config = sluice_config::parse("t.toml", &text).unwrap();
        let loaded = crate::filters::load("t.toml", &config, 2).unwrap();
        let need = Need::of(&config, &loaded);
        (config, need)
    }

    #[test]
    fn a_hundred_thousand_terminated_connections_take_26_gb_and_spliced_ones_a_fraction() {
        let (config, terminated) = need(100_000, "terminate");
        assert!((26_000_000_000..29_000_000_000).contains(&terminated.total()), "{terminated}");
        let error = check("t.toml", &config, &terminated, Some(8 << 30)).unwrap_err().to_string();
        assert!(error.starts_with("t.toml: the configuration can take 25GiB at most: 24GiB for terminated"), "{error}");
        assert!(error.contains("this machine has 8GiB besides hugepages; lower limits.connections"), "{error}");
        assert!(error.contains("service web: 100000 connections with buffers of 65535B take 24GiB"), "{error}");
        assert!(check("t.toml", &config, &terminated, Some(32 << 30)).is_ok());
        assert!(check("t.toml", &config, &terminated, None).is_ok());
        let (_, spliced) = need(100_000, "splice");
        assert!(spliced.total() < 2 << 30, "{spliced}");
    }

    #[test]
    fn what_there_is_is_the_machines_less_hugepages_or_the_containers() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(available_in(root.path()), None);
        write("proc/meminfo", "MemTotal:       8000000 kB\nMemFree:  1 kB\nHugetlb:         1000000 kB\n");
        assert_eq!(available_in(root.path()), Some(7_000_000 << 10));
        write("sys/fs/cgroup/memory.max", "max\n");
        assert_eq!(available_in(root.path()), Some(7_000_000 << 10));
        write("sys/fs/cgroup/memory.max", "1073741824\n");
        assert_eq!(available_in(root.path()), Some(1 << 30));
        assert!(available().is_some());
    }
}
