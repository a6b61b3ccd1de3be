//! One trial of short connections: who stands between client and server, what the links lose, how many connections of which kinds.
//! Sluice, HAProxy in its place, or nothing at all are put to the same trial, so that what only sluice fails is sluice's fault.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::appliance::{Mode, Service, Setup, Sluice};
use crate::capture::Taps;
use crate::closings::{Cell, Header, Load, Report, Servers};
use crate::lab::{Family, Lab};
use crate::loss::{Losses, Lost, neighbours_are_known};
use crate::process::Process;
use crate::servers::{Relayed, relay};

/// Who stands between client and server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Between {
    /// Nobody: one link, which loses at both ends.
    Nobody,
    /// HAProxy, on the kernel of the appliance's namespace.
    Haproxy,
    /// Sluice.
    Sluice(Mode),
}

impl Between {
    /// In a table and in file names.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Between::Nobody => "nobody",
            Between::Haproxy => "HAProxy",
            Between::Sluice(mode) => mode.as_str(),
        }
    }
}

/// A trial.
#[derive(Clone, Debug)]
pub struct Trial {
    /// Who stands between.
    pub between: Between,
    /// The kinds of connections.
    pub cells: Vec<Cell>,
    /// How many of each.
    pub load: Load,
    /// Of a thousand packets, so many are lost on each link in either direction; 0 leaves the links alone.
    pub per_mille: u16,
    /// Frames that each of sluice's rings holds.
    pub ring: u32,
}

/// How a trial ended.
#[derive(Debug)]
pub struct Outcome {
    /// One for each cell, in their order.
    pub reports: Vec<Report>,
    /// What was lost at each hook.
    pub lost: Vec<Lost>,
    /// Segments that the hosts' kernels sent again.
    pub repeated: u64,
    /// Spliced connections that went on in terminate mode.
    pub fallbacks: u64,
    /// Where records of failures are, when there are any.
    pub kept: Option<PathBuf>,
}

impl Trial {
    /// Rings as deep as in other tests.
    pub const RING: u32 = 8192;

    /// A name for files.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}-{}", self.between.as_str().to_lowercase(), self.per_mille)
    }

    /// Runs it. When connections fail, what both links carried of them is left in a directory of [`captures`], with sluice's log.
    ///
    /// # Panics
    /// When the lab is at fault, or a link that should lose did not.
    #[must_use]
    pub fn run(&self) -> Outcome {
        let lab = if self.between == Between::Nobody { Lab::cable() } else { Lab::two_arms() };
        // Servers outlast the clients, so that of two that wait for each other the client says so.
        let servers = Servers::start(&lab, &self.cells, self.load.patience + Duration::from_secs(1));
        let mut haproxy: Option<Process> = None;
        let mut sluice: Option<Sluice<'_>> = None;
        match self.between {
            Between::Nobody => {}
            Between::Haproxy => {
                let relayed = |cell: &Cell| Relayed {
                    port: cell.port,
                    upstream: Family::V4.server(cell.port),
                    header: cell.header == Header::V2,
                };
                let ports: Vec<_> = self.cells.iter().map(relayed).collect();
                haproxy = Some(relay(&lab, &ports));
            }
            Between::Sluice(mode) => sluice = Some(Sluice::start(&lab, &self.setup(mode)).may_fall_back()),
        }
        neighbours_are_known(&lab);
        let losses = (self.per_mille > 0).then(|| Losses::start(&lab, self.per_mille));
        let taps = Taps::all_tcp(&lab);
        let before = repeated(&lab);
        let reports = servers.load(&lab, self.load);
        let repeated = repeated(&lab) - before;
        let legs = taps.finish();
        let lost = losses.map(|losses| losses.expect_everywhere()).unwrap_or_default();
        let failed = reports.iter().any(|report| !report.failures.is_empty());
        let kept = failed.then(|| {
            let directory = captures().join(self.name());
            fs::create_dir_all(&directory)
                .unwrap_or_else(|error| panic!("cannot make {}: {error}", directory.display()));
            for report in reports.iter().filter(|report| !report.failures.is_empty()) {
                let clients: HashSet<_> = report.failures.iter().filter_map(|failure| failure.client).collect();
                let good: HashSet<_> = report.good_sources.iter().copied().collect();
                let port = report.cell.port;
                let of_failures = legs.only(
                    |client, service| service.port() == port && clients.contains(&client),
                    |source, upstream| upstream.port() == port && !good.contains(&source),
                );
                of_failures.save(&directory, &file_name(report.cell));
                let listed = report.failures.iter().map(ToString::to_string);
                let strays = report.strays.iter().map(|stray| format!("nobody's: {stray}"));
                let text: String = listed.chain(strays).map(|line| line + "\n").collect();
                write(&directory.join(format!("{}.txt", file_name(report.cell))), &text);
            }
            if let Some(sluice) = &sluice {
                write(&directory.join("metrics.txt"), &sluice.metrics().to_string());
                let log = fs::read_to_string(lab.path("connections.jsonl")).unwrap_or_default();
                write(&directory.join("connections.jsonl"), &log);
            }
            directory
        });
        let fallbacks = sluice.as_ref().map_or(0, |sluice| sluice.metrics().sum("sluice_splice_fallbacks_total", &[]));
        drop((haproxy, sluice));
        Outcome { reports, lost, repeated, fallbacks, kept }
    }

    fn setup(&self, mode: Mode) -> Setup {
        let service = |cell: &Cell| {
            let service = Service::new(&format!("c{}", cell.port), cell.port)
                .timeout("connect", "30s")
                // As long as HAProxy's (`servers::relay`): what is measured is not who gives up first.
                .timeout("unacknowledged", "300s")
                .timeout("half_closed", "300s");
            match cell.header {
                Header::None => service,
                Header::V2 => service.proxy_protocol("v2"),
            }
        };
        Setup::of(self.cells.iter().map(service)).mode(mode).ring(self.ring)
    }
}

