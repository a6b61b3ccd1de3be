//! A `sluice` process in a lab: its configuration, its metrics, its connection log.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::ExitStatus;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::Signal;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::lab::{Arms, CLIENT4, CLIENT6, Family, LAN4, LAN6, Lab, WAN4, WAN6};
use crate::metrics::Metrics;
use crate::process::{Process, Stream};

/// Where the lab's sluice offers its metrics, inside the appliance's namespace.
pub const METRICS: &str = "127.0.0.1:9150";

/// The release build of sluice: `SLUICE_BIN`, or beside this test's own build.
///
/// # Panics
/// When it was not built.
#[must_use]
pub fn binary() -> String {
    let path = std::env::var_os("SLUICE_BIN").map_or_else(
        || {
            // target/debug/deps/test-1234 -> target/release/sluice
            let test = std::env::current_exe().expect("a test knows its own path");
            test.ancestors().nth(3).expect("tests lie in the target directory").join("release/sluice")
        },
        PathBuf::from,
    );
    assert!(path.is_file(), "{} is missing: run `cargo build --release -p sluice` first", path.display());
    path.to_str().expect("a UTF-8 path").to_owned()
}

/// A port of the server on which nobody ever listens.
pub const NOBODY: u16 = 9;

/// How a service serves its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// The client's TCP ends in the appliance.
    Terminate,
    /// The client's segments are rewritten and forwarded.
    Splice,
}

impl Mode {
    /// Its name in a configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::Terminate => "terminate",
            Mode::Splice => "splice",
        }
    }
}

/// One `[[service]]` of a configuration.
#[derive(Clone, Debug)]
pub struct Service {
    name: String,
    mode: Mode,
    listen: Vec<SocketAddr>,
    keys: Vec<(String, String)>,
    promise: Vec<(String, String)>,
    timeouts: Vec<(String, String)>,
    limits: Vec<(String, String)>,
    upstreams: Vec<SocketAddr>,
}

impl Service {
    /// A raw service on `port` of the service addresses of both families, relayed to the same port of the server over IPv4.
    #[must_use]
    pub fn new(name: &str, port: u16) -> Service {
        Service {
            name: name.to_owned(),
            mode: Mode::Terminate,
            listen: Family::BOTH.map(|family| family.service(port)).into(),
            keys: Vec::new(),
            promise: Vec::new(),
            timeouts: Vec::new(),
            limits: Vec::new(),
            upstreams: vec![Family::V4.server(port)],
        }
    }

    /// Replaces the upstreams.
    #[must_use]
    pub fn upstreams(mut self, upstreams: &[SocketAddr]) -> Service {
        self.upstreams = upstreams.to_vec();
        self
    }

    /// Sets `mode`.
    #[must_use]
    pub fn mode(self, mode: Mode) -> Service {
        Service { mode, ..self }
    }

    /// Sets `mode = "splice"`.
    #[must_use]
    pub fn splice(self) -> Service {
        self.mode(Mode::Splice)
    }

    /// Sets `proxy_protocol`.
    #[must_use]
    pub fn proxy_protocol(self, version: &str) -> Service {
        self.key("proxy_protocol", &format!("\"{version}\""))
    }

