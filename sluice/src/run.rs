//! `sluice run`: the appliance from start to exit.
//!
//! Everything that can be refused is refused before a packet flows: the configuration, the cookie seed, the keys of PROXY
//! headers, sets and rules, the metrics port and the connection log come before the devices.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use sluice_config::{Config, KeyError, Mode, SeedError, SourceCheck};
use sluice_control::filters::LoadError;
use sluice_control::filters::bans::{BanFileError, configured_bans};
use sluice_control::memory::{self, Need, TooMuch};
use sluice_control::metrics::BuildInfo;
use sluice_dataplane::{Appliance, PortSummary};
use sluice_tcpstack::proxy::{KeyRing, Keys};
use thiserror::Error;

use crate::exit::{BAD_CONFIG, FAILED, complain};

/// Why the appliance did not start, or stopped without being asked to.
#[derive(Debug, Error)]
enum RunError {
    #[error(transparent)]
    Seed(#[from] SeedError),
    #[error("{0}")]
    Filters(#[from] LoadError),
    #[error("{0}")]
    Bans(#[from] BanFileError),
    #[error(transparent)]
    Memory(#[from] TooMuch),
    #[error(transparent)]
    Keys(#[from] KeyError),
    #[error("the system gives no random numbers for the cookies' seed: {0}")]
    Random(#[from] getrandom::Error),
    #[error(transparent)]
    Control(#[from] sluice_control::StartError),
    #[error(transparent)]
    Dataplane(#[from] sluice_dataplane::StartError),
}

/// Runs the appliance of the configuration at `path` until it is asked to stop.
pub fn run(path: &Path) -> ExitCode {
    let config = match sluice_config::load(path) {
        Ok(config) => Arc::new(config),
        Err(mistakes) => return complain(&mistakes, BAD_CONFIG),
    };
    match serve(path, &config) {
        Ok(()) => ExitCode::SUCCESS,
        // Its lines name their places, as those of other mistakes in the configuration do.
        Err(RunError::Filters(error)) => complain(&error, BAD_CONFIG),
        Err(RunError::Bans(error)) => complain(&error, BAD_CONFIG),
        Err(RunError::Memory(error)) => complain(&error, BAD_CONFIG),
        Err(error) => complain(&format_args!("sluice: {error}"), FAILED),
    }
}

fn serve(path: &Path, config: &Arc<Config>) -> Result<(), RunError> {
    sluice_control::logging::init(config.log.level)?;
    warn_of_sources(config);
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let filters = sluice_control::filters::load(&path.display().to_string(), config, config.runtime.cores.len())?;
    let need = Need::of(config, &filters);
    memory::check(&path.display().to_string(), config, &need, memory::available())?;
    // They are laid when the workers run.
    configured_bans(config)?;
    let control = sluice_control::prepare(config)?;
    let keys = key_ring(config)?;
    let appliance = Appliance::build(Arc::clone(config), filters.plan, seed(config)?, Arc::clone(&keys))?;
    let dpdk = sluice_dataplane::dpdk_version().trim_start_matches("DPDK ").to_owned();
    let build = BuildInfo { version: env!("CARGO_PKG_VERSION").into(), dpdk };
    // Ends when the appliance has.
    let _watch = config.proxy_keys.as_deref().map(|path| sluice_control::keys::watch(path, keys)).transpose()?;
    let watch = {
        let orders = appliance.view().orders().clone();
        sluice_control::filters::watch(Arc::clone(config), filters.sets, &filters.notes, orders)?
    };
    let control = control.start(Arc::clone(config), Arc::new(appliance.view()), &watch, build)?;
    if let Err(error) = announce(&mut io::stdout().lock(), config, &appliance.ports()) {
        tracing::warn!(%error, "cannot write the start-up lines to standard output");
    }
    let result = appliance.run();
    drop(watch);
    // Also after a fault: the connections that ended are on record.
    control.finish();
    Ok(result?)
}

/// Whoever has no gateway may not know that clients of other networks are then refused.
fn warn_of_sources(config: &Config) {
    if config.ports.iter().any(|port| port.source_check != SourceCheck::Off) {
        for family in config.families_without_gateway() {
            tracing::warn!(
                family,
                "no port has a gateway: clients that are neither on a link nor behind a route are refused (source_route); \
                 give a port a gateway, add a [[route]], or set source_check = \"off\""
            );
        }
    }
}

/// The secret of the SYN cookies: shared with other appliances through a file, or this one's own.
fn seed(config: &Config) -> Result<[u8; 32], RunError> {
    match &config.cookies.seed_file {
        Some(path) => Ok(sluice_config::read_seed(path)?),
        None => {
            let mut seed = [0; 32];
            getrandom::fill(&mut seed)?;
            Ok(seed)
        }
    }
}

/// The keys that sign PROXY headers; none without a file.
fn key_ring(config: &Config) -> Result<Arc<KeyRing>, RunError> {
    let keys = config.proxy_keys.as_deref().map(sluice_config::read_proxy_keys).transpose()?;
    Ok(Arc::new(KeyRing::new(keys.as_ref().map(Keys::new).unwrap_or_default())))
}

/// One line a port, service and worker; the last line is what scripts wait for.
fn announce(out: &mut impl Write, config: &Config, ports: &[PortSummary]) -> io::Result<()> {
    for port in ports {
        let [a, b, c, d, e, f] = port.mac;
        writeln!(
            out,
            "port {}: {} ({}), MAC {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}, MTU {}, queues {}, {}",
            port.name, port.device, port.driver, port.mtu, port.queues, port.addresses,
        )?;
    }
    for service in &config.services {
        writeln!(
            out,
            "service {}: {} -> {}, {}, proxy_protocol {}, connect {}",
            service.name,
            list(&service.listen),
            list(service.upstreams.iter().map(|upstream| upstream.address)),
            service.mode,
            service.proxy_protocol,
            service.connect,
        )?;
        if service.mode == Mode::Splice {
            writeln!(out, "service {}: SYN-ACKs promise {}", service.name, service.promise)?;
        }
    }
    for (worker, core) in config.runtime.cores.iter().enumerate() {
        writeln!(out, "worker {worker}: CPU {core}")?;
    }
    if let Some(metrics) = &config.metrics {
        writeln!(out, "metrics: http://{}/metrics", metrics.listen)?;
    }
    writeln!(out, "sluice: ready")?;
    out.flush()
}

fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"
[runtime]
cores = [1, 2]
[[port]]
name = "wan"
device = "net_null0"
addresses = ["198.51.100.2/24", "2001:db8::2/64"]
gateway = ["198.51.100.1"]
[[service]]
name = "trading"
listen = ["198.51.100.10:443", "[2001:db8::10]:443"]
proxy_protocol = "v2"
[[service.upstream]]
address = "198.51.100.5:443"
[metrics]
"#;

    #[test]
    fn start_up_lines_name_every_port_with_its_mac_service_and_worker_and_end_in_ready() {
        let config = sluice_config::parse("test.toml", CONFIG).unwrap();
        let port = PortSummary {
            name: "wan".into(),
            device: "net_null0".into(),
            driver: "net_null".into(),
            mac: [0x52, 0x54, 0, 0x12, 0x34, 0xff],
            queues: 2,
            mtu: 1_500,
            addresses: "198.51.100.2/24, 2001:db8::2/64".into(),
        };
        let mut out = Vec::new();
        announce(&mut out, &config, &[port]).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "port wan: net_null0 (net_null), MAC 52:54:00:12:34:ff, MTU 1500, queues 2, 198.51.100.2/24, 2001:db8::2/64\n\
             service trading: 198.51.100.10:443, [2001:db8::10]:443 -> 198.51.100.5:443, terminate, proxy_protocol v2, \
             connect on-accept\n\
             worker 0: CPU 1\n\
             worker 1: CPU 2\n\
             metrics: http://127.0.0.1:9150/metrics\n\
             sluice: ready\n"
        );
    }

    #[test]
    fn keys_are_the_files_or_none() {
        let mut config = sluice_config::parse("test.toml", CONFIG).unwrap();
        assert_eq!(key_ring(&config).unwrap().current().signer(), None);
        config.proxy_keys = Some("/nonexistent/keys".into());
        let error = key_ring(&config).unwrap_err().to_string();
        assert!(error.starts_with("proxy_keys.file: /nonexistent/keys"), "{error}");
    }

    #[test]
    fn seed_is_the_files_or_a_new_one_each_start() {
        let mut config = sluice_config::parse("test.toml", CONFIG).unwrap();
        assert_ne!(seed(&config).unwrap(), seed(&config).unwrap());
        config.cookies.seed_file = Some("/nonexistent/seed".into());
        let error = seed(&config).unwrap_err().to_string();
        assert!(error.starts_with("cookies.seed_file: /nonexistent/seed"), "{error}");
    }
}