impl Outcome {
    /// Every connection of the trial completed, in the mode that it was to be served in.
    ///
    /// # Panics
    /// When some did not. The message says which, why, and where their packets are.
    pub fn expect_all(&self, what: &str) {
        for report in &self.reports {
            eprintln!("{what}: {report}");
        }
        assert_eq!(self.fallbacks, 0, "{what}: spliced connections went on in terminate mode");
        let failed: usize = self.reports.iter().map(|report| report.failures.len()).sum();
        if failed == 0 {
            return;
        }
        let mut text = String::new();
        for report in self.reports.iter().filter(|report| !report.failures.is_empty()) {
            text += &format!("\n{report}");
            text.extend(report.failures.iter().take(5).map(|failure| format!("\n  {failure}")));
            text.extend(report.strays.iter().take(3).map(|stray| format!("\n  nobody's: {stray}")));
        }
        let kept = self.kept.as_ref().map(|kept| kept.display().to_string()).unwrap_or_default();
        panic!("{what}: {failed} connections failed, recorded in {kept}:{text}");
    }
}

/// Where records of failures go: `SLUICE_CAPTURES`, or `captures` in the target directory.
#[must_use]
pub fn captures() -> PathBuf {
    std::env::var_os("SLUICE_CAPTURES").map_or_else(
        || {
            // target/debug/deps/test-1234 -> target/captures
            let test = std::env::current_exe().expect("a test knows its own path");
            test.ancestors().nth(3).expect("tests lie in the target directory").join("captures")
        },
        PathBuf::from,
    )
}

fn file_name(cell: Cell) -> String {
    format!("{}-{}", cell.closing.as_str(), cell.header.as_str()).to_lowercase().replace(' ', "-")
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
}

/// Segments that the kernels of client and server have sent again so far.
fn repeated(lab: &Lab) -> u64 {
    let of = |ns: &crate::netns::Ns| {
        let text = ns.sh("cat /proc/net/snmp");
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp:"));
        let (names, values) = lines.next().zip(lines.next()).expect("the kernel counts TCP segments");
        let mut pairs = names.split_whitespace().zip(values.split_whitespace());
        let value = pairs.find(|(name, _)| *name == "RetransSegs").expect("repeated ones too").1;
        value.parse::<u64>().expect("a number")
    };
    of(&lab.client) + of(&lab.server)
}