    /// Sets a key of the service; `value` is TOML.
    #[must_use]
    pub fn key(mut self, key: &str, value: &str) -> Service {
        self.keys.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Sets a key of `[service.promise]` anew; `value` is TOML.
    #[must_use]
    pub fn promise(mut self, key: &str, value: &str) -> Service {
        self.promise.retain(|(known, _)| known != key);
        self.promise.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Splice mode that promises what Linux accepts, and asks no upstream whether it does.
    #[must_use]
    pub fn splice_pinned(self) -> Service {
        // Between the families, segments are as small as IPv6's.
        let pinned =
            [("mss", "1440"), ("window_scale", "7"), ("sack", "true"), ("timestamps", "true"), ("probe", "\"0s\"")];
        pinned.into_iter().fold(self.splice(), |service, (key, value)| service.promise(key, value))
    }

    /// Sets a key of `[service.timeouts]`.
    #[must_use]
    pub fn timeout(mut self, key: &str, value: &str) -> Service {
        self.timeouts.push((key.to_owned(), format!("\"{value}\"")));
        self
    }

    /// Has an end asked whether it is there: `end` is `client` or `upstream`.
    #[must_use]
    pub fn keepalive(self, end: &str, interval: &str, count: u8) -> Service {
        self.key("keepalive", &format!("{{ {end} = {{ interval = \"{interval}\", count = {count} }} }}"))
    }

    /// Sets a key of `[service.limits]`.
    #[must_use]
    pub fn limit(mut self, key: &str, value: u32) -> Service {
        self.limits.push((key.to_owned(), value.to_string()));
        self
    }

    /// Whether probes tell sluice what it may promise.
    fn learns(&self) -> bool {
        let probes = !self.promise.iter().any(|(key, value)| key == "probe" && value == "\"0s\"");
        self.mode == Mode::Splice && probes && self.real_upstreams().next().is_some()
    }

    /// Those on the server on whose port somebody may listen.
    fn real_upstreams(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        let real = |upstream: &SocketAddr| {
            let port = upstream.port();
            port != NOBODY && Family::BOTH.iter().any(|family| family.server(port) == *upstream)
        };
        self.upstreams.iter().copied().filter(real)
    }

    /// With so many connections at once, unless it says otherwise.
    fn toml(&self, connections: usize) -> String {
        let mut text = format!("\n[[service]]\nname = \"{}\"\nlisten = {:?}\n", self.name, strings(&self.listen));
        let _ = writeln!(text, "mode = \"{}\"", self.mode.as_str());
        for (key, value) in &self.keys {
            let _ = writeln!(text, "{key} = {value}");
        }
        let mut limits = self.limits.clone();
        if !limits.iter().any(|(key, _)| key == "connections") {
            limits.push(("connections".to_owned(), connections.to_string()));
        }
        for (table, keys) in [("promise", &self.promise), ("timeouts", &self.timeouts), ("limits", &limits)] {
            if !keys.is_empty() {
                let _ = writeln!(text, "[service.{table}]");
            }
            for (key, value) in keys {
                let _ = writeln!(text, "{key} = {value}");
            }
        }
        for upstream in &self.upstreams {
            let _ = writeln!(text, "[[service.upstream]]\naddress = \"{upstream}\"");
        }
        text
    }
}

fn strings(addresses: &[SocketAddr]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}

/// A configuration for a lab, with the lab's ports and addresses.
#[derive(Clone, Debug)]
pub struct Setup {
    through: Vec<String>,
    workers: u8,
    hugepages: String,
    drain: String,
    connections: Option<String>,
    runtime: String,
    filters: String,
    tables: String,
    routes: String,
    wan_device: Option<(String, String)>,
    wan_vlan: u16,
    ring: u32,
    source_check: Option<String>,
    services: Vec<Service>,
}

impl Setup {
    /// One worker, no services yet.
    #[must_use]
    pub fn new() -> Setup {
        Setup {
            through: Vec::new(),
            workers: 1,
            hugepages: "off".to_owned(),
            drain: "5s".to_owned(),
            connections: None,
            // Plenty for a lab, and quicker to set up than the default.
            runtime: "mbufs = 16383".to_owned(),
            filters: String::new(),
            tables: String::new(),
            routes: String::new(),
            wan_device: None,
            wan_vlan: 0,
            // Deep enough that a flood's bursts wait in it while the one core is busy elsewhere.
            ring: 8192,
            source_check: None,
            services: Vec::new(),
        }
    }

    /// One worker and these services.
    #[must_use]
    pub fn of(services: impl IntoIterator<Item = Service>) -> Setup {
        Setup { services: services.into_iter().collect(), ..Setup::new() }
    }

    /// Sets every service's `mode`.
    #[must_use]
    pub fn mode(self, mode: Mode) -> Setup {
        Setup { services: self.services.into_iter().map(|service| service.mode(mode)).collect(), ..self }
    }

    /// Starts sluice through another program: `env` with variables for it.
    #[must_use]
    pub fn through(self, program_and_arguments: &[&str]) -> Setup {
        Setup { through: program_and_arguments.iter().map(ToString::to_string).collect(), ..self }
    }

    /// Sets the number of workers, 1 or 2.
    #[must_use]
    pub fn workers(self, workers: u8) -> Setup {
        Setup { workers, ..self }
    }

    /// Sets `runtime.hugepages`.
    #[must_use]
    pub fn hugepages(self, value: &str) -> Setup {
        Setup { hugepages: value.to_owned(), ..self }
    }

    /// Sets `runtime.drain`.
    #[must_use]
    pub fn drain(self, value: &str) -> Setup {
        Setup { drain: value.to_owned(), ..self }
    }

    /// Sets `log.connections` instead of a file in the lab.
    #[must_use]
    pub fn connections(self, value: &str) -> Setup {
        Setup { connections: Some(value.to_owned()), ..self }
    }

    /// Lines for `[runtime]` instead of the lab's smaller packet pool.
    #[must_use]
    pub fn runtime(self, lines: &str) -> Setup {
        Setup { runtime: lines.to_owned(), ..self }
    }

    /// Adds a `[filters]` table with these lines.
    #[must_use]
    pub fn filters(self, lines: &str) -> Setup {
        Setup { filters: format!("\n[filters]\n{lines}\n"), ..self }
    }

    /// Adds these lines at the end: whole tables.
    #[must_use]
    pub fn tables(self, lines: &str) -> Setup {
        Setup { tables: format!("\n{lines}\n"), ..self }
    }

    /// Adds a route to `prefix` by `via` on the servers' side.
    #[must_use]
    pub fn route(self, prefix: &str, via: IpAddr) -> Setup {
        let port = "lan";
        Setup {
            routes: format!("{}\n[[route]]\nto = \"{prefix}\"\nvia = \"{via}\"\nport = \"{port}\"\n", self.routes),
            ..self
        }
    }

    /// Puts another device behind port `wan`.
    #[must_use]
    pub fn wan_device(self, device: &str, args: &str) -> Setup {
        Setup { wan_device: Some((device.to_owned(), args.to_owned())), ..self }
    }

    /// Sets port `wan`'s VLAN.
    #[must_use]
    pub fn wan_vlan(self, vlan: u16) -> Setup {
        Setup { wan_vlan: vlan, ..self }
    }

    /// Sets how many frames each of the ports' rings holds.
    #[must_use]
    pub fn ring(self, frames: u32) -> Setup {
        Setup { ring: frames, ..self }
    }

    /// Sets both ports' `source_check`.
    #[must_use]
    pub fn source_check(self, check: &str) -> Setup {
        Setup { source_check: Some(check.to_owned()), ..self }
    }

    /// The file's text for `lab`.
    ///
    /// # Panics
    /// For a cable: there is no appliance on it.
    #[must_use]
    pub fn toml(&self, lab: &Lab) -> String {
        // The test machines have two cores. One worker leaves core 0 to everything else; two workers share it.
        let cores = if self.workers == 1 { "[1]" } else { "[0, 1]" };
        let mut text = format!(
            "[runtime]\ncores = {cores}\ncontrol_core = 0\nhugepages = \"{}\"\ndrain = \"{}\"\nidle = \"sleep\"\nstate = {:?}\n{}\n",
            self.hugepages,
            self.drain,
            lab.path("state"),
            self.runtime
        );
        let wan = [format!("{WAN4}/24"), format!("{WAN6}/64")];
        let lan = [format!("{LAN4}/24"), format!("{LAN6}/64")];
        let gateway = [CLIENT4.to_string(), CLIENT6.to_string()];
        match lab.arms {
            Arms::Two => {
                self.port(&mut text, "wan", 0, &wan, &gateway);
                self.port(&mut text, "lan", 1, &lan, &[]);
            }
            Arms::One => self.port(&mut text, "wan", 0, &[wan, lan].concat(), &gateway),
            Arms::Cable => panic!("a cable has no appliance"),
        }
        text += &self.routes;
        for service in &self.services {
            // Enough for crowds, and all together no more than a small machine's memory holds.
            text += &service.toml((16_000 / self.services.len()).max(500));
        }
        text += &self.filters;
        text += &self.tables;
        let connections = self.connections.clone().unwrap_or_else(|| log_path(lab));
        let _ = write!(
            text,
            "\n[metrics]\nlisten = \"{METRICS}\"\n\n[log]\nlevel = \"info\"\nconnections = \"{connections}\"\n"
        );
        text
    }

    /// Listeners for the upstreams of spliced services on the server, where nobody listens yet. They never accept.
    fn stand_ins(&self, lab: &Lab) -> Vec<TcpListener> {
        let upstreams = self.services.iter().filter(|service| service.learns()).flat_map(Service::real_upstreams);
        // An error: somebody does listen there.
        upstreams.filter_map(|upstream| lab.server.try_listen(upstream).ok()).collect()
    }

    fn port(&self, text: &mut String, name: &str, index: u8, addresses: &[String], gateway: &[String]) {
        let (device, args) = self.wan_device.clone().filter(|_| name == "wan").unwrap_or_else(|| {
            let (queues, ring) = (self.workers, self.ring);
            (
                format!("net_af_packet{index}"),
                format!("iface=p{index},qpairs={queues},blocksz=65536,framesz=2048,framecnt={ring}"),
            )
        });
        let _ = write!(
            text,
            "\n[[port]]\nname = \"{name}\"\ndevice = \"{device}\"\nargs = \"{args}\"\naddresses = {addresses:?}\n"
        );
        if self.wan_vlan != 0 && name == "wan" {
            let _ = writeln!(text, "vlan = {}", self.wan_vlan);
        }
        if let Some(check) = &self.source_check {
            let _ = writeln!(text, "source_check = \"{check}\"");
        }
        if !gateway.is_empty() {
            let _ = writeln!(text, "gateway = {gateway:?}");
        }
    }
}

impl Default for Setup {
    fn default() -> Setup {
        Setup::new()
    }
}

fn log_path(lab: &Lab) -> String {
    lab.path("connections.jsonl")
}

/// One line of the connection log.
#[derive(Clone, Debug, Deserialize)]
pub struct Record {
    /// When the client was validated.
    #[serde(deserialize_with = "time")]
    pub opened: SystemTime,
    /// When the session ended.
    #[serde(deserialize_with = "time")]
    pub ended: SystemTime,
    /// The client as sluice saw it.
    pub client: SocketAddr,
    /// The proxy that named it.
    pub via: Option<SocketAddr>,
    /// Where it connected to.
    pub listen: SocketAddr,
    /// Sluice's address towards the upstream.
    pub source: Option<SocketAddr>,
    /// The upstream.
    pub upstream: Option<SocketAddr>,
    /// The service's name.
    pub service: String,
    /// The worker that held it.
    pub worker: u32,
    /// Payload octets relayed to the upstream.
    pub bytes_to_upstream: u64,
    /// Payload octets relayed to the client.
    pub bytes_to_client: u64,
    /// How long it lived.
    pub duration_ms: f64,
    /// How long the dial took.
    pub connect_ms: Option<f64>,
    /// Why it ended.
    pub cause: String,
    /// Whose doing that was.
    pub blame: String,
}

fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_rfc3339(&text).map_err(D::Error::custom)
}

/// A running sluice.
#[derive(Debug)]
pub struct Sluice<'lab> {
    lab: &'lab Lab,
    process: Process,
    /// Spliced connections are spliced to their end.
    keeps_promises: bool,
}

impl<'lab> Sluice<'lab> {
    /// Starts sluice and waits until it serves. Servers of spliced services need not be up yet: somebody else listens in
    /// their place while sluice looks at its upstreams, unless their port is [`NOBODY`].
    ///
    /// # Panics
    /// When it does not; the message holds what it printed.
    #[must_use]
    pub fn start(lab: &'lab Lab, setup: &Setup) -> Sluice<'lab> {
        let stand_ins = setup.stand_ins(lab);
        let mut sluice = Sluice::launch(lab, setup);
        if let Err(output) = sluice.process.wait_for_line("sluice: ready", Duration::from_secs(40)) {
            panic!("sluice did not come up: {output}");
        }
        sluice.learn(setup);
        drop(stand_ins);
        sluice
    }

    /// Waits until first probes have told sluice what each spliced service may promise, for as long as probes take.
    fn learn(&self, setup: &Setup) {
        let deadline = Instant::now() + Duration::from_millis(1200);
        let asking = setup.services.iter().filter(|service| service.learns());
        for service in asking {
            let labels = [("service", service.name.as_str()), ("result", "answered")];
            let wanted = service.real_upstreams().count() as u64;
            let unknown = || self.metrics().sum("sluice_probes_total", &labels) < wanted;
            while unknown() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(20));
            }
        }
    }

    /// Starts sluice without waiting for anything.
    #[must_use]
    pub fn launch(lab: &'lab Lab, setup: &Setup) -> Sluice<'lab> {
        let file = lab.write("sluice.toml", &setup.toml(lab));
        let binary = binary();
        let command: Vec<&str> =
            setup.through.iter().map(String::as_str).chain([binary.as_str(), "run", "-c", &file]).collect();
        let process = Process::start(&lab.appliance, command[0], &command[1..]);
        Sluice { lab, process, keeps_promises: true }
    }

    /// Spliced connections may fall back to terminate mode. Otherwise one that does is an error, or tests of splice mode could test
    /// the other one unawares.
    #[must_use]
    pub fn may_fall_back(mut self) -> Sluice<'lab> {
        self.keeps_promises = false;
        self
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Scrapes its metrics.
    ///
    /// # Panics
    /// When they cannot be had; the message holds sluice's output.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        let url = format!("http://{METRICS}/metrics");
        let scraped = self.lab.appliance.output("curl", &["-sSf", "--max-time", "5", &url]);
        assert!(
            scraped.status.success(),
            "no metrics: {}\n{}",
            String::from_utf8_lossy(&scraped.stderr),
            self.process.text()
        );
        Metrics::parse(&String::from_utf8_lossy(&scraped.stdout)).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Scrapes until `good` holds.
    ///
    /// # Panics
    /// When it does not hold within `patience`; the message holds the last scrape.
    pub fn metrics_when(&self, what: &str, patience: Duration, good: impl Fn(&Metrics) -> bool) -> Metrics {
        let deadline = Instant::now() + patience;
        loop {
            let metrics = self.metrics();
            if good(&metrics) {
                return metrics;
            }
            assert!(Instant::now() < deadline, "{what}: not within {patience:?}\n{metrics}");
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// All ended connections so far, from the log file.
    ///
    /// # Panics
    /// When a line is not the JSON it should be.
    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        let text = std::fs::read_to_string(log_path(self.lab)).unwrap_or_default();
        // A line still being written has no newline yet.
        let complete = text.rfind('\n').map_or("", |end| &text[..end]);
        complete
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("connection log: {error}: {line}")))
            .collect()
    }

    /// The record of the connection from `client`, when it has ended.
    ///
    /// # Panics
    /// When there is none within `patience`.
    #[must_use]
    pub fn record_of(&self, client: SocketAddr, patience: Duration) -> Record {
        let deadline = Instant::now() + patience;
        loop {
            let records = self.records();
            if let Some(record) = records.iter().find(|record| record.client == client) {
                return record.clone();
            }
            assert!(
                Instant::now() < deadline,
                "no record of {client} within {patience:?}; the log has {records:#?}\n{}",
                self.process.text()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Asks it to end and waits.
    ///
    /// # Panics
    /// When it is not gone after `patience`.
    pub fn terminate(&mut self, patience: Duration) -> ExitStatus {
        self.process.signal(Signal::SIGTERM);
        self.process.wait(patience)
    }

    /// Waits until it has logged a line that holds all of `parts`.
    ///
    /// # Panics
    /// When it has not within `patience`; the message holds its output.
    pub fn logged(&self, parts: &[&str], patience: Duration) {
        let deadline = Instant::now() + patience;
        while !self.process.lines(Stream::Err).iter().any(|line| parts.iter().all(|part| line.contains(part))) {
            assert!(Instant::now() < deadline, "no line with {parts:?} within {patience:?}\n{}", self.process.text());
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Lines it printed to standard output.
    #[must_use]
    pub fn stdout(&self) -> Vec<String> {
        self.process.lines(Stream::Out)
    }
}

impl Drop for Sluice<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("sluice printed:\n{}", self.process.text());
        } else if self.keeps_promises && self.process.ended().is_none() {
            let metrics = self.metrics();
            assert_eq!(
                metrics.sum("sluice_splice_fallbacks_total", &[]),
                0,
                "sessions went on in terminate mode\n{metrics}"
            );
        }
    }
}

/// Runs `sluice check` on a file.
#[must_use]
pub fn check(lab: &Lab, file: &str) -> std::process::Output {
    lab.appliance.output(&binary(), &["check", "-c", file])
}
